"""The control plane's exceptions. The type says what the caller can do.

WindlassError
├── InvalidInput        the user must change a file or an argument; carries every problem found
├── SettingsError       the operator's own configuration is wrong; refuse to start
├── RetryLater          the world was busy or changed under us; the queue tries again
│   └── ApplyConflict   another writer owns a field or the object changed; observe again first
├── ClusterUnavailable  no connection or no permission; nothing was changed
└── ApplyRejected       the cluster understood and refused (schema, admission, quota); retrying alone cannot help
"""

from __future__ import annotations

import dataclasses


class WindlassError(Exception):
    """Base of everything this package raises on purpose."""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one field of one document."""

    path: str
    """Field path, `spec.scaling.maxReplicas`; empty for the document as a whole."""
    found: str
    expected: str
    source: str = ""
    """File name, empty when the object did not come from a file."""
    line: int = 0
    """1-based line in `source`; 0 when unknown."""
    subject: str = ""
    """`InferenceService team-a/chat`; empty when the document could not be identified."""

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}: " if self.source else ""
        subject = f"{self.subject}: " if self.subject else ""
        path = f"{self.path}: " if self.path else ""
        return f"{where}{subject}{path}expected {self.expected}, found {self.found}"


class InvalidInput(WindlassError):
    """The input cannot be used; `problems` lists every reason."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class SettingsError(WindlassError):
    """A process setting is wrong; the message names key, value and accepted range."""


class RetryLater(WindlassError):
    """Trying again can succeed."""

    def __init__(self, message: str, after_s: float = 1.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class ApplyConflict(RetryLater):
    """Another writer got there first; observe again, then decide again."""


class ClusterUnavailable(WindlassError):
    """The cluster cannot be reached or refuses us; nothing was changed."""


class ApplyRejected(WindlassError):
    """The cluster refused one object for what it says; carries the reason for the owner's status."""

    def __init__(self, message: str, reason: str = "Rejected") -> None:
        super().__init__(message)
        self.reason = reason

"""Take a request target apart: `/{namespace}/{service}/v1/...`.

Pure. Refuses every spelling that two parsers could read differently.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Final

_DNS_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TARGET_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:@!$&'()*+,;=%/?-]*")
_FORBIDDEN_IN_SEGMENT: Final = re.compile(r"[/\\%\x00-\x20\x7f]")


class TargetError(ValueError):
    """The request target is ambiguous or hostile; answered 400."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One request target, split."""

    namespace: str
    service: str
    path_and_query: str
    """What the replica is asked for, still encoded: `/v1/chat/completions`, `/v1/models?limit=2`."""


def parse_target(raw: str) -> Target | None:
    """Split a raw request target; None when it names no service. Raises TargetError."""
    if not _TARGET_CHARACTERS.fullmatch(raw):
        raise TargetError("the path holds a character that must be percent-encoded")
    path, _, query = raw.partition("?")
    segments = path.split("/")
    if segments[0]:
        raise TargetError("the request target must be a path")
    for segment in segments[1:]:
        _refuse_ambiguous(segment)
    if len(segments) < 5 or segments[3] != "v1":
        return None
    namespace, service = segments[1], segments[2]
    if not (_DNS_LABEL.fullmatch(namespace) and _DNS_LABEL.fullmatch(service)):
        return None
    rest = "/" + "/".join(segments[3:])
    return Target(namespace, service, f"{rest}?{query}" if query else rest)


def _refuse_ambiguous(segment: str) -> None:
    decoded = urllib.parse.unquote(segment, errors="replace")
    if decoded in ("", ".", ".."):
        raise TargetError("the path holds an empty or relative segment")
    if _FORBIDDEN_IN_SEGMENT.search(decoded):
        raise TargetError("the path holds an encoded slash, percent sign, space or control character")

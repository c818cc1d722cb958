"""What TensorRT says while it builds. Its errors arrive here, not as exceptions."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

logger = logging.getLogger(__name__)

_NOISE: Final = (
    "CUDA driver version",
    "CUDA initialization failure",
    "Unable to determine GPU memory usage",
    "CUDA error 35",
)
"""Said on machines without a GPU, where nothing is wrong."""
_KEPT: Final = 4


class BuilderLog:
    """The last errors."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_KEPT)

    def record_error(self, text: str) -> None:
        if not any(noise in text for noise in _NOISE):
            self._errors.append(text.strip())

    def describe_errors(self) -> str:
        """The last ones, oldest first."""
        return "; ".join(self._errors) or "it gave no reason"


def make_logger(module: Any, log: BuilderLog) -> Any:
    """TensorRT's logger: errors are kept, warnings go to our own log, the rest is dropped."""
    severe = (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR)

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in severe:
                log.record_error(text)
            elif severity == module.ILogger.Severity.WARNING:
                logger.debug("TensorRT: %s", text)

    return Logger()

"""Parts that look at the fleet again and again, beside the reconciling: waking sleepers, deletion costs, costs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from windlass_operator import errors

log = logging.getLogger(__name__)


async def look_for_ever(
    what: str, look: Callable[[], Awaitable[None]], *, may_work: Callable[[], Awaitable[None]], pause_s: float
) -> NoReturn:
    """Look, while leading, and pause in between. `what` names the part in the log.

    Trouble with the cluster is told once for as long as it stays the same.
    """
    problem = ""
    while True:
        await may_work()
        try:
            await look()
            problem = ""
        except errors.WindlassError as exc:
            if str(exc) != problem:
                log.warning("Not looked at now: %s. error=%s", what, exc)
            problem = str(exc)
        except Exception:
            # The loop of a part beside the main job: a bug met here must not stop the control plane.
            log.exception("Not looked at by a bug: %s.", what)
        await asyncio.sleep(pause_s)

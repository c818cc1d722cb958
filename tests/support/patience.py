"""How long to wait on a machine that does other work besides."""

from __future__ import annotations

import os

_MOST = 5.0


def stretched(timeout_s: float) -> float:
    """A timeout that was meant for a machine of its own, in proportion to how many processes want each of its cores.

    Only a wait that would have failed gets longer. At most five times: what takes longer than that is broken.
    """
    return timeout_s * min(_MOST, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))

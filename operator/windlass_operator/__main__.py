"""`python -m windlass_operator` is the `windlass` command."""

from __future__ import annotations

import sys

from windlass_operator.main import run

if __name__ == "__main__":
    sys.exit(run())

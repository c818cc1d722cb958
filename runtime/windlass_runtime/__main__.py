"""`python -m windlass_runtime`: the same as the `windlass-runtime` command."""

from windlass_runtime.main import run

run()

"""`python -m windlass_gateway` is `windlass-gateway`."""

from windlass_gateway.main import run

run()

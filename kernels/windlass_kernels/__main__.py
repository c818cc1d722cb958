"""`python -m windlass_kernels build` compiles the CPU kernels ahead of time."""

import sys

from windlass_kernels import build

sys.exit(build.main(sys.argv[1:]))

"""Run every op under the compiler's sanitizers: `python tests/kernels/sanitize.py`. A script: two builds take a minute.

Buffers have exactly the promised size, three threads work, plain loops judge the results (see sanitize_driver.cpp).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from windlass_kernels import build

DRIVER = Path(__file__).parent / "sanitize_driver.cpp"
SANITIZERS = ("address,undefined", "thread")


def run_under(sanitizer: str, folder: Path) -> int:
    """Exit status of the driver: 0 if clean and right."""
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-O1", "-g1")
    library = build.build(extra_flags=flags)
    program = folder / "driver"
    include = f"-I{build.PACKAGE / 'include'}"
    command = [*build.find_compiler(), "-std=c++17", *flags, include, str(DRIVER), str(library)]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-pthread", "-o", str(program)], check=True, timeout=300)
    return subprocess.run([str(program)], timeout=300, check=False).returncode


def main() -> int:
    worst = 0
    for sanitizer in SANITIZERS:
        with tempfile.TemporaryDirectory() as folder:
            status = run_under(sanitizer, Path(folder))
        print(f"{sanitizer}: {'clean' if status == 0 else f'exit status {status}'}")
        worst = max(worst, abs(status))
    return worst


if __name__ == "__main__":
    sys.exit(main())

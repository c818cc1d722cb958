"""Compile the CPU kernels with the machine's own C++ compiler, once per source, flags and compiler; keep the result.

The cache is `WINDLASS_KERNEL_CACHE`, else `windlass/kernels` under `XDG_CACHE_HOME` or `~/.cache`: never the package
folder, which may be read-only or shared. `WINDLASS_KERNEL_LIBRARY` names a library built before, for images that hold
no compiler; nothing is compiled then. Concurrent builds are safe: each works in a folder of its own and renames its
library into place.
This module is the only one here that reads the environment.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 300.0

BASE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    # A fused multiply-add only where the source says so: otherwise two copies of one loop may round differently.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    # GCC 12 reports its own intrinsics headers as reading uninitialised registers, which they do on purpose.
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
)
AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2_FLAGS)
UNIT_FLAGS: Mapping[str, tuple[str, ...]] = {
    "avx512": AVX512_FLAGS,
    "avx512vnni": (*AVX512_FLAGS, "-mavx512vnni"),
    "avx2": AVX2_FLAGS,
    "portable": (),
    "pool": (),
    "entry": (),
}
X86_UNITS = frozenset({"avx512", "avx512vnni", "avx2"})
X86_MACHINES = frozenset({"x86_64", "amd64"})


class BuildError(RuntimeError):
    """The library cannot be built here; the message is one line for an operator."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One build: everything that decides the bytes of the library."""

    compiler: tuple[str, ...]
    compiler_version: str
    flags: tuple[str, ...]
    units: tuple[str, ...]
    digest: str

    @property
    def file_name(self) -> str:
        return f"windlass_kernels-{self.digest}.so"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where libraries are kept."""
    if chosen := environment.get("WINDLASS_KERNEL_CACHE"):
        return Path(chosen)
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "windlass" / "kernels"


def find_compiler(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The C++ compiler as a command; CXX decides if set. Raises BuildError if there is none."""
    if chosen := environment.get("CXX"):
        command = tuple(shlex.split(chosen))
        if not command or shutil.which(command[0], path=environment.get("PATH")) is None:
            raise BuildError(f"C++ compiler not found: CXX is {chosen!r}")
        return command
    for name in COMPILERS:
        if found := shutil.which(name, path=environment.get("PATH")):
            return (found,)
    raise BuildError(f"C++ compiler not found: none of {', '.join(COMPILERS)} on PATH, and CXX is not set")


def plan_build(environment: Mapping[str, str] = os.environ, extra_flags: tuple[str, ...] = ()) -> Plan:
    """Decide compiler, flags and units, and hash them together with every source."""
    compiler = find_compiler(environment)
    version = _run((*compiler, "--version")).splitlines()[0]
    x86 = platform.machine().lower() in X86_MACHINES
    units = tuple(unit for unit in UNIT_FLAGS if x86 or unit not in X86_UNITS)
    flags = (*BASE_FLAGS, *extra_flags)
    digest = hashlib.sha256(repr((version, flags, sorted(UNIT_FLAGS.items()), units)).encode())
    for source in _sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return Plan(compiler, version, flags, units, digest.hexdigest()[:24])


def build(environment: Mapping[str, str] = os.environ, extra_flags: tuple[str, ...] = ()) -> Path:
    """Path of the library for this machine, compiled now if the cache lacks it. Raises BuildError."""
    if prebuilt := environment.get("WINDLASS_KERNEL_LIBRARY"):
        if not Path(prebuilt).is_file():
            raise BuildError(f"kernel library not found: WINDLASS_KERNEL_LIBRARY is {prebuilt!r}")
        return Path(prebuilt)
    plan = plan_build(environment, extra_flags)
    folder = cache_folder(environment)
    library = folder / plan.file_name
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as work:
            built = _compile(plan, Path(work))
            os.replace(built, library)
    except OSError as exc:
        raise BuildError(f"kernel cache {folder} is not usable: {exc}; set WINDLASS_KERNEL_CACHE") from exc
    return library


def _sources() -> list[Path]:
    return sorted([*(PACKAGE / "cpu").glob("*.cpp"), *(PACKAGE / "include").rglob("*.h")])


def _compile(plan: Plan, work: Path) -> Path:
    """Compile the units side by side, then link."""

    def compile_unit(unit: str) -> str:
        source, target = str(PACKAGE / "cpu" / f"{unit}.cpp"), str(work / f"{unit}.o")
        include = f"-I{PACKAGE / 'include'}"
        _run((*plan.compiler, *plan.flags, *UNIT_FLAGS[unit], include, "-c", source, "-o", target), f" on {unit}.cpp")
        return target

    with ThreadPoolExecutor(len(plan.units)) as executor:
        objects = list(executor.map(compile_unit, plan.units))
    library = work / plan.file_name
    _run((*plan.compiler, *plan.flags, "-shared", "-o", str(library), *objects, "-pthread"), " linking")
    return library


def _run(command: tuple[str, ...], what: str = "") -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BuildError(f"{command[0]} cannot run: {exc}") from exc
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed{what}: {_first_error(done.stderr)}")
    return done.stdout


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")


def main(arguments: list[str]) -> int:
    """`python -m windlass_kernels build`: compile now and print the path, for images that lack a compiler later."""
    if arguments != ["build"]:
        sys.stderr.write("usage: python -m windlass_kernels build\n")
        return 2
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0

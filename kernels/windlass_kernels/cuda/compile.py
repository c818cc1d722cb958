"""Compile the CUDA sources: cubins for a device at hand, PTX for plans, through NVRTC or nvcc.

NVRTC comes with the `gpu` extra and needs neither headers nor a C++ compiler. nvcc reports registers and spills; the
pinned wheels of `requirements-nvcc.txt` bring it. What NVRTC makes is kept in the cache of `windlass_kernels.build`, by
a digest of sources, options and compiler.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass_kernels import build

FOLDER = Path(__file__).parent
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
"""What is compiled for the report and in CI: Ampere, Ada, Hopper and Blackwell."""
PORTABLE = "compute_80"
"""Target of PTX for plans: the lowest that has the instructions in use, so that it runs on every later one."""
OPTIONS = ("-std=c++17",)
NVCC_TIMEOUT_S = 300.0


class CompileError(RuntimeError):
    """No compiler, or one that refused a source; the message holds its words."""


@dataclass(frozen=True, slots=True)
class Nvcc:
    """A found compiler."""

    path: Path
    version: str


def sources() -> list[Path]:
    """The compilation units."""
    return sorted(FOLDER.glob("*.cu"))


def source_digest() -> str:
    """Of all units, headers and options: equal digests compile to equal code with one compiler."""
    digest = hashlib.sha256(repr(OPTIONS).encode())
    for file in [*sources(), *sorted(FOLDER.glob("*.cuh"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:24]


def find_nvcc(environment: Mapping[str, str] = os.environ) -> Nvcc:
    """WINDLASS_NVCC, else the first on PATH. Raises CompileError."""
    chosen = environment.get("WINDLASS_NVCC") or shutil.which("nvcc", path=environment.get("PATH"))
    if not chosen or not Path(chosen).is_file():
        raise CompileError(
            f"nvcc not found: WINDLASS_NVCC is {environment.get('WINDLASS_NVCC')!r} and PATH has none; "
            "pip install -r requirements-nvcc.txt brings one as nvidia/cu13/bin/nvcc in site-packages"
        )
    lines = _run([chosen, "--version"]).splitlines()
    return Nvcc(Path(chosen), next((line for line in lines if "release" in line), lines[-1]))


def run_nvcc(nvcc: Nvcc, source: Path, target: str, output: Path, *extra: str) -> str:
    """Compile one unit, a target as for `compile_unit`; returns what the compiler said. Raises CompileError."""
    kind = "-cubin" if target.startswith("sm_") else "-ptx"
    command = [str(nvcc.path), *OPTIONS, f"-arch={target}", kind, *extra, "-o", str(output), str(source)]
    return _run(command)


def compile_unit(source: str, target: str) -> bytes:
    """Machine code for `sm_NN`, or PTX for `compute_NN`, of a unit named as in the registry.

    NVRTC does it, or nvcc where there is no NVRTC. Raises CompileError.
    """
    return _compile_unit(source, target, source_digest())


@functools.cache
def _compile_unit(source: str, target: str, digest: str) -> bytes:
    version, compile_with = _choose_compiler()
    compiler = hashlib.sha256(version.encode()).hexdigest()[:8]
    kept = build.cache_folder() / f"windlass_{Path(source).stem}-{target}-{compiler}-{digest}"
    if kept.exists():
        return kept.read_bytes()
    code = compile_with(FOLDER / source, target)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        file.write(code)
    os.replace(file.name, kept)
    return code


def _choose_compiler() -> tuple[str, Callable[[Path, str], bytes]]:
    """Its version and how to call it."""
    try:
        major, minor = _nvrtc_version()
    except CompileError as without_nvrtc:
        try:
            nvcc = find_nvcc()
        except CompileError as exc:
            raise CompileError(f"{without_nvrtc}; {exc}") from exc
        return nvcc.version, functools.partial(_run_nvcc_for_code, nvcc)
    return f"nvrtc {major}.{minor}", _run_nvrtc


def _run_nvcc_for_code(nvcc: Nvcc, source: Path, target: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "code"
        run_nvcc(nvcc, source, target, output)
        return output.read_bytes()


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as exc:
        raise CompileError(f"NVRTC cannot be loaded ({exc}); pip install 'windlass[gpu]'") from exc
    return nvrtc


def _nvrtc_version() -> tuple[int, int]:
    nvrtc = _nvrtc()
    try:
        result, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as exc:  # the bindings are there, the library is not
        raise CompileError(f"NVRTC cannot be loaded ({exc}); pip install 'windlass[gpu]'") from exc
    if int(result):
        raise CompileError(f"NVRTC does not answer: {result}")
    return int(major), int(minor)


def _run_nvrtc(source: Path, target: str) -> bytes:
    nvrtc = _nvrtc()
    headers = sorted(FOLDER.glob("*.cuh"))
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={target}")]
    texts, names = [header.read_bytes() for header in headers], [header.name.encode() for header in headers]
    result, program = nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), len(headers), texts, names)
    if int(result):
        raise CompileError(f"NVRTC refused {source.name}: {result}")
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(result):
            log = _read(nvrtc, program, "ProgramLog").decode(errors="replace")
            raise CompileError(f"NVRTC failed on {source.name} for {target}: {log[:2000]}")
        if target.startswith("sm_"):
            return _read(nvrtc, program, "CUBIN")
        # PTX is text that ends with a zero byte.
        return _read(nvrtc, program, "PTX").rstrip(b"\0")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(nvrtc: Any, program: Any, what: str) -> bytes:
    result, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    if int(result):
        raise CompileError(f"NVRTC has no {what}: {result}")
    data: bytes = b" " * size
    getattr(nvrtc, f"nvrtcGet{what}")(program, data)
    return data


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVCC_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CompileError(f"{command[0]} cannot run: {exc}") from exc
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[:2000]}")
    return done.stdout + done.stderr

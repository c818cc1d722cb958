"""The CUDA sources compile for every target, without a GPU; a broken one is refused in the compiler's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass_kernels.cuda import compile as cuda_compile
from windlass_kernels.cuda import registry, samples
from windlass_kernels.cuda.schema import bind, describe_arrays

# NVRTC comes with torch's CUDA build and with the `gpu` extra; a machine with neither has nothing to compile with.
pytest.importorskip("cuda.bindings.nvrtc")
SOURCES = [source.name for source in cuda_compile.sources()]


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "paged_attention.cu"])
def test_a_unit_compiles_to_machine_code(source: str) -> None:
    """For one target, and without the unit that takes longest: `make cuda` compiles all for all."""
    assert cuda_compile.compile_unit(source, "sm_90").startswith(b"\x7fELF")


@pytest.mark.parametrize("source", SOURCES)
def test_the_ptx_of_a_unit_has_the_kernels_that_the_registry_names(source: str) -> None:
    called = [sample for sample in samples.build_small(seed=0) if sample.op.source == source]
    kernels = {bind(sample.op, describe_arrays(sample.inputs), sample.attributes).kernel for sample in called}

    ptx = cuda_compile.compile_unit(source, cuda_compile.PORTABLE).decode()

    assert ".target sm_80" in ptx
    assert set(re.findall(r"\.entry (\w+)", ptx)) == kernels


@pytest.mark.parametrize("op", registry.OPS.values(), ids=lambda op: op.name)
def test_a_kernel_takes_as_many_arguments_as_its_op_has_in_their_order(op) -> None:
    sample = next(sample for sample in samples.build_small(seed=0) if sample.op is op)
    kernel = bind(op, describe_arrays(sample.inputs), sample.attributes).kernel
    ptx = cuda_compile.compile_unit(op.source, cuda_compile.PORTABLE).decode()
    entry = ptx[ptx.index(f".entry {kernel}(") :]

    widths = re.findall(r"\.param \.(u64|u32)\S*\s+\w+_param_\d+", entry[: entry.index(")")])

    assert widths == ["u64"] * len(op.inputs) + ["u32"] * len(op.integers) + ["u64"] * len(op.outputs)


def test_a_source_that_does_not_compile_is_refused_in_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.cu").write_text('#include "device.cuh"\nWINDLASS_KERNEL(32, 1) f(int* x) { *x = y; }\n')
    (tmp_path / "device.cuh").write_bytes((cuda_compile.FOLDER / "device.cuh").read_bytes())
    monkeypatch.setattr(cuda_compile, "FOLDER", tmp_path)
    monkeypatch.setenv("WINDLASS_KERNEL_CACHE", str(tmp_path))

    with pytest.raises(cuda_compile.CompileError, match=r'bad\.cu for sm_90: .*identifier "y" is undefined'):
        cuda_compile.compile_unit("bad.cu", "sm_90")


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine whose Python has no NVRTC."""

    def refuse() -> tuple[int, int]:
        raise cuda_compile.CompileError("NVRTC cannot be loaded")

    monkeypatch.setattr(cuda_compile, "_nvrtc_version", refuse)
    monkeypatch.setenv("WINDLASS_KERNEL_CACHE", str(tmp_path))
    cuda_compile._compile_unit.cache_clear()
    yield
    cuda_compile._compile_unit.cache_clear()


@pytest.mark.usefixtures("no_nvrtc")
def test_nvcc_compiles_where_there_is_no_nvrtc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "release 13.0" && exit\n'
        'while [ "$1" != -o ]; do printf "%s " "$1" >> "$0.log"; shift; done\necho code > "$2"\n'
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv("WINDLASS_NVCC", str(nvcc))

    assert cuda_compile.compile_unit("gemv.cu", "sm_90") == b"code\n"
    assert cuda_compile.compile_unit("gemv.cu", "compute_80") == b"code\n"
    assert (tmp_path / "nvcc.log").read_text() == "-std=c++17 -arch=sm_90 -cubin -std=c++17 -arch=compute_80 -ptx "


@pytest.mark.usefixtures("no_nvrtc")
def test_a_machine_with_neither_compiler_is_told_about_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("WINDLASS_NVCC", raising=False)

    with pytest.raises(cuda_compile.CompileError, match="NVRTC cannot be loaded; nvcc not found"):
        cuda_compile.compile_unit("gemv.cu", "sm_90")


def test_a_missing_nvcc_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(cuda_compile.CompileError, match=r"nvcc not found: .* pip install -r requirements-nvcc\.txt"):
        cuda_compile.find_nvcc({"PATH": "/nowhere"})

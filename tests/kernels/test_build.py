"""The build: cached, safe to run twice at once, clear when it cannot run; and the fallback behind it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from windlass_kernels import build, native, ops, reference

FAST = ("-O0",)


def environment_of(cache: Path, **changes: str) -> dict[str, str]:
    return {**os.environ, "WINDLASS_KERNEL_CACHE": str(cache), **changes}


def fake_compiler(folder: Path, version: str = "fake 1.0", script: str = "") -> str:
    """A compiler that logs its calls and writes its output file, so that build logic is tested in milliseconds."""
    path = folder / "fake-c++"
    body = f'[ "$1" = --version ] && echo "{version}" && exit 0\necho call >> "{folder}/calls"\n{script}\n'
    body += 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo made > "$2"; shift; done\n'
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
    return str(path)


def calls_of(folder: Path) -> int:
    log = folder / "calls"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_second_build_compiles_nothing(tmp_path: Path) -> None:
    environment = environment_of(tmp_path / "cache", CXX=fake_compiler(tmp_path))

    first = build.build(environment)
    after_first = calls_of(tmp_path)

    assert build.build(environment) == first
    assert calls_of(tmp_path) == after_first == len(build.plan_build(environment).units) + 1


@pytest.mark.parametrize("change", ["version", "flags", "source"])
def test_another_compiler_version_flag_or_source_makes_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    environment = environment_of(tmp_path, CXX=fake_compiler(tmp_path))
    before = build.plan_build(environment).digest

    if change == "version":
        fake_compiler(tmp_path, version="fake 1.1")
    if change == "source":
        extra = tmp_path / "extra.h"
        extra.write_text("// new")
        sources = [*build._sources(), extra]
        monkeypatch.setattr(build, "_sources", lambda: sources)

    assert build.plan_build(environment, FAST if change == "flags" else ()).digest != before


def test_concurrent_builds_agree_and_leave_only_the_library(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environment = environment_of(cache, CXX=fake_compiler(tmp_path))

    with ThreadPoolExecutor(4) as executor:
        libraries = set(executor.map(lambda _: build.build(environment), range(4)))

    assert len(libraries) == 1
    assert [path.name for path in cache.iterdir()] == [libraries.pop().name]


def test_a_failing_compiler_is_reported_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    script = 'echo "x.cpp:3: error: no such thing" >&2; exit 1'
    environment = environment_of(cache, CXX=fake_compiler(tmp_path, script=script))

    with pytest.raises(build.BuildError, match=r"failed on \w+\.cpp: x\.cpp:3: error: no such thing$"):
        build.build(environment)

    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"CXX": "no-such-compiler -v"}, "CXX is 'no-such-compiler -v'", id="CXX names nothing"),
        pytest.param({"CXX": "", "PATH": "/nonexistent"}, "none of c\\+\\+, g\\+\\+, clang\\+\\+", id="none on PATH"),
    ],
)
def test_a_missing_compiler_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(build.BuildError, match=message):
        build.build(environment_of(tmp_path, **changes))


def test_an_unusable_cache_names_the_setting(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    with pytest.raises(build.BuildError, match="set WINDLASS_KERNEL_CACHE"):
        build.build(environment_of(blocked / "cache", CXX=fake_compiler(tmp_path)))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"WINDLASS_KERNEL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a", id="own setting first"),
        pytest.param({"XDG_CACHE_HOME": "/b"}, "/b/windlass/kernels", id="then XDG"),
    ],
)
def test_the_cache_folder_follows_the_environment(environment: dict[str, str], expected: str) -> None:
    assert build.cache_folder(environment) == Path(expected)


@pytest.fixture
def without_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("WINDLASS_KERNEL_CACHE", str(tmp_path))
    native.load.cache_clear()
    ops._library.cache_clear()
    yield
    native.load.cache_clear()
    ops._library.cache_clear()


def test_without_a_compiler_the_reference_runs_after_one_warning(
    without_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8)

    with caplog.at_level(logging.WARNING):
        results = [ops.linear(x, weight), ops.linear(x, weight)]

    assert all(torch.equal(result, reference.linear(x, weight)) for result in results)
    assert len(caplog.records) == 1
    assert "CXX is 'no-such-compiler'" in caplog.text
    assert not ops.available()
    assert "no-such-compiler" in ops.available().reason


def test_a_library_built_before_is_used_without_a_compiler(tmp_path: Path) -> None:
    library = tmp_path / "kernels.so"
    library.write_text("")
    environment = environment_of(tmp_path, CXX="no-such-compiler", WINDLASS_KERNEL_LIBRARY=str(library))

    assert build.build(environment) == library
    library.unlink()
    with pytest.raises(build.BuildError, match=r"WINDLASS_KERNEL_LIBRARY is '.*kernels\.so'"):
        build.build(environment)


def test_the_command_builds_ahead_and_prints_the_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "windlass_kernels", "build"]
    environment = environment_of(tmp_path / "cache", CXX=fake_compiler(tmp_path))

    built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    wrong = subprocess.run(command[:-1], env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert built.returncode == 0
    assert Path(built.stdout.strip()).exists()
    assert (wrong.returncode, wrong.stderr) == (2, "usage: python -m windlass_kernels build\n")


def test_the_library_carries_no_framework(isa: str) -> None:
    linked = subprocess.run(["ldd", str(build.build())], capture_output=True, text=True, timeout=60, check=False).stdout

    assert linked
    assert not any(name in linked for name in ("torch", "gomp", "mkl", "python"))

"""The shape of the repository that Python's import system depends on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("operator", "runtime", "kernels")


@pytest.mark.parametrize("name", SOURCE_ROOTS)
def test_a_source_root_is_no_package_and_holds_no_tests(name: str) -> None:
    root = ROOT / name

    assert not (root / "__init__.py").exists()
    assert not list(root.rglob("conftest.py"))
    assert not list(root.rglob("test_*.py"))


def test_python_started_at_the_root_still_finds_the_standard_operator_module() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.add(1, 2))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "3\n"


@pytest.mark.parametrize(
    "heavy",
    [
        pytest.param(
            ("windlass_contract.launch_spec", ("pydantic", "torch", "aiohttp", "yaml")),
            id="the contract is standard library only",
        ),
        pytest.param(
            ("windlass_operator.main", ("torch", "numpy", "transformers", "windlass_runtime", "windlass_gateway")),
            id="the operator never loads torch",
        ),
        pytest.param(
            ("windlass_gateway.main", ("torch", "kopf", "kubernetes", "windlass_operator", "windlass_runtime")),
            id="the gateway loads neither plane",
        ),
        pytest.param(
            ("windlass_runtime.main", ("kopf", "kubernetes", "transformers", "windlass_operator")),
            id="the runtime never loads kopf",
        ),
    ],
)
def test_importing_one_part_does_not_load_what_it_must_not_depend_on(heavy: tuple[str, tuple[str, ...]]) -> None:
    module, forbidden = heavy
    code = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"

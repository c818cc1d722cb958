"""Decisions and renderers see no clock, network, randomness or environment, not even through what they import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import windlass_operator.domain
import windlass_operator.render

PROBE = """
import importlib, pkgutil, sys
import windlass_operator.domain, windlass_operator.render
for package in (windlass_operator.domain, windlass_operator.render):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
print(" ".join(sorted({"kopf", "kubernetes", "aiohttp", "requests", "torch"} & set(sys.modules))))
"""

FORBIDDEN_CALLS = {
    "open",
    "print",
    "input",
    "getenv",
    "now",
    "today",
    "monotonic",
    "urlopen",
    "read_text",
    "write_text",
}


def test_importing_every_decision_and_renderer_loads_no_client_and_no_framework():
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == ""


def test_no_decision_or_renderer_asks_the_clock_the_environment_or_a_file():
    modules = [
        path
        for package in (windlass_operator.domain, windlass_operator.render)
        for path in Path(package.__path__[0]).glob("*.py")
    ]
    assert len(modules) > 20
    for path in modules:
        called = {_called(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not called & FORBIDDEN_CALLS, path.name


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")

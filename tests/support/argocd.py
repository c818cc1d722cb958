"""Argo CD for tests: its health scripts and actions in a Lua as bare as the one it gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lupa import lua51

CUSTOMIZATIONS = (
    Path(__file__).resolve().parents[2] / "examples" / "argocd" / "resource_customizations" / "windlass.dev"
)
FORBIDDEN_LIBRARIES = ("string", "math", "io", "os", "debug", "coroutine", "package", "require", "python")


def run_script(path: Path, obj: dict[str, Any]) -> Any:
    """Run one script on `obj` with the libraries that Argo CD grants (base and table) and return what it returns."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
    lua.execute('getmetatable("").__index = nil')
    lua_globals = lua.globals()
    lua_globals.obj = _to_lua(lua, obj)
    for name in FORBIDDEN_LIBRARIES:
        lua_globals[name] = None
    return _from_lua(lua.execute(path.read_text()))


def read_fixture(path: Path) -> dict[str, Any]:
    """One object of a testdata folder."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def _to_lua(lua: lua51.LuaRuntime, value: Any) -> Any:
    """Numbers become doubles and nulls disappear, as they do where Argo CD hands an object to Lua."""
    if isinstance(value, dict):
        return lua.table_from({key: _to_lua(lua, item) for key, item in value.items() if item is not None})
    if isinstance(value, list):
        return lua.table_from([_to_lua(lua, item) for item in value])
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _from_lua(value: Any) -> Any:
    if lua51.lua_type(value) != "table":
        return int(value) if isinstance(value, float) and value.is_integer() else value
    keys = list(value.keys())
    if keys and keys == list(range(1, len(keys) + 1)):
        return [_from_lua(value[key]) for key in keys]
    return {key: _from_lua(value[key]) for key in keys}

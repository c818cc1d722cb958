"""Calls of functions in answers: how they are written, held to their schemas, and found again in text that arrives.

A call is `<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>`, as Qwen and Hermes models are
trained to write it. The grammar fixes everything but the arguments, and those follow the function's schema.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from windlass_runtime import errors
from windlass_runtime.backends.grammar_text import Grammar, GrammarKind, bound_whitespace

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"
_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}


@dataclasses.dataclass(frozen=True, slots=True)
class Tools:
    """What an answer may, or must, call."""

    functions: tuple[Mapping[str, Any], ...]
    """As the request describes them: name, description, parameters."""
    required: bool
    parallel: bool
    """Whether one answer may hold several calls."""

    def to_grammar(self) -> Grammar:
        """Text and then calls, or calls alone where they are required."""
        more = f' ("\\n" "{BEGIN}" body)*' if self.parallel else ""
        start = f'"{BEGIN}" body{more}' if self.required else f"TEXT | begin body{more}"
        rules = [
            "%llguidance {}",
            f"start: {start}",
            *([] if self.required else [f"begin[lazy]: /(.|\\n)*{BEGIN}/", "TEXT: /(.|\\n)*/"]),
            "body: (" + " | ".join(f"call_{index}" for index in range(len(self.functions))) + f') "}}\\n{END}"',
        ]
        for index, function in enumerate(self.functions):
            head = f'\n{{"name": {json.dumps(function["name"])}, "arguments": '
            schema = json.dumps(bound_whitespace(function.get("parameters") or _ANY_OBJECT))
            rules += [f"call_{index}: {json.dumps(head)} arguments_{index}", f"arguments_{index}: %json {schema}"]
        return Grammar(GrammarKind.LARK, "\n".join(rules), "tools")

    def to_prompt(self) -> str:
        """What a model is told whose chat template knows nothing of tools."""
        described = "\n".join(json.dumps({"type": "function", "function": dict(item)}) for item in self.functions)
        return (
            f"You may call these functions:\n{described}\nTo call one, write\n{BEGIN}\n"
            f'{{"name": NAME, "arguments": OBJECT}}\n{END}'
        )


def parse_tools(tools: Sequence[Any] | None, choice: Any, parallel: bool | None) -> Tools | None:
    """The request's `tools` and `tool_choice`; None when the answer is to call nothing. Raises RequestError."""
    functions = tuple(_parse_tool(tool, index) for index, tool in enumerate(tools or ()))
    names = [function["name"] for function in functions]
    if len(set(names)) != len(names):
        raise errors.RequestError("tools: expected each name once, found one twice", "tools")
    match choice:
        case None | "auto" if functions:
            return Tools(functions, required=False, parallel=parallel is not False)
        case None | "auto" | "none":
            return None
        case "required" if functions:
            return Tools(functions, required=True, parallel=parallel is not False)
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return Tools((functions[names.index(name)],), required=True, parallel=False)
    raise errors.RequestError(
        "tool_choice: expected none, auto, required or a function that tools names, found something else", "tool_choice"
    )


def _parse_tool(tool: Any, index: int) -> Mapping[str, Any]:
    field = f"tools.{index}"
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise errors.RequestError(f"{field}: expected type function with a function, found something else", field)
    function = tool["function"]
    if not isinstance(function.get("name"), str) or not _NAME.fullmatch(function["name"]):
        raise errors.RequestError(
            f"{field}.function.name: expected 1 to 64 letters, digits, dots, dashes or underscores",
            f"{field}.function.name",
        )
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise errors.RequestError(
            f"{field}.function.parameters: expected a JSON schema as an object", f"{field}.function.parameters"
        )
    return dict(function)


@dataclasses.dataclass(slots=True)
class CallPiece:
    """Progress of one call."""

    index: int
    """Place among the calls of its answer."""
    call_id: str = ""
    """Set on the first piece, as is the name."""
    name: str = ""
    arguments: str = ""

    def to_delta(self) -> dict[str, Any]:
        """As a chunk of a stream carries it."""
        head = {"id": self.call_id, "type": "function"} if self.call_id else {}
        name = {"name": self.name} if self.call_id else {}
        return {"index": self.index, **head, "function": {**name, "arguments": self.arguments}}


class ToolCallReader:
    """Tells calls from text, in pieces that arrive in any cut. Joined, what it gives out does not depend on the cut."""

    def __init__(self) -> None:
        self.calls = 0
        """Calls begun so far."""
        self._held = ""
        self._place: Callable[[list[str], dict[int, CallPiece]], bool] = self._read_text
        self._scan = _ObjectScan()

    def feed(self, text: str) -> tuple[str, list[CallPiece]]:
        """Text to show, and what is new of calls."""
        self._held += text
        shown: list[str] = []
        pieces: dict[int, CallPiece] = {}
        while self._place(shown, pieces):
            pass
        return "".join(shown), list(pieces.values())

    def flush(self) -> str:
        """What was held back, at the end of the answer: text that looked like a call, or a call cut off in its head."""
        rest = self._held if self._place in (self._read_text, self._read_head) else ""
        if self._place == self._read_head:
            rest = BEGIN + rest
        self._held = ""
        return rest

    def _read_text(self, shown: list[str], _pieces: dict[int, CallPiece]) -> bool:
        before, found, after = self._held.partition(BEGIN)
        if found:
            shown.append(before)
            self._held, self._place = after, self._read_head
            return True
        keep = next((size for size in range(len(BEGIN) - 1, 0, -1) if self._held.endswith(BEGIN[:size])), 0)
        shown.append(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _read_head(self, _shown: list[str], pieces: dict[int, CallPiece]) -> bool:
        match = _HEAD.match(self._held)
        if match is None:
            return False
        pieces[self.calls] = CallPiece(self.calls, f"call_{secrets.token_hex(12)}", json.loads(match[1]))
        self.calls += 1
        self._held, self._place, self._scan = self._held[match.end() :], self._read_arguments, _ObjectScan()
        return True

    def _read_arguments(self, _shown: list[str], pieces: dict[int, CallPiece]) -> bool:
        taken = self._scan.take(self._held)
        if taken:
            pieces.setdefault(self.calls - 1, CallPiece(self.calls - 1)).arguments += self._held[:taken]
            self._held = self._held[taken:]
        if self._scan.done:
            self._place = self._read_end
        return self._scan.done

    def _read_end(self, _shown: list[str], _pieces: dict[int, CallPiece]) -> bool:
        _, found, after = self._held.partition(END)
        if found:
            self._held, self._place = after.removeprefix("\n"), self._read_text
        return bool(found)


class _ObjectScan:
    """Finds the end of a JSON object in text that arrives in pieces."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_text = self._escaped = False

    def take(self, text: str) -> int:
        """How many of the next characters belong to the object."""
        for position, character in enumerate(text):
            if self._in_text:
                self._in_text = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.done = True
                    return position + 1
        return len(text)

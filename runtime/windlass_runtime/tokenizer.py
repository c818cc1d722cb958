"""Text to token ids and back: `tokenizer.json`, its companions, and text that arrives token by token.

Semantics follow `transformers` 5: the post-processor in `tokenizer.json` alone decides which special tokens `encode`
adds (`add_bos_token` in tokenizer_config.json is ignored beside it), and a chat template sees the same variables.
Thread-safe; an IncrementalDecoder belongs to one sequence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from windlass_runtime import errors
from windlass_runtime.chat_template import ChatTemplate
from windlass_runtime.text import IncrementalDecoder

_SPECIAL_TOKEN_NAMES: Final = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"
)  # fmt: skip
_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """The byte of each character in a byte-level vocabulary: printable Latin-1 means itself, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


_BYTE_OF: Final = _byte_alphabet()


class Tokenizer:
    """One checkpoint's tokenizer."""

    def __init__(self, core: tokenizers.Tokenizer, config: Mapping[str, Any], template: str | None = None) -> None:
        """config is the content of tokenizer_config.json; template overrides its `chat_template`."""
        self._core = core
        # Files written by training scripts may ask for truncation or padding, which would corrupt prompts.
        core.no_truncation()
        core.no_padding()
        self.special_tokens = _special_tokens(config)
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(core.to_str()).get("decoder"))
        source = template if template is not None else _configured_template(config)
        self._knows_tools = source is not None and "tools" in source
        self._template = None if source is None else ChatTemplate(source, self.special_tokens)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read a checkpoint folder. Raises CheckpointError naming the file at fault."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise errors.CheckpointError(f"{path}: expected a tokenizer file, found nothing")
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as exc:  # the binding raises bare Exception for every fault of the file
            raise errors.CheckpointError(f"{path}: expected a tokenizer, found {exc}") from exc
        template = folder / "chat_template.jinja"
        config = {**_read_object(folder / "special_tokens_map.json"), **_read_object(folder / "tokenizer_config.json")}
        return cls(core, config, template.read_text("utf-8") if template.is_file() else None)

    def to_json(self) -> str:
        """As a tokenizer.json."""
        return str(self._core.to_str())

    @property
    def vocabulary_size(self) -> int:
        """Token ids known, added tokens included."""
        return int(self._core.get_vocab_size(with_added_tokens=True))

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up rows of unequal length; None when the tokenizer names none."""
        name = self.special_tokens.get("pad_token")
        return None if name is None else self.token_id(name)

    @property
    def begin_token_id(self) -> int | None:
        """The token that begins a text; None when the tokenizer names none."""
        name = self.special_tokens.get("bos_token")
        return None if name is None else self.token_id(name)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template speaks of tools."""
        return self._knows_tools

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises RequestError for text that is not valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise errors.RequestError("text: expected valid Unicode, found half of a surrogate pair") from exc
        return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; ids without a token contribute nothing."""
        return str(self._core.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """One token as a log-probability report shows it: special tokens by name, broken bytes as U+FFFD."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, also where they are only part of a character."""
        name = self._core.id_to_token(token_id) or ""
        if _BYTE_TOKEN.fullmatch(name):
            return bytes.fromhex(name[3:5])
        if self._is_byte_level and all(character in _BYTE_OF for character in name):
            return bytes(_BYTE_OF[character] for character in name)
        return self.token_text(token_id).encode()

    def token_id(self, token: str) -> int | None:
        found = self._core.token_to_id(token)
        return None if found is None else int(found)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Messages as prompt text; encode it without adding special tokens, the template writes them itself."""
        if self._template is None:
            raise errors.RequestError(
                "messages: this model has no chat template; send a plain prompt to /v1/completions", "messages"
            )
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, variables=variables)

    def decoder(self, prompt: Sequence[int] = ()) -> IncrementalDecoder:
        """A decoder for what follows `prompt`."""
        return IncrementalDecoder(self, prompt)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Names such as `bos_token` to their text; entries are strings or serialised AddedToken objects."""
    found = {}
    for name in _SPECIAL_TOKEN_NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _configured_template(config: Mapping[str, Any]) -> str | None:
    """`chat_template` is one string, or a list of named ones of which `default` counts."""
    value = config.get("chat_template")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
        default = named.get("default")
        return default if isinstance(default, str) else None
    return None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as exc:
        raise errors.CheckpointError(f"{path}: expected JSON, found {exc}") from exc
    if not isinstance(data, dict):
        raise errors.CheckpointError(f"{path}: expected an object, found {type(data).__name__}")
    return data

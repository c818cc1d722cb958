"""Between text and tokens: what the engine and the server need of a tokenizer, and text that arrives token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS: Final = 6
"""Prompt tokens a decoder starts from, so that it knows whether the first word needs its space."""
_MOST_HELD_TOKENS: Final = 32
"""Bytes that are still no character after this many tokens are not going to become one."""


class TextCodec(Protocol):
    """Text to token ids and back. Thread-safe; `tokenizer.Tokenizer` is the one of checkpoints."""

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up rows of unequal length; None when there is none."""
        ...

    @property
    def knows_tools(self) -> bool:
        """Whether `render_chat` does something with a variable `tools`, with calls and with their results."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises RequestError for text that is not valid Unicode."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; ids without a token contribute nothing."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token as a log-probability report shows it."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, also where they are only part of a character."""
        ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Messages as prompt text. Raises RequestError when the model cannot chat or refuses the messages."""
        ...

    def decoder(self, prompt: Sequence[int] = ()) -> IncrementalDecoder:
        """A decoder for what follows `prompt`."""
        ...


class IncrementalDecoder:
    """Text of a growing sequence, in pieces that join up to the whole and never split a character.

    A token is decoded together with the few before it, because decoders treat the start of a text specially. A piece
    is held back while its last bytes are an unfinished character.
    """

    def __init__(self, tokenizer: TextCodec, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._shown = len(self._window)
        """Leading tokens of the window whose text was given out."""

    def feed(self, token_id: int) -> str:
        """Text that this token completes; empty while a character is unfinished."""
        self._window.append(token_id)
        return self._take(final=len(self._window) - self._shown > _MOST_HELD_TOKENS)

    def flush(self) -> str:
        """The rest at the end of the sequence; an unfinished character comes out as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._window[: self._shown])
        text = self._tokenizer.decode(self._window)
        if len(text) <= len(before) or (text.endswith(_REPLACEMENT) and not final):
            return ""
        self._window = self._window[self._shown :] if self._shown < len(self._window) else self._window
        self._shown = len(self._window)
        return text[len(before) :]

"""A tokenizer without a vocabulary: four ASCII characters are a token, as in English text of common models.

A token id is its characters, lowest byte first, so nothing is lost and no file is needed. Any other byte is a token of
its own: bytes from 0x80 on cannot be part of four ASCII characters, and zero would be taken for the end of a short one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from windlass_runtime import errors
from windlass_runtime.text import IncrementalDecoder

END: Final = 0x0100
"""Ends an answer; no text has this token, since it would begin with a zero byte."""
VOCABULARY: Final = 0x7F7F7F7F + 1
_PIECE: Final = re.compile(rb"[\x01-\x7f]{1,4}|[\x00\x80-\xff]")


class SimulatedCodec:
    """A TextCodec."""

    @property
    def pad_token_id(self) -> int | None:
        return None

    @property
    def knows_tools(self) -> bool:
        return False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:  # noqa: ARG002  it has none
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise errors.RequestError("text: expected valid Unicode, found half of a surrogate pair") from exc
        return [int.from_bytes(piece, "little") for piece in _PIECE.findall(data)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        end = b"" if skip_special_tokens else b"</s>"
        pieces = (end if token == END else self.token_bytes(token) for token in token_ids)
        return b"".join(pieces).decode("utf-8", "replace")

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        return token_id.to_bytes(4, "little").rstrip(b"\0") or b"\0"

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,  # noqa: ARG002  there is no template to use them
    ) -> str:
        turns = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(turns) + ("assistant: " if add_generation_prompt else "")

    def decoder(self, prompt: Sequence[int] = ()) -> IncrementalDecoder:
        return IncrementalDecoder(self, prompt)

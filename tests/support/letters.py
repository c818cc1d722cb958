"""A tokenizer of single bytes and a fake model that answers in letters, so that replies are readable text."""

from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from windlass_runtime.testing import FakeBackend, next_token
from windlass_runtime.tokenizer import Tokenizer

BOS, EOS = 0, 1
FIRST_BYTE = 2
VOCABULARY = 258
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary, in byte order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def build_core() -> tokenizers.Tokenizer:
    """<s> is 0, </s> is 1, byte b is 2 + b."""
    vocabulary = {"<s>": BOS, "</s>": EOS} | {name: FIRST_BYTE + byte for byte, name in enumerate(byte_characters())}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    return core


def build_config(**changes: Any) -> dict[str, Any]:
    """The content of a tokenizer_config.json."""
    return {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE, **changes}


def build_tokenizer(**changes: Any) -> Tokenizer:
    return Tokenizer(build_core(), build_config(**changes))


def token_of(character: str) -> int:
    """Token id of an ASCII character."""
    return FIRST_BYTE + ord(character)


def letter_after(tokens: Sequence[int]) -> int:
    """A letter that depends on every token so far."""
    return token_of("abcdefghijklmnopqrstuvwxyz"[next_token(tokens, 26)])


def build_backend(**changes: Any) -> FakeBackend:
    """Answers in letters; never ends by itself."""
    settings: dict[str, Any] = {
        "vocabulary_size": VOCABULARY,
        "page_tokens": 4,
        "page_count": 256,
        "max_sequence_tokens": 256,
        "eos_token_ids": (EOS,),
        "choose": letter_after,
    }
    return FakeBackend(**{**settings, **changes})


def letters_after(prompt: Sequence[int], count: int) -> str:
    """The text that `build_backend` answers greedily to `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(letter_after(tokens))
    return "".join(chr(token - FIRST_BYTE) for token in tokens[len(prompt) :])

"""Bits per byte of compressors and of token n-grams on the same held-out bytes, to set the model's figure against."""

import gzip
import lzma
import math
from collections import Counter

from tokenizers import Tokenizer


def measure_compressors(train: bytes, held_out: bytes) -> dict[str, float]:
    """gzip -9 and xz -9e alone; xz again after the training text, counting only what the held-out bytes add."""
    window = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 64 << 20}]
    primed = len(lzma.compress(train + held_out, filters=window)) - len(lzma.compress(train, filters=window))
    sizes = {
        "gzip": len(gzip.compress(held_out, 9)),
        "xz": len(lzma.compress(held_out, preset=9 | lzma.PRESET_EXTREME)),
        "xz_primed": primed,
    }
    return {name: round(8 * size / len(held_out), 4) for name, size in sizes.items()}


class NgramModel:
    """Token n-grams counted on the training text, mixed with the next shorter order by Witten-Bell weights."""

    def __init__(self, tokens: list[int], vocabulary: int, order: int) -> None:
        self.vocabulary = vocabulary
        self.grams = [Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for n in range(1, order + 1)]
        self.seen: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        self.kinds: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        for n, grams in enumerate(self.grams):
            for gram, count in grams.items():
                self.seen[n][gram[:-1]] += count
                self.kinds[n][gram[:-1]] += 1

    def bits(self, tokens: list[int]) -> float:
        """Bits to code `tokens` in order, each from at most `order - 1` before it."""
        return -sum(math.log2(self._probability(tokens, position)) for position in range(len(tokens)))

    def _probability(self, tokens: list[int], position: int) -> float:
        probability = 1 / self.vocabulary
        for n, grams in enumerate(self.grams[: position + 1]):
            gram = tuple(tokens[position - n : position + 1])
            seen, kinds = self.seen[n][gram[:-1]], self.kinds[n][gram[:-1]]
            if seen:
                probability = (grams[gram] + kinds * probability) / (seen + kinds)
        return probability


def measure_ngrams(train: str, held_out: str, tokenizer: Tokenizer) -> dict[str, float]:
    train_tokens = [
        token
        for part in tokenizer.encode_batch_fast(train.split("\n\n"), add_special_tokens=False)
        for token in part.ids
    ]
    held_out_tokens = [
        token
        for part in tokenizer.encode_batch_fast(held_out.split("\n\n"), add_special_tokens=False)
        for token in part.ids
    ]
    names = {1: "unigram", 3: "trigram"}
    vocabulary, size = tokenizer.get_vocab_size(), len(held_out.encode())
    return {
        name: round(NgramModel(train_tokens, vocabulary, n).bits(held_out_tokens) / size, 4)
        for n, name in names.items()
    }

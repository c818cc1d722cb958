"""Measure a trained checkpoint and write the shipped folder: `python publish.py CORPUS TRAINED TARGET`."""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from string import Template

import baselines
import corpus
import evaluate
from tokenizers import Tokenizer

SHIPPED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
)
SAMPLE_BYTES = 30_000
DOCUMENT_BYTES = 2_500
BSD = ("celery", "django")


def choose_sample(documents: list[corpus.Document]) -> str:
    """A held-out excerpt that takes the sources in turn: of each document its start, `DOCUMENT_BYTES` at most."""
    by_source: dict[str, list[corpus.Document]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(document)
    chosen, size = list[str](), 0
    while size < SAMPLE_BYTES and any(by_source.values()):
        for waiting in by_source.values():
            if waiting and size < SAMPLE_BYTES:
                chosen.append(_start_of(waiting.pop(0).text()))
                size += len(chosen[-1].encode())
    return "\n\n".join(chosen) + "\n"


def _start_of(text: str) -> str:
    kept = ""
    for paragraph in text.split("\n\n"):
        if kept and len(kept) + len(paragraph) > DOCUMENT_BYTES:
            break
        kept = f"{kept}\n\n{paragraph}" if kept else paragraph
    return kept


def measure(
    folder: Path, train: list[corpus.Document], held_out: list[corpus.Document], excerpt: str
) -> dict[str, object]:
    """Bits per byte of the held-out part, document by document, and of the excerpt; baselines on the former's bytes."""
    model, tokenizer = evaluate.load(folder)
    texts = [document.text() for document in held_out]
    sizes = [len(text.encode()) for text in texts]
    bits = sum(evaluate.bits_per_byte(model, tokenizer, text) * size for text, size in zip(texts, sizes, strict=True))
    train_text, held_out_text = "\n\n".join(document.text() for document in train), "\n\n".join(texts)
    compressed = baselines.measure_compressors(train_text.encode(), held_out_text.encode())
    ngrams = baselines.measure_ngrams(train_text, held_out_text, Tokenizer.from_file(str(folder / "tokenizer.json")))
    return {
        "heldout_bytes": sum(sizes),
        "heldout_bits_per_byte": round(bits / sum(sizes), 4),
        "excerpt_bytes": len(excerpt.encode()),
        "excerpt_bits_per_byte": round(evaluate.bits_per_byte(model, tokenizer, excerpt), 4),
        "config_sha256": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "baselines_bits_per_byte": compressed | ngrams,
        **evaluate.sample(model, tokenizer),
    }


def render_card(training: dict[str, object], figures: dict[str, object], sources: dict[str, dict[str, int]]) -> str:
    values: dict[str, object] = {**training, **figures}
    recipe, shape = training["recipe"], training["shape"]
    assert isinstance(recipe, dict)
    assert isinstance(shape, dict)
    values |= {**shape, **recipe}
    values["sources_table"] = "\n".join(_source_row(name, size) for name, size in sources.items())
    values["curve_table"] = "\n".join(_curve_row(point) for point in training["curve_nats_per_token"])  # type: ignore[attr-defined]
    values["minutes"] = f"{int(str(training['seconds'])) / 60:.0f}"
    for key, gap in (("continuations", ""), ("answers", " ")):
        texts = figures[key]
        assert isinstance(texts, dict)
        values[key] = "\n\n".join(_quote(f"**{prompt}**{gap}{text}") for prompt, text in texts.items())
    values |= figures["baselines_bits_per_byte"]  # type: ignore[operator]
    return Template((Path(__file__).parent / "card.md").read_text("utf-8")).substitute(values)


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().split("\n"))


def _source_row(name: str, size: dict[str, int]) -> str:
    licence = "BSD-3-Clause" if name.partition("==")[0] in BSD else "Apache-2.0"
    return f"| {name} | {licence} | {size['train']:,} | {size['heldout']:,} |"


def _curve_row(point: dict[str, float]) -> str:
    return f"| {point['step']} | {point['tokens']:,} | {point['train']:.3f} | {point['heldout']:.3f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("trained", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    train, held_out = (corpus.load(arguments.corpus / name) for name in ("train.jsonl", "heldout.jsonl"))
    arguments.target.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        shutil.copyfile(arguments.trained / name, arguments.target / name)
    excerpt = choose_sample(held_out)
    (arguments.target / "heldout.txt").write_text(excerpt, "utf-8")
    figures = measure(arguments.target, train, held_out, excerpt)
    (arguments.target / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")
    training = json.loads((arguments.target / "training.json").read_text())
    sources = json.loads((arguments.corpus / "corpus.json").read_text())["sources"]
    (arguments.target / "README.md").write_text(render_card(training, figures, sources), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train the model from an assembled corpus: `python train.py build/corpus build/windlass-tiny`.

Matrices inside the layers are trained with Muon (orthogonalised momentum), which needs fewer tokens than AdamW at this
size; the embedding and the norms with AdamW. Constant learning rate, then linear decay to zero; the last fifth of the
steps uses the full context. One seed, device, library version and thread count give the same batches and start.
"""

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import corpus
import torch
from conversations import count_headings, write_conversations
from model import Llama, Shape, write_checkpoint
from tokenizer import BOS, END, Tokenizer, train_tokenizer, write_tokenizer
from torch import Tensor

log = logging.getLogger("train")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, besides the corpus."""

    steps: int = 1500
    tokens_per_step: int = 4096
    tokens_per_pass: int = 2048
    """One forward and backward; 2,048 keeps the activations of a layer in the cache of a small CPU."""
    short_context: int = 256
    long_context: int = 1024
    long_share: float = 0.2
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    weight_decay: float = 0.05
    warmup_steps: int = 50
    decay_share: float = 0.4
    clip_norm: float = 1.0
    seed: int = 1


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with updates orthogonalised by Newton-Schulz iterations, matrices of one shape together."""

    def __init__(
        self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": group} for group in by_shape.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            matrices: list[torch.nn.Parameter] = group["params"]
            gradients = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
            state = self.state[matrices[0]]
            average = state.setdefault("average", torch.zeros_like(gradients))
            average.lerp_(gradients, 1 - group["momentum"])
            update = orthogonalise(gradients.lerp(average, group["momentum"]))
            rows, columns = update.shape[-2:]
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for matrix, change in zip(matrices, update, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-rate)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Replace every singular value by about one; a quintic iteration with the coefficients published for Muon.

    matrices [N, R, C] float32; returns [N, R, C] float32 newly allocated
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def rate_factor(step: int, recipe: Recipe) -> float:
    """Share of the full learning rate at `step`: linear warm-up, constant, linear decay to zero at the end."""
    decay_steps = recipe.steps * recipe.decay_share
    return min(1.0, (step + 1) / recipe.warmup_steps, (recipe.steps - step) / decay_steps)


def encode_stream(documents: list[corpus.Document], encoder: Tokenizer, recipe: Recipe) -> Tensor:
    """Tokens of as many shuffled epochs as the recipe needs, in training order; conversations among the documents."""
    headings, needed, pieces = count_headings(documents), recipe.steps * recipe.tokens_per_step + 1, list[Tensor]()
    epoch = 0
    while sum(map(len, pieces)) < needed:
        rng = random.Random(recipe.seed * 1000 + epoch)
        texts = [f"{BOS}{document.text()}{END}" for document in documents]
        texts += [talk for document in documents for talk in write_conversations(document, headings, rng)]
        rng.shuffle(texts)
        encoded = encoder.encode_batch_fast(texts, add_special_tokens=False)
        pieces.append(torch.tensor([token for one in encoded for token in one.ids], dtype=torch.int32))
        log.info("epoch %d: %d texts, %d tokens", epoch, len(texts), len(pieces[-1]))
        epoch += 1
    return torch.cat(pieces)[:needed]


def batches(stream: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """Windows [tokens_per_step / context, context + 1] per step, shuffled within the short and the long phase."""
    generator = torch.Generator().manual_seed(recipe.seed)
    long_steps = round(recipe.steps * recipe.long_share)
    start = 0
    for steps, context in ((recipe.steps - long_steps, recipe.short_context), (long_steps, recipe.long_context)):
        count = steps * recipe.tokens_per_step // context
        order = torch.randperm(count, generator=generator)
        for step in order.view(steps, -1):
            yield torch.stack(
                [stream[start + i * context : start + (i + 1) * context + 1] for i in step.tolist()]
            ).long()
        start += steps * recipe.tokens_per_step


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how one training runs; none of it decides the weights beyond rounding."""

    out: Path
    device: str
    compiled: bool


Curve = list[dict[str, float]]


def train(model: Llama, stream: Tensor, held_out: Tensor, recipe: Recipe, run: Run) -> Curve:
    """Run the recipe, from the saved state if `run.out` holds one; returns the loss curve in nats per token."""
    inner = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    outer = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed" in name]
    muon = Muon(inner, recipe.muon_rate, recipe.weight_decay)
    adam = torch.optim.AdamW(outer, recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    forward = torch.compile(model, dynamic=False) if run.compiled else model
    precision = torch.autocast(torch.device(run.device).type, torch.bfloat16)
    done, curve = resume(run, recipe, model, muon, adam)
    began, recent = time.monotonic() - (curve[-1]["seconds"] if curve else 0.0), list[float]()
    for step, windows in enumerate(batches(stream, recipe)):
        if step < done:
            continue
        factor = rate_factor(step, recipe)
        for optimizer, rate in ((muon, recipe.muon_rate), (adam, recipe.adam_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        parts = windows.to(run.device).split(max(1, recipe.tokens_per_pass // (windows.shape[1] - 1)))
        for part in parts:
            with precision:
                loss = forward(part[:, :-1], part[:, 1:]) * (len(part) / len(windows))
            loss.backward()
            recent.append(loss.item() * len(windows) / len(part))
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step + 1 in (10, recipe.steps):
            point = {
                "step": step + 1,
                "tokens": (step + 1) * recipe.tokens_per_step,
                "train": sum(recent) / len(recent),
            }
            point |= {"heldout": measure(model, held_out, run.device), "seconds": time.monotonic() - began}
            curve.append({key: round(value, 4) for key, value in point.items()})
            log.info("%s", json.dumps(curve[-1]))
            recent = []
            write_checkpoint(model, Shape(), run.out)
            save_state(run, recipe, step + 1, curve, model, muon, adam)
    return curve


def save_state(
    run: Run, recipe: Recipe, done: int, curve: Curve, *parts: torch.nn.Module | torch.optim.Optimizer
) -> None:
    """Write what a stopped run needs to go on; the rename keeps the old state if the write is cut off."""
    state = {"recipe": asdict(recipe), "done": done, "curve": curve, "parts": [part.state_dict() for part in parts]}
    torch.save(state, run.out / "state.pt.part")
    (run.out / "state.pt.part").replace(run.out / "state.pt")


def resume(run: Run, recipe: Recipe, *parts: torch.nn.Module | torch.optim.Optimizer) -> tuple[int, Curve]:
    """Load the saved state of the same recipe into `parts`; returns the steps already done and their curve."""
    path = run.out / "state.pt"
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location=run.device, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise SystemExit(f"{path} belongs to another recipe: remove it or choose another folder")
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
    log.info("resuming after step %d", state["done"])
    return state["done"], state["curve"]


@torch.no_grad()
def measure(model: Llama, windows: Tensor, device: str) -> float:
    """Mean nats per token over held-out windows [N, T + 1]: progress only, `evaluate` gives the card its figure."""
    losses = [model(part[:, :-1], part[:, 1:]).item() for part in windows.to(device).split(4)]
    return sum(losses) / len(losses)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder written by corpus.py")
    parser.add_argument("out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--no-compile", action="store_true", help="for machines without a C++ compiler; slower")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    documents = corpus.load(arguments.corpus / "train.jsonl")
    encoder = train_tokenizer(document.text() for document in documents)
    write_tokenizer(encoder, arguments.out)
    held_out_text = "\n\n".join(document.text() for document in corpus.load(arguments.corpus / "heldout.jsonl"))
    held_out = torch.tensor(encoder.encode(held_out_text).ids[: 32 * 257]).view(32, 257)
    model = Llama(Shape()).to(arguments.device)
    stream = encode_stream(documents, encoder, recipe)
    run = Run(arguments.out, arguments.device, compiled=not arguments.no_compile)
    curve = train(model, stream, held_out, recipe, run)
    write_checkpoint(model, Shape(), arguments.out)
    record = {
        "recipe": asdict(recipe),
        "shape": asdict(Shape()),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "corpus_sha256": corpus.digest(arguments.corpus),
        "tokens": len(stream) - 1,
        "seconds": round(curve[-1]["seconds"]),
        "device": arguments.device,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "curve_nats_per_token": curve,
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

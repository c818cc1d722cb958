"""Gates of small random checkpoints: the same bytes each time, also after a kill, served as they were measured."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from support import letters
from support.checkpoints import write_checkpoint, write_json
from windlass_contract.launch_spec import Device, Precision, SparseActivation
from windlass_kernels import ops
from windlass_runtime.backends import load as loading
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.torch_backend import TorchBackend
from windlass_runtime.checkpoint.tensor_file import TensorFile
from windlass_runtime.errors import CalibrationError, GateError
from windlass_runtime.jobs.stream import LayerStream
from windlass_runtime.jobs.texts import read_texts
from windlass_runtime.jobs.train_gate import GateOptions, train_gate
from windlass_runtime.sparsity.gate import DATA_FILE, JSON_FILE, Gate, Method, read_gate, read_layer
from windlass_runtime.tokenizer import Tokenizer

LENGTH, NEURONS = 24, 256
SHAPES = {
    "hidden_size": 64,
    "intermediate_size": NEURONS,
    "head_dim": 16,
    "vocab_size": letters.VOCABULARY,
    "num_hidden_layers": 3,
}


def build_options(**changes: Any) -> GateOptions:
    values = {"sequences": 8, "sequence_tokens": LENGTH, "heldout_sequences": 3, "rank": 8, "epochs": 2}
    return GateOptions(**values | {"masses": (0.5, 0.9), "max_loss": 1e9, "balanced_loss": 1e9} | changes)


@dataclass(frozen=True)
class Place:
    """A model, texts, and where the gate goes."""

    folder: Path
    model: Path

    @property
    def target(self) -> Path:
        return self.folder / "gate"

    def train(self, options: GateOptions | None = None, **more: Any) -> Gate:
        data, held = self.folder / "data.txt", self.folder / "held.txt"
        return train_gate(self.model, data, held, self.target, options or build_options(), **more)

    def load(self, **more: Any) -> TorchBackend:
        values = {"sparse_activation": SparseActivation.MAX, "gate": self.target, "max_sequence_tokens": 128}
        return load_backend(self.model, **values | more)

    def content(self) -> tuple[bytes, bytes]:
        return (self.target / DATA_FILE).read_bytes(), (self.target / JSON_FILE).read_bytes()

    def heldout(self) -> list[list[int]]:
        return read_texts(  # type: ignore[no-any-return]
            Tokenizer.load(self.model),
            self.folder / "data.txt",
            self.folder / "held.txt",
            sequences=8,
            heldout_sequences=3,
            length=LENGTH,
            seed=0,
        )[1].tokens.tolist()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return build_place(tmp_path)


def build_place(folder: Path, **changes: Any) -> Place:
    model = write_checkpoint(folder / "model", **SHAPES | changes)
    letters.build_core().save(str(model / "tokenizer.json"))
    write_json(model / "tokenizer_config.json", letters.build_config())
    for name, seed in (("data", 0), ("held", 1)):
        draw = random.Random(seed)
        words = ("".join(draw.choices("abcdefgh", k=draw.randint(1, 7))) for _ in range(120))
        (folder / f"{name}.txt").write_text(" ".join(words))
    return Place(folder, model)


def decode(backend: TorchBackend, tokens: list[int], prompt: int = 0) -> torch.Tensor:
    """[L, V] of a sequence, token by token."""
    rows = [Row("r", (token,), at, (0, 1), True, prompt_tokens=prompt) for at, token in enumerate(tokens)]
    return torch.cat([backend.step(Batch((row,))) for row in rows])


def nats_of(backend: TorchBackend, windows: list[list[int]]) -> float:
    total = 0.0
    for window in windows:
        logits = decode(backend, window)[:-1].double().log_softmax(-1)
        total -= float(logits.gather(1, torch.tensor(window[1:])[:, None]).sum())
    return total


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("preset", [None, "INT8", "INT4"])
def test_a_gate_serves_what_was_measured(place: Place, preset: str | None, method: Method) -> None:
    gate = place.train(build_options(method=method, masses=(0.6,)), preset=preset)

    backend = place.load(precision=Precision(preset or "FP32"))

    quality = gate.targets[0].quality
    measured = torch.tensor(nats_of(backend, place.heldout()) / quality.tokens, dtype=torch.float64).exp()
    # Layer by layer or token by token: the kernels give the same bits, only sums in float64 differ.
    assert float(measured) == pytest.approx(quality.perplexity, rel=1e-9)
    assert 0.0 < gate.targets[0].density < 1.0
    assert gate.layers == (1,)


def test_reordered_neurons_compute_what_the_checkpoint_computes(place: Place) -> None:
    place.train(build_options(masses=(0.5,)))
    order = read_layer(TensorFile(place.target / DATA_FILE), 1, 0).order
    assert order.tolist() != list(range(NEURONS))
    sparse, dense = place.load(), load_backend(place.model, max_sequence_tokens=128)

    found, expected = (decode(backend, [1, 5, 9, 2, 4], prompt=5) for backend in (sparse, dense))

    # The same products, added in another order.
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_others(place: Place) -> None:
    place.train()
    first = place.content()

    place.train()
    assert place.content() == first

    place.train(build_options(seed=1))
    assert place.content()[0] != first[0]


class Killed(BaseException):
    """Ends a job where it stands, as a signal would: no handler of ours catches it."""


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_it_goes_on_to_the_same_bytes(place: Place, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = random.Random(seed)
    place.train()
    expected = place.content()

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if draw.random() < 1 / 6:
                raise Killed
            result = function(*arguments, **named)
            if draw.random() < 1 / 6:
                raise Killed
            return result

        return call

    monkeypatch.setattr(os, "replace", killing(os.replace))
    monkeypatch.setattr(LayerStream, "run", killing(LayerStream.run))
    for _ in range(100):
        try:
            place.train()
            break
        except Killed:
            continue
    else:
        pytest.fail("never finished")

    assert place.content() == expected
    assert not place.target.with_name("gate.partial").exists()


def test_a_higher_aim_keeps_more_blocks_and_more_of_the_output(place: Place) -> None:
    low, high = place.train(build_options(masses=(0.4, 0.95))).targets

    assert low.density < high.density
    assert low.recall < high.recall
    assert high.recall > 0.85


def test_a_mode_without_a_good_enough_target_stays_dense(place: Place) -> None:
    place.train()
    path = place.target / JSON_FILE
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"modes": {"balanced": None, "max": 0}}))

    assert place.load(sparse_activation=SparseActivation.BALANCED).activation is None
    assert place.load(sparse_activation=SparseActivation.MAX).activation is not None


def test_a_sequence_gets_the_same_bits_in_any_company_and_again_after_a_preemption(place: Place) -> None:
    place.train(build_options(masses=(0.6,)))
    backend = place.load()
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    alone = decode(backend, tokens, prompt=3)

    prompt = backend.step(Batch((Row("a", tuple(tokens[:3]), 0, (0, 1), True, prompt_tokens=3),)))
    others = [Row(f"o{at}", (7, 8, 9, 1), 0, (2 + 2 * at,), True, 1 + at, prompt_tokens=1 + at) for at in range(4)]
    crowded = backend.step(Batch((others[0], Row("a", (tokens[3],), 3, (0, 1), True, prompt_tokens=3), *others[1:])))
    again = backend.step(Batch((Row("a", tuple(tokens), 0, (0, 1), True, prompt_tokens=3),)))

    assert torch.equal(prompt[0], alone[2])
    assert torch.equal(crowded[1], alone[3])
    assert torch.equal(again[0], alone[7])


def test_figures_say_how_dense_and_how_faithful_generated_tokens_were(place: Place) -> None:
    gate = place.train(build_options(masses=(0.6,)))
    backend = place.load()
    assert backend.activation is not None
    decode(backend, [1] * 3, prompt=3)
    assert backend.activation.figures.looks == 0

    for window in place.heldout():
        decode(backend, window)

    figures = backend.activation.figures
    assert figures.looks == 3
    assert figures.computed + figures.skipped == (3 * LENGTH - 3) * NEURONS // 64
    assert figures.computed / (figures.computed + figures.skipped) == pytest.approx(gate.targets[0].density, abs=0.1)
    assert 0.2 < figures.recall_sum / figures.looks <= 1.0


def test_without_kernels_the_same_tokens_leave_out_the_same_blocks(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.train(build_options(masses=(0.6,)))
    native = decode(place.load(), [1, 5, 9, 2])
    monkeypatch.setattr(ops, "available", lambda: ops.Availability(False, "switched off"))
    monkeypatch.setattr(loading.ops, "library_for", lambda _: None)

    slow = decode(place.load(), [1, 5, 9, 2])

    assert torch.allclose(native, slow, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "load", "message"),
    [
        pytest.param({"version": 9}, {}, "version: expected 1, found 9", id="version"),
        pytest.param({"model_digest": "x"}, {}, "model_digest: expected .* found x", id="another model"),
        pytest.param({}, {"precision": Precision.INT8}, "weights: expected rounded to INT8, found as", id="weights"),
        pytest.param({"data_sha256": "x"}, {}, "gate.safetensors: expected sha256 x", id="damaged data"),
        pytest.param({"layers": [0]}, {}, "layers.0.order: expected I32 .256., found nothing", id="missing layer"),
        pytest.param({"modes": {"max": 5}}, {}, "modes.max: expected one of 2 targets, found 5", id="mode"),
        pytest.param({"modes": {"balanced": 0}}, {}, "modes: expected max among them, found balanced", id="absent"),
        pytest.param({"targets": 3}, {}, "expected a gate, found an entry that is none", id="shape of the JSON"),
        pytest.param({}, {"device": Device.CUDA}, "sparse activation: expected device cpu", id="device"),
        pytest.param({}, {"gate": Path("/nowhere")}, "with gate.json in /nowhere, found none", id="none"),
    ],
)
def test_a_gate_that_does_not_fit_is_refused_with_what_was_found(
    place: Place, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], load: dict[str, Any], message: str
) -> None:
    place.train()
    path = place.target / JSON_FILE
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    monkeypatch.setattr(loading, "_find_devices", lambda device, count: (torch.device(device.value),) * count)

    with pytest.raises(GateError, match=message):
        place.load(**load)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        pytest.param({}, {"dense_layers": 2}, "expected fewer than half of the 3 layers", id="no layer left"),
        pytest.param(
            {"intermediate_size": 96}, {}, "a multiple of 64 neurons to choose from, found 96", id="no blocks"
        ),
    ],
)
def test_a_model_without_anything_to_leave_out_is_refused(
    tmp_path: Path, shapes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        build_place(tmp_path, **shapes).train(build_options(**options))


def test_a_gate_reads_back_as_it_was_written(place: Place) -> None:
    assert place.train() == read_gate(place.target)

"""Make a gate from a checkpoint, its recipe and a text: layer by layer, resumable, the same bytes for the same inputs.

First every layer runs dense over all windows; in the sparse ones some tokens are kept, their neurons are put in order
and a predictor is trained. Then each target is measured on held-out text, with every token treated as a generated one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from windlass_kernels import packed, reference
from windlass_kernels.feed_forward import NEURON_BLOCK
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensor_file import TensorFile, join_tensors, write_tensors
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import CalibrationError
from windlass_runtime.jobs import quality
from windlass_runtime.jobs.stream import CPU, LayerStream, choose_arithmetic
from windlass_runtime.jobs.texts import Windows, read_texts
from windlass_runtime.jobs.token_sample import TokenSample
from windlass_runtime.jobs.work_folder import Hidden, Report, WorkFolder, replace_folder
from windlass_runtime.model.sparse_step import SparseLayers
from windlass_runtime.model.weights import LayerReader, LayerWeights
from windlass_runtime.quant import rounding
from windlass_runtime.quant.data_free import DataFreeTensors
from windlass_runtime.quant.find import open_overlay
from windlass_runtime.quant.recipe import Quality, RecipeTensors, digest_model, hash_file, parse_quality
from windlass_runtime.sparsity.cuts import MODE_LIMITS, choose_cuts, choose_modes
from windlass_runtime.sparsity.find import identify_weights
from windlass_runtime.sparsity.gate import DATA_FILE, JSON_FILE, VERSION, Gate, LayerGate, Method, Target, read_layer
from windlass_runtime.sparsity.ordering import order_neurons
from windlass_runtime.sparsity.predictor import train_predictor
from windlass_runtime.tokenizer import Tokenizer

_ORDER_TOKENS: Final = 1024
_RUN_TOKENS: Final = 2048
_TRAINED_SHARE: Final = 0.8
"""Share of the kept tokens that train; the others choose the cuts."""


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What the user chose. Everything here decides the bytes of the gate."""

    method: Method = Method.PREDICTOR
    masses: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
    """Shares of the output's energy to aim at, one target each."""
    balanced_loss: float = MODE_LIMITS["balanced"]
    max_loss: float = MODE_LIMITS["max"]
    """Largest perplexity losses of the modes."""
    dense_layers: int = 1
    """Layers at each end that stay dense."""
    rank: int = 32
    """Features of the predictor."""
    epochs: int = 16
    sample_tokens: int = 16384
    """Tokens that are kept of the calibration text, in each layer."""
    sequences: int = 64
    sequence_tokens: int = 512
    heldout_sequences: int = 32
    seed: int = 0


def train_gate(
    folder: Path,
    data: Path,
    heldout: Path | None,
    target: Path,
    options: GateOptions,
    *,
    preset: str | None = None,
    recipe: Path | None = None,
    restart: bool = False,
    report: Report = lambda *_: None,
) -> Gate:
    """Write the gate folder `target`, replacing one that is there.

    preset, recipe  the weights that will be served, as for a backend; neither means those of the checkpoint
    restart         forget a work folder that was left behind
    Raises CheckpointError for the model or the recipe, CalibrationError for the inputs.
    """
    spec = read_spec(folder)
    layers = choose_layers(spec, options.dense_layers)
    texts = read_texts(
        Tokenizer.load(folder),
        data,
        heldout,
        sequences=options.sequences,
        heldout_sequences=options.heldout_sequences,
        length=min(options.sequence_tokens, spec.max_positions),
        seed=options.seed,
    )
    with (
        torch.inference_mode(),
        CheckpointTensors(folder, spec) as tensors,
        open_overlay(folder, spec, tensors, preset, recipe) as overlay,
    ):
        identity = {
            "version": VERSION,
            "model": digest_model(folder, spec, tensors),
            "weights": identify_weights(overlay),
            "calibration text": texts[0].identity,
            "held-out text": texts[1].identity,
            "options": dataclasses.asdict(options) | {"masses": list(options.masses), "method": options.method.value},
        }
        work = WorkFolder.open(target.with_name(target.name + ".partial"), identity, restart)
        training = _Training(spec, tensors, overlay, texts, options, layers, work)
        training.run(report)
        gate = training.finish(work.path / "gate")
    replace_folder(work.path / "gate", target)
    shutil.rmtree(work.path)
    return gate


def choose_layers(spec: ModelSpec, dense: int) -> tuple[int, ...]:
    """The layers that become sparse. Raises CalibrationError for a model that has none."""
    layers = tuple(range(dense, spec.layer_count - dense))
    if not layers:
        raise CalibrationError(
            f"--dense-layers: expected fewer than half of the {spec.layer_count} layers to stay dense at each end, "
            f"found {dense}"
        )
    if spec.feed_forward_size % NEURON_BLOCK:
        raise CalibrationError(
            f"feed-forward size: expected a multiple of {NEURON_BLOCK} neurons to choose from, "
            f"found {spec.feed_forward_size}"
        )
    return layers


@dataclass(frozen=True, slots=True)
class _Part:
    """What was trained up to now, one file a layer: gates for a LayerReader."""

    work: WorkFolder
    layers: tuple[int, ...]
    target: int

    def layer(self, layer: int) -> LayerGate | None:
        if layer not in self.layers:
            return None
        with contextlib.closing(TensorFile(self.work.part(str(layer)))) as file:
            return read_layer(file, layer, self.target)


@dataclass(frozen=True, slots=True)
class _Training:
    spec: ModelSpec
    tensors: CheckpointTensors
    overlay: RecipeTensors | DataFreeTensors | None
    texts: tuple[Windows, Windows]
    options: GateOptions
    layers: tuple[int, ...]
    work: WorkFolder

    def run(self, report: Report) -> None:
        """Embedding, layers and targets that are not done yet."""
        count, masses = self.spec.layer_count, self.options.masses
        steps = 1 + count + len(masses)
        stream = LayerStream(self.spec, choose_arithmetic(self.spec), self.texts[0].tokens.shape[1])
        if self.work.steps_done < 0:
            report(0, steps, "embedding")
            self._embed(stream)
        for layer in range(self.work.steps_done, count):
            report(1 + layer, steps, f"layer {layer + 1} of {count}")
            self._train_layer(stream, layer)
        for at in range(self.work.steps_done - count, len(masses)):
            report(1 + count + at, steps, f"measuring {masses[at]:.0%} of the output's energy")
            self._measure_target(stream, at)
        report(steps, steps, "done")

    def _reader(self, target: int | None = None) -> LayerReader:
        gates = None if target is None else _Part(self.work, self.layers, target)
        return LayerReader(self.spec, self.tensors, torch.float32, torch.float32, CPU, self.overlay, gates)

    @property
    def _entry(self) -> Path:
        """Held-out hidden states before the first sparse layer."""
        return self.work.path / "entry.npy"

    @property
    def _dense(self) -> Path:
        """Hidden states after the last layer, nothing left out."""
        return self.work.path / "dense.npy"

    def _embed(self, stream: LayerStream) -> None:
        tokens, path = np.concatenate([text.tokens for text in self.texts]), self.work.hidden(0)
        with self.work.writing_array(path, (*tokens.shape, self.spec.hidden_size)) as hidden:
            stream.embed(tokens, self._reader().read_embedding(), hidden)
        self.work.commit(0)

    def _train_layer(self, stream: LayerStream, layer: int) -> None:
        before = np.load(self.work.hidden(layer), mmap_mode="r")
        is_last, first = layer + 1 == self.spec.layer_count, len(self.texts[0].tokens)
        path = self._dense if is_last else self.work.hidden(layer + 1)
        weights = self._reader().read_layer(layer)
        if layer == self.layers[0]:
            with self.work.writing_array(self._entry, before[first:].shape) as entry:
                entry[:] = before[first:]
        if layer in self.layers:
            sample = TokenSample(weights, self.texts[0].tokens.size, self.options.sample_tokens)
            stream.run(layer, weights, before[:first], None, sample)
            with self.work.replacing(self.work.part(str(layer))) as part:
                write_tensors(part, self._build_tensors(layer, weights, sample))
        with self.work.writing_array(path, before.shape) as after:
            stream.run(layer, weights, before, after)
        self.work.commit(layer + 1)

    def _build_tensors(self, layer: int, weights: LayerWeights, sample: TokenSample) -> dict[str, torch.Tensor]:
        norms, gated = measure_columns(weights), sample.gated
        every = max(1, len(gated) // _ORDER_TOKENS)
        activity = (gated[::every].abs() * norms).numpy()
        activity /= np.maximum(np.linalg.norm(activity, axis=1, keepdims=True), 1e-30)
        order = order_neurons(activity, NEURON_BLOCK, self._scale_columns(weights))
        places = torch.from_numpy(order).long()
        norms = norms[places].contiguous()
        blocks = self.spec.feed_forward_size // NEURON_BLOCK
        mass = reference.block_mass(gated[:, places], norms, blocks)
        shares = (mass / mass.sum(-1, keepdim=True).clamp(min=1e-30)).numpy()
        trained = max(1, int(len(shares) * _TRAINED_SHARE))
        tensors = {"order": torch.from_numpy(order), "norms": norms}
        if self.options.method is Method.PREDICTOR:
            tensors |= self._train(sample.hints[:trained].numpy(), shares[:trained], layer)
            scores = predict(tensors, sample.hints[trained:])
        else:
            scores = self._score_gates(weights, sample.inputs[trained:], places, norms)
        cuts = choose_cuts(scores.numpy(), shares[trained:], self.options.masses)
        tensors["cuts"] = torch.from_numpy(cuts)
        return {f"layers.{layer}.{name}": tensor for name, tensor in tensors.items()}

    def _scale_columns(self, weights: LayerWeights) -> int:
        """Columns of the down projection that share a scale, and so stay together."""
        weight = weights.down.weight
        return weight.group if isinstance(weight, packed.PackedWeight) and weight.bits == 4 else 1

    def _train(self, hints: Hidden, shares: Hidden, layer: int) -> dict[str, torch.Tensor]:
        options = self.options
        found = train_predictor(hints, shares, options.rank, options.epochs, options.seed * 1009 + layer)
        rounded = rounding.round_rows(np.ascontiguousarray(found.narrow.T), None)
        return {
            "narrow.codes": torch.from_numpy(rounded.codes),
            "narrow.scales": torch.from_numpy(rounded.scales),
            "wide": torch.from_numpy(np.ascontiguousarray(found.wide.T)),
            "bias": torch.from_numpy(found.bias),
        }

    def _score_gates(
        self, weights: LayerWeights, inputs: torch.Tensor, places: torch.Tensor, norms: torch.Tensor
    ) -> torch.Tensor:
        arithmetic, blocks = choose_arithmetic(self.spec), len(norms) // NEURON_BLOCK
        parts = []
        for first in range(0, len(inputs), _RUN_TOKENS):
            some = inputs[first : first + _RUN_TOKENS]
            gates = arithmetic.project(some, weights.gate_up)[:, : len(norms)]
            parts.append(reference.score_gates(gates[:, places], norms, blocks))
        return torch.cat(parts)

    def _measure_target(self, stream: LayerStream, at: int) -> None:
        reader, last = self._reader(at), self.spec.layer_count
        hidden = np.load(self._entry)
        totals = np.zeros(3)
        for layer in range(self.layers[0], last):
            weights, after = reader.read_layer(layer), np.empty_like(hidden)
            chains = [weights.feed_forward] if layer in self.layers else []
            activation = SparseLayers(chains, probe_steps=1)
            stream.run(layer, weights, hidden, after, activation=activation)
            hidden, found = after, activation.figures
            totals += (found.looks, found.density_sum, found.recall_sum)
        looks, density, recall = totals.tolist()
        measured = self._measure_quality(hidden)
        note = {"density": density / looks, "recall": recall / looks, "quality": dataclasses.asdict(measured)}
        self.work.commit(last + 1 + at, note)

    def _measure_quality(self, sparse: Hidden) -> Quality:
        reader, first = self._reader(), len(self.texts[0].tokens)
        end = quality.Exit(reader.read_final_norm(), reader.read_head(None))
        dense = np.load(self._dense, mmap_mode="r")[first:]
        arithmetic, tokens = choose_arithmetic(self.spec), self.texts[1].tokens
        return quality.measure_quality(arithmetic, tokens, (dense, end), (sparse, end), self.options.seed)

    def finish(self, place: Path) -> Gate:
        """Write the gate to `place`."""
        place.mkdir(exist_ok=True)
        join_tensors(place / DATA_FILE, [self.work.part(str(layer)) for layer in self.layers])
        targets = tuple(
            Target(mass, note["density"], note["recall"], parse_quality(note["quality"]))
            for mass, note in zip(self.options.masses, self.work.notes, strict=True)
        )
        limits = {"balanced": self.options.balanced_loss, "max": self.options.max_loss}
        described: dict[str, Any] = {
            key: value for key, value in self.work.identity.items() if key not in ("model", "version", "weights")
        }
        gate = Gate(
            method=self.options.method,
            model_digest=self.work.identity["model"],
            weights=self.work.identity["weights"],
            data=described,
            layers=self.layers,
            targets=targets,
            modes=choose_modes(targets, limits),
            limits=limits,
            data_sha256=hash_file(place / DATA_FILE),
        )
        (place / JSON_FILE).write_text(gate.to_json())
        return gate


def measure_columns(weights: LayerWeights) -> torch.Tensor:
    """Size of each neuron's column of the down projection: [F] float32."""
    weight = weights.down.weight
    floats = packed.dequantize(weight) if isinstance(weight, packed.PackedWeight) else weight.float()
    return floats.square().sum(0).sqrt()


def predict(tensors: dict[str, torch.Tensor], hints: torch.Tensor) -> torch.Tensor:
    """Shares as a replica predicts them, from the stored form: [N, E] to [N, B]."""
    narrow = packed.pack(tensors["narrow.codes"], tensors["narrow.scales"])
    features = packed.linear(hints.contiguous(), narrow).clamp(min=0)
    return torch.softmax(reference.linear(features, tensors["wide"], tensors["bias"]), -1)

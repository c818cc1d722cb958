"""Make a recipe from a checkpoint and a text: layer by layer, resumable, the same bytes for the same inputs.

Hidden states of all windows lie in a work folder beside the target, FP32 and quantised side by side. A layer is done
when its tensors, its hidden states, and then the progress file have their names; a restart goes on after the last one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from windlass_kernels.feed_forward import Projection
from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensor_file import TensorFile, join_tensors, write_tensors
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import CalibrationError, QualityMissed
from windlass_runtime.jobs import quality
from windlass_runtime.jobs.stream import CPU, InputWatch, LayerStream, choose_arithmetic
from windlass_runtime.jobs.texts import Windows, read_texts
from windlass_runtime.jobs.work_folder import Hidden, Report, WorkFolder, replace_folder
from windlass_runtime.model.weights import LayerReader, LayerWeights, Overlay, weight_bytes
from windlass_runtime.quant import rounding
from windlass_runtime.quant.data_free import read_matrix, round_plainly
from windlass_runtime.quant.formats import PRESETS, SNR_FLOORS_DB, STORED, Format, Part, Thresholds
from windlass_runtime.quant.layer import LayerQuantizer, PartialRecipe
from windlass_runtime.quant.plan import layer_units, plan_formats
from windlass_runtime.quant.recipe import (
    DATA_FILE,
    JSON_FILE,
    VERSION,
    Recipe,
    RecipeTensors,
    TensorRecipe,
    digest_model,
    hash_file,
)
from windlass_runtime.quant.unit import UnitResult, quantize_unit
from windlass_runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What the user chose. Everything here decides the bytes of the recipe."""

    preset: str
    """A name of PRESETS."""
    formats: dict[Part, Format | None]
    """In the place of the preset's."""
    thresholds: Thresholds
    sequences: int = 64
    sequence_tokens: int = 512
    heldout_sequences: int = 32
    seed: int = 0
    group: int = 32
    """Columns per scale of 4-bit projections."""
    static_inputs: bool = False
    """Choose one scale for the inputs of each INT8 product (W8A8), with channel factors that make it bearable."""
    keep: tuple[str, ...] = ()
    """Tensors left as the checkpoint stores them."""


def calibrate(
    folder: Path,
    data: Path,
    heldout: Path | None,
    target: Path,
    options: CalibrationOptions,
    *,
    restart: bool = False,
    report: Report = lambda *_: None,
) -> Recipe:
    """Write the recipe folder `target`, replacing one that is there.

    restart  forget a work folder that was left behind
    Raises CheckpointError for the model, CalibrationError for the inputs, and QualityMissed when the gate fails: the
    recipe is then at `target`.rejected.
    """
    spec = read_spec(folder)
    length = min(options.sequence_tokens, spec.max_positions)
    texts = read_texts(
        Tokenizer.load(folder),
        data,
        heldout,
        sequences=options.sequences,
        heldout_sequences=options.heldout_sequences,
        length=length,
        seed=options.seed,
    )
    with torch.inference_mode(), CheckpointTensors(folder, spec) as tensors:
        digest = digest_model(folder, spec, tensors)
        work = WorkFolder.open(target.with_name(target.name + ".partial"), _identify(digest, texts, options), restart)
        run = _Calibration(spec, tensors, texts, options, work, digest)
        run.run(report)
        recipe = run.finish(work.path / "recipe")
    misses = quality.find_misses(recipe.quality, recipe.thresholds) if recipe.quality else []
    place = target.with_name(target.name + ".rejected") if misses else target
    replace_folder(work.path / "recipe", place)
    shutil.rmtree(work.path)
    if misses:
        raise QualityMissed(describe_misses(place, recipe, misses))
    return recipe


def describe_misses(place: Path, recipe: Recipe, misses: list[str]) -> str:
    """One line: what was missed, where it was lost, and what to try."""
    tensors = ", ".join(
        f"{name} ({entry.format}, {entry.snr_db:g} dB)" for name, entry in quality.worst_tensors(recipe.tensors)
    )
    layers = ", ".join(f"layer {layer} (-{loss:.1f} dB)" for layer, loss in quality.worst_layers(recipe.layer_snr_db))
    return (
        f"recipe {place}: {'; '.join(misses)}. Worst tensors: {tensors}. Worst layers: {layers or 'only one'}. "
        "Keep the worst with --keep NAME, choose smaller --group, or a wider --precision"
    )


def _identify(digest: str, texts: tuple[Windows, Windows], options: CalibrationOptions) -> dict[str, Any]:
    """Everything that decides the result, as JSON."""
    chosen = dataclasses.asdict(options)
    chosen["formats"] = {str(part): str(wanted) for part, wanted in options.formats.items()}
    chosen["keep"] = sorted(options.keep)
    return {
        "version": VERSION,
        "model": digest,
        "calibration text": texts[0].identity,
        "held-out text": texts[1].identity,
        "options": chosen,
    }


@dataclass(frozen=True, slots=True)
class _Calibration:
    spec: ModelSpec
    tensors: CheckpointTensors
    texts: tuple[Windows, Windows]
    options: CalibrationOptions
    work: WorkFolder
    digest: str

    def run(self, report: Report) -> None:
        """Embedding and all layers that are not done yet."""
        steps = self.spec.layer_count + 2
        stream = LayerStream(self.spec, choose_arithmetic(self.spec), self.texts[0].tokens.shape[1])
        if self.work.steps_done < 0:
            report(0, steps, "embedding")
            self._embed(stream)
        for layer in range(self.work.steps_done, self.spec.layer_count):
            report(layer + 1, steps, f"layer {layer + 1} of {self.spec.layer_count}")
            self._quantize_layer(stream, layer)
        report(steps - 1, steps, "head and quality")

    @property
    def plan(self) -> dict[str, TensorRecipe]:
        planned = plan_formats(
            self.spec, PRESETS[self.options.preset].formats | self.options.formats, self.options.group
        )
        unknown = [name for name in self.options.keep if name not in planned]
        if unknown:
            raise CalibrationError(
                f"--keep {unknown[0]}: expected a tensor that would be quantised, found none of this name"
            )
        return {name: entry for name, entry in planned.items() if not self._is_kept(name)}

    def _is_kept(self, name: str) -> bool:
        """Tensors of one product share their format, so that one of them keeps all."""
        for layer in range(self.spec.layer_count):
            for unit in layer_units(self.spec, layer):
                if name in unit.names:
                    return any(other in self.options.keep for other in unit.names)
        return name in self.options.keep

    def _reader(self, overlay: Overlay | None = None) -> LayerReader:
        return LayerReader(self.spec, self.tensors, torch.float32, torch.float32, CPU, overlay)

    def _read(self, name: str) -> rounding.Floats:
        return read_matrix(self.spec, self.tensors, name)

    def _read_hidden(self, layers: int) -> Hidden:
        """[2, S, L, E]: FP32 and quantised; calibration windows first, then held-out ones."""
        hidden: Hidden = np.load(self.work.hidden(layers), mmap_mode="r")
        return hidden

    def _embed(self, stream: LayerStream) -> None:
        partial, tokens = PartialRecipe(), np.concatenate([text.tokens for text in self.texts])
        entry = self.plan.get(layout.EMBEDDING)
        if entry is not None:
            matrix = self._read(layout.EMBEDDING)
            partial.add_unit((layout.EMBEDDING,), [matrix], UnitResult(entry, (round_plainly(matrix, entry),)))
        with self.work.writing_array(self.work.hidden(0), (2, *tokens.shape, self.spec.hidden_size)) as hidden:
            stream.embed(tokens, self._reader().read_embedding(), hidden[0])
            stream.embed(tokens, self._reader(partial).read_embedding(), hidden[1])
        self._write_part("embedding", partial)
        self.work.commit(0, None)

    def _quantize_layer(self, stream: LayerStream, layer: int) -> None:
        before = self._read_hidden(layer)
        with self.work.writing_array(self.work.hidden(layer + 1), before.shape) as after:
            exact = self._reader().read_layer(layer)
            stream.run(layer, exact, before[0], after[0])
            quantizer = LayerQuantizer(self.spec, self.plan, SNR_FLOORS_DB, self.options.static_inputs, self._read)
            watch, projections = self._watch(layer, exact)
            # Inputs as the quantised layers before this one make them, so that it can make up for what they lost.
            stream.run(layer, exact, before[1, : len(self.texts[0].tokens)], None, watch)
            del exact
            partial = quantizer.quantize(layer, tuple(watch.statistics(projection) for projection in projections))
            del watch, projections
            stream.run(layer, self._reader(partial).read_layer(layer), before[1], after[1])
            snr_db = _energy_ratio_db(after)
        self._write_part(str(layer), partial)
        self.work.commit(layer + 1, snr_db)

    def _write_part(self, name: str, partial: PartialRecipe) -> None:
        """Keep finished tensors; their entries lie beside them."""
        with self.work.replacing(self.work.part(name)) as path:
            write_tensors(path, partial.stored())
        with self.work.replacing(self.work.part(name).with_suffix(".json")) as path:
            path.write_text(json.dumps({key: dataclasses.asdict(entry) for key, entry in partial.entries.items()}))

    def _watch(self, layer: int, weights: LayerWeights) -> tuple[InputWatch, list[Projection]]:
        projections = [weights.query_key_value, weights.output, weights.gate_up, weights.down]
        entries = [self.plan.get(unit.names[0]) for unit in layer_units(self.spec, layer)]
        with_moments = [entry is not None and entry.format is Format.INT4 for entry in entries]
        return InputWatch(projections, with_moments, self.texts[0].tokens.size), projections

    def finish(self, place: Path) -> Recipe:
        """Quantise the head, measure, and write the recipe to `place`."""
        hidden = self._read_hidden(self.spec.layer_count)
        self._quantize_head(hidden)
        place.mkdir(exist_ok=True)
        entries = self._join_parts(place / DATA_FILE)
        recipe = Recipe(
            preset=self.options.preset,
            model_digest=self.digest,
            architecture=self.spec.architecture,
            data={key: value for key, value in self.work.identity.items() if key not in ("model", "version")},
            tensors=entries,
            layer_snr_db=tuple(round(value, 2) for value in self.work.notes),
            thresholds=self.options.thresholds,
            quality=self._measure(hidden, place / DATA_FILE, entries),
            sizes=self._sizes(entries),
            data_sha256=hash_file(place / DATA_FILE),
        )
        (place / JSON_FILE).write_text(recipe.to_json())
        return recipe

    def _quantize_head(self, hidden: Hidden) -> None:
        partial, entry = PartialRecipe(), self.plan.get(layout.HEAD)
        if entry is not None:
            reader, matrix = self._reader(), self._read(layout.HEAD)
            head = Projection(torch.from_numpy(matrix), None)
            watch = InputWatch([head], [entry.format is Format.INT4], self.texts[0].tokens.size)
            norm, arithmetic = reader.read_final_norm(), choose_arithmetic(self.spec)
            for window in hidden[1, : len(self.texts[0].tokens)]:
                watch.see(head, arithmetic.norm(torch.from_numpy(np.array(window)), norm))
            finished = quantize_unit(
                [matrix],
                watch.statistics(head),
                entry,
                stored=STORED[self.spec.stored_dtype],
                floors_db=SNR_FLOORS_DB,
                static_inputs=False,
            )
            partial.add_unit((layout.HEAD,), [matrix], finished)
        self._write_part("head", partial)

    def _join_parts(self, path: Path) -> dict[str, TensorRecipe]:
        entries: dict[str, TensorRecipe] = {}
        parts = []
        for name in ("embedding", *map(str, range(self.spec.layer_count)), "head"):
            parts.append(self.work.part(name))
            for tensor, values in json.loads(parts[-1].with_suffix(".json").read_bytes()).items():
                entries[tensor] = TensorRecipe(**values | {"format": Format(values["format"])})
        join_tensors(path, parts)
        return entries

    def _measure(self, hidden: Hidden, path: Path, entries: dict[str, TensorRecipe]) -> Any:
        first = len(self.texts[0].tokens)
        with contextlib.closing(TensorFile(path)) as file:
            readers = [self._reader(), self._reader(RecipeTensors(file, entries))]
            ends = [quality.Exit(reader.read_final_norm(), reader.read_head(None)) for reader in readers]
        return quality.measure_quality(
            choose_arithmetic(self.spec),
            self.texts[1].tokens,
            (hidden[0, first:], ends[0]),
            (hidden[1, first:], ends[1]),
            self.options.seed,
        )

    def _sizes(self, entries: dict[str, TensorRecipe]) -> dict[str, int]:
        dtype = {Format.FP32: torch.float32, Format.BF16: torch.bfloat16, Format.FP16: torch.float16}[
            STORED[self.spec.stored_dtype]
        ]
        return {"checkpoint": weight_bytes(self.spec, dtype), "recipe": weight_bytes(self.spec, dtype, entries)}


def _energy_ratio_db(hidden: Hidden) -> float:
    """Of the FP32 hidden states to their difference from the quantised ones."""
    signal = noise = 0.0
    for exact, rounded in zip(hidden[0], hidden[1], strict=True):
        signal += float(np.square(exact, dtype=np.float64).sum())
        noise += float(np.square(exact - rounded, dtype=np.float64).sum())
    return rounding.ratio_db(signal, noise)

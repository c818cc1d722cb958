"""Build one plan: graph, numbers and sizes in, a file out. Nothing is left behind when it fails."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from windlass_runtime.engine.bindings import Bindings
from windlass_runtime.engine.builder_log import BuilderLog, make_logger
from windlass_runtime.engine.config_writer import ConfigWriter, Report
from windlass_runtime.engine.graph import Graph
from windlass_runtime.engine.lowering import Lowering
from windlass_runtime.engine.shape import PlanShape, profile_ranges
from windlass_runtime.engine.weights import WeightSource
from windlass_runtime.errors import EngineError


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """What a build wrote."""

    size: int
    """Bytes."""
    sha256: str


def build_plan(
    bindings: Bindings,
    graph: Graph,
    source: WeightSource,
    targets: tuple[str, ...],
    shape: PlanShape,
    path: Path,
    report: Report,
) -> BuiltPlan:
    """Write the plan to `path`. Raises EngineError with TensorRT's reasons, OSError for the disk."""
    log = BuilderLog()
    builder = bindings.module.Builder(make_logger(bindings.module, log))
    network = builder.create_network(0)
    lowering = Lowering(bindings.module, network, log, source)
    lowering.lower(graph)
    config = ConfigWriter(bindings, builder).write(targets, profile_ranges(graph.inputs, shape), report)
    with path.open("wb") as file:
        sink = PlanSink(file)
        done = builder.build_serialized_network_to_stream(network, config, make_stream(bindings.module, sink))
        for failure in (config.progress_monitor.failure, sink.failure):
            if failure is not None:
                raise failure
    if not done or not sink.size:
        raise EngineError(f"TensorRT built no plan: {log.describe_errors()}")
    return BuiltPlan(sink.size, sink.sha256)


class PlanSink:
    """Takes a plan in pieces, so that it is never in memory as a whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Bytes taken; 0 tells TensorRT to stop, and `failure` says why."""
        try:
            self._file.write(data)
        except OSError as exc:
            self.failure = exc
            return 0
        self._digest.update(data)
        self.size += len(data)
        return len(data)


def make_stream(module: Any, sink: PlanSink) -> Any:
    """TensorRT's stream writer over a sink."""

    class Stream(module.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            return sink.write(data)

    return Stream()

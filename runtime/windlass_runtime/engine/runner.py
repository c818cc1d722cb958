"""Run a plan: the seam between the executor and TensorRT, with the interpreter as the other side for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from windlass_runtime.engine.bindings import Bindings, Kind
from windlass_runtime.engine.builder_log import BuilderLog, make_logger
from windlass_runtime.engine.interpreter import Interpreter
from windlass_runtime.engine.network import TOKEN_IDS
from windlass_runtime.engine.shape import DECODE, PREFILL
from windlass_runtime.errors import EngineError, StepFailed


class PlanRunner(Protocol):
    """An open plan."""

    def run(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Compute one call on the current stream.

        tensors  every input and output by name, dense, in the shapes of this call; outputs are written in place, and
                 each cache is given under both of its names
        Raises StepFailed.
        """
        ...

    def close(self) -> None:
        """Free what the plan holds; idempotent."""
        ...


class InterpretedRunner:
    """Computes on the CPU what a plan of the same graph would."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    def run(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `PlanRunner`."""
        assert profile == PREFILL or tensors[TOKEN_IDS].shape[1] == 1, "a decode call of several tokens a row"
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        for name, result in self._interpreter.run(arrays).items():
            if not np.may_share_memory(result, arrays[name]):
                arrays[name][...] = result

    def close(self) -> None:
        """Holds nothing."""


class TensorRTRunner:
    """A deserialised plan with one context a profile. Not yet run on a GPU."""

    def __init__(self, bindings: Bindings, plan: Path) -> None:
        """Raises EngineError with TensorRT's reasons."""
        self._trt = bindings.module
        self._log = BuilderLog()
        self._runtime = self._trt.Runtime(make_logger(self._trt, self._log))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineError(f"{plan}: TensorRT does not load it: {self._log.describe_errors()}; build it again")
        self._contexts = {profile: self._make_context(bindings, profile) for profile in (PREFILL, DECODE)}

    def _make_context(self, bindings: Bindings, profile: int) -> Any:
        if bindings.kind is Kind.RTX:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        stream = torch.cuda.current_stream().cuda_stream
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise EngineError(f"plan: no context for profile {profile}: {self._log.describe_errors()}")
        torch.cuda.current_stream().synchronize()
        return context

    def run(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `PlanRunner`."""
        context = self._contexts[profile]
        for name, tensor in tensors.items():
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise StepFailed(f"TensorRT does not run the plan: {self._log.describe_errors()}")

    def close(self) -> None:
        """Drop contexts before the engine, and that before the runtime, as TensorRT asks."""
        self._contexts = {}
        self._engine = self._runtime = None

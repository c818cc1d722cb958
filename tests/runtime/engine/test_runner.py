from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.engines import load_rtx_or_skip
from windlass_runtime.engine.bindings import Bindings, Kind
from windlass_runtime.engine.runner import TensorRTRunner
from windlass_runtime.engine.shape import DECODE, PREFILL
from windlass_runtime.errors import EngineError, StepFailed


class FakeContext:
    """Notes what it is told."""

    def __init__(self, calls: list[Any], *, runs: bool) -> None:
        self.calls = calls
        self.runs = runs

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.calls.append(("profile", profile, stream))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.calls.append(("shape", name, shape))

    def set_tensor_address(self, name: str, address: int) -> None:
        self.calls.append(("address", name, address))

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("execute", stream))
        return self.runs


class FakeEngine:
    """An engine with one input and one output."""

    def __init__(self, calls: list[Any], *, runs: bool) -> None:
        self.calls = calls
        self.runs = runs

    def create_execution_context(self, *_: Any) -> FakeContext:
        return FakeContext(self.calls, runs=self.runs)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "token_ids" else "out"


def build_fake(calls: list[Any], *, loads: bool = True, runs: bool = True) -> Bindings:
    """TensorRT as far as a runner uses it."""
    engine = FakeEngine(calls, runs=runs) if loads else None

    class Logger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
            self.log.log(1, "CUDA driver version is insufficient: noise of a machine without a GPU")
            if engine is None:
                reason = f"{len(plan)} bytes are no plan"
                self.log.log(1, reason)
            return engine

    mode = SimpleNamespace(INPUT="in", OUTPUT="out")
    return Bindings(Kind.FULL, "11.4", SimpleNamespace(ILogger=Logger, Runtime=Runtime, TensorIOMode=mode))


@pytest.fixture(autouse=True)
def _stream(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(cuda_stream=77, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "engine.trt.plan"
    path.write_bytes(b"plan")
    return path


def test_a_call_binds_every_tensor_and_runs_on_the_current_stream(plan: Path) -> None:
    calls: list[Any] = []
    runner = TensorRTRunner(build_fake(calls), plan)
    tensors = {"token_ids": torch.zeros(2, 1, dtype=torch.int32), "logits": torch.zeros(2, 1, 5)}
    assert calls == [("profile", PREFILL, 77), ("profile", DECODE, 77)]
    calls.clear()

    runner.run(DECODE, tensors)

    assert calls == [
        ("shape", "token_ids", (2, 1)),
        ("address", "token_ids", tensors["token_ids"].data_ptr()),
        ("address", "logits", tensors["logits"].data_ptr()),
        ("execute", 77),
    ]


def test_a_plan_that_does_not_load_is_refused_with_tensorrts_reason_and_without_noise(plan: Path) -> None:
    with pytest.raises(EngineError, match="TensorRT does not load it: 4 bytes are no plan; build it again"):
        TensorRTRunner(build_fake([], loads=False), plan)


def test_a_call_that_does_not_run_fails_the_step(plan: Path) -> None:
    runner = TensorRTRunner(build_fake([], runs=False), plan)

    with pytest.raises(StepFailed, match="TensorRT does not run the plan"):
        runner.run(DECODE, {})


def test_the_real_package_refuses_bytes_that_are_no_plan(tmp_path: Path) -> None:
    rtx = load_rtx_or_skip()
    (tmp_path / "junk").write_bytes(b"junk" * 100)

    with pytest.raises(EngineError, match=r"TensorRT does not load it: .*magicTag"):
        TensorRTRunner(rtx, tmp_path / "junk")

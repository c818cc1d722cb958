"""TensorRT's build configuration: targets, profiles, progress. Only here do builds of the two packages differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from windlass_runtime.engine.bindings import Bindings, Kind
from windlass_runtime.engine.shape import Range
from windlass_runtime.errors import EngineMismatch, EngineUnavailable

Report = Callable[[str, int, int], None]
"""Phase, steps done, steps in all."""

_TARGET = re.compile(r"sm_(\d{2,3})")


def check_targets(bindings: Bindings, targets: tuple[str, ...], present: str | None) -> tuple[str, ...]:
    """Targets in order of their numbers, once each; the present GPU where none was named.

    present  such as sm_90; None without a GPU
    Raises EngineMismatch for one that this TensorRT cannot build for, EngineUnavailable when none can be chosen.
    """
    wanted = targets or ((present,) if present is not None else ())
    if not wanted:
        raise EngineUnavailable("targets: expected a GPU here or --target, such as --target sm_89; found neither")
    allowed = buildable_targets(bindings, present)
    for target in wanted:
        if target not in allowed:
            raise EngineMismatch(_describe_refusal(bindings, target, allowed))
    return tuple(sorted(set(wanted), key=_number))


def buildable_targets(bindings: Bindings, present: str | None) -> tuple[str, ...]:
    """RTX builds for what its enumeration lists; the full package for the GPU it runs on."""
    if bindings.kind is Kind.FULL:
        return () if present is None else (present,)
    members = bindings.module.ComputeCapability.__members__
    found = [f"sm_{name.removeprefix('SM')}" for name in members if name.startswith("SM")]
    return tuple(sorted(found, key=_number))


def _describe_refusal(bindings: Bindings, target: str, allowed: tuple[str, ...]) -> str:
    if bindings.kind is Kind.FULL:
        return (
            f"target {target}: {bindings.kind} builds only for the GPU it runs on, here "
            f"{', '.join(allowed) or 'none'}; build on a machine with that GPU"
        )
    return (
        f"target {target}: {bindings.kind} {bindings.version} builds for {', '.join(allowed)}; "
        f"for other GPUs build with --backend {Kind.FULL} on a machine that has one"
    )


def _number(target: str) -> int:
    match = _TARGET.fullmatch(target)
    return int(match.group(1)) if match else 0


class ConfigWriter:
    """Writes the configuration of one build."""

    def __init__(self, bindings: Bindings, builder: Any) -> None:
        self._bindings = bindings
        self._builder = builder

    def write(self, targets: tuple[str, ...], profiles: tuple[Mapping[str, Range], ...], report: Report) -> Any:
        """The configuration; keep it and what it refers to until the build has ended."""
        config = self._builder.create_builder_config()
        if self._bindings.kind is Kind.RTX:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                capability = getattr(self._bindings.module.ComputeCapability, f"SM{_number(target)}")
                config.set_compute_capability(capability, index)
        for ranges in profiles:
            profile = self._builder.create_optimization_profile()
            for name, sizes in ranges.items():
                profile.set_shape(name, sizes.least, sizes.usual, sizes.largest)
            config.add_optimization_profile(profile)
        config.progress_monitor = make_monitor(self._bindings.module, report)
        return config


def make_monitor(module: Any, report: Report) -> Any:
    """TensorRT's progress monitor over a plain function. TensorRT calls it from threads of its own.

    Whatever `report` raises, be it a signal's exit, stops the build at its next step and is kept in `failure`: nothing
    may be raised through TensorRT.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self.failure: BaseException | None = None

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self._tell(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1, self._steps.get(phase, step + 1))
            return self.failure is None

        def phase_finish(self, phase: str) -> None:
            steps = self._steps.pop(phase, 1)
            self._tell(phase, steps, steps)

        def _tell(self, phase: str, done: int, steps: int) -> None:
            try:
                if self.failure is None:
                    report(phase, done, steps)
            except BaseException as exc:  # handed on by the caller of the build
                self.failure = exc

    return Monitor()

"""Decide what a service claims through dynamic resource allocation: alternatives in order, of which the scheduler takes
the first that it can satisfy.

A claim enters the pod template, so it depends on specs alone: were it to follow what is free, a neighbour could restart
replicas. The order is the user's (or the price), and nodes play no part in it: trying is the scheduler's work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.v1alpha1.gpu_class import GPUClassSpec
from windlass_operator.domain.decision import Decision, decide

MOST_ALTERNATIVES: Final = 8
"""The API server takes no more in one request."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Devices of one class that would do."""

    gpu_class: str
    device_class: str
    selectors: tuple[str, ...]
    """CEL over one device; all must hold."""
    node_selector: tuple[tuple[str, str], ...]


def find_unclaimable(spec: GPUClassSpec) -> str:
    """Say why devices of a class cannot be claimed; empty when they can."""
    if spec.device_class_name is None:
        return "it names no deviceClassName, and spec.accelerator.allocation is ResourceClaim"
    if spec.sharing is not None:
        return "a claim takes a whole device, and its devices are shared in time slices"
    return ""


def plan_alternatives(classes: Iterable[tuple[str, GPUClassSpec]]) -> tuple[Alternative, ...]:
    """Turn classes that can be claimed, the preferred one first, into alternatives of one request."""
    return tuple(
        Alternative(
            name,
            spec.device_class_name or "",
            tuple(spec.device_selectors),
            tuple(sorted(spec.node_selector.items())),
        )
        for name, spec in classes
    )[:MOST_ALTERNATIVES]


def explain_alternatives(alternatives: tuple[Alternative, ...]) -> Decision:
    """Say what the scheduler may choose from."""
    names = " or ".join(alternative.gpu_class for alternative in alternatives)
    if len(alternatives) == 1:
        return decide("device claim", names, "the scheduler finds a device of this class")
    return decide(
        "device claim",
        names,
        "each replica gets the first of these that the scheduler can satisfy when it places the pod; "
        "quota is reserved in every one",
    )

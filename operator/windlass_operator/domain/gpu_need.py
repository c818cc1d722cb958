"""What a service needs of a device, and how classes compare with that. Called by `gpu_class`, which ranks them.

A class may offer less than a whole GPU: a MIG slice has its own memory, a time slice its share of the device's.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from windlass_contract.launch_spec import Precision
from windlass_operator.api.v1alpha1.gpu_class import GPUClass, GPUClassSpec, Interconnect
from windlass_operator.api.v1alpha1.inference_service import Accelerator, Requirements, Sharing
from windlass_operator.domain.quantity import parse_bytes

BF16_SINCE: Final = (8, 0)
"""First compute capability whose tensor cores compute BF16."""
_ISOLATION: Final = (Sharing.TIME_SLICED, Sharing.MIG, Sharing.EXCLUSIVE)
"""From the weakest to the strongest."""
_SPEED: Final = tuple(Interconnect)
"""From the slowest to the fastest."""


def usable_bytes(spec: GPUClassSpec) -> int:
    """Memory that one replica may use on one device of the class."""
    shares = spec.sharing.time_sliced_replicas if spec.sharing is not None else 1
    return parse_bytes(spec.memory) // shares


def describe_memory(spec: GPUClassSpec) -> str:
    """The memory of the class in its own words."""
    if spec.sharing is None:
        return spec.memory
    return f"{spec.memory} shared by {spec.sharing.time_sliced_replicas}"


def isolation_of(spec: GPUClassSpec) -> Sharing:
    """How a pod on the class is kept from its neighbours on the same GPU."""
    if spec.sharing is not None:
        return Sharing.TIME_SLICED
    return Sharing.MIG if spec.mig_profile is not None else Sharing.EXCLUSIVE


def find_unaccepted_sharing(accelerator: Accelerator, spec: GPUClassSpec) -> str:
    """Say why the class shares its devices more than the service accepts; empty when it does not."""
    offered = isolation_of(spec)
    if _ISOLATION.index(offered) >= _ISOLATION.index(accelerator.sharing):
        return ""
    what = "a MIG slice" if offered is Sharing.MIG else "a time slice"
    return f"it is {what}, and spec.accelerator.sharing is {accelerator.sharing.value}"


def find_uncountable(count: int, spec: GPUClassSpec) -> str:
    """Say why a replica cannot have several devices of the class; empty when it can.

    A CUDA process computes on one MIG slice only, and several time slices may be shares of one GPU.
    """
    offered = isolation_of(spec)
    if count == 1 or offered is Sharing.EXCLUSIVE:
        return ""
    what = "MIG slices" if offered is Sharing.MIG else "time slices"
    return f"a replica cannot use several {what}, and spec.accelerator.count is {count}"


def find_unmet_requirement(requirements: Requirements, spec: GPUClassSpec) -> str:
    """Say the first requirement that the class does not meet, with both figures; empty when it meets all."""
    if requirements.memory is not None and usable_bytes(spec) < parse_bytes(requirements.memory):
        return f"{describe_memory(spec)} of memory, needs {requirements.memory}"
    wanted = requirements.compute_capability
    if wanted is not None and parse_capability(spec.compute_capability) < parse_capability(wanted):
        return f"compute capability {spec.compute_capability}, needs {wanted}"
    if requirements.interconnect is not None and _speed(spec.interconnect) < _speed(requirements.interconnect):
        found = spec.interconnect.value if spec.interconnect is not None else "none stated"
        return f"interconnect {found}, needs {requirements.interconnect.value}"
    return ""


def _speed(interconnect: Interconnect | None) -> int:
    return -1 if interconnect is None else _SPEED.index(interconnect)


def parse_capability(text: str) -> tuple[int, int]:
    """`9.0` as numbers, because 10.0 comes after 9.0."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def computes_bf16(spec: GPUClassSpec) -> bool:
    """Whether the class computes BF16 at full speed."""
    return parse_capability(spec.compute_capability) >= BF16_SINCE


def computes(spec: GPUClassSpec, precision: Precision) -> bool:
    """Whether the class computes in a precision."""
    return precision is not Precision.BF16 or computes_bf16(spec)


def price_of(spec: GPUClassSpec) -> Fraction | None:
    """Price of one device for an hour; None when nobody stated it."""
    return None if spec.price_per_hour is None else Fraction(spec.price_per_hour)


def cheapest_first(gpu_classes: Mapping[str, GPUClass]) -> tuple[str, ...]:
    """Names of all classes by price; those without one come last, ties go to less memory, then to the name."""

    def cost(name: str) -> tuple[bool, Fraction, int, str]:
        spec = gpu_classes[name].spec
        price = price_of(spec)
        return price is None, price or Fraction(0), usable_bytes(spec), name

    return tuple(sorted(gpu_classes, key=cost))

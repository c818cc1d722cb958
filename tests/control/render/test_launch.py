"""The config hash: equal for equal instructions, different for any other."""

from __future__ import annotations

import dataclasses

import pytest

from windlass_contract.launch_spec import CacheReuse, Device, LaunchSpec, Precision, SparseActivation
from windlass_operator.render.launch import hash_launch

BASE = LaunchSpec(
    "file:///m", "chat", namespace="team-a", service="chat", tenant="acme", device=Device.CUDA, precision=Precision.BF16
)
OTHER = {
    str: "other",
    int: 7,
    float: 7.5,
    CacheReuse: CacheReuse.PREFIX,
    Device: Device.CPU,
    Precision: Precision.FP32,
    SparseActivation: SparseActivation.MAX,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(LaunchSpec)])
def test_every_field_of_the_launch_spec_changes_the_hash(name):
    changed = dataclasses.replace(BASE, **{name: OTHER[type(getattr(BASE, name))]})

    assert hash_launch(changed) != hash_launch(BASE)


def test_a_field_added_with_a_default_restarts_nobody():
    newer = dataclasses.make_dataclass(
        "LaunchSpec", [("added", int, dataclasses.field(default=3))], bases=(LaunchSpec,), frozen=True
    )

    assert hash_launch(newer(**dataclasses.asdict(BASE))) == hash_launch(BASE)
    assert hash_launch(newer(**dataclasses.asdict(BASE), added=4)) != hash_launch(BASE)

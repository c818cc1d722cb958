"""Where the real scheduler puts replicas of a class that packs, and what that leaves for larger work."""

from __future__ import annotations

import pytest

from support.kube_client import KubeClient, eventually
from support.packing import run_trial
from support.services import service, wait_ready

pytestmark = pytest.mark.cluster


def test_packing_leaves_whole_nodes_to_larger_work(kube: KubeClient) -> None:
    spread, packed = (run_trial(kube, placement, nodes=4, devices=4, replicas=4) for placement in ("Spread", "Pack"))

    assert packed.nodes_in_use == 1
    assert packed.fragmentation.lost == 0
    assert spread.fragmentation.lost > 0
    assert packed.whole_placed > spread.whole_placed


@pytest.mark.usefixtures("operator", "clean")
def test_the_status_of_a_class_tells_what_scattered_replicas_cost(kube: KubeClient) -> None:
    """Two replicas on the two nodes of four H200 each: one node would hold both."""
    kube.apply(service(accelerator={"classes": ["h200"]}, replicas=2))
    wait_ready(kube)

    status = eventually(
        lambda: (kube.get("windlass.dev/v1alpha1", "GPUClass", "h200") or {}).get("status", {}),
        lambda found: found.get("allocated") == 2 and found.get("fragmented") == 4,
    )

    assert status["largestFreeBlock"] == 3

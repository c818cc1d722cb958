from __future__ import annotations

import pytest

from windlass_operator.power.devices import Gpu
from windlass_operator.power.holding import ClaimedDevice, PodDevices, holders_by_gpu
from windlass_operator.power.pods import parse_slices

GPUS = (Gpu("GPU-a", 0, slices=("MIG-a1", "MIG-a2")), Gpu("GPU-b", 1))
CLAIM = ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-1")


@pytest.mark.parametrize(
    ("id_", "uuid"),
    [
        pytest.param("GPU-b", "GPU-b", id="a whole GPU"),
        pytest.param("GPU-b::3", "GPU-b", id="a time slice"),
        pytest.param("MIG-a2", "GPU-a", id="a MIG slice"),
        pytest.param("MIG-a2::1", "GPU-a", id="a time slice of a MIG slice"),
        pytest.param("nvidia1", "GPU-b", id="a number"),
        pytest.param("nvidia0/gi1", "GPU-a", id="a slice by number"),
        pytest.param("nvidia1/vgpu0", "GPU-b", id="a share by number"),
    ],
)
def test_ids_of_device_plugins_lead_to_the_physical_gpu(id_: str, uuid: str) -> None:
    pod = PodDevices("a", "p", ids=(id_,))

    assert holders_by_gpu(GPUS, (pod,), {}) == {uuid: (pod,)}


@pytest.mark.parametrize("id_", ["GPU-c", "eth0", "nvidia7", "", "nvidia", "MIG-b"])
def test_other_devices_hold_no_gpu(id_: str) -> None:
    assert holders_by_gpu(GPUS, (PodDevices("a", "p", ids=(id_,)),), {}) == {}


def test_a_pod_with_two_parts_of_one_gpu_holds_it_once() -> None:
    pod = PodDevices("a", "p", ids=("MIG-a1", "MIG-a2", "GPU-b"))

    assert holders_by_gpu(GPUS, (pod,), {}) == {"GPU-a": (pod,), "GPU-b": (pod,)}


def test_claimed_devices_are_found_by_the_uuid_their_driver_publishes() -> None:
    pod = PodDevices("a", "p", claimed=(CLAIM, ClaimedDevice("net.example.com", "node-1", "eth1")))
    slices = [
        {
            "spec": {
                "driver": "gpu.nvidia.com",
                "pool": {"name": "node-1"},
                "devices": [
                    {"name": "gpu-0", "attributes": {"uuid": {"string": "GPU-a"}}},
                    {"name": "gpu-1", "attributes": {"gpu.nvidia.com/uuid": {"string": "GPU-b"}}},
                    {"name": "gpu-2", "attributes": {"index": {"int": 2}}},
                    {"name": "gpu-3"},
                ],
            }
        }
    ]

    claimed = parse_slices(slices)

    assert claimed[CLAIM] == "GPU-b"
    assert len(claimed) == 2
    assert holders_by_gpu(GPUS, (pod,), claimed) == {"GPU-b": (pod,)}

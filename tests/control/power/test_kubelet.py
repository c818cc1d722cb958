"""The pod-resources API over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from support.fake_kubelet import FakeKubelet, serving_kubelet
from windlass_operator.errors import RetryLater
from windlass_operator.power.holding import ClaimedDevice, PodDevices
from windlass_operator.power.kubelet import Kubelet, message_type, parse_pods

PLUGIN = PodDevices("team-a", "chat-1", ids=("GPU-a", "GPU-b::2"))
CLAIM = PodDevices("team-b", "code-1", claimed=(ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0"),))


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    with serving_kubelet(tmp_path / "kubelet.sock") as running:
        yield running


async def test_pods_with_plugin_devices_and_with_claims_are_read(kubelet: FakeKubelet) -> None:
    kubelet.pods = (PLUGIN, CLAIM, PodDevices("kube-system", "dns"))

    assert await Kubelet(str(kubelet.socket), 5).held() == (PLUGIN, CLAIM)


async def test_a_kubelet_that_is_not_there_is_said_with_its_socket(tmp_path: Path) -> None:
    with pytest.raises(RetryLater, match=r"none\.sock: expected the kubelet's pod-resources API, found UNAVAILABLE"):
        await Kubelet(str(tmp_path / "none.sock"), 2).held()


async def test_a_kubelet_without_the_api_is_said(kubelet: FakeKubelet) -> None:
    kubelet.code = grpc.StatusCode.UNIMPLEMENTED

    with pytest.raises(RetryLater, match="UNIMPLEMENTED"):
        await Kubelet(str(kubelet.socket), 5).held()


def test_fields_of_a_newer_kubelet_are_skipped() -> None:
    known = message_type("ListPodResourcesResponse")()
    known.pod_resources.add(name="chat-1", namespace="team-a").containers.add().devices.add(device_ids=["GPU-a"])
    newer = known.SerializeToString() + bytes([0x7A, 2, 0x68, 0x69])  # field 15, the text "hi"

    read = parse_pods(message_type("ListPodResourcesResponse").FromString(newer))

    assert read == (PodDevices("team-a", "chat-1", ids=("GPU-a",)),)


def test_the_messages_have_the_numbers_that_kubernetes_gave_them() -> None:
    """As encoded by hand from k8s.io/kubelet/pkg/apis/podresources/v1/api.proto."""
    device = b"\x0a\x03n/g" + b"\x12\x05GPU-a"
    claim = b"\x12\x03drv" + b"\x1a\x04pool" + b"\x22\x03dev"
    dynamic = b"\x22" + bytes([len(claim)]) + claim
    container = b"\x12" + bytes([len(device)]) + device + b"\x2a" + bytes([len(dynamic)]) + dynamic
    pod = b"\x0a\x01p" + b"\x12\x01n" + b"\x1a" + bytes([len(container)]) + container
    answer = b"\x0a" + bytes([len(pod)]) + pod

    read = parse_pods(message_type("ListPodResourcesResponse").FromString(answer))

    assert read == (PodDevices("n", "p", ("GPU-a",), (ClaimedDevice("drv", "pool", "dev"),)),)

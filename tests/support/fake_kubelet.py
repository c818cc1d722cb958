"""The pod-resources API of a kubelet: a real gRPC server on a socket, with the pods a test names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from windlass_operator.power.holding import PodDevices
from windlass_operator.power.kubelet import message_type


class FakeKubelet:
    """What the kubelet says; change `pods` at any time, or set `code` to make it refuse."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.pods: Sequence[PodDevices] = ()
        self.code: grpc.StatusCode | None = None

    def answer(self, _: Any, context: grpc.ServicerContext) -> Any:
        if self.code is not None:
            context.abort(self.code, "as the test wants")
        return build_answer(self.pods)


def build_answer(pods: Sequence[PodDevices]) -> Any:
    """A ListPodResourcesResponse, with one container per pod."""
    answer = message_type("ListPodResourcesResponse")()
    for pod in pods:
        container = answer.pod_resources.add(name=pod.name, namespace=pod.namespace).containers.add(name="runtime")
        container.devices.add(resource_name="nvidia.com/gpu", device_ids=pod.ids)
        claim = container.dynamic_resources.add()
        for device in pod.claimed:
            claim.claim_resources.add(driver_name=device.driver, pool_name=device.pool, device_name=device.name)
    return answer


@contextlib.contextmanager
def serving_kubelet(socket: Path) -> Iterator[FakeKubelet]:
    """Serve until the end of the block."""
    kubelet = FakeKubelet(socket)
    handler = grpc.unary_unary_rpc_method_handler(
        kubelet.answer,
        request_deserializer=message_type("ListPodResourcesRequest").FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler}),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield kubelet
    finally:
        server.stop(None).wait(5)

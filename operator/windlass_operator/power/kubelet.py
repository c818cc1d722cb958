"""Which pods of this node hold which devices: the kubelet's pod-resources API, gRPC over a socket of the node.

The messages below are the part of `k8s.io/kubelet/pkg/apis/podresources/v1` that is read; protobuf skips what it does
not know, so newer kubelets may say more.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from windlass_operator import errors
from windlass_operator.power.holding import ClaimedDevice, PodDevices

LIST: Final = "/v1.PodResourcesLister/List"
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""The limit that the kubelet itself keeps."""

_TEXT: Final = "string"
_FIELDS: Final[dict[str, tuple[tuple[str, int, str, bool], ...]]] = {
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": (("pod_resources", 1, "PodResources", True),),
    "PodResources": (
        ("name", 1, _TEXT, False),
        ("namespace", 2, _TEXT, False),
        ("containers", 3, "ContainerResources", True),
    ),
    "ContainerResources": (
        ("name", 1, _TEXT, False),
        ("devices", 2, "ContainerDevices", True),
        ("dynamic_resources", 5, "DynamicResource", True),
    ),
    "ContainerDevices": (("resource_name", 1, _TEXT, False), ("device_ids", 2, _TEXT, True)),
    "DynamicResource": (("claim_resources", 4, "ClaimResource", True),),
    "ClaimResource": (
        ("driver_name", 2, _TEXT, False),
        ("pool_name", 3, _TEXT, False),
        ("device_name", 4, _TEXT, False),
    ),
}
"""Message -> (field, number, type, repeated)."""


@functools.cache
def message_type(name: str) -> Any:
    """Return the class of one message of the API."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"v1.{name}"))


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            described.field.add(
                name=name,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_STRING if kind == _TEXT else kinds.TYPE_MESSAGE,
                type_name=None if kind == _TEXT else f".v1.{kind}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


class Kubelet:
    """The kubelet of this node. Use as an asynchronous context manager."""

    def __init__(self, socket: str, timeout_s: float) -> None:
        self._socket, self._timeout_s = socket, timeout_s

    async def held(self) -> tuple[PodDevices, ...]:
        """Return the pods that hold devices. Raises RetryLater."""
        options = [("grpc.max_receive_message_length", MAX_ANSWER_BYTES), ("grpc.enable_http_proxy", 0)]
        # A channel per question: the socket is a new one after each start of the kubelet, and questions are rare.
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            ask = channel.unary_unary(
                LIST,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_type("ListPodResourcesResponse").FromString,
            )
            try:
                answer = await ask(message_type("ListPodResourcesRequest")(), timeout=self._timeout_s)
            except grpc.aio.AioRpcError as exc:
                found = f"{exc.code().name}: {exc.details()}"
                raise errors.RetryLater(
                    f"{self._socket}: expected the kubelet's pod-resources API, found {found}"
                ) from exc
        return parse_pods(answer)


def parse_pods(answer: Any) -> tuple[PodDevices, ...]:
    """Return the pods with devices from a ListPodResourcesResponse."""
    pods = []
    for pod in answer.pod_resources:
        ids = tuple(id_ for part in pod.containers for device in part.devices for id_ in device.device_ids)
        claimed = tuple(
            ClaimedDevice(device.driver_name, device.pool_name, device.device_name)
            for part in pod.containers
            for claim in part.dynamic_resources
            for device in claim.claim_resources
        )
        if ids or claimed:
            pods.append(PodDevices(pod.namespace, pod.name, ids, claimed))
    return tuple(pods)

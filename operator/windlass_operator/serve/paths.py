"""The URLs of the metrics APIs, as what they ask for and as what the API server is asked about permission. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from windlass_operator.api.meta import GROUP

CUSTOM_GROUP: Final = "custom.metrics.k8s.io"
CUSTOM_VERSION: Final = "v1beta2"
EXTERNAL_GROUP: Final = "external.metrics.k8s.io"
EXTERNAL_VERSION: Final = "v1beta1"
ALL: Final = "*"
PODS: Final = "pods"
SERVICES: Final = f"inferenceservices.{GROUP}"


@dataclass(frozen=True, slots=True)
class PodsQuery:
    """A metric of the pods that a label selector names, or of one pod."""

    namespace: str
    metric: str
    name: str = ALL


@dataclass(frozen=True, slots=True)
class ServiceQuery:
    """A metric of one InferenceService as a whole."""

    namespace: str
    metric: str
    name: str


@dataclass(frozen=True, slots=True)
class ExternalQuery:
    """A metric of the services that a label selector names, as an external metric."""

    namespace: str
    metric: str


Query = PodsQuery | ServiceQuery | ExternalQuery


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the API server is asked about: a resource, or a path that is none."""

    verb: str
    path: str = ""
    """Set for what is no resource, such as discovery."""
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""


def parse_query(path: str) -> Query | None:
    """Return what a path asks for; None for paths that serve no metric."""
    match path.strip("/").split("/"):
        case ["apis", group, version, "namespaces", namespace, resource, name, metric] if (group, version) == (
            CUSTOM_GROUP,
            CUSTOM_VERSION,
        ):
            if resource == PODS:
                return PodsQuery(namespace, metric, name)
            if resource == SERVICES and name != ALL:
                return ServiceQuery(namespace, metric, name)
        case ["apis", group, version, "namespaces", namespace, metric] if (group, version) == (
            EXTERNAL_GROUP,
            EXTERNAL_VERSION,
        ):
            return ExternalQuery(namespace, metric)
    return None


def attributes_of(path: str) -> Attributes:
    """Return what a GET of a path needs permission for, split as the API server itself does it."""
    match path.strip("/").split("/"):
        case ["apis", group, version, "namespaces", namespace, resource]:
            return Attributes("list", "", group, version, namespace, resource)
        case ["apis", group, version, "namespaces", namespace, resource, name]:
            return Attributes("get", "", group, version, namespace, resource, "", name)
        case ["apis", group, version, "namespaces", namespace, resource, name, *rest]:
            return Attributes("get", "", group, version, namespace, resource, rest[0], name)
        case ["apis", group, version, resource]:
            return Attributes("list", "", group, version, "", resource)
        case ["apis", group, version, resource, name, *rest]:
            return Attributes("get", "", group, version, "", resource, rest[0] if rest else "", name)
    return Attributes("get", path)

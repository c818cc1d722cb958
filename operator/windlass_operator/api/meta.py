"""Pieces every kind shares: object metadata, conditions, bounded strings and quantities.

Models are frozen pydantic values. On reading from a cluster unknown keys are ignored (versions skew during upgrades);
`windlass validate` reports them by comparing documents with the schema generated from these same models.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP: Final = "windlass.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
LABEL_KEY: Final = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
Quantity = Annotated[str, Field(min_length=1, max_length=32, pattern=QUANTITY)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


class ApiModel(BaseModel):
    """Base of every model: camelCase on the wire, snake_case here, frozen."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class ObjectMeta(ApiModel):
    """The part of Kubernetes metadata that we read."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: str = ""
    deletion_timestamp: str = ""


class Condition(ApiModel):
    """metav1.Condition. `Ready` is the one positive summary; abnormal-only types are absent while all is well."""

    type: Annotated[str, Field(max_length=64)]
    status: Annotated[str, Field(pattern=r"^(True|False|Unknown)$", max_length=7)]
    reason: Annotated[str, Field(max_length=128)]
    message: Annotated[str, Field(max_length=2048)] = ""
    observed_generation: int = 0
    last_transition_time: Annotated[str, Field(max_length=32)] = ""


class Toleration(ApiModel):
    """core/v1 Toleration."""

    key: Annotated[str, Field(max_length=317, description="Taint key; empty with operator Exists matches every key.")] = ""
    operator: Annotated[str, Field(pattern=r"^(Equal|Exists)$", max_length=6)] = "Equal"
    value: Annotated[str, Field(max_length=63)] = ""
    effect: Annotated[str, Field(pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)?$", max_length=16)] = ""

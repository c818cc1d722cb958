"""Pieces every kind shares: object metadata, conditions, bounded strings and quantities.

Models are frozen pydantic values. On reading from a cluster unknown keys are ignored (versions skew during upgrades);
`windlass validate` reports them by comparing documents with the schema generated from these same models.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from windlass_operator.api.patterns import BYTES, CONDITION_STATUS, LABEL_KEY, LABEL_VALUE, WORDS
from windlass_operator.api.patterns import DNS_LABEL as DNS_LABEL
from windlass_operator.api.patterns import QUANTITY as QUANTITY
from windlass_operator.api.rules import constrained, rule

GROUP: Final = "windlass.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
Quantity = Annotated[str, Field(min_length=1, max_length=32, pattern=QUANTITY)]
ByteQuantity = Annotated[str, Field(min_length=1, max_length=32, pattern=BYTES)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]

KEYS_ARE_LABEL_KEYS: Final = rule(f"self.all(key, key.matches('{LABEL_KEY}'))", WORDS[LABEL_KEY])
"""OpenAPI of the API server knows no pattern for keys, so a rule checks them."""

Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32, json_schema_extra=constrained(KEYS_ARE_LABEL_KEYS))]


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

    type: Annotated[str, Field(max_length=64, description="Name of the condition, such as Ready.")]
    status: Annotated[
        str,
        Field(
            pattern=CONDITION_STATUS,
            max_length=7,
            description="True, False or Unknown.",
        ),
    ]
    reason: Annotated[str, Field(max_length=128, description="One word for machines.")]
    message: Annotated[str, Field(max_length=2048, description="One sentence for people, naming the next step.")] = ""
    observed_generation: Annotated[int, Field(description="metadata.generation this was computed for.")] = 0
    last_transition_time: Annotated[str, Field(max_length=32, description="When status last changed, RFC 3339.")] = ""


Conditions = Annotated[
    list[Condition],
    Field(
        max_length=16,
        description="What is known about the object.",
        json_schema_extra=constrained(list_type="map", keys=("type",)),
    ),
]


EXISTS_HAS_NO_VALUE: Final = rule(
    "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
    "no value with operator Exists",
    field=".value",
)
EQUAL_HAS_A_KEY: Final = rule(
    "(has(self.operator) && self.operator != 'Equal') || (has(self.key) && self.key != '')",
    "a taint key with operator Equal",
    found="'none'",
    field=".key",
)


class Toleration(ApiModel):
    """core/v1 Toleration without tolerationSeconds."""

    model_config = ConfigDict(json_schema_extra=constrained(EXISTS_HAS_NO_VALUE, EQUAL_HAS_A_KEY))

    key: Annotated[
        str,
        Field(
            max_length=317,
            description="Taint key; empty with operator Exists matches every key.",
        ),
    ] = ""
    operator: Annotated[
        Literal["Equal", "Exists"],
        Field(
            description="Equal, also when unset, compares the value; Exists ignores it.",
        ),
    ] = "Equal"
    value: Annotated[str, Field(max_length=63, description="Taint value to match with operator Equal.")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
        Field(
            description="Taint effect; empty matches every effect.",
        ),
    ] = ""


Tolerations = Annotated[list[Toleration], Field(max_length=16, json_schema_extra=constrained(list_type="atomic"))]

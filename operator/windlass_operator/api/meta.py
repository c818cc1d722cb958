"""Pieces every kind shares: object metadata, conditions, bounded strings and quantities.

Models are frozen pydantic values. On reading from a cluster unknown keys are ignored (versions skew during upgrades);
`windlass validate` reports them by comparing documents with the schema generated from these same models.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from windlass_operator.api.rules import constrained, rule

GROUP: Final = "windlass.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

_POSITIVE: Final = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)"

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
QUANTITY: Final = rf"^{_POSITIVE}(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
BYTES: Final = rf"^{_POSITIVE}(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
LABEL_KEY: Final = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

PATTERN_WORDS: Final = {
    DNS_LABEL: "lower-case letters, digits and dashes, beginning and ending with a letter or digit",
    QUANTITY: 'a positive quantity such as "4", "500m" or "16Gi"',
    BYTES: 'a positive size such as "8Gi" or "500M"',
    LABEL_KEY: "a label key: letters, digits, '-', '_' and '.', with an optional DNS prefix and '/'",
    LABEL_VALUE: "a label value: letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
}
"""Pattern -> words that complete "expected ..."; patterns without an entry are shown as they are."""

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
Quantity = Annotated[str, Field(min_length=1, max_length=32, pattern=QUANTITY)]
ByteQuantity = Annotated[str, Field(min_length=1, max_length=32, pattern=BYTES)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]

KEYS_ARE_LABEL_KEYS: Final = rule(f"self.all(key, key.matches('{LABEL_KEY}'))", PATTERN_WORDS[LABEL_KEY])
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
            pattern=r"^(True|False|Unknown)$",
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
    "self.operator != 'Exists' || !has(self.value) || self.value == ''",
    "no value with operator Exists",
    field=".value",
)
EQUAL_HAS_A_KEY: Final = rule(
    "self.operator != 'Equal' || (has(self.key) && self.key != '')",
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
            description="Equal compares the value, Exists ignores it.",
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

"""What a file may say in `metadata`.

The API server knows this part itself, so no CRD has it; `windlass validate` needs it.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from windlass_operator.api.kinds import Kind
from windlass_operator.api.meta import KEYS_ARE_LABEL_KEYS
from windlass_operator.api.patterns import DNS_LABEL, LABEL_VALUE
from windlass_operator.api.rules import Schema, constrained
from windlass_operator.api.schema import structural_schema

_TEXT: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "integer"}
_ANYTHING: Final[Schema] = {"type": "array", "items": {"type": "object"}}

METADATA: Final[Schema] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 253},
        "namespace": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": DNS_LABEL},
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
            **constrained(KEYS_ARE_LABEL_KEYS),
        },
        "annotations": {"type": "object", "additionalProperties": _TEXT, **constrained(KEYS_ARE_LABEL_KEYS)},
        "finalizers": {"type": "array", "items": _TEXT},
        "ownerReferences": _ANYTHING,
        # Set by the API server; here because exported objects carry them.
        "managedFields": _ANYTHING,
        **dict.fromkeys(
            ("generateName", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "selfLink"), _TEXT
        ),
        **dict.fromkeys(("generation", "deletionGracePeriodSeconds"), _NUMBER),
    },
}


@functools.cache
def document_schema(kind: Kind) -> dict[str, Any]:
    """The schema of a whole document: that of the kind with metadata spelled out."""
    schema = structural_schema(kind.model)
    return {**schema, "required": ["metadata", "spec"], "properties": {**schema["properties"], "metadata": METADATA}}

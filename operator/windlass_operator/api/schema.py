"""From pydantic models to the structural OpenAPI v3 schema of a CustomResourceDefinition.

Structural means here: no references, no alternatives, no null; every node has one type. Defaults live in the schema, so
that what the API server stores differs from what users wrote only in ways GitOps tools know. Items of lists get none:
GitOps tools compare lists of custom resources as a whole, and a default inside one would differ for good. Defaults that
say nothing (an empty text, list or map) are left out too: pydantic fills them in, and stored objects stay short.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from windlass_operator.api.meta import ApiModel
from windlass_operator.api.rules import Schema

_KEPT: Final[tuple[str, ...]] = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
)
_INT32_MAX: Final = 2**31 - 1
_INT64_FIELDS: Final = ("observedGeneration",)


@functools.cache
def structural_schema(model: type[ApiModel]) -> Schema:
    """Build the schema of one kind: `spec` and `status` in full, metadata left to the API server."""
    raw = model.model_json_schema(by_alias=True)
    definitions = raw.get("$defs", {})
    root = _structural(
        {**raw, "properties": {name: node for name, node in raw["properties"].items() if name != "metadata"}},
        definitions,
    )
    root["properties"] = {
        "apiVersion": {"type": "string", "description": "Group and version of this form of the object."},
        "kind": {"type": "string", "description": "Kind of the object."},
        "metadata": {"type": "object"},
        **root["properties"],
    }
    root["properties"]["status"].pop("default", None)
    root["required"] = ["spec"]
    return root


def _resolve(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Replace a reference, or an alternative with null, by what it means; words at the use win."""
    resolved = dict(node)
    if "$ref" in resolved:
        target = definitions[resolved.pop("$ref").rpartition("/")[2]]
        return {**_resolve(target, definitions), **resolved}
    if "anyOf" in resolved:
        (meant,) = [option for option in resolved.pop("anyOf") if option != {"type": "null"}]
        return {**_resolve(meant, definitions), **resolved}
    return resolved


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any], *, in_list: bool = False) -> Schema:
    resolved = _resolve(node, definitions)
    schema: Schema = {name: resolved[name] for name in _KEPT if name in resolved}
    schema |= {name: resolved[name] for name in sorted(resolved) if name.startswith("x-kubernetes-")}
    if "properties" in resolved:
        schema["properties"] = {
            name: _property(name, child, definitions, in_list=in_list) for name, child in resolved["properties"].items()
        }
    if "items" in resolved:
        schema["items"] = _structural(resolved["items"], definitions, in_list=True)
    if "additionalProperties" in resolved:
        schema["additionalProperties"] = _structural(resolved["additionalProperties"], definitions, in_list=in_list)
    return schema


def _property(name: str, node: Mapping[str, Any], definitions: Mapping[str, Any], *, in_list: bool) -> Schema:
    schema = _structural(node, definitions, in_list=in_list)
    if schema["type"] == "integer":
        small = name not in _INT64_FIELDS and schema.get("maximum", 0) <= _INT32_MAX
        schema["format"] = "int32" if small else "int64"
    default = None if in_list else _resolve(node, definitions).get("default")
    if isinstance(default, dict):
        # The API server fills in the defaults below an empty object, so each default is written once.
        if _has_defaults(schema):
            schema["default"] = {}
    elif default not in (None, "", []):
        schema["default"] = default
    return schema


def _has_defaults(schema: Schema) -> bool:
    return any("default" in child for child in schema.get("properties", {}).values())


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """Return `value` as the API server would store it: defaults filled in, the argument unchanged."""
    if isinstance(value, dict) and "properties" in schema:
        filled = dict(value)
        for name, child in schema["properties"].items():
            if name not in filled and "default" in child:
                filled[name] = child["default"]
            if name in filled:
                filled[name] = with_defaults(child, filled[name])
        return filled
    if isinstance(value, dict) and "additionalProperties" in schema:
        return {name: with_defaults(schema["additionalProperties"], item) for name, item in value.items()}
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], item) for item in value]
    return value

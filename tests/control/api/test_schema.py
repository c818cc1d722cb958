"""The generated CRDs against what the API server wants of a structural schema, and against their models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from windlass_operator.api.check import check_shape
from windlass_operator.api.generate import render_crd
from windlass_operator.api.kinds import KINDS, Kind
from windlass_operator.api.rules import EXTENSION, evaluate
from windlass_operator.api.schema import structural_schema, with_defaults

Node = tuple[str, dict[str, Any]]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)

ALLOWED_KEYS = {
    *("description", "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "required", "properties", "items"),
    *("additionalProperties", "default", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", EXTENSION),
}


def walk(schema: dict[str, Any], path: str = "") -> Iterator[Node]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from walk(schema[name], f"{path}[]")


def nodes(kind: Kind) -> list[Node]:
    return list(walk(structural_schema(kind.model)))


def own_nodes(kind: Kind) -> list[Node]:
    """Those that we define: below spec and status."""
    return [(path, node) for path, node in nodes(kind) if path.startswith((".spec", ".status"))]


@every_kind
def test_every_node_has_one_type_and_only_structural_keywords(kind: Kind) -> None:
    for path, node in nodes(kind):
        assert node["type"] in ("object", "array", "string", "integer", "boolean"), path
        assert set(node) <= ALLOWED_KEYS, path


@every_kind
def test_every_string_list_and_map_is_bounded(kind: Kind) -> None:
    for path, node in own_nodes(kind):
        match node["type"]:
            case "string":
                assert "maxLength" in node or "enum" in node, path
            case "array":
                assert "maxItems" in node, path
            case "object" if "additionalProperties" in node:
                assert "maxProperties" in node, path


@every_kind
def test_every_object_names_its_fields_or_the_type_of_its_values(kind: Kind) -> None:
    for path, node in own_nodes(kind):
        if node["type"] == "object":
            assert ("properties" in node) != ("additionalProperties" in node), path


@every_kind
def test_every_integer_says_its_width(kind: Kind) -> None:
    for path, node in nodes(kind):
        if node["type"] == "integer":
            assert node["format"] in ("int32", "int64"), path


@every_kind
def test_every_field_is_described(kind: Kind) -> None:
    for path, node in own_nodes(kind):
        if not path.endswith("[]"):
            assert node.get("description"), path


@every_kind
def test_every_list_says_how_it_merges(kind: Kind) -> None:
    for path, node in nodes(kind):
        if node["type"] == "array":
            assert node["x-kubernetes-list-type"] in ("map", "set", "atomic"), path


@every_kind
def test_keys_of_a_list_map_are_always_there(kind: Kind) -> None:
    for path, node in nodes(kind):
        for key in node.get("x-kubernetes-list-map-keys", ()):
            item = node["items"]
            assert key in item["required"], f"{path}.{key}"
            assert item["properties"][key]["type"] in ("string", "integer", "boolean"), f"{path}.{key}"


@every_kind
def test_no_item_of_a_list_has_a_default_that_gitops_tools_would_report_for_good(kind: Kind) -> None:
    items = [(path, node["items"]) for path, node in nodes(kind) if node["type"] == "array"]

    assert items
    for path, item in items:
        assert [name for name, child in item.get("properties", {}).items() if "default" in child] == [], path


@every_kind
def test_defaults_are_valid_and_never_on_required_fields(kind: Kind) -> None:
    for path, node in nodes(kind):
        for name, child in node.get("properties", {}).items():
            if "default" in child:
                assert name not in node.get("required", ()), f"{path}.{name}"
                assert list(check_shape(child, with_defaults(child, child["default"]))) == [], f"{path}.{name}"


@every_kind
def test_patterns_stay_within_what_the_api_server_can_compile(kind: Kind) -> None:
    for path, node in nodes(kind):
        if "pattern" in node:
            re.compile(node["pattern"])
            assert not re.search(r"\(\?[=!<]|\\[0-9]", node["pattern"]), (
                f"{path}: RE2 has no look-around or back-references"
            )
            assert node["pattern"].startswith("^"), path
            assert node["pattern"].endswith("$"), path


@every_kind
def test_rules_name_fields_that_exist(kind: Kind) -> None:
    for path, node in own_nodes(kind):
        for entry in node.get(EXTENSION, ()):
            assert "\n" not in entry["rule"] + entry["message"], path
            target = node
            for step in entry.get("fieldPath", "").split(".")[1:]:
                target = target["properties"][step]
            code = entry["rule"] + " " + entry.get("messageExpression", "")
            for name in re.findall(r"self\.([a-z][A-Za-z]*)(?![\w(])", code):
                assert name in node["properties"], f"{path}: {entry['rule']}"


@every_kind
def test_rules_use_nothing_that_only_kubernetes_has(kind: Kind) -> None:
    known = {"has", "size", "matches", "startsWith", "all", "exists_one", "filter", "string"}
    for path, node in nodes(kind):
        for entry in node.get(EXTENSION, ()):
            code = re.sub(r"'[^']*'|\"[^\"]*\"", "", entry["rule"] + " " + entry.get("messageExpression", ""))
            assert set(re.findall(r"([A-Za-z_]+)\(", code)) <= known, path


@every_kind
def test_a_crd_stays_small(kind: Kind) -> None:
    assert len(json.dumps(render_crd(kind), separators=(",", ":"))) < 100_000


@every_kind
def test_names_of_a_crd_agree_with_each_other(kind: Kind) -> None:
    crd = render_crd(kind)
    names = crd["spec"]["names"]

    assert crd["metadata"]["name"] == f"{names['plural']}.{crd['spec']['group']}"
    assert names["plural"].islower()
    assert "isvc" not in names["shortNames"]
    assert names["categories"] == ["windlass"]


@every_kind
def test_columns_and_scale_paths_lead_to_fields(kind: Kind) -> None:
    version = render_crd(kind)["spec"]["versions"][0]
    paths = {path for path, _ in nodes(kind)} | {".metadata.creationTimestamp"}
    wanted = [re.sub(r"\[\?\(.*?\)\]", "[]", column["jsonPath"]) for column in version["additionalPrinterColumns"]]
    wanted += version["subresources"].get("scale", {}).values()

    assert set(wanted) <= paths
    assert version["subresources"]["status"] == {}


def test_one_kind_can_be_scaled_by_its_total_of_pods() -> None:
    scale = {kind.name: render_crd(kind)["spec"]["versions"][0]["subresources"].get("scale") for kind in KINDS}

    assert scale == {
        "InferenceService": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
        "Tenant": None,
        "GPUClass": None,
        "BatchInference": None,
    }


@every_kind
def test_the_models_and_the_schema_fill_in_the_same_defaults(kind: Kind) -> None:
    minimal: Mapping[str, Any] = {
        "InferenceService": {"model": {"uri": "hf://a/b"}, "scaling": {"maxReplicas": 2}},
        "Tenant": {"namespaces": ["a"], "subjects": [{"kind": "User", "name": "ann"}]},
        "GPUClass": {
            "nodeSelector": {"a": "b"},
            "memory": "1Gi",
            "computeCapability": "9.0",
            "tolerations": [{"key": "a"}],
        },
        "BatchInference": {"model": {"uri": "hf://a/b"}, "input": "pvc://a/b.jsonl", "results": "pvc://a/c"},
    }[kind.name]
    stored = with_defaults(structural_schema(kind.model), {"spec": minimal})

    from_file = kind.model.model_validate({"metadata": {"name": "a"}, "spec": minimal})
    from_cluster = kind.model.model_validate({"metadata": {"name": "a"}, **stored})

    assert from_file == from_cluster


def test_defaulting_leaves_its_argument_alone() -> None:
    schema = structural_schema(KINDS[0].model)
    written: dict[str, Any] = {"spec": {"scaling": {"maxReplicas": 2}}}

    stored = with_defaults(schema, written)

    assert written == {"spec": {"scaling": {"maxReplicas": 2}}}
    assert stored["spec"]["scaling"]["minReplicas"] == 1
    assert stored["spec"]["limits"] == {"maxRunningRequests": 64, "maxQueuedRequests": 256}


@every_kind
def test_every_rule_compiles(kind: Kind) -> None:
    for _, node in nodes(kind):
        for entry in node.get(EXTENSION, ()):
            # `true ||` compiles the whole expression and evaluates none of it.
            assert evaluate(f"true || ({entry['rule']})", {}) is True

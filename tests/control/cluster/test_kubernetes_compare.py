from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_operator.cluster.kubernetes_compare import (
    applied_hash,
    differences,
    hash_manifest,
    merge_patch,
    parse_quantity,
)
from windlass_operator.cluster.kubernetes_kinds import APPLIED_HASH


@pytest.mark.parametrize(
    ("wanted", "live"),
    [
        pytest.param(
            {"spec": {"a": 1}}, {"spec": {"a": 1, "default": True}, "status": {}}, id="server defaults beside ours"
        ),
        pytest.param({"limits": {"cpu": "1000m"}}, {"limits": {"cpu": "1"}}, id="a quantity in its short form"),
        pytest.param(
            {"limits": {"nvidia.com/gpu": 1}}, {"limits": {"nvidia.com/gpu": "1"}}, id="a number stored as text"
        ),
        pytest.param({"hard": {"requests.memory": "1024Mi"}}, {"hard": {"requests.memory": "1Gi"}}, id="a larger unit"),
        pytest.param({"emptyDir": {"sizeLimit": "2048Mi"}}, {"emptyDir": {"sizeLimit": "2Gi"}}, id="a size limit"),
        pytest.param({"hostNetwork": False, "ingress": [], "note": ""}, {}, id="empty wishes that servers drop"),
        pytest.param(
            {"containers": [{"name": "runtime", "image": "a"}]},
            {
                "containers": [
                    {"name": "sidecar", "image": "b"},
                    {"name": "runtime", "image": "a", "terminationMessagePath": "/x"},
                ]
            },
            id="an injected sidecar",
        ),
        pytest.param(
            {"ports": [{"port": 80, "targetPort": "http"}]},
            {"ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]},
            id="a port with a default protocol",
        ),
    ],
)
def test_what_servers_add_is_no_difference(wanted, live):
    assert differences(wanted, live) == ()


@pytest.mark.parametrize(
    ("wanted", "live", "expected"),
    [
        pytest.param({"spec": {"a": 1}}, {"spec": {"a": 2}}, "spec.a: expected 1, found 2", id="an edited value"),
        pytest.param({"spec": {"a": 1}}, {"spec": {}}, "spec.a: expected 1, found null", id="a removed value"),
        pytest.param({"replicas": 0}, {"replicas": 3}, "replicas: expected 0, found 3", id="zero is a value"),
        pytest.param(
            {"limits": {"cpu": "2"}}, {"limits": {"cpu": "1"}}, 'limits.cpu: expected "2", found "1"', id="a quantity"
        ),
        pytest.param(
            {"env": [{"name": "A", "value": "1"}]},
            {"env": [{"name": "A", "value": "1.0"}]},
            'env[A].value: expected "1", found "1.0"',
            id="text that only looks like a quantity",
        ),
        pytest.param(
            {"containers": [{"name": "runtime", "image": "a"}]},
            {"containers": [{"name": "runtime", "image": "b"}]},
            'containers[runtime].image: expected "a", found "b"',
            id="an item found by its name",
        ),
        pytest.param(
            {"containers": [{"name": "runtime"}]},
            {"containers": [{"name": "other"}]},
            'containers[runtime]: expected {"name": "runtime"}, found null',
            id="an item that is gone",
        ),
        pytest.param({"args": ["a", "b"]}, {"args": ["a"]}, "args: expected 2 items, found 1", id="a list of scalars"),
        pytest.param(
            {"args": ["a", "b"]}, {"args": ["b", "a"]}, 'args[0]: expected "a", found "b"', id="order of arguments"
        ),
        pytest.param(
            {"tolerations": [{"key": "gpu"}]},
            {"tolerations": [{"key": "gpu"}, {"key": "extra"}]},
            "tolerations: expected 1 items, found 2",
            id="an atomic list with a stranger",
        ),
        pytest.param(
            {"data": {"x": "1"}}, {"data": None}, 'data: expected {"x": "1"}, found null', id="a mapping that is gone"
        ),
    ],
)
def test_drift_is_named_with_path_and_both_values(wanted, live, expected):
    assert expected in differences(wanted, live)


def test_the_hash_ignores_its_own_annotation_and_the_order_of_keys():
    one = {"metadata": {"name": "a", "annotations": {"x": "1"}}, "spec": {"b": 1, "c": 2}}
    other = {"spec": {"c": 2, "b": 1}, "metadata": {"annotations": {"x": "1", APPLIED_HASH: "old"}, "name": "a"}}

    assert hash_manifest(one) == hash_manifest(other)
    assert applied_hash(other) == "old"
    assert applied_hash(one) == ""


def test_the_hash_notices_a_field_that_is_dropped():
    assert hash_manifest({"metadata": {}, "spec": {"replicas": 3}}) != hash_manifest({"metadata": {}, "spec": {}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("1500m", Decimal("1.5"), id="milli"),
        pytest.param("2Gi", Decimal(2**31), id="binary"),
        pytest.param("2G", Decimal(2 * 10**9), id="decimal"),
        pytest.param(3, Decimal(3), id="number"),
        pytest.param("1e3", Decimal(1000), id="exponent"),
        pytest.param("abc", None, id="word"),
        pytest.param("", None, id="empty"),
        pytest.param(True, None, id="boolean"),
        pytest.param("NaN", None, id="not a number"),
    ],
)
def test_quantities_are_numbers(text, expected):
    assert parse_quantity(text) == expected


def apply_patch(stored, patch):
    """RFC 7386, spelled out slowly."""
    result = dict(stored)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = apply_patch(result[key] if isinstance(result.get(key), dict) else {}, value)
        else:
            result[key] = value
    return result


values = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@settings(max_examples=200, deadline=None)
@given(stored=documents, wanted=documents)
def test_a_merge_patch_turns_what_is_stored_into_what_is_wanted(stored, wanted):
    patch = merge_patch(stored, wanted)

    assert apply_patch(stored, patch) == wanted
    assert (patch == {}) == (stored == wanted)

"""What differs, field by field: nothing of the bookkeeping, nothing that servers add, and what an apply drops."""

from __future__ import annotations

import pytest

from windlass_operator.cli.plan_changes import changes, child_changes, object_changes, without_removed
from windlass_operator.domain import labels


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({"a": 1}, {"a": 1}, [], id="nothing"),
        pytest.param({"a": 1}, {"a": 2}, [{"path": "a", "before": 1, "after": 2}], id="a value"),
        pytest.param({}, {"a": {"b": 1}}, [{"path": "a", "after": {"b": 1}}], id="something new"),
        pytest.param({"a": {"b": 1}}, {"a": {}}, [{"path": "a.b", "before": 1}], id="something gone"),
        pytest.param({"a": [1, 2]}, {"a": [1, 3]}, [{"path": "a[1]", "before": 2, "after": 3}], id="an item"),
        pytest.param({"a": [1]}, {"a": [1, 2]}, [{"path": "a", "before": [1], "after": [1, 2]}], id="one item more"),
        pytest.param({"a": None}, {}, [{"path": "a", "before": None}], id="a null is a value"),
    ],
)
def test_every_difference_is_told_once(before, after, expected):
    assert changes(before, after) == expected


def test_of_an_object_labels_annotations_and_spec_count_and_bookkeeping_does_not():
    live = {
        "metadata": {
            "name": "chat",
            "uid": "u",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": {"replicas": 1},
        "status": {"replicas": 1},
    }
    after = {"metadata": {"name": "chat", "labels": {"team": "a"}}, "spec": {"replicas": 1}}

    assert object_changes(live, after) == [{"path": "metadata", "after": {"labels": {"team": "a"}}}]


def test_of_a_child_only_what_is_wanted_counts():
    live = {"metadata": {"annotations": {labels.TEMPLATE: "old"}}, "spec": {"replicas": 2, "defaulted": True}}
    wanted = {"metadata": {"annotations": {labels.TEMPLATE: "new"}}, "spec": {"replicas": 3}}

    assert child_changes(live, wanted, None) == [{"path": "spec.replicas", "before": 2, "after": 3}]


def test_a_field_that_the_next_apply_drops_is_told():
    earlier = {"spec": {"replicas": 2, "paused": True}}
    live = {"spec": {"replicas": 2, "paused": True, "defaulted": 1}}

    assert child_changes(live, {"spec": {"replicas": 2}}, earlier) == [{"path": "spec.paused", "before": True}]


def test_a_child_that_does_not_exist_has_no_changes():
    assert child_changes(None, {"spec": {"replicas": 2}}, None) == []


def test_client_side_apply_drops_what_its_last_file_had():
    """A server-side dry run keeps such fields, because it does not know that their owner is about to drop them."""
    merged = {"metadata": {}, "spec": {"replicas": 3, "limits": {"a": 1, "b": 2}, "tier": "Batch"}}
    last = {"spec": {"replicas": 3, "limits": {"a": 1, "b": 2}}}

    result = without_removed(merged, last, {"spec": {"limits": {"a": 1}}})

    assert result["spec"] == {"limits": {"a": 1}, "tier": "Batch"}

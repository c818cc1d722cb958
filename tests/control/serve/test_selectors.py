"""Label selectors as Kubernetes reads them."""

from __future__ import annotations

import pytest

from windlass_operator.serve.selectors import accepts, parse_selector

LABELS = {"a": "1", "b": "2", "app.kubernetes.io/instance": "chat", "empty": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (" ", True),
        ("a=1", True),
        ("a==1", True),
        ("a = 1", True),
        ("a=2", False),
        ("a=1,b=2", True),
        ("a=1,b=3", False),
        ("a!=2", True),
        ("a!=1", False),
        ("missing!=1", True),
        ("a in (1,2)", True),
        ("a in (2, 3)", False),
        ("a in (1,2),b=2", True),
        ("missing in (1)", False),
        ("a notin (2,3)", True),
        ("a notin (1)", False),
        ("missing notin (1)", True),
        ("a", True),
        ("missing", False),
        ("!a", False),
        ("!missing", True),
        ("empty=", True),
        ("app.kubernetes.io/instance=chat", True),
    ],
)
def test_a_selector_accepts(text: str, expected: bool) -> None:
    assert accepts(parse_selector(text), LABELS) is expected


@pytest.mark.parametrize(
    "text", ["a>1", "a=1,", "=1", "a in 1", "a in (1", "a b", "a in (1,x y)", "a==b=c", ",", "a=$"]
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="labelSelector: expected requirements"):
        parse_selector(text)

"""What a request will cost is estimated from its body, whatever the body is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_gateway.demand import Demand, estimate_demand


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"messages": [{"role": "user", "content": "x" * 40}]}, Demand(14, 256), id="a message"),
        pytest.param(
            {"messages": [{"content": [{"type": "text", "text": "x" * 8}, {"type": "image_url"}]}], "max_tokens": 9},
            Demand(6, 9),
            id="content parts",
        ),
        pytest.param({"prompt": "x" * 9, "max_tokens": 7, "n": 3}, Demand(3, 21), id="several choices"),
        pytest.param({"prompt": ["xxxx", "yyyy"], "max_tokens": 1}, Demand(2, 1), id="several prompts"),
        pytest.param({"prompt": [1, 2, 3], "max_tokens": 1}, Demand(3, 1), id="token ids"),
        pytest.param({"prompt": [[1, 2], [3]], "max_tokens": 1}, Demand(3, 1), id="lists of token ids"),
        pytest.param({"input": "x" * 4}, Demand(1, 256), id="an embedding"),
        pytest.param({"messages": [], "max_completion_tokens": 5, "max_tokens": 9}, Demand(0, 5), id="both bounds"),
        pytest.param({"prompt": "", "max_tokens": -5, "n": "x"}, Demand(0, 256), id="nonsense"),
        pytest.param({"prompt": "", "max_tokens": True, "n": 10**9}, Demand(0, 256 * 128), id="more nonsense"),
        pytest.param({"prompt": "é" * 4, "max_tokens": 1}, Demand(2, 1), id="bytes count, not characters"),
        pytest.param([1, 2], Demand(2, 256), id="no object"),
    ],
)
def test_tokens_are_estimated_from_the_fields_that_cost(body: object, expected: Demand) -> None:
    assert estimate_demand(json.dumps(body, ensure_ascii=False).encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="broken"),
        pytest.param(b"\xff\xfe{}", id="no UTF-8"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(b'{"prompt": "' + b"x" * 2**20 + b'"}', id="too long to parse"),
        pytest.param(b'{"prompt": ' + b"[" * 700 + b"]" * 700 + b"}", id="nested deeper than a walk can go"),
    ],
)
def test_a_body_that_is_not_read_counts_by_its_length(body: bytes) -> None:
    assert estimate_demand(body) == Demand(-(-len(body) // 4), 256)


def test_the_bound_of_an_answer_is_found_in_a_body_that_is_too_long_to_parse() -> None:
    body = json.dumps({"max_tokens": 7, "prompt": "x" * 2**20, "n": 2}).encode()

    assert estimate_demand(body) == Demand(-(-len(body) // 4), 7)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "prompt", "content", "text", "max_tokens", "n", "input"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(values)
def test_no_json_breaks_the_estimate(value: object) -> None:
    found = estimate_demand(json.dumps(value).encode())

    assert found.prompt_tokens >= 0
    assert found.answer_tokens > 0

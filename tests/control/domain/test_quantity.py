"""Quantities: their value, and the spelling the API server gives back."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_operator.domain.quantity import canonical_quantity, parse_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("8", Fraction(8), id="plain number"),
        pytest.param("500m", Fraction(1, 2), id="thousandths"),
        pytest.param("1.5Gi", Fraction(3 * 2**29), id="binary fraction"),
        pytest.param("2M", Fraction(2_000_000), id="decimal mega"),
        pytest.param("1Ei", Fraction(2**60), id="largest binary suffix"),
        pytest.param("3E", Fraction(3 * 10**18), id="largest decimal suffix"),
    ],
)
def test_a_quantity_has_the_value_its_suffix_says(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "8GiB", "1mi", "ten"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match=r"quantity|Invalid literal"):
        parse_quantity(text)


def test_bytes_are_rounded_down():
    assert parse_bytes("1.0005Ki") == 1024


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        pytest.param("1024Mi", "1Gi", id="binary carries over"),
        pytest.param("1.5Gi", "1536Mi", id="no fractions"),
        pytest.param("4000m", "4", id="whole cores"),
        pytest.param("0.5", "500m", id="half a core"),
        pytest.param("1000", "1k", id="round thousands"),
        pytest.param("0", "0", id="zero"),
        pytest.param("16Gi", "16Gi", id="already canonical"),
        pytest.param("0.5Ki", "512", id="binary below one Ki has no suffix"),
        pytest.param("100M", "100M", id="decimal stays decimal"),
    ],
)
def test_quantities_are_spelled_as_the_api_server_stores_them(written, stored):
    assert canonical_quantity(written) == stored


@given(st.integers(0, 10**6), st.sampled_from(["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "Ti"]))
def test_canonical_spelling_keeps_the_value_and_is_stable(number, suffix):
    canonical = canonical_quantity(f"{number}{suffix}")

    assert parse_quantity(canonical) == parse_quantity(f"{number}{suffix}")
    assert canonical_quantity(canonical) == canonical

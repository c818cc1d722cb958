"""The routing table is a file between two processes: it reads back, tolerates newer writers and refuses nonsense."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_contract.endpoints import Replica, Route, RoutingTable, RoutingTableError, TenantRates, digest_key

rates = st.builds(
    TenantRates,
    tenant=st.text(),
    requests_per_minute=st.none() | st.integers(1),
    tokens_per_minute=st.none() | st.integers(1),
    concurrent_requests=st.none() | st.integers(1),
    burst_s=st.floats(1, 3600),
)
routes = st.builds(
    Route,
    namespace=st.text(),
    service=st.text(),
    tenant=st.text(),
    key_digests=st.lists(st.text(), max_size=3).map(tuple),
    replicas=st.lists(st.builds(Replica, name=st.text(), url=st.text()), max_size=3).map(tuple),
    request_timeout_s=st.floats(0.1, 1e6),
    rates=st.none() | rates,
)


@given(st.builds(RoutingTable, st.lists(routes, max_size=4).map(tuple), st.lists(rates, max_size=3).map(tuple)))
def test_a_table_reads_back_as_it_was_written(table: RoutingTable) -> None:
    assert RoutingTable.from_json(table.to_json()) == table


def test_a_newer_writer_may_add_keys_to_routes_and_replicas() -> None:
    route = {
        "namespace": "n",
        "service": "s",
        "tenant": "t",
        "key_digests": [],
        "region": "x",
        "replicas": [{"name": "r", "url": "http://h:1", "zone": "a"}],
    }

    limits = {"tenant": "t", "requests_per_minute": 6, "models": []}

    table = RoutingTable.from_json(json.dumps({"routes": [route], "rates": [limits], "generation": 3}))

    assert table.routes[0].replicas == (Replica("r", "http://h:1"),)
    assert table.rates == (TenantRates("t", requests_per_minute=6),)


def test_an_older_writer_limits_nobody() -> None:
    assert RoutingTable.from_json('{"routes": []}').rates == ()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "{}",
            '{"routes": [{}]}',
            '{"routes": 3}',
            '{"routes": [{"key_digests": [], "replicas": [3]}]}',
        ),
        *('{"routes": [], "rates": 3}', '{"routes": [], "rates": [{}]}', '{"routes": [], "rates": [3]}'),
        '{"routes": [], "rates": [{"tenant": "t", "requests_per_minute": 0}]}',
        '{"routes": [], "rates": [{"tenant": "t", "tokens_per_minute": "many"}]}',
        '{"routes": [], "rates": [{"tenant": "t", "burst_s": NaN}]}',
    ],
)
def test_text_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(RoutingTableError):
        RoutingTable.from_json(text)


def test_a_key_digest_is_plain_sha256_so_that_any_shell_can_make_one() -> None:
    assert digest_key("secret") == "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"

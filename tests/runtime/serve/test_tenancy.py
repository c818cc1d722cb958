"""Whose request it is: the gateway's word with its proof, and nobody else's."""

import json
import logging
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from support.openai_server import MODEL, ServedReplica, build_spec, served
from windlass_contract.endpoints import DEBUG_SCHEDULER_PATH, TENANT_HEADER, TENANT_PROOF_HEADER, prove_tenant
from windlass_runtime.serve.tenancy import TenancyError, parse_weights, read_tenancy

KEY = b"a key that gateways and replicas share"


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedReplica]:
    key_file = tmp_path_factory.mktemp("key") / "key"
    key_file.write_bytes(KEY + b"\n")
    with served(tenant_key_file=str(key_file), tenant_weights="team-b=2") as replica:
        yield replica


def ask(url: str, headers: dict[str, str], **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 3, **fields}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.load(exc)


def as_tenant(tenant: str, key: bytes = KEY) -> dict[str, str]:
    return {TENANT_HEADER: tenant, TENANT_PROOF_HEADER: prove_tenant(key, tenant)}


def tokens_of(url: str, tenant: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as reply:
        lines = reply.read().decode().splitlines()
    prefix = f'windlass_generated_tokens_total{{model="{MODEL}",tenant="{tenant}"}} '
    other = f'windlass_generated_tokens_total{{tenant="{tenant}",model="{MODEL}"}} '
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((prefix, other)))


def test_a_proven_tenant_is_the_one_that_metrics_and_access_log_name(
    replica: ServedReplica, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "windlass_runtime.access"):
        status, _ = ask(replica.url, as_tenant("team-b"))

    assert status == 200
    assert tokens_of(replica.url, "team-b") == 3
    assert "tenant=team-b" in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({TENANT_HEADER: "team-c"}, id="no proof"),
        pytest.param(as_tenant("team-c", b"some other key of some length"), id="another key"),
        pytest.param({**as_tenant("team-b"), TENANT_HEADER: "team-c"}, id="another tenant's proof"),
    ],
)
def test_a_name_without_its_proof_is_refused(replica: ServedReplica, headers: dict[str, str]) -> None:
    status, reply = ask(replica.url, headers)

    assert (status, reply["error"]["code"]) == (403, "untrusted_tenant")
    assert tokens_of(replica.url, "team-c") == 0


def test_without_a_name_a_request_is_the_replicas_own_tenants_whatever_its_body_says(replica: ServedReplica) -> None:
    before = tokens_of(replica.url, "team-a")

    status, _ = ask(replica.url, {}, user="team-b", tenant="team-b", metadata={"tenant": "team-b"})

    assert status == 200
    assert tokens_of(replica.url, "team-a") == before + 3


def test_without_a_shared_key_nobodys_word_counts() -> None:
    with served() as replica:
        status, _ = ask(replica.url, as_tenant("team-b"))

        assert status == 200
        assert tokens_of(replica.url, "team-a") == 3


def test_the_view_for_operators_names_tenants_and_no_content(replica: ServedReplica) -> None:
    with urllib.request.urlopen(replica.url + DEBUG_SCHEDULER_PATH, timeout=20) as reply:
        view = json.load(reply)

    assert view["running"] == view["waiting"] == 0
    assert view["pages_free"] == view["pages"] == 256
    assert view["tenants"] == view["sequences"] == []


@pytest.mark.parametrize("text", ["team-a", "team-a=", "team-a=0", "team-a=-1", "team-a=nan", "=2"])
def test_weights_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(TenancyError, match="tenant_weights: expected NAME=NUMBER"):
        parse_weights(text)


def test_weights_are_read_from_one_line() -> None:
    assert parse_weights(" team-a=3, team-b=0.5,") == {"team-a": 3.0, "team-b": 0.5}


def test_a_shared_key_that_is_missing_or_short_stops_the_start(tmp_path: pathlib.Path) -> None:
    (tmp_path / "short").write_text("short")
    with pytest.raises(TenancyError, match="expected a readable file"):
        read_tenancy(build_spec(tenant_key_file=str(tmp_path / "none")))
    with pytest.raises(TenancyError, match="expected at least 16 bytes, found 5"):
        read_tenancy(build_spec(tenant_key_file=str(tmp_path / "short")))

"""Headers name a user only behind the API server's client certificate."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windlass_operator.errors import RetryLater
from windlass_operator.serve.users import (
    FrontProxy,
    User,
    mark_authenticated,
    parse_front_proxy,
    parse_token_review,
    read_proxied_user,
)

PROXY = FrontProxy("pem", allowed_names=("aggregator",), uid_headers=("X-Remote-Uid",))
HEADERS = [
    ("X-Remote-User", "jane"),
    ("X-Remote-Group", "a"),
    ("x-remote-group", "b"),
    ("X-Remote-Uid", "7"),
    ("X-Remote-Extra-Scopes%2Fx", "one"),
    ("X-Remote-Extra-scopes%2fx", "two"),
    ("Accept", "application/json"),
]


def config_map(**changes: str | None) -> dict[str, Any]:
    data: dict[str, str | None] = {
        "requestheader-client-ca-file": "-----BEGIN CERTIFICATE-----",
        "requestheader-allowed-names": json.dumps(["aggregator"]),
        "requestheader-username-headers": json.dumps(["X-Remote-User"]),
        "requestheader-group-headers": json.dumps(["X-Remote-Group"]),
        "requestheader-extra-headers-prefix": json.dumps(["X-Remote-Extra-"]),
        **changes,
    }
    return {"data": {key: value for key, value in data.items() if value is not None}}


def test_the_api_server_names_user_groups_and_more() -> None:
    found = read_proxied_user(PROXY, "aggregator", HEADERS)

    assert found == User("jane", ("a", "b"), "7", (("scopes/x", ("one", "two")),))


@pytest.mark.parametrize(
    ("proxy", "common_name", "headers"),
    [
        pytest.param(PROXY, None, HEADERS, id="no certificate"),
        pytest.param(PROXY, "somebody", HEADERS, id="a certificate of another name"),
        pytest.param(PROXY, "", HEADERS, id="a certificate without a name"),
        pytest.param(PROXY, "aggregator", HEADERS[1:], id="no user"),
        pytest.param(PROXY, "aggregator", [("X-Remote-User", "")], id="an empty user"),
        pytest.param(FrontProxy("pem", username_headers=()), "aggregator", HEADERS, id="no header is trusted"),
    ],
)
def test_headers_of_anybody_else_mean_nothing(
    proxy: FrontProxy, common_name: str | None, headers: list[tuple[str, str]]
) -> None:
    assert read_proxied_user(proxy, common_name, headers) is None


def test_without_allowed_names_every_certificate_of_the_authority_counts() -> None:
    found = read_proxied_user(FrontProxy("pem"), "any", HEADERS)

    assert found is not None
    assert found.name == "jane"


def test_the_config_map_says_whom_to_trust() -> None:
    assert parse_front_proxy(config_map()) == FrontProxy("-----BEGIN CERTIFICATE-----", ("aggregator",))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        pytest.param(None, "expected requestheader-client-ca-file, found none", id="no ConfigMap"),
        pytest.param({}, "expected requestheader-client-ca-file, found none", id="an empty one"),
        pytest.param(
            config_map(**{"requestheader-client-ca-file": "text"}), "expected requestheader-client-ca", id="no PEM"
        ),
        pytest.param(
            config_map(**{"requestheader-allowed-names": "aggregator"}),
            "expected a JSON list in requestheader-allowed-names",
            id="no list",
        ),
        pytest.param(
            config_map(**{"requestheader-allowed-names": "[1]"}),
            "expected a JSON list in requestheader-allowed-names",
            id="no names",
        ),
    ],
)
def test_a_config_map_that_does_not_say_it_trusts_nobody(found: dict[str, Any] | None, words: str) -> None:
    with pytest.raises(RetryLater, match=words):
        parse_front_proxy(found)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(
            {"authenticated": True, "user": {"username": "jane", "uid": "7", "groups": ["a"], "extra": {"k": ["v"]}}},
            User("jane", ("a",), "7", (("k", ("v",)),)),
            id="a user",
        ),
        pytest.param({"authenticated": False, "user": {"username": "jane"}}, None, id="not accepted"),
        pytest.param({"authenticated": True, "error": "expired", "user": {"username": "jane"}}, None, id="an error"),
        pytest.param({"authenticated": True, "user": {}}, None, id="no name"),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_the_answer_on_a_token(status: dict[str, Any], expected: User | None) -> None:
    assert parse_token_review({"status": status}) == expected


@pytest.mark.parametrize(
    ("user", "groups"),
    [
        pytest.param(User("jane"), ("system:authenticated",), id="a user"),
        pytest.param(User("jane", ("system:authenticated",)), ("system:authenticated",), id="marked already"),
        pytest.param(User("system:anonymous"), (), id="anonymous"),
        pytest.param(User("x", ("system:unauthenticated",)), ("system:unauthenticated",), id="unauthenticated"),
    ],
)
def test_only_those_with_a_name_are_marked_authenticated(user: User, groups: tuple[str, ...]) -> None:
    assert mark_authenticated(user).groups == groups

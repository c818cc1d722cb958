"""Which request targets name a service, and which are refused because two parsers could read them differently."""

from __future__ import annotations

import pytest

from windlass_gateway.targets import Target, TargetError, parse_target


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param("/team/chat/v1/models", Target("team", "chat", "/v1/models"), id="plain"),
        pytest.param(
            "/t/s/v1/models?limit=2&x=%2F", Target("t", "s", "/v1/models?limit=2&x=%2F"), id="query untouched"
        ),
        pytest.param("/t/s/v1/models/a:b@1.0", Target("t", "s", "/v1/models/a:b@1.0"), id="model names"),
        pytest.param("/t/s/v2/models", None, id="another version"),
        pytest.param("/t/s/v1", None, id="nothing below v1"),
        pytest.param("/T/s/v1/models", None, id="no namespace name"),
        pytest.param("/t/-s/v1/models", None, id="no service name"),
        pytest.param("/v1/models", None, id="no service at all"),
    ],
)
def test_a_target_is_split(raw: str, expected: Target | None) -> None:
    assert parse_target(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("/t/s/v1/../../u/s/v1/models", id="parent segment"),
        pytest.param("/t/s/v1/%2e%2e/models", id="encoded parent segment"),
        pytest.param("/t/s/v1/./models", id="same segment"),
        pytest.param("/t/s/v1//models", id="empty segment"),
        pytest.param("/t/s/v1/models/", id="trailing slash"),
        pytest.param("/t/s/v1/a%2Fb", id="encoded slash"),
        pytest.param("/t/s/v1/a%5cb", id="encoded backslash"),
        pytest.param("/t/s/v1/a%252fb", id="twice encoded slash"),
        pytest.param("/t/s/v1/a%0d%0aX:1", id="encoded line break"),
        pytest.param("/t/s/v1/a%00", id="encoded zero byte"),
        pytest.param("/t/s/v1/a\\b", id="backslash"),
        pytest.param("http://other/t/s/v1/models", id="absolute form"),
        pytest.param("*", id="asterisk form"),
    ],
)
def test_an_ambiguous_target_is_refused(raw: str) -> None:
    with pytest.raises(TargetError):
        parse_target(raw)

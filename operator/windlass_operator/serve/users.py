"""Who asks: what the API server vouches for behind its client certificate. Pure.

The API server authenticates a user, then calls an aggregated API with a client certificate of its own and names the
user in headers. Which authority signs that certificate, which names it may carry and how the headers are called stands
in the ConfigMap kube-system/extension-apiserver-authentication. Without such a certificate the headers mean nothing.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from windlass_operator.errors import RetryLater

CONFIG_PATH: Final = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
AUTHENTICATED: Final = "system:authenticated"
UNAUTHENTICATED: Final = "system:unauthenticated"
ANONYMOUS: Final = "system:anonymous"


@dataclass(frozen=True, slots=True)
class User:
    """One authenticated user."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class FrontProxy:
    """Whom to trust when they say who asks."""

    authority: str
    """PEM certificates of who signs the API server's client certificate."""
    allowed_names: tuple[str, ...] = ()
    """Common names that certificate may carry; empty: any."""
    username_headers: tuple[str, ...] = ("X-Remote-User",)
    group_headers: tuple[str, ...] = ("X-Remote-Group",)
    uid_headers: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = ("X-Remote-Extra-",)


def parse_front_proxy(config_map: Mapping[str, Any] | None) -> FrontProxy:
    """Read the ConfigMap. Raises RetryLater while it does not say whom to trust: then nobody is, and nothing works."""
    data = (config_map or {}).get("data") or {}
    authority = data.get("requestheader-client-ca-file", "")
    if "BEGIN CERTIFICATE" not in authority:
        raise RetryLater(
            "ConfigMap kube-system/extension-apiserver-authentication: expected requestheader-client-ca-file, "
            "found none; the API server needs --requestheader-client-ca-file for aggregated APIs"
        )
    return FrontProxy(
        authority,
        _names(data, "requestheader-allowed-names"),
        _names(data, "requestheader-username-headers"),
        _names(data, "requestheader-group-headers"),
        _names(data, "requestheader-uid-headers"),
        _names(data, "requestheader-extra-headers-prefix"),
    )


def read_proxied_user(proxy: FrontProxy, common_name: str | None, headers: Iterable[tuple[str, str]]) -> User | None:
    """Return the user that a front proxy names; None where there is no such certificate, or it names nobody.

    `common_name` is that of a verified client certificate; None without one.
    """
    if common_name is None or (proxy.allowed_names and common_name not in proxy.allowed_names):
        return None
    given = [(name.lower(), value) for name, value in headers]
    names = _values(given, proxy.username_headers)
    if not names or not names[0]:
        return None
    uids = _values(given, proxy.uid_headers)
    return User(
        names[0],
        tuple(_values(given, proxy.group_headers)),
        uids[0] if uids else "",
        tuple(sorted(_extra(given, proxy.extra_prefixes).items())),
    )


def mark_authenticated(user: User) -> User:
    """Add the group of all authenticated users, unless the API server let somebody pass without a name."""
    if user.name == ANONYMOUS or {AUTHENTICATED, UNAUTHENTICATED} & set(user.groups):
        return user
    return replace(user, groups=(*user.groups, AUTHENTICATED))


def parse_token_review(answer: Mapping[str, Any]) -> User | None:
    """Return the user of a token; None where the API server does not accept it."""
    status = answer.get("status") or {}
    user = status.get("user") or {}
    if not status.get("authenticated") or status.get("error") or not user.get("username"):
        return None
    extra = tuple(sorted((key, tuple(values)) for key, values in (user.get("extra") or {}).items()))
    return User(user["username"], tuple(user.get("groups") or ()), user.get("uid", ""), extra)


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    try:
        found = json.loads(data.get(key) or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise RetryLater(
            f"ConfigMap kube-system/extension-apiserver-authentication: expected a JSON list in {key}, "
            f"found {data.get(key)!r}"
        )
    return tuple(found)


def _values(headers: Iterable[tuple[str, str]], wanted: Iterable[str]) -> list[str]:
    """Values of the first of some headers that is there."""
    given = list(headers)
    for name in wanted:
        if found := [value for header, value in given if header == name.lower()]:
            return found
    return []


def _extra(headers: Iterable[tuple[str, str]], prefixes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    extra: dict[str, tuple[str, ...]] = {}
    lowered = [prefix.lower() for prefix in prefixes]
    for name, value in headers:
        for prefix in lowered:
            if name.startswith(prefix):
                key = urllib.parse.unquote(name.removeprefix(prefix))
                extra[key] = (*extra.get(key, ()), value)
    return extra

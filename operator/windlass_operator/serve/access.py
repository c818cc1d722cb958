"""Ask the API server who a token belongs to and who may read what, and remember its answers for a moment."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from windlass_operator.serve.paths import Attributes
from windlass_operator.serve.users import User, parse_token_review

TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
MAX_ANSWERS: Final = 4096
"""Answers kept of each kind; the oldest goes first."""

K = TypeVar("K")
V = TypeVar("V")


class Requests(Protocol):
    """What is needed of a Kubernetes client."""

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send one request; raises WindlassError."""
        ...


class RecentAnswers(Generic[K, V]):
    """Answers that count for a while. Holds `size` at most."""

    def __init__(self, ttl_s: float, clock: Callable[[], float], size: int = MAX_ANSWERS) -> None:
        self._ttl_s, self._clock, self._size = ttl_s, clock, size
        self._known: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def find(self, key: K) -> tuple[V] | None:
        """Return the answer in a tuple; None where there is none that still counts."""
        known = self._known.get(key)
        if known is None or self._clock() >= known[0]:
            return None
        return (known[1],)

    def keep(self, key: K, answer: V) -> V:
        """Remember and return an answer."""
        self._known.pop(key, None)
        self._known[key] = (self._clock() + self._ttl_s, answer)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return answer


class AccessReviewer:
    """Delegates both questions to the API server. Raises WindlassError when it does not answer: then nobody gets in."""

    def __init__(self, client: Requests, ttl_s: float, clock: Callable[[], float]) -> None:
        self._client = client
        self._users = RecentAnswers[str, User | None](ttl_s, clock)
        self._decisions = RecentAnswers[tuple[User, Attributes], bool](ttl_s, clock)

    async def user_of_token(self, token: str) -> User | None:
        """Return whose token it is; None for one that the API server does not accept."""
        digest = hashlib.sha256(token.encode()).hexdigest()  # no token stays in memory longer than its request
        if known := self._users.find(digest):
            return known[0]
        answer = await self._client.request("POST", TOKEN_REVIEWS, render_token_review(token))
        return self._users.keep(digest, parse_token_review(answer))

    async def allows(self, user: User, attributes: Attributes) -> bool:
        """Return whether a user may do something."""
        key = (user, attributes)
        if known := self._decisions.find(key):
            return known[0]
        answer = await self._client.request("POST", ACCESS_REVIEWS, render_access_review(user, attributes))
        status = answer.get("status") or {}
        return self._decisions.keep(key, status.get("allowed") is True and status.get("denied") is not True)


def render_token_review(token: str) -> dict[str, Any]:
    """The TokenReview of a token."""
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}


def render_access_review(user: User, attributes: Attributes) -> dict[str, Any]:
    """The SubjectAccessReview of a user and what the user wants."""
    spec: dict[str, Any] = {
        "user": user.name,
        "groups": list(user.groups),
        "uid": user.uid,
        "extra": {key: list(values) for key, values in user.extra},
    }
    if attributes.path:
        spec["nonResourceAttributes"] = {"path": attributes.path, "verb": attributes.verb}
    else:
        names = ("verb", "group", "version", "namespace", "resource", "subresource", "name")
        spec["resourceAttributes"] = {name: value for name in names if (value := getattr(attributes, name))}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}

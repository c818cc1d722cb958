"""The API server decides; its answers count for a moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from windlass_operator.errors import RetryLater
from windlass_operator.serve.access import AccessReviewer, RecentAnswers, render_access_review
from windlass_operator.serve.paths import Attributes
from windlass_operator.serve.users import User

JANE = User("jane", ("a",), "7", (("k", ("v",)),))
READ = Attributes("get", "", "custom.metrics.k8s.io", "v1beta2", "team-a", "pods", "m", "*")


class FakeRequests:
    """Answers reviews from a list, and remembers their bodies."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.statuses = list(statuses)
        self.bodies: list[Mapping[str, Any]] = []

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.bodies.append(body or {})
        if not self.statuses:
            raise RetryLater("the API server is away")
        return {"status": self.statuses.pop(0)}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_asked_for_once_until_it_is_old() -> None:
    fake, clock = FakeRequests({"allowed": True}, {"allowed": False}), Clock()
    reviewer = AccessReviewer(fake, 10, clock)

    assert [await reviewer.allows(JANE, READ) for _ in range(3)] == [True, True, True]
    clock.now = 10
    assert await reviewer.allows(JANE, READ) is False
    assert len(fake.bodies) == 2


async def test_answers_hold_for_one_user_and_one_question() -> None:
    fake = FakeRequests({"allowed": True}, {"allowed": False}, {"allowed": False})
    reviewer = AccessReviewer(fake, 10, Clock())

    assert await reviewer.allows(JANE, READ)
    assert not await reviewer.allows(User("jane"), READ)
    assert not await reviewer.allows(JANE, Attributes("get", "/apis"))


@pytest.mark.parametrize(
    "status", [{}, {"allowed": False}, {"allowed": "yes"}, {"allowed": True, "denied": True}, {"allowed": None}]
)
async def test_only_a_plain_yes_allows(status: dict[str, Any]) -> None:
    assert await AccessReviewer(FakeRequests(status), 10, Clock()).allows(JANE, READ) is False


async def test_without_an_answer_nobody_gets_in_and_nothing_is_remembered() -> None:
    fake = FakeRequests()
    reviewer = AccessReviewer(fake, 10, Clock())

    for _ in range(2):
        with pytest.raises(RetryLater):
            await reviewer.allows(JANE, READ)
        with pytest.raises(RetryLater):
            await reviewer.user_of_token("t")
    assert len(fake.bodies) == 4


async def test_a_token_is_reviewed_once_and_never_kept() -> None:
    fake = FakeRequests({"authenticated": True, "user": {"username": "jane"}}, {"authenticated": False})
    reviewer = AccessReviewer(fake, 10, Clock())

    assert await reviewer.user_of_token("secret-token") == User("jane")
    assert await reviewer.user_of_token("secret-token") == User("jane")
    assert await reviewer.user_of_token("another") is None
    assert await reviewer.user_of_token("another") is None
    assert [body["spec"]["token"] for body in fake.bodies] == ["secret-token", "another"]
    assert "secret-token" not in str(vars(reviewer._users))


def test_a_review_says_everything_about_the_user_and_the_question() -> None:
    assert render_access_review(JANE, READ)["spec"] == {
        "user": "jane",
        "groups": ["a"],
        "uid": "7",
        "extra": {"k": ["v"]},
        "resourceAttributes": {
            "verb": "get",
            "group": "custom.metrics.k8s.io",
            "version": "v1beta2",
            "namespace": "team-a",
            "resource": "pods",
            "subresource": "m",
            "name": "*",
        },
    }
    assert render_access_review(JANE, Attributes("get", "/apis"))["spec"]["nonResourceAttributes"] == {
        "path": "/apis",
        "verb": "get",
    }


def test_memory_for_answers_is_bounded() -> None:
    answers = RecentAnswers[int, int](10, Clock(), size=2)

    for number in range(3):
        answers.keep(number, number)

    assert [answers.find(number) for number in range(3)] == [None, (1,), (2,)]

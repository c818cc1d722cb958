import datetime

import pytest

from windlass_runtime.chat_template import ChatTemplate
from windlass_runtime.errors import RequestError

USER = [{"role": "user", "content": "hi"}]


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, now=lambda: datetime.datetime(2030, 1, 2)).render(USER)


def test_the_date_comes_from_the_clock_that_was_passed_in() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "02 Jan 2030"


def test_what_a_template_refuses_reaches_the_client_in_its_own_words() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")

    assert caught.value.parameter == "messages"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ messages[7].content }}", id="a turn that is not there"),
        pytest.param("{{ messages.append(1) }}", id="changing the messages"),
        pytest.param("{{ ''.__class__.__mro__ }}", id="leaving the sandbox"),
        pytest.param("{{ 1 / 0 }}", id="arithmetic"),
        pytest.param("{{ messages + 1 }}", id="wrong types"),
    ],
)
def test_a_template_that_fails_on_the_messages_is_a_bad_request_not_a_crash(source: str) -> None:
    with pytest.raises(RequestError):
        render(source)


def test_variables_reach_the_template_but_cannot_replace_the_messages() -> None:
    template = ChatTemplate("{{ mood }}{{ messages[0].content }}", {})

    assert template.render(USER, variables={"mood": "calm ", "messages": []}) == "calm hi"

"""Ask both revisions of a service the same prompts at temperature 0, and compare the words.

A canary with other weights or number formats says other things long before it fails: this is how that shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import aiohttp

from windlass_operator.cluster.canary_meter import Subject
from windlass_operator.domain.canary import Reading, agreement
from windlass_operator.domain.snapshot import Key

MAX_TOKENS: Final = 64
TIMEOUT_S: Final = 60.0
"""For all prompts of one check together."""
MAX_ANSWER_BYTES: Final = 1 << 20

Locate = Callable[[Key, str], str]
"""Takes a service and a canary's name (empty: the stable revision); returns a base URL, empty where there is none."""


class QualityProbe:
    """Asks replicas. Opens its connections with the first question."""

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._session: aiohttp.ClientSession | None = None

    async def complete(self, reading: Reading, subject: Subject) -> Reading:
        """Return the reading with what the prompts showed; untouched where there are none."""
        if not subject.prompts:
            return reading
        try:
            async with asyncio.timeout(TIMEOUT_S):
                stable = await self._ask_all(subject, "")
                canary = await self._ask_all(subject, subject.canary)
        except TimeoutError:
            return _without_answers(reading, f"no answers to {len(subject.prompts)} prompts within {TIMEOUT_S:g} s")
        except (aiohttp.ClientError, OSError, ValueError, KeyError, IndexError, TypeError) as exc:
            return _without_answers(reading, f"prompts not answered: {type(exc).__name__}: {exc}"[:300])
        return replace(reading, agreement=agreement(stable, canary), prompts=len(subject.prompts))

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask_all(self, subject: Subject, canary: str) -> Sequence[str]:
        url = self._locate(subject.service, canary)
        if not url:
            raise ValueError(f"{canary or 'the stable revision'} has no ready replica")
        return [await self._ask(url, subject.served_name, prompt) for prompt in subject.prompts]

    async def _ask(self, url: str, model: str, prompt: str) -> str:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        body = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
        async with self._session.post(f"{url}/v1/completions", json=body, allow_redirects=False) as answer:
            answer.raise_for_status()
            text = await answer.content.read(MAX_ANSWER_BYTES)
            while not answer.content.at_eof() and len(text) < MAX_ANSWER_BYTES:
                text += await answer.content.read(MAX_ANSWER_BYTES - len(text))
        return _text_of(text)


def _text_of(body: bytes) -> str:
    import json

    return str(json.loads(body)["choices"][0]["text"])


def _without_answers(reading: Reading, problem: str) -> Reading:
    return replace(reading, problem="; ".join(filter(None, (reading.problem, problem))))

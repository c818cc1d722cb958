"""A Backend that takes its time instead of computing, and the Sampler that goes with it.

Everything around them is what a real replica runs: the HTTP server, admission, batching, pages, drain and metrics.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Sequence

from windlass_runtime.backends.base import BackendInfo, Batch
from windlass_runtime.backends.sampling_params import SampledToken, SamplingParams
from windlass_runtime.simulate.clock import clock_text
from windlass_runtime.simulate.codec import END, VOCABULARY, SimulatedCodec
from windlass_runtime.simulate.profile import Answer, Profile

_SENTENCE = SimulatedCodec().encode("This answer is simulated; no model was asked. ".ljust(48))
_LOGPROB = -0.1


class SimulatedBackend:
    """Sleeps as long as the profile says that a step takes."""

    def __init__(
        self,
        profile: Profile,
        max_sequence_tokens: int,
        crash: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`crash` is called on the engine's thread with the reason; in a process it does not return."""
        self._profile = profile
        self._crash = crash
        self._clock = clock
        self._sleep = sleep
        self._random = random.Random(profile.seed)
        self._begun: set[str] = set()
        self._ended_s = 0.0
        self._info = BackendInfo(
            vocabulary_size=VOCABULARY,
            page_tokens=profile.page_tokens,
            page_count=profile.kv_pages,
            max_sequence_tokens=max_sequence_tokens,
            eos_token_ids=(END,),
            weight_bytes=0,
            cache_bytes=0,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    def step(self, batch: Batch) -> None:
        """Take the time of this batch; SimulatedSampler needs no result."""
        self._count_begun(batch)
        decoding = sum(1 for row in batch.rows if row.start and len(row.token_ids) == 1)
        prompt_tokens = sum(len(row.token_ids) for row in batch.rows) - decoding
        seconds = self._profile.step_seconds(prompt_tokens, decoding)
        seconds *= 1 + self._profile.jitter * self._random.uniform(-1, 1)
        started_s = self._clock()
        if any(row.start for row in batch.rows):
            # Sequences go on, so nobody was idle: what planning cost since the last step is this process's, not the
            # device's, and a device would have been kept busy meanwhile.
            started_s = max(self._ended_s, started_s - seconds)
        self._ended_s = started_s + seconds
        self._sleep(max(0.0, self._ended_s - self._clock()))

    def close(self) -> None:
        """Nothing to free."""

    def _count_begun(self, batch: Batch) -> None:
        limit = self._profile.crash_after_requests
        if not limit:
            return
        # By name, since a preempted sequence begins anew.
        self._begun.update(row.request_id for row in batch.rows if row.start == 0)
        if len(self._begun) >= limit:
            self._crash(f"{limit} sequences have begun")


@dataclasses.dataclass(slots=True, eq=False)
class _Speech:
    """One sequence's answer while it runs."""

    wants_logprobs: bool
    length: int
    fails: bool
    spoken: int = 0


class SimulatedSampler:
    """Says what the profile's `answer` names, and ends or fails where its draws say so."""

    def __init__(self, profile: Profile, clock: Callable[[], float] = time.monotonic) -> None:
        self._profile = profile
        self._clock = clock
        self._numbers = itertools.count()

    def begin(self, params: SamplingParams, prompt: Sequence[int], fresh_seed: int) -> _Speech:  # noqa: ARG002
        """The request's own seed and prompt change nothing: the profile's seed and the order of arrival decide."""
        draws = random.Random(f"{self._profile.seed}/{next(self._numbers)}")
        factor = 1 + self._profile.answer_spread * draws.uniform(-1, 1)
        return _Speech(
            wants_logprobs=params.top_logprobs is not None,
            length=max(1, round(self._profile.answer_tokens * factor)),
            fails=draws.random() < self._profile.failure_share,
        )

    def sample(self, logits: object, states: Sequence[_Speech]) -> list[SampledToken | None]:  # noqa: ARG002
        now = self._now_token() if self._profile.answer is Answer.CLOCK else None
        return [None if speech.fails else self._next(speech, now) for speech in states]

    def _next(self, speech: _Speech, now: int | None) -> SampledToken:
        place = speech.spoken
        speech.spoken += 1
        if place == speech.length:
            token = END
        else:
            token = _SENTENCE[place % len(_SENTENCE)] if now is None else now
        if not speech.wants_logprobs:
            return SampledToken(token)
        return SampledToken(token, _LOGPROB, ((token, _LOGPROB),))

    def _now_token(self) -> int:
        return SimulatedCodec().encode(clock_text(self._clock()))[0]

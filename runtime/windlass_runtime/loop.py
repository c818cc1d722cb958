"""The engine: one thread that plans, computes and hands out tokens, step after step.

Callers on any thread submit and cancel through one channel; results come back through each request's own `emit`.
The channel is bounded by Admission: at most one submission and one cancellation per admitted request are in it.
"""

from __future__ import annotations

import dataclasses
import heapq
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping

from windlass_runtime import errors
from windlass_runtime.backends.base import Backend, Batch, Row, Sampler
from windlass_runtime.backends.sampling_params import SampledToken
from windlass_runtime.generation import Choice, Event, GenerationRequest
from windlass_runtime.kv.fingerprints import derive_scope
from windlass_runtime.kv.pages import PagePool
from windlass_runtime.metrics import RuntimeMetrics
from windlass_runtime.scheduling.admission import Admission
from windlass_runtime.scheduling.plan import PlannedRow, StepPlan
from windlass_runtime.scheduling.scheduler import Limits, Scheduler
from windlass_runtime.scheduling.sequence import FinishReason, Sequence
from windlass_runtime.scheduling.view import SchedulerView
from windlass_runtime.text import TextCodec

logger = logging.getLogger(__name__)

MOST_FAILED_STEPS = 3
"""Consecutive failed steps after which the device is taken for broken (a CUDA fault, say, never heals in a process)."""
_MOST_PAST_DEADLINES = 1024
"""Deadlines of ended requests that may be left over, beside twice those of running ones."""
_SPEED_MEMORY = 0.9
"""Weight of the past in the running average of tokens per second."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine; see LaunchSpec for their meaning."""

    max_running_requests: int = 64
    max_queued_requests: int = 256
    step_tokens: int = 512
    reuse: bool = False
    """Whether beginnings that were computed before are found again, within a tenant."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Shares of tenants relative to each other; 1 for those not named."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment in the life of an engine."""

    running: int
    waiting: int
    free_pages: int
    page_count: int
    in_house: int
    """Sequences accepted and not ended."""
    steps: int
    tokens_per_s: float
    """Recent speed, prompt and generated tokens together; 0 before the first step."""


@dataclasses.dataclass(slots=True, eq=False)
class _Running:
    """A request on the engine thread."""

    request: GenerationRequest
    emit: Callable[[Event], None]
    arrived_s: float
    max_tokens: int
    choices: dict[str, Choice]
    """By sequence id; a choice leaves when it ends."""
    outcome: FinishReason = FinishReason.STOP
    started_s: float | None = None
    """When the first of its sequences left the line for the first time."""
    first_token_s: float | None = None

    @property
    def reserved_tokens(self) -> int:
        return self.max_tokens * self.request.choices


@dataclasses.dataclass(frozen=True, slots=True)
class _Inspect:
    """Asks for a view of the scheduler between two steps."""

    answer: Callable[[SchedulerView], None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Cancel:
    """Ends one request, or with an empty id all of them."""

    request_id: str
    reason: errors.RuntimeFault | None = None
    """Told to the client; None when nobody listens any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Swap:
    """Goes on with another backend."""

    backend: Backend


class Engine:
    """Runs requests on a backend. Every public method may be called from any thread."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: TextCodec | None,
        limits: EngineLimits,
        metrics: RuntimeMetrics,
        *,
        sampler: Sampler | None = None,
        clock: Callable[[], float] = time.monotonic,
        fresh_seed: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        """Without a tokenizer there is no text: stop strings are refused and pieces carry token ids alone.

        Without a sampler, the backend's logits are torch tensors.
        """
        info = backend.info
        self._backend = backend
        self._sampler = sampler or _torch_sampler()
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._clock = clock
        self._fresh_seed = fresh_seed
        self._pool = PagePool(info.page_count)
        self._server_key = secrets.token_bytes(32)
        self._scheduler = Scheduler(
            Limits(
                limits.step_tokens,
                limits.max_running_requests,
                info.page_tokens,
                info.max_sequence_tokens,
                weights=limits.weights,
                prompts_only=info.is_sparse,
            ),
            self._pool,
            self._scope_of if limits.reuse else None,
        )
        self._admission = Admission(
            max_running=limits.max_running_requests, max_queued=limits.max_queued_requests, weights=limits.weights
        )
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._commands: queue.SimpleQueue[_Running | _Cancel | _Swap | _Inspect | None] = queue.SimpleQueue()
        self._requests: dict[str, _Running] = {}
        self._owners: dict[str, _Running] = {}
        self._deadlines: list[tuple[float, str]] = []
        """Heap of (when, request id) of requests that must have begun by then."""
        self._steps = 0
        self._failed_steps = 0
        self._tokens_per_s = 0.0
        self._draining = False
        self._broken: str | None = None
        self._thread = threading.Thread(target=self._run, name="windlass-engine", daemon=True)
        self._report_occupancy()

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens of prompt and output together."""
        return self._scheduler.max_sequence_tokens

    @property
    def vocabulary_size(self) -> int:
        return self._backend.info.vocabulary_size

    @property
    def healthy(self) -> bool:
        """False once the engine cannot compute any more; the process should be replaced."""
        return self._broken is None

    @property
    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            running=scheduler.running_count,
            waiting=scheduler.waiting_count,
            free_pages=scheduler.free_pages,
            page_count=self._backend.info.page_count,
            in_house=self._admission.in_house,
            steps=self._steps,
            tokens_per_s=self._tokens_per_s,
        )

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: GenerationRequest, emit: Callable[[Event], None]) -> None:
        """Accept a request; `emit` is called on the engine's thread with its events and must not block.

        Raises RequestError (PromptTooLong), QueueFull, Draining or NotServing, and then emits nothing.
        """
        max_tokens = self._checked_length(request)
        running = _Running(request, emit, self._clock(), max_tokens, self._build_choices(request))
        with self._lock:
            if self._broken is not None:
                raise errors.NotServing(f"the engine stopped: {self._broken}")
            if self._draining:
                raise errors.Draining("the replica is draining and accepts no new requests")
            self._admission.admit(
                request.tenant,
                sequences=request.choices,
                tokens=running.reserved_tokens,
                tokens_per_s=self._tokens_per_s,
            )
            self._idle.clear()
            self._commands.put(running)
        self._metrics.count_accepted(request.tenant, len(request.prompt))

    def cancel(self, request_id: str) -> None:
        """Stop a request and free its pages before the next step; no event follows. Unknown ids are ignored."""
        self._commands.put(_Cancel(request_id))

    def swap(self, backend: Backend) -> None:
        """Go on with another backend of the same model from the next step on; the old one is closed then.

        Requests live on: what they have said stays, and their tokens are computed anew in the new backend's cache.
        Raises ValueError for a backend with another vocabulary, or one that holds shorter sequences.
        """
        found, needed = backend.info, self._backend.info
        longest = min(found.max_sequence_tokens, found.page_count * found.page_tokens)
        if found.vocabulary_size != needed.vocabulary_size or longest < self.max_sequence_tokens:
            raise ValueError(
                f"backend: expected a vocabulary of {needed.vocabulary_size} and sequences of "
                f"{self.max_sequence_tokens} tokens, found {found.vocabulary_size} and {longest}"
            )
        self._commands.put(_Swap(backend))

    def inspect(self, answer: Callable[[SchedulerView], None]) -> None:
        """Have `answer` called on the engine's thread between two steps; it must not block or raise."""
        self._commands.put(_Inspect(answer))

    def drain(self) -> None:
        """Accept nothing new; what is accepted goes on."""
        with self._lock:
            self._draining = True

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until nothing is in the house; False when `timeout_s` passed first."""
        return self._idle.wait(timeout_s)

    def cancel_all(self, reason: errors.RuntimeFault) -> None:
        """End every request with `reason`."""
        self._commands.put(_Cancel("", reason))

    def close(self, timeout_s: float = 10.0) -> None:
        """End what runs, stop the thread, free the backend. Idempotent."""
        self.drain()
        if self._thread.is_alive():
            self.cancel_all(errors.Draining("the replica stopped"))
            self._commands.put(None)
            self._thread.join(timeout_s)
        if not self._thread.is_alive():  # a step that hangs still uses the device memory
            self._backend.close()

    def _checked_length(self, request: GenerationRequest) -> int:
        """Most tokens of prompt and output, after checking everything a client can get wrong."""
        prompt_tokens, limit = len(request.prompt), self.max_sequence_tokens
        if not request.prompt:
            raise errors.RequestError("prompt: expected at least one token, found none", "prompt")
        bad = next((token for token in request.prompt if not 0 <= token < self.vocabulary_size), None)
        if bad is not None:
            raise errors.RequestError(f"prompt: expected token ids below {self.vocabulary_size}, found {bad}", "prompt")
        if request.stop and self._tokenizer is None:
            raise errors.RequestError("stop: expected a model with a tokenizer, found none", "stop")
        bad = next((token for token, _ in request.sampling.logit_bias if token >= self.vocabulary_size), None)
        if bad is not None:
            raise errors.RequestError(
                f"logit_bias: expected token ids below {self.vocabulary_size}, found {bad}", "logit_bias"
            )
        wanted = limit - prompt_tokens if request.max_new_tokens is None else request.max_new_tokens
        if prompt_tokens + max(wanted, 1) > limit:
            raise errors.PromptTooLong(
                f"the model handles {limit} tokens of prompt and output together, "
                f"found {prompt_tokens} of prompt and {max(wanted, 1)} of output",
                "prompt",
            )
        if wanted < 1:
            raise errors.RequestError(f"max_tokens: expected at least 1, found {wanted}", "max_tokens")
        return prompt_tokens + wanted

    def _build_choices(self, request: GenerationRequest) -> dict[str, Choice]:
        choices = {}
        for index in range(request.choices):
            params = request.sampling
            if params.seed is not None and index:
                params = dataclasses.replace(params, seed=(params.seed + index) % 2**63)
            decoder = self._tokenizer.decoder(request.prompt) if self._tokenizer else None
            sampler = self._sampler.begin(params, request.prompt, self._fresh_seed())
            choices[f"{request.request_id}#{index}"] = Choice(index, sampler, decoder, request.stop)
        return choices

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._end_late(self._clock())
                if self._scheduler.has_work:
                    self._step()
                self._report_occupancy()
        except Exception as exc:  # the thread's main loop: a bug here must turn liveness red, not hang clients
            logger.exception("engine loop failed")
            self._break(f"{type(exc).__name__} in the engine loop")
            self._refuse_commands()

    def _take_commands(self) -> bool:
        """Obey what is in the channel, waiting for something when there is no work; False to stop."""
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                if self._scheduler.has_work:
                    return True
                self._report_occupancy()  # what stays visible for as long as nothing comes
                command = self._commands.get()
            if command is None:
                return False
            if isinstance(command, _Cancel):
                self._obey_cancel(command)
            elif isinstance(command, _Swap):
                self._obey_swap(command.backend)
            elif isinstance(command, _Inspect):
                command.answer(self._scheduler.describe())
            elif self._broken is not None:
                self._adopt(command)
                self._fail(command, errors.NotServing(f"the engine stopped: {self._broken}"))
            else:
                self._begin(command)

    def _refuse_commands(self) -> None:
        """Keep answering after the loop has failed, until closed."""
        while (command := self._commands.get()) is not None:
            if isinstance(command, _Swap):
                command.backend.close()
            elif isinstance(command, _Inspect):
                command.answer(self._scheduler.describe())
            elif isinstance(command, _Running):
                self._adopt(command)
                self._fail(command, errors.NotServing(f"the engine stopped: {self._broken}"))

    def _adopt(self, running: _Running) -> None:
        self._requests[running.request.request_id] = running
        for sequence_id in running.choices:
            self._owners[sequence_id] = running

    def _scope_of(self, tenant: str) -> bytes:
        """The secret of a tenant's pages: nothing that a client sends takes part."""
        return derive_scope(self._server_key, tenant)

    def _begin(self, running: _Running) -> None:
        request = running.request
        stop_ids = frozenset() if request.ignore_eos else frozenset(self._backend.info.eos_token_ids)
        deadline_s = math.inf if request.deadline_s is None else running.arrived_s + request.deadline_s
        self._adopt(running)
        if deadline_s < math.inf:
            self._note_deadline(deadline_s, request.request_id)
        for sequence_id in running.choices:
            self._scheduler.submit(
                Sequence(
                    sequence_id,
                    list(request.prompt),
                    running.max_tokens,
                    stop_ids,
                    tenant=request.tenant,
                    priority=request.priority,
                    deadline_s=deadline_s,
                )
            )

    def _note_deadline(self, deadline_s: float, request_id: str) -> None:
        if len(self._deadlines) > 2 * len(self._requests) + _MOST_PAST_DEADLINES:
            # Ended requests leave theirs behind; far deadlines would pile up.
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline_s, request_id))

    def _end_late(self, now_s: float) -> None:
        """End requests that have not begun by their deadline: nobody waits for their answer any more."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, request_id = heapq.heappop(self._deadlines)
            running = self._requests.get(request_id)
            if running is not None and running.started_s is None:
                waited_s = now_s - running.arrived_s
                self._emit(
                    running, errors.DeadlineMissed(f"waited {waited_s:.3f} s without a turn, the deadline passed")
                )
                self._end(running, "rejected")

    def _obey_swap(self, backend: Backend) -> None:
        info, old = backend.info, self._backend
        # What other pages held means nothing in the new backend's.
        self._pool = PagePool(info.page_count)
        self._scheduler = self._scheduler.moved_to(self._pool, info.page_tokens, list(self._owners))
        self._backend, self._failed_steps = backend, 0
        old.close()
        logger.info("engine goes on with another backend live=%d pages=%d", len(self._owners), info.page_count)

    def _obey_cancel(self, command: _Cancel) -> None:
        names = [command.request_id] if command.request_id else list(self._requests)
        for name in names:
            running = self._requests.get(name)
            if running is None:
                continue
            if command.reason is not None:
                self._fail(running, command.reason)
            else:
                self._end(running, "cancelled")

    def _step(self) -> None:
        started_s = self._clock()
        plan = self._scheduler.plan_step()
        self._metrics.observe_plan(self._clock() - started_s)
        self._note_starts(plan, started_s)
        sampled_rows = [row for row in plan.rows if row.samples]
        choices = [self._owners[row.sequence_id].choices[row.sequence_id] for row in sampled_rows]
        for row, choice in zip(sampled_rows, choices, strict=True):
            choice.cached_tokens = row.cached_tokens
        samplers = [choice.sampler for choice in choices]
        try:
            logits = self._backend.step(self._to_batch(plan))
            tokens = self._sampler.sample(logits, samplers) if sampled_rows else []
        except Exception as exc:  # whatever a device raises concerns this batch alone, until it repeats
            self._fail_step(plan, exc)
            return
        self._failed_steps = 0
        self._hand_out(plan, sampled_rows, tokens)
        self._note_step(plan, self._clock() - started_s)

    def _to_batch(self, plan: StepPlan) -> Batch:
        return Batch(
            tuple(
                Row(
                    row.sequence_id,
                    row.token_ids,
                    row.start,
                    row.page_table,
                    row.samples,
                    row.lane,
                    len(self._owners[row.sequence_id].request.prompt),
                )
                for row in plan.rows
            )
        )

    def _hand_out(self, plan: StepPlan, rows: list[PlannedRow], tokens: list[SampledToken | None]) -> None:
        chosen: dict[str, SampledToken] = {}
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                chosen[row.sequence_id] = token
            elif row.sequence_id in self._owners:
                running = self._owners[row.sequence_id]
                self._fail(
                    running,
                    errors.StepFailed(
                        "the model computed NaN or infinite logits for this request, or its grammar became too complex"
                    ),
                )
        ended = self._scheduler.apply_tokens(plan, {name: token.token_id for name, token in chosen.items()})
        reasons = {finished.sequence.sequence_id: finished.reason for finished in ended}
        now_s = self._clock()
        for sequence_id, token in chosen.items():
            if sequence_id in self._owners:  # a sibling choice may have failed the whole request
                self._deliver(self._owners[sequence_id], sequence_id, token, reasons.get(sequence_id), now_s)

    def _deliver(
        self,
        running: _Running,
        sequence_id: str,
        token: SampledToken,
        reason: FinishReason | None,
        now_s: float,
    ) -> None:
        choice, tenant = running.choices[sequence_id], running.request.tenant
        if choice.last_token_s is None:
            self._metrics.observe_first_token(tenant, now_s - running.arrived_s)
            self._metrics.count_cached(tenant, choice.cached_tokens)
            if running.first_token_s is None:
                running.first_token_s = now_s
                self._metrics.observe_phase(tenant, "prefill", now_s - (running.started_s or now_s))
        else:
            self._metrics.observe_next_token(tenant, now_s - choice.last_token_s)
        choice.last_token_s = now_s
        self._metrics.count_generated(tenant, 1)
        piece = choice.accept(token, reason)
        if piece is None:
            return
        if piece.finish is not None:
            self._scheduler.drop(sequence_id)
            del running.choices[sequence_id], self._owners[sequence_id]
            if piece.finish is FinishReason.LENGTH:
                running.outcome = FinishReason.LENGTH
        self._emit(running, piece)
        if not running.choices:
            self._end(running, running.outcome.value)

    def _fail_step(self, plan: StepPlan, exc: Exception) -> None:
        self._failed_steps += 1
        logger.error(
            "engine step failed rows=%d tokens=%d consecutive=%d", len(plan.rows), plan.token_count, self._failed_steps,
            exc_info=exc,
        )  # fmt: skip
        fault = errors.StepFailed(f"the engine step failed: {type(exc).__name__}")
        for row in plan.rows:
            if row.sequence_id in self._owners:
                self._fail(self._owners[row.sequence_id], fault)
        if self._failed_steps >= MOST_FAILED_STEPS:
            self._break(f"{self._failed_steps} steps failed in a row, the last with {type(exc).__name__}")

    def _break(self, reason: str) -> None:
        """Give up for good: liveness turns red and everybody is told."""
        with self._lock:
            self._broken = reason
        logger.error("engine stopped reason=%r", reason)
        for running in list(self._requests.values()):
            self._fail(running, errors.NotServing(f"the engine stopped: {reason}"))

    def _fail(self, running: _Running, fault: errors.RuntimeFault) -> None:
        self._emit(running, fault)
        self._end(running, "failed")

    def _emit(self, running: _Running, event: Event) -> None:
        try:
            running.emit(event)
        except Exception as exc:  # a caller's own code: its fault must not reach other requests
            logger.error("emit failed type=%s request_id=%s", type(exc).__name__, running.request.request_id)
            self._end(running, "failed")

    def _end(self, running: _Running, outcome: str) -> None:
        """Forget a request, whatever state it is in; its pages are free afterwards. Idempotent."""
        if self._requests.pop(running.request.request_id, None) is None:
            return
        for sequence_id in running.choices:
            self._scheduler.drop(sequence_id)
            self._owners.pop(sequence_id, None)
        running.choices.clear()
        now_s, tenant = self._clock(), running.request.tenant
        self._metrics.count_outcome(tenant, outcome, now_s - running.arrived_s)
        if running.first_token_s is not None:
            self._metrics.observe_phase(tenant, "decode", now_s - running.first_token_s)
        with self._lock:
            self._admission.leave(tenant, sequences=running.request.choices, tokens=running.reserved_tokens)
            if self._admission.in_house == 0:
                self._idle.set()

    def _note_starts(self, plan: StepPlan, now_s: float) -> None:
        for sequence_id in plan.admitted:
            running = self._owners[sequence_id]
            if running.started_s is None:
                running.started_s = now_s
                self._metrics.observe_queue_time(running.request.tenant, now_s - running.arrived_s)
                self._metrics.observe_phase(running.request.tenant, "queue", now_s - running.arrived_s)
        for sequence_id in plan.preempted:
            self._metrics.count_preemption(self._owners[sequence_id].request.tenant)

    def _note_step(self, plan: StepPlan, seconds: float) -> None:
        self._steps += 1
        self._metrics.observe_step(seconds, plan.token_count)
        speed = plan.token_count / max(seconds, 1e-9)
        past = self._tokens_per_s or speed
        self._tokens_per_s = _SPEED_MEMORY * past + (1 - _SPEED_MEMORY) * speed

    def _report_occupancy(self) -> None:
        self._metrics.set_occupancy(
            running=self._scheduler.running_count,
            waiting=self._scheduler.waiting_count,
            pages_free=self._scheduler.free_pages,
            pages_total=self._backend.info.page_count,
        )
        self._metrics.set_cache(kept=self._pool.kept_count, pages=self._pool.owned, evictions=self._pool.evictions)


def _torch_sampler() -> Sampler:
    # Here, because a process whose backend knows no tensors need not spend the time and memory on torch.
    from windlass_runtime.backends.sampling import TorchSampler

    return TorchSampler()

"""`windlass-runtime generate`: one request from the shell, streamed as it comes."""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable

from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime import errors, launch
from windlass_runtime.backends.sampling_params import SamplingParams
from windlass_runtime.generation import Event, GenerationRequest
from windlass_runtime.loop import Engine, EngineLimits
from windlass_runtime.metrics import RuntimeMetrics
from windlass_runtime.text import TextCodec


@dataclasses.dataclass(frozen=True, slots=True)
class ShellRequest:
    """What the command line asks for."""

    prompt: str
    chat: bool = False
    """Render the prompt as a user message with the model's chat template."""
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ShellResult:
    """What `-o json` prints."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    load_s: float
    first_token_s: float
    total_s: float


def generate(
    spec: LaunchSpec,
    request: ShellRequest,
    *,
    on_loaded: Callable[[], None],
    show: Callable[[str], None],
    load: launch.ModelLoader = launch.load_model,
) -> ShellResult:
    """Load, run one request, free the model. Raises RuntimeFault."""
    started_s = time.monotonic()
    loaded = load(spec)
    if loaded.tokenizer is None:
        raise errors.CheckpointError(f"model {spec.model_uri}: expected a tokenizer.json, found nothing")
    limits = EngineLimits(1, 0, spec.step_tokens)
    engine = Engine(loaded.backend, loaded.tokenizer, limits, RuntimeMetrics(spec.served_name), sampler=loaded.sampler)
    engine.start()
    try:
        on_loaded()
        return _run(engine, loaded.tokenizer, request, show, load_s=time.monotonic() - started_s)
    finally:
        engine.close()


def _run(
    engine: Engine, tokenizer: TextCodec, request: ShellRequest, show: Callable[[str], None], *, load_s: float
) -> ShellResult:
    if request.chat:
        text = tokenizer.render_chat([{"role": "user", "content": request.prompt}])
        prompt = tokenizer.encode(text, add_special_tokens=False)
    else:
        prompt = tokenizer.encode(request.prompt)
    sampling = SamplingParams(temperature=request.temperature, top_p=request.top_p, seed=request.seed)
    room = engine.max_sequence_tokens - len(prompt)
    limit = max(1, min(request.max_new_tokens, room))
    generation = GenerationRequest("shell", tuple(prompt), sampling, limit, stop=request.stop)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    started_s = time.monotonic()
    engine.submit(generation, events.put)
    text, tokens, first_token_s = "", 0, 0.0
    while True:
        event = events.get()
        if isinstance(event, errors.RuntimeFault):
            raise event
        first_token_s = first_token_s or time.monotonic() - started_s
        text, tokens = text + event.text, tokens + len(event.token_ids)
        show(event.text)
        if event.finish is not None:
            total_s = time.monotonic() - started_s
            return ShellResult(text, event.finish.value, len(prompt), tokens, load_s, first_token_s, total_s)

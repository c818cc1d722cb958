"""POST /v1/chat/completions and /v1/completions: from a body to a stream of tokens and back to a reply."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from aiohttp import web

from windlass_contract.endpoints import REPORT_USAGE_HEADER
from windlass_runtime import errors
from windlass_runtime.backends.grammar_text import Grammar
from windlass_runtime.backends.sampling_params import SamplingParams
from windlass_runtime.generation import GenerationRequest, Piece
from windlass_runtime.loop import Engine
from windlass_runtime.serve import bodies, faults
from windlass_runtime.serve.keys import REPLICA, TENANCY, TENANT, USAGE
from windlass_runtime.serve.replica import Replica
from windlass_runtime.serve.replies import ChatShape, CompletionShape, Heading, Shape, Usage, join_pieces
from windlass_runtime.serve.structured import parse_grammar
from windlass_runtime.serve.token_stream import TokenStream
from windlass_runtime.serve.tool_calls import Tools, parse_tools
from windlass_runtime.text import TextCodec

_LEGACY_MAX_TOKENS: Final = 16
"""Default of /v1/completions in the OpenAI API."""
_QUICK_CHARACTERS: Final = 8192
"""Longer texts are tokenised in a thread, so that streams of others do not stutter."""


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request, ready to run."""

    requests: tuple[GenerationRequest, ...]
    """One per prompt."""
    choices_per_prompt: int
    shape: Shape
    heading: Heading
    streams: bool
    wants_usage_chunk: bool
    """Whether the client asked for its usage."""
    usage: Usage

    def choice_index(self, request: int, piece: Piece) -> int:
        return request * self.choices_per_prompt + piece.choice


async def post_chat_completions(request: web.Request) -> web.StreamResponse:
    """A reply to a conversation."""
    return await _serve(request, _prepare_chat)


async def post_completions(request: web.Request) -> web.StreamResponse:
    """Continuations of plain prompts."""
    return await _serve(request, _prepare_completion)


async def _serve(
    request: web.Request, prepare: Callable[[Replica, Engine, TextCodec, str, bytes], Any]
) -> web.StreamResponse:
    replica = request.app[REPLICA]
    tenant = request.app[TENANCY].tenant_of(request.headers)
    request[TENANT] = tenant
    data = await request.read()
    with replica.generating():
        async with contextlib.AsyncExitStack() as stack:
            try:
                engine, tokenizer = replica.require_engine(), replica.require_tokenizer()
                job: Job = await prepare(replica, engine, tokenizer, tenant, data)
                request[USAGE] = job.usage
                stream = await stack.enter_async_context(TokenStream(engine, job.requests))
            except errors.RuntimeFault:
                replica.metrics.count_outcome(tenant, "rejected")
                raise
            if job.streams:
                return await _reply_in_chunks(request, job, stream)
            return await _reply_whole(job, stream)


async def _prepare_chat(replica: Replica, _engine: Engine, tokenizer: TextCodec, tenant: str, data: bytes) -> Job:
    body = bodies.parse_body(data, bodies.ChatBody)
    replica.require_model(body.model)
    sampling = body.sampling((body.top_logprobs or 0) if body.logprobs else None)
    tools = parse_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    sampling = await _constrain(replica, sampling, _choose_grammar(parse_grammar(body), tools))
    text = render_messages(tokenizer, body, tools)
    prompt = await encode(tokenizer, text, add_special_tokens=False)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    shape = ChatShape(tokenizer, sampling.top_logprobs is not None, calls_tools=tools is not None)
    return _build_job(replica, tenant, body, [prompt], sampling, limit, shape)


async def _prepare_completion(replica: Replica, engine: Engine, tokenizer: TextCodec, tenant: str, data: bytes) -> Job:
    body = bodies.parse_body(data, bodies.CompletionBody)
    replica.require_model(body.model)
    sampling = await _constrain(replica, body.sampling(body.logprobs), parse_grammar(body))
    entries = body.prompts
    if not 1 <= len(entries) * (body.n or 1) <= bodies.MAX_SEQUENCES:
        raise errors.RequestError(
            f"prompt: expected 1 to {bodies.MAX_SEQUENCES} prompts times n, found {len(entries)} x {body.n or 1}",
            "prompt",
        )
    prompts = [entry if isinstance(entry, list) else await encode(tokenizer, entry) for entry in entries]
    limit = body.max_tokens
    if limit is None:
        longest = max(len(prompt) for prompt in prompts)
        limit = max(1, min(_LEGACY_MAX_TOKENS, engine.max_sequence_tokens - longest))
    shape = CompletionShape(tokenizer, sampling.top_logprobs is not None)
    return _build_job(replica, tenant, body, prompts, sampling, limit, shape)


def _build_job(
    replica: Replica,
    tenant: str,
    body: bodies.GenerationBody,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    max_new_tokens: int | None,
    shape: Shape,
) -> Job:
    reply_id = shape.id_prefix + secrets.token_hex(12)
    requests = tuple(
        GenerationRequest(
            request_id=f"{reply_id}/{index}",
            prompt=tuple(prompt),
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            choices=body.n or 1,
            stop=body.stop_strings,
            ignore_eos=bool(body.ignore_eos),
            tenant=tenant,
            priority=body.rank,
            deadline_s=None if body.deadline_ms is None else body.deadline_ms / 1000,
        )
        for index, prompt in enumerate(prompts)
    )
    return Job(
        requests=requests,
        choices_per_prompt=body.n or 1,
        shape=shape,
        heading=Heading(reply_id, replica.spec.served_name, int(time.time())),
        streams=bool(body.stream),
        wants_usage_chunk=body.wants_usage_chunk,
        usage=Usage(sum(len(prompt) for prompt in prompts)),
    )


def render_messages(
    tokenizer: TextCodec, body: bodies.ChatBody | bodies.TokenizeBody, tools: Tools | None = None
) -> str:
    """The prompt of a conversation. Tools are for the chat template, or a message of ours where it knows none."""
    assert body.messages is not None
    knows = tokenizer.knows_tools
    messages = bodies.template_messages(body.messages, knows_tools=knows)
    variables = dict(body.chat_template_kwargs or {})
    if tools is not None and knows:
        variables["tools"] = [{"type": "function", "function": function} for function in tools.functions]
    elif tools is not None:
        messages = [{"role": "system", "content": tools.to_prompt()}, *messages]
    return tokenizer.render_chat(messages, variables=variables)


def _choose_grammar(wanted: Grammar | None, tools: Tools | None) -> Grammar | None:
    """An answer follows its own form or that of its calls."""
    if wanted is not None and tools is not None:
        raise errors.RequestError(f"{wanted.field}: expected no form of answer beside tools, found both", wanted.field)
    return tools.to_grammar() if tools is not None else wanted


async def _constrain(replica: Replica, sampling: SamplingParams, grammar: Grammar | None) -> SamplingParams:
    """Hold the answer to a grammar. Compiling takes its time, so it leaves the event loop alone."""
    if grammar is None:
        return sampling
    compiler = replica.require_grammars(grammar.field)
    return dataclasses.replace(sampling, constraint=await asyncio.to_thread(compiler.compile, grammar))


async def encode(tokenizer: TextCodec, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`, without blocking the loop for long."""
    if len(text) <= _QUICK_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)


async def _reply_whole(job: Job, stream: TokenStream) -> web.Response:
    pieces: dict[int, list[Piece]] = {}
    async for request, piece in stream.pieces():
        job.usage.count(request, piece)
        pieces.setdefault(job.choice_index(request, piece), []).append(piece)
    choices = [job.shape.whole(index, join_pieces(pieces[index])) for index in sorted(pieces)]
    body = job.heading.to_body(job.shape.whole_kind, choices) | {"usage": job.usage.to_body()}
    return web.json_response(body)


async def _reply_in_chunks(request: web.Request, job: Job, stream: TokenStream) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    try:
        async for event in _chunks(job, stream):
            await response.write(_to_event(event))
    except errors.RuntimeFault as fault:
        # The status line is gone; clients of this API look for an error object in the stream.
        await response.write(_report_usage(request, job) + _to_event(faults.describe(fault).to_body()))
    else:
        await response.write(_report_usage(request, job) + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _chunks(job: Job, stream: TokenStream) -> AsyncIterator[dict[str, Any]]:
    usage: dict[str, Any] = {"usage": None} if job.wants_usage_chunk else {}
    for index in range(len(job.requests) * job.choices_per_prompt):
        for choice in job.shape.opening(index):
            yield job.heading.to_body(job.shape.chunk_kind, [choice]) | usage
    async for request, piece in stream.pieces():
        job.usage.count(request, piece)
        choice = job.shape.chunk(job.choice_index(request, piece), piece)
        yield job.heading.to_body(job.shape.chunk_kind, [choice]) | usage
    if job.wants_usage_chunk:
        yield job.heading.to_body(job.shape.chunk_kind, []) | {"usage": job.usage.to_body()}


def _report_usage(request: web.Request, job: Job) -> bytes:
    """A comment for the gateway, if it asked: clients skip it, whether or not they want a usage of their own."""
    if REPORT_USAGE_HEADER not in request.headers:
        return b""
    return b": " + json.dumps({"usage": job.usage.to_body()}).encode() + b"\n\n"


def _to_event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"

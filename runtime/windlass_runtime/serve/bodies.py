"""Request bodies of the OpenAI API, checked at the edge and turned into GenerationRequests' parts.

Supported fields do something. Fields that would change the answer but are not supported are refused by name; any other
unknown field is ignored, as clients of that API expect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar, cast

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from windlass_runtime import errors
from windlass_runtime.backends.sampling_params import MAX_LOGIT_BIASES, MAX_TOP_LOGPROBS, SamplingParams
from windlass_runtime.serve import tool_calls

_TIERS: Final[Mapping[str, int]] = {"priority": -1, "auto": 0, "default": 0, "flex": 1}
"""OpenAI's service tiers as priorities."""
MAX_SEQUENCES: Final = 128
"""Prompts times choices in one request."""
Body = TypeVar("Body", bound=BaseModel)
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_STRICT: Final = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)


class StreamOptions(BaseModel):
    """Part of a streaming request."""

    model_config = _STRICT
    include_usage: bool | None = None


class GenerationBody(BaseModel):
    """What both kinds of completion share."""

    model_config = _STRICT
    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    ignore_eos: bool | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    service_tier: str | None = None
    deadline_ms: Annotated[float, Field(gt=0, le=86_400_000)] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    guided_grammar: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def rank(self) -> int:
        """Priority among the tenant's own requests, lower first: `priority`, else by `service_tier`."""
        return self.priority if self.priority is not None else _TIERS.get(self.service_tier or "auto", 0)

    @property
    def wants_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, top_logprobs: int | None) -> SamplingParams:
        """Raises RequestError for values out of range."""
        return SamplingParams(
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(0, _or(self.top_k, 0)) if self.top_k != -1 else 0,
            min_p=_or(self.min_p, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=_parse_logit_bias(self.logit_bias),
            seed=self.seed,
            top_logprobs=top_logprobs,
        )


class TextPart(BaseModel):
    """A piece of message content; other kinds of part are refused by name."""

    model_config = _STRICT
    type: str
    text: str | None = None


class CalledFunction(BaseModel):
    """Part of a ToolCall."""

    model_config = _STRICT
    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that an earlier answer made."""

    model_config = _STRICT
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One turn of a chat."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per prompt, each a text or its token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("list[str] | list[list[int]]", self.prompt)


class TokenizeBody(BaseModel):
    """POST /tokenize: a prompt or messages."""

    model_config = _STRICT
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = _STRICT
    model: str | None = None
    tokens: list[TokenId]


def parse_body(data: bytes, kind: type[Body]) -> Body:
    """Check one body. Raises RequestError naming the first field at fault; the value itself is never repeated."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as exc:
        raise errors.RequestError("body: expected UTF-8, found other bytes") from exc
    except json.JSONDecodeError as exc:
        raise errors.RequestError(
            f"body: expected JSON, found line {exc.lineno} column {exc.colno}: {exc.msg}"
        ) from exc
    except RecursionError as exc:
        raise errors.RequestError("body: expected JSON of modest depth, found deep nesting") from exc
    except ValueError as exc:  # an integer beyond the interpreter's limit of digits, or a refused constant
        raise errors.RequestError("body: expected JSON, found a number outside of it") from exc
    try:
        body = kind.model_validate(value)
    except pydantic.ValidationError as exc:
        raise _explain(exc) from exc
    for refuse in _REFUSALS.get(kind, ()):
        refuse(body)
    return body


def template_messages(messages: list[Message], *, knows_tools: bool = True) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: plain text content, and `developer` under its older name `system`.

    For a template that knows no tools, calls and their results become text.
    """
    return [_template_message(message, index, knows_tools) for index, message in enumerate(messages)]


def _template_message(message: Message, index: int, knows_tools: bool) -> dict[str, Any]:
    path = f"messages.{index}"
    if (message.model_extra or {}).get("function_call"):
        raise errors.RequestError("function_call is not supported by this server; send tool_calls", path)
    content = message.content
    if isinstance(content, list):
        content = "\n".join(_part_text(part, f"{path}.content.{place}") for place, part in enumerate(content))
    if content is None:
        if not message.tool_calls:
            raise errors.RequestError("expected text, found null", f"{path}.content")
        content = ""
    name = {"name": message.name} if message.name is not None else {}
    if message.tool_calls:
        calls = [_template_call(call, f"{path}.tool_calls.{place}") for place, call in enumerate(message.tool_calls)]
        if knows_tools:
            return {"role": message.role, "content": content, "tool_calls": calls} | name
        written = [f"{tool_calls.BEGIN}\n{json.dumps(call['function'])}\n{tool_calls.END}" for call in calls]
        return {"role": message.role, "content": "\n".join(filter(None, [content, *written]))}
    if message.role in ("tool", "function"):
        if knows_tools:
            identity = {"tool_call_id": message.tool_call_id} if message.tool_call_id is not None else {}
            return {"role": "tool", "content": content} | identity | name
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content} | name


def _template_call(call: ToolCall, path: str) -> dict[str, Any]:
    """Templates render arguments as an object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as exc:
        raise errors.RequestError("expected arguments as JSON, found other text", f"{path}.function.arguments") from exc
    identity = {"id": call.id} if call.id is not None else {}
    return {"type": "function", **identity, "function": {"name": call.function.name, "arguments": arguments}}


def _part_text(part: TextPart, path: str) -> str:
    if part.type != "text":
        raise errors.RequestError("only parts of type text are supported by this server", f"{path}.type")
    if part.text is None:
        raise errors.RequestError("expected text, found null", f"{path}.text")
    return part.text


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _parse_logit_bias(biases: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    if biases is None:
        return ()
    if len(biases) > MAX_LOGIT_BIASES:
        raise errors.RequestError(f"expected at most {MAX_LOGIT_BIASES} tokens, found {len(biases)}", "logit_bias")
    if not all(token.isascii() and token.isdigit() and len(token) < 10 for token in biases):
        raise errors.RequestError("expected token ids as keys, found something else", "logit_bias")
    return tuple((int(token), bias) for token, bias in biases.items())


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _explain(exc: pydantic.ValidationError) -> errors.RequestError:
    """The first fault, without the value found and without the names of union branches in its path."""
    fault = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in fault["loc"] if isinstance(part, int) or str(part).isidentifier())
    path = path.removesuffix(".str")
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return errors.RequestError(f"{path or 'body'}: {message}", path)


_Refusal = Callable[[Any], None]


def _refuse_set(name: str, why: str, allowed: Callable[[Any], bool] = lambda value: not value) -> _Refusal:
    """Refuse a body whose field `name` is neither absent, null nor `allowed`."""

    def refuse(body: BaseModel) -> None:
        value = getattr(body, name, None)
        if value is not None and not allowed(value):
            raise errors.RequestError(f"{name}: {why}", name)

    return refuse


_UNSUPPORTED: Final = "not supported by this server"


def _refuse_best_of(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise errors.RequestError("best_of: choosing among hidden candidates is not supported; use n", "best_of")


def _refuse_lonely_top_logprobs(body: ChatBody) -> None:
    if body.top_logprobs and not body.logprobs:
        raise errors.RequestError("top_logprobs: expected logprobs to be true as well", "top_logprobs")


_SHARED_REFUSALS: Final[tuple[_Refusal, ...]] = (
    _refuse_set("echo", _UNSUPPORTED),
    _refuse_set("suffix", _UNSUPPORTED),
    _refuse_set("use_beam_search", _UNSUPPORTED),
    _refuse_set("min_tokens", _UNSUPPORTED),
    _refuse_set("stop_token_ids", _UNSUPPORTED),
    _refuse_set("bad_words", _UNSUPPORTED),
    _refuse_set("prompt_logprobs", _UNSUPPORTED, lambda value: value is False),
    _refuse_set("truncate_prompt_tokens", _UNSUPPORTED, lambda _: False),
)
_REFUSALS: Final[Mapping[type[BaseModel], tuple[_Refusal, ...]]] = {
    ChatBody: (
        *_SHARED_REFUSALS,
        _refuse_set("functions", _UNSUPPORTED),
        _refuse_set("function_call", _UNSUPPORTED, lambda value: value in ("none", "auto")),
        _refuse_set("audio", _UNSUPPORTED, lambda _: False),
        _refuse_set("modalities", _UNSUPPORTED, lambda value: value == ["text"]),
        _refuse_set("web_search_options", _UNSUPPORTED, lambda _: False),
        _refuse_set("continue_final_message", _UNSUPPORTED),
        _refuse_lonely_top_logprobs,
    ),
    CompletionBody: (*_SHARED_REFUSALS, _refuse_best_of),
}

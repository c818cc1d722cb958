"""Tell a client how much of its tenant's rates is left, in the headers that OpenAI's clients read. Pure."""

from __future__ import annotations

import math
from typing import Final

from windlass_gateway.limits import Limit, Readings

NEVER_RETRY: Final = {"X-Should-Retry": "false"}
"""Tells OpenAI's clients not to send the same request again."""
_KINDS: Final = {Limit.REQUESTS: "requests", Limit.TOKENS: "tokens"}


def render_readings(readings: Readings) -> dict[str, str]:
    """`X-Ratelimit-{Limit,Remaining,Reset}-{Requests,Tokens}`."""
    headers: dict[str, str] = {}
    for limit, reading in readings.items():
        kind = _KINDS[limit].capitalize()
        headers[f"X-Ratelimit-Limit-{kind}"] = str(reading.allowed)
        headers[f"X-Ratelimit-Remaining-{kind}"] = str(reading.remaining)
        headers[f"X-Ratelimit-Reset-{kind}"] = format_duration(reading.full_in_s)
    return headers


def render_wait(seconds: float) -> dict[str, str]:
    """The wait to the millisecond; Retry-After has whole seconds only."""
    return {"Retry-After-Ms": str(max(1, math.ceil(seconds * 1000)))}


def format_duration(seconds: float) -> str:
    """`17ms`, `1.2s`, `6m0s`, as OpenAI writes it."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    if not minutes:
        return f"{rest / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    tail = f"{minutes}m{rest // 1000}s"
    return f"{hours}h{tail}" if hours else tail

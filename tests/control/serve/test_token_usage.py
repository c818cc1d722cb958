"""Tokens of replicas are read by service and pod, from what replicas really export."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_operator.domain.snapshot import Key
from windlass_operator.serve.token_usage import TokenUsage, open_usage, usage_settings
from windlass_operator.settings import OperatorSettings
from windlass_runtime.metrics import RuntimeMetrics

CHAT = Key("InferenceService", "team-a", "chat")


class FakeClient:
    """Lists pods as the API server does."""

    def __init__(self, *names: str) -> None:
        self._names = names

    async def list_items(self, path: str, selector: str) -> AsyncIterator[dict[str, Any]]:
        assert "app.kubernetes.io/component in (runtime,canary)" in selector, (
            "canaries serve the tokens of a service too"
        )
        for name in self._names:
            metadata = {"name": name, "namespace": "team-a", "labels": {"app.kubernetes.io/instance": "chat"}}
            yield {"metadata": metadata, "status": {"podIP": "10.0.0.7"}}


def build_page(prompt: int, generated: int) -> str:
    """What a replica exports."""
    metrics = RuntimeMetrics("m")
    metrics.count_accepted("acme", prompt)
    if generated:
        metrics.count_generated("acme", generated)
    return metrics.render().decode()


@contextlib.asynccontextmanager
async def usage(pages: dict[str, str]) -> AsyncIterator[TokenUsage]:
    async def answer(request: web.Request) -> web.Response:
        page = pages.get(request.match_info["pod"])
        return web.Response(status=503) if page is None else web.Response(text=page)

    app = web.Application()
    app.router.add_get("/{pod}/metrics", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        settings = OperatorSettings(usage_source="replicas", usage_replica_url=f"{url}/{{pod}}/metrics")
        found = TokenUsage(FakeClient("a", "b", "c"), usage_settings(settings), time.monotonic)  # type: ignore[arg-type]
        try:
            yield found
        finally:
            await found.close()


async def test_prompts_and_answers_add_up_and_a_silent_replica_is_unknown() -> None:
    async with usage({"a": build_page(10, 90), "b": build_page(5, 0)}) as found:
        assert await found.read() == {CHAT: {"a": 100.0, "b": 5.0, "c": None}}


async def test_without_a_source_nothing_is_opened() -> None:
    async with open_usage(FakeClient(), OperatorSettings()) as read:  # type: ignore[arg-type]
        assert read is None

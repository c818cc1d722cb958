"""Limits as a tenant's clients meet them, with the official client."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import httpx2
import openai
import pytest

from support.gateway import KEY, RIVAL_KEY, Bench, BuildBench, BuildReplica, build_route, write_table
from support.replica import Behaviour
from windlass_contract.endpoints import TenantRates

MESSAGES = [{"role": "user", "content": "x" * 40}]
PROMPT_TOKENS = 14
"""What the gateway estimates for MESSAGES."""
THOUSAND = TenantRates("acme", tokens_per_minute=60, burst_s=1000)
"""A bucket of a thousand tokens that hardly fills while a test runs."""


async def ask(client: openai.AsyncOpenAI, **options: object) -> httpx2.Response:
    """One chat completion; the raw answer."""
    completions = client.chat.completions.with_raw_response
    return await completions.create(model="m", messages=MESSAGES, **options)  # type: ignore[call-overload,no-any-return]


async def ask_streamed(client: openai.AsyncOpenAI, **options: object) -> list[str]:
    """One chat completion, streamed to its end."""
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True, **options)  # type: ignore[call-overload]
    return [chunk.choices[0].delta.content async for chunk in stream]


async def remaining_tokens(front: Bench) -> int:
    """What is left of the tenant's tokens, asked by a request that costs none."""
    async with front.client() as client:
        raw = await client.models.with_raw_response.list()
    return int(raw.headers["x-ratelimit-remaining-tokens"])


async def test_a_request_too_many_is_answered_429_with_the_time_to_come_back(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=[TenantRates("acme", requests_per_minute=2)])

    async with front.client() as client:
        heads = [(await ask(client)).headers for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(client)

    assert [head["x-ratelimit-remaining-requests"] for head in heads] == ["1", "0"]
    assert heads[0]["x-ratelimit-limit-requests"] == "2"
    assert heads[1]["x-ratelimit-reset-requests"].startswith(("1m0s", "59", "58"))
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "requests"
    assert "Tenant acme may use 2 requests per minute (requestsPerMinute)" in str(caught.value)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert len(a.seen) == 2


async def test_a_client_that_retries_as_told_gets_in(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=[TenantRates("acme", requests_per_minute=300, burst_s=0.2)])

    async with front.client(retries=2) as client:
        await ask(client)
        started_s = time.monotonic()
        await ask(client)

    assert 0.1 < time.monotonic() - started_s < 2
    assert len(a.seen) == 2


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_what_an_answer_cost_is_charged_once_it_is_over(
    bench: BuildBench, replica: BuildReplica, streamed: bool
) -> None:
    a = await replica("a", words=50)
    a.prompt_tokens = 30
    front = await bench(build_route([a.address]), rates=[THOUSAND])

    async with front.client() as client:
        if streamed:
            await ask_streamed(client, max_tokens=400)
        else:
            await ask(client, max_tokens=400)

    assert 920 <= await remaining_tokens(front) <= 930
    text = front.gateway.metrics.render().decode()
    route = 'namespace="team",service="chat",tenant="acme"'
    assert f'windlass_gateway_tokens_total{{kind="prompt",{route}}} 30.0' in text
    assert f'windlass_gateway_tokens_total{{kind="completion",{route}}} 50.0' in text


async def test_tokens_are_set_aside_while_an_answer_is_under_way(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.HELD)
    front = await bench(build_route([a.address]), rates=[THOUSAND])

    async with front.client() as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True, max_tokens=900)
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(client, max_tokens=200)
        a.proceed.set()
        await stream.close()

    assert caught.value.type == "tokens"
    assert "60 tokens per minute (tokensPerMinute)" in str(caught.value)
    # 914 are set aside and 214 are asked for: 128 are missing, at one a second.
    assert 115 <= int(caught.value.response.headers["retry-after"]) <= 128


async def test_a_stream_that_its_client_leaves_costs_what_was_seen_of_it(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a", Behaviour.HELD)
    front = await bench(build_route([a.address]), rates=[THOUSAND])

    async with front.client() as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True, max_tokens=900)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(2):
            await a.cancelled.wait()

    assert 0 <= await remaining_tokens(front) - (1000 - PROMPT_TOKENS - 1) <= 10


async def test_leaving_before_the_answer_is_no_way_around_the_limit(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.SILENT)
    front = await bench(build_route([a.address]), rates=[THOUSAND])

    async with front.client() as client:
        asking = asyncio.create_task(ask(client, max_tokens=500))
        async with asyncio.timeout(2):
            while not a.counts["begun"]:
                await asyncio.sleep(0.005)
            asking.cancel()
            await a.cancelled.wait()

    assert 0 <= await remaining_tokens(front) - (1000 - PROMPT_TOKENS - 500) <= 10


@pytest.mark.parametrize("behaviour", [Behaviour.FULL, Behaviour.DRAINING, Behaviour.DIES_BEFORE_ANSWER])
async def test_what_no_replica_answered_counts_for_nothing(
    bench: BuildBench, replica: BuildReplica, behaviour: Behaviour
) -> None:
    a = await replica("a", behaviour)
    rates = TenantRates("acme", requests_per_minute=10, tokens_per_minute=1000, concurrent_requests=1)
    front = await bench(build_route([a.address]), rates=[rates])

    async with front.client() as client:
        for _ in range(12):
            with pytest.raises(openai.APIStatusError) as caught:
                await ask(client, max_tokens=500)
            assert caught.value.code != "rate_limit_exceeded"
        raw = await client.models.with_raw_response.list()

    assert raw.headers["x-ratelimit-remaining-requests"] == "9"
    assert raw.headers["x-ratelimit-remaining-tokens"] == "1000"


async def test_a_prompt_over_the_limit_is_not_worth_a_retry(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=[TenantRates("acme", tokens_per_minute=10)])

    async with front.client(retries=5) as client:
        with pytest.raises(openai.RateLimitError, match="needs about 14: shorten it") as caught:
            await ask(client)

    assert "retry-after" not in caught.value.response.headers
    assert a.seen == []
    limited = (
        'windlass_gateway_limited_total{limit="tokensPerMinute",namespace="team",service="chat",tenant="acme"} 1.0'
    )
    assert limited in front.gateway.metrics.render().decode()


async def test_streams_count_as_running_until_they_end(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.HELD)
    front = await bench(build_route([a.address]), rates=[TenantRates("acme", concurrent_requests=2)])

    async with front.client() as client:
        streams = [await client.chat.completions.create(model="m", messages=MESSAGES, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="2 requests at once"):
            await ask_streamed(client)
        a.proceed.set()
        for stream in streams:
            _ = [chunk async for chunk in stream]
        words = await ask_streamed(client)

    assert len(words) == 5


async def test_a_limit_covers_every_service_of_the_tenant_and_no_other_tenant(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a")
    front = await bench(
        build_route([a.address]),
        build_route([a.address], service="code"),
        build_route([a.address], service="rival", key=RIVAL_KEY, tenant="rival"),
        rates=[TenantRates("acme", requests_per_minute=1)],
    )

    async with front.client() as chat, front.client(service="code") as code:
        await ask(chat)
        with pytest.raises(openai.RateLimitError):
            await ask(code)
    async with front.client(key=RIVAL_KEY, service="rival") as rival:
        answers = [await ask(rival) for _ in range(5)]

    assert all("x-ratelimit-limit-requests" not in answer.headers for answer in answers)


async def test_a_service_may_have_limits_of_its_own(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    own = dataclasses.replace(build_route([a.address]), rates=TenantRates("acme", requests_per_minute=1))
    front = await bench(
        own, build_route([a.address], service="code"), rates=[TenantRates("acme", requests_per_minute=9)]
    )

    async with front.client() as chat, front.client(service="code") as code:
        first = await ask(chat)
        with pytest.raises(openai.RateLimitError, match="Service team/chat may use 1 requests per minute"):
            await ask(chat)
        other = await ask(code)

    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert other.headers["x-ratelimit-remaining-requests"] == "7"
    assert 'limited_total{limit="services.requestsPerMinute"' in front.gateway.metrics.render().decode()


async def test_a_client_cannot_charge_another_tenant(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(
        build_route([a.address]),
        build_route([a.address], service="rival", key=RIVAL_KEY, tenant="rival"),
        rates=[TenantRates("acme", requests_per_minute=1), TenantRates("rival", requests_per_minute=1)],
    )
    claims = {"X-Windlass-Tenant": "rival", "X-Tenant-Id": "rival", "OpenAI-Organization": "rival"}

    async with front.client() as client:
        await ask(client, extra_headers=claims, extra_body={"tenant": "rival", "user": "rival"})
        with pytest.raises(openai.RateLimitError, match="Tenant acme"):
            await ask(client, extra_headers=claims)
    async with httpx2.AsyncClient() as client:
        for _ in range(5):
            await client.get(f"{front.url}/team/rival/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    async with front.client(key=RIVAL_KEY, service="rival") as rival:
        answer = await ask(rival)

    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


async def test_limits_change_with_the_table(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=[TenantRates("acme", requests_per_minute=1)])

    async with front.client() as client:
        await ask(client)
        with pytest.raises(openai.RateLimitError):
            await ask(client)
        write_table(front.table, build_route([a.address]))
        await front.gateway.routes.refresh()
        answers = [await ask(client) for _ in range(5)]

    assert len(answers) == 5


async def test_one_of_several_gateways_grants_its_part(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=[TenantRates("acme", requests_per_minute=4)], gateways=2)

    async with front.client() as client:
        heads = [(await ask(client)).headers for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="4 requests per minute"):
            await ask(client)

    assert [head["x-ratelimit-limit-requests"] for head in heads] == ["4", "4"]

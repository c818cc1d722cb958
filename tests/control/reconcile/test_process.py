"""What the operator refuses at start, and how its parts wake each other; the whole process is tested in tests/e2e."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_access import Access
from windlass_operator.domain.snapshot import Key
from windlass_operator.reconcile import process
from windlass_operator.reconcile.assembly import build_operator
from windlass_operator.reconcile.reconciler import Result
from windlass_operator.settings import OperatorSettings

CHAT = Key("InferenceService", "ns", "chat")


def build_service(version="1", name="chat", **spec):
    metadata = {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "generation": int(version),
        "resourceVersion": version,
    }
    return {"kind": "InferenceService", "metadata": metadata, "spec": {"model": {"uri": "file:///m"}, **spec}}


@pytest.fixture
async def operator():
    async def load() -> Access:
        return Access("http://127.0.0.1:9", "a test")

    return build_operator(OperatorSettings(), load, "me", random.Random(1))


async def test_an_event_about_a_service_queues_it_once(operator):
    operator.absorb("ADDED", build_service("1"))
    operator.absorb("MODIFIED", build_service("2"))

    assert operator.queue.depth == 1


async def test_a_reconcile_that_wrote_brings_the_routes_up_to_date(operator):
    touched = []
    operator.routes = SimpleNamespace(touch=lambda: touched.append(True))

    operator.note_reconcile(CHAT, Result.UNCHANGED, 0.1)
    before = len(touched)
    operator.note_reconcile(CHAT, Result.CHANGED, 0.1)

    assert (before, len(touched)) == (0, 1)


async def test_the_echo_of_an_own_write_queues_nothing(operator):
    operator.cluster.cache.absorb_reply(build_service("5"))

    operator.absorb("MODIFIED", build_service("5"))

    assert operator.queue.depth == 0


async def test_a_burst_in_one_namespace_lets_another_in_between(operator):
    for number in range(3):
        operator.queue.add(Key("InferenceService", "busy", f"chat-{number}"))
    operator.queue.add(Key("InferenceService", "calm", "chat"))

    assert [(await operator.queue.take()).namespace for _ in range(4)] == ["busy", "calm", "busy", "busy"]


async def test_a_resync_queues_every_object_of_ours(operator):
    operator.absorb("ADDED", build_service())
    operator.absorb(
        "ADDED",
        {
            "kind": "Tenant",
            "metadata": {"name": "t", "uid": "t", "resourceVersion": "3"},
            "spec": {"namespaces": ["ns"]},
        },
    )
    for key in (CHAT, Key("Tenant", "", "t")):
        operator.queue.forget(key)

    operator.wake_all(600.0)

    assert operator.queue.depth == 2
    assert operator.queue.head_age_s() == 0.0, "a resync is spread, not a burst"


async def test_an_operator_is_not_ready_before_its_caches_are_filled(operator):
    assert operator.ready_problems() == ("first listing not complete: all kinds",)
    operator.cluster.set_filling(())
    assert operator.ready_problems() == ()


async def test_a_queue_that_stands_still_is_not_alive_and_a_standby_may_wait(operator, monkeypatch):
    monkeypatch.setattr(operator.queue, "head_age_s", lambda: 999.0)
    monkeypatch.setattr(type(operator.audit), "filled_for_s", 2000.0)

    standby = operator.live_problems()
    monkeypatch.setattr(type(operator.leadership), "held_for_s", 1000.0)

    assert standby == ()
    assert operator.live_problems() == ("queue stands still: the oldest key waits for 999 s, expected at most 300 s",)


@pytest.mark.parametrize(("filled_for_s", "held_for_s"), [(2000.0, 5.0), (5.0, 2000.0), (0.0, 2000.0)])
async def test_what_waited_for_the_lease_or_the_caches_did_not_wait_for_the_workers(
    operator, monkeypatch, filled_for_s, held_for_s
):
    """A standby that takes over has keys that are hours old; killed for it, no operator would ever lead a big fleet."""
    monkeypatch.setattr(operator.queue, "head_age_s", lambda: 9999.0)
    monkeypatch.setattr(type(operator.audit), "filled_for_s", filled_for_s)
    monkeypatch.setattr(type(operator.leadership), "held_for_s", held_for_s)

    assert operator.live_problems() == ()


async def test_keys_that_failed_for_want_of_a_server_are_due_once_the_lease_is_taken_again(operator):
    operator.absorb("ADDED", build_service())
    for _ in range(6):
        operator.queue._queue.take(asyncio.get_running_loop().time() + 1000.0)
        operator.queue.retry(CHAT)

    operator.elector._on_taken()

    assert operator.queue._queue.next_due_s(asyncio.get_running_loop().time()) <= asyncio.get_running_loop().time()


async def test_workers_wait_for_caches_lease_and_what_the_cluster_offers(operator):
    waiting = asyncio.create_task(operator.wait_for_work())
    operator.audit.filled.set()
    operator.discovered.set()
    await asyncio.sleep(0)
    before = waiting.done()
    await operator.leadership.extend(asyncio.get_running_loop().time() + 60.0)

    await asyncio.wait_for(waiting, 1.0)
    assert before is False


def write_kubeconfig(path, server):
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


async def test_no_cluster_is_an_error_that_names_the_address(tmp_path):
    settings = OperatorSettings(kubeconfig=write_kubeconfig(tmp_path / "config", "http://127.0.0.1:9"), probe_port=0)

    with pytest.raises(errors.ClusterUnavailable, match=r"http://127\.0\.0\.1:9 \(kubeconfig "):
        await process.run_operator(settings)


async def test_a_cluster_without_our_crds_is_an_error_that_names_them_and_the_cure(tmp_path):
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(
            {"gitVersion": "v1.37.0"} if request.path == "/version" else {},
            status=200 if request.path == "/version" else 404,
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        settings = OperatorSettings(
            kubeconfig=write_kubeconfig(tmp_path / "config", str(server.make_url("")).rstrip("/")), probe_port=0
        )

        with pytest.raises(
            errors.ClusterUnavailable, match=r"inferenceservices\.windlass\.dev.*kubectl apply --server-side -f crds/"
        ):
            await process.run_operator(settings)

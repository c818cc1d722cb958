from __future__ import annotations

import pytest
from aiohttp.test_utils import TestClient, TestServer

from windlass_contract import metric_names
from windlass_operator.domain.snapshot import Key
from windlass_operator.reconcile import probes
from windlass_operator.reconcile.reconciler import Result


@pytest.mark.parametrize(
    ("path", "live", "ready", "status", "words"),
    [
        pytest.param("/healthz", (), ("Node",), 200, "ok", id="alive while filling"),
        pytest.param(
            "/healthz",
            ("watch of pods misses changes", "more"),
            (),
            503,
            "watch of pods misses changes\nmore",
            id="a dead watch",
        ),
        pytest.param("/readyz", (), (), 200, "ok", id="ready"),
        pytest.param(
            "/readyz",
            (),
            ("first listing not complete: Node",),
            503,
            "first listing not complete: Node",
            id="not ready",
        ),
    ],
)
async def test_a_probe_names_every_problem(path, live, ready, status, words):
    app = probes.build_app(lambda: live, lambda: ready, probes.Metrics(lambda: 0, lambda: False))
    async with TestClient(TestServer(app)) as client:
        response = await client.get(path)

        assert (response.status, (await response.text()).strip()) == (status, words)


async def test_metrics_carry_the_names_and_labels_of_the_contract():
    metrics = probes.Metrics(lambda: 7, lambda: True)
    metrics.observe_reconcile(Key("Tenant", "", "t"), Result.CHANGED, 0.02)
    metrics.count_write("Deployment", "apply")
    app = probes.build_app(lambda: (), lambda: (), metrics)
    async with TestClient(TestServer(app)) as client:
        text = await (await client.get("/metrics")).text()

    assert f"{metric_names.RECONCILE_QUEUE_DEPTH} 7.0" in text
    assert f"{metric_names.IS_LEADER} 1.0" in text
    assert f'{metric_names.RECONCILE_DURATION}_count{{kind="Tenant",result="changed"}} 1.0' in text
    assert f'{metric_names.API_WRITES_TOTAL}{{kind="Deployment",verb="apply"}} 1.0' in text


async def test_a_taken_port_is_an_error_of_the_start():
    app = probes.build_app(lambda: (), lambda: (), probes.Metrics(lambda: 0, lambda: False))
    runner, port = await probes.serve(app, "127.0.0.1", 0)
    try:
        other = probes.build_app(lambda: (), lambda: (), probes.Metrics(lambda: 0, lambda: False))
        with pytest.raises(OSError, match="address already in use"):
            await probes.serve(other, "127.0.0.1", port)
    finally:
        await runner.cleanup()

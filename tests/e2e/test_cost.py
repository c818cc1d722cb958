"""What services cost, on a real control plane: prices of GPU classes against the tokens of a simulated replica."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from support.audit_log import AuditLog
from support.control_plane import ControlPlane
from support.fake_fleet import API, CLASSES
from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess, running_operator
from support.services import find, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("no_operator", "clean")]

PRICE = 3.5
REPLICAS = 2
ANSWER_TOKENS = 20


@dataclass
class Replica:
    """A simulated replica under steady load."""

    url: str
    tokens: int = 0
    """Prompt and answer tokens served so far, as its clients were told."""


@pytest.fixture
def replica() -> Iterator[Replica]:
    """A real `windlass-runtime simulate` that one client asks without a pause."""
    command = [sys.executable, "-m", "windlass_runtime", "simulate", "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = Replica(json.loads(process.stdout.readline())["url"])
    assert json.loads(process.stdout.readline())["event"] == "ready"
    stop = threading.Event()
    asking = threading.Thread(target=keep_asking, args=(found, stop))
    asking.start()
    try:
        yield found
    finally:
        stop.set()
        asking.join(30)
        process.terminate()
        process.wait(30)
        process.stdout.close()


def keep_asking(replica: Replica, stop: threading.Event) -> None:
    with openai.OpenAI(api_key="x", base_url=f"{replica.url}/v1", max_retries=0) as client:
        while not stop.wait(0.05):
            answer = client.completions.create(model="simulated", prompt="hello there", max_tokens=ANSWER_TOKENS)
            assert answer.usage is not None
            replica.tokens += answer.usage.total_tokens


@pytest.fixture
def price(kube: KubeClient) -> Iterator[None]:
    """A price for an hour of an H200."""
    set_price(kube, str(PRICE))
    yield
    set_price(kube, None)


def set_price(kube: KubeClient, amount: str | None) -> None:
    gpu_class: Manifest = {"apiVersion": API, "kind": "GPUClass", "metadata": {"name": "h200"}}
    assert "h200" in CLASSES
    kube.merge(gpu_class, {"spec": {"pricePerHour": amount}})


@contextlib.contextmanager
def operator(kubeconfig: Path, log: Path, **settings: str) -> Iterator[OperatorProcess]:
    """An operator that reads tokens every second."""
    variables = {f"WINDLASS_USAGE_{name}": value for name, value in settings.items()}
    with running_operator(kubeconfig, log, variables | {"WINDLASS_USAGE_INTERVAL_S": "1"}) as process:
        eventually(process.leads, bool, timeout_s=30)
        yield process


def cost_of(kube: KubeClient) -> dict[str, Any]:
    cost: dict[str, Any] = find(kube)["status"].get("cost") or {}
    return cost


def show_cost(kubeconfig: Path) -> dict[str, Any]:
    """What `windlass cost show` reads from the cluster."""
    command = [sys.executable, "-m", "windlass_operator", "cost", "show", "--kubeconfig", str(kubeconfig), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_status_tells_what_a_million_tokens_cost_and_then_rests(
    kube: KubeClient,
    control_plane: ControlPlane,
    audit: AuditLog,
    price: None,
    replica: Replica,
    operator_kubeconfig: Path,
    operator_user: str,
    tmp_path: Path,
) -> None:
    kube.apply(service(accelerator={"classes": ["h200"]}, replicas=REPLICAS))
    url = f"{replica.url}/metrics"
    with operator(operator_kubeconfig, tmp_path / "operator.log", SOURCE="replicas", REPLICA_URL=url) as process:
        wait_ready(kube)
        before, since_s = replica.tokens, time.monotonic()
        cost = eventually(lambda: cost_of(kube), lambda found: "perMillionTokens" in found, timeout_s=60)
        audit.wait_until_quiet(operator_user, quiet_s=3)
        mark = audit.mark()
        time.sleep(15)
        written = audit.writes(mark, operator_user)
        # Both pods are told apart by name and read the same page, so the fleet serves twice what the clients saw.
        rate = REPLICAS * (replica.tokens - before) / (time.monotonic() - since_s) * 3600
        tenant = (kube.get(API, "Tenant", "a") or {})["status"]["cost"]
        shown = show_cost(control_plane.kubeconfig)
        metric = process.metric("windlass_cost_per_million_tokens")

    assert cost["currency"] == "USD"
    assert float(cost["perHour"]) == PRICE * REPLICAS
    assert rate / 4 < cost["tokensPerHour"] < rate * 4, "within what a loaded machine may delay"
    assert float(cost["perMillionTokens"]) == pytest.approx(PRICE * REPLICAS / cost["tokensPerHour"] * 1e6, rel=0.02)
    assert float(tenant["perHour"]) == PRICE * REPLICAS
    assert metric == pytest.approx(PRICE * REPLICAS / rate * 1e6, rel=0.5)
    assert shown["usage"] == [
        {
            "tenant": "a",
            "namespace": "team-a",
            "service": "chat",
            "currency": "USD",
            "per_hour": PRICE * REPLICAS,
            "tokens_per_hour": cost["tokensPerHour"],
            "per_million_tokens": pytest.approx(float(cost["perMillionTokens"]), rel=0.02),
        }
    ]
    assert [(write.verb, write.resource) for write in written if "leases" not in write.resource] == []


def test_a_price_alone_gives_the_cost_of_an_hour_and_goes_with_it(
    kube: KubeClient, price: None, operator_kubeconfig: Path, tmp_path: Path
) -> None:
    kube.apply(service(accelerator={"classes": ["h200"]}))
    with operator(operator_kubeconfig, tmp_path / "operator.log"):
        wait_ready(kube)
        cost = eventually(lambda: cost_of(kube), bool, timeout_s=60)
        set_price(kube, None)
        eventually(lambda: cost_of(kube), lambda found: not found, timeout_s=60)

    assert {name: cost.get(name) for name in ("perHour", "tokensPerHour", "perMillionTokens")} == {
        "perHour": str(PRICE),
        "tokensPerHour": None,
        "perMillionTokens": None,
    }

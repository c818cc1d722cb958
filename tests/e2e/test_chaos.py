"""The operator while everything around it breaks: nothing double, nothing orphaned, no promise broken, one writer.

Faults between operator and server come from a proxy; those of processes and of the store are real.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.control_plane import ControlPlane
from support.fault_proxy import (
    Act,
    Answer,
    BlackHole,
    Call,
    Delay,
    ErrorEvent,
    FaultProxy,
    LoseReply,
    is_any,
    is_watch,
    is_write,
    running_proxy,
)
from support.invariants import Limit, Promise, assert_one_writer, watching
from support.kube_client import KubeClient, Manifest, RefusedError, eventually
from support.operator_process import OperatorProcess
from support.services import API, CHILD_KINDS, children, condition, deployment, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane]

SHORT_LEASE = {
    "WINDLASS_LEASE_DURATION_S": "5",
    "WINDLASS_LEASE_RENEW_S": "3",
    "WINDLASS_LEASE_RETRY_S": "0.5",
}
"""Where the lease is not the point. The contract's 20 s are tested with the defaults."""
H200: Manifest = {"accelerator": {"classes": ["h200"]}}
QUICK = {**SHORT_LEASE, "WINDLASS_AUDIT_INTERVAL_S": "5", "WINDLASS_REQUEST_TIMEOUT_S": "5"}


@dataclass
class Site:
    """One operator and the proxy that it goes through."""

    proxy: FaultProxy
    operator: OperatorProcess

    def start(self) -> None:
        """Start the operator and wait until it leads."""
        self.operator.start()
        self.wait_leads()

    def wait_leads(self, timeout_s: float = 30.0) -> None:
        """Wait until the operator leads."""
        eventually(self.operator.leads, bool, timeout_s=timeout_s)


Build = Callable[..., Site]


@pytest.fixture(scope="module")
def sites(
    control_plane: ControlPlane,
    operator_kubeconfig: Path,
    shared_operator: OperatorProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Build]:
    """Build operators behind proxies of their own; all are gone when the module ends."""
    if shared_operator.running:
        shared_operator.stop()
    (user,) = json.loads(operator_kubeconfig.read_text())["users"]
    folder = tmp_path_factory.mktemp("chaos")
    with contextlib.ExitStack() as stack:

        def build(name: str, environment: dict[str, str], command: tuple[str, ...] = ()) -> Site:
            proxy = stack.enter_context(running_proxy(control_plane.admin, folder / name))
            kubeconfig = proxy.access(user["user"]["token"]).write_kubeconfig(folder / f"{name}.json")
            command = command or (sys.executable, "-m", "windlass_operator")
            operator = OperatorProcess(kubeconfig, folder / f"{name}.log", environment=environment, command=command)
            stack.callback(end, operator)
            return Site(proxy, operator)

        yield build


@pytest.fixture(scope="module")
def shared_site(sites: Build) -> Site:
    """One operator for many tests; use `site`, which makes sure that it runs."""
    return sites("shared", QUICK)


@pytest.fixture
def site(shared_site: Site) -> Site:
    """A running operator that leads, behind a proxy."""
    if not shared_site.operator.running:
        shared_site.operator.start()
    shared_site.wait_leads()
    return shared_site


@pytest.fixture
def build_site(sites: Build, shared_site: Site) -> Iterator[Build]:
    """Build operators for one test; no other runs beside them."""
    end(shared_site.operator)
    built: list[Site] = []

    def build(environment: dict[str, str], command: tuple[str, ...] = ()) -> Site:
        built.append(sites(f"{time.monotonic_ns()}", environment, command))
        return built[-1]

    yield build
    for one in built:
        end(one.operator)


@pytest.fixture
def webhook(kube: KubeClient) -> Iterator[Manifest]:
    """Judges Deployments of one namespace, at an address where nobody is."""
    hook = {
        "name": "gate.example.com",
        "clientConfig": {"url": "https://127.0.0.1:9/"},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}},
        "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1,
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    yield {**kind, "metadata": {"name": "gate"}, "webhooks": [hook]}
    kube.delete(kind["apiVersion"], kind["kind"], "gate")


def end(operator: OperatorProcess) -> None:
    """Stop an operator in whatever state it is, politely where that works: the next one need not wait for its lease."""
    if operator.running:
        operator.resume()
        operator.stop()


# -- errors of the server ----------------------------------------------------------------------------------------------

STORMS = [
    pytest.param(Answer(409), is_write, id="conflicts"),
    pytest.param(Answer(429, retry_after_s=1), is_write, id="too many requests"),
    pytest.param(BlackHole(), is_write, id="no answers"),
    pytest.param(Answer(503), is_any, id="unavailable, lease included"),
    pytest.param(LoseReply(), is_write, id="lost replies"),
    pytest.param(Delay(0.5), is_any, id="a slow server"),
]


@pytest.mark.parametrize(("act", "on"), STORMS)
@pytest.mark.usefixtures("clean")
def test_a_storm_of_errors_leaves_nothing_behind(
    control_plane: ControlPlane, kube: KubeClient, site: Site, act: Act, on: Callable[[Call], bool]
) -> None:
    kube.apply(service("kept", replicas=3, rollout={"minAvailable": 2}))
    wait_ready(kube, "kept")
    name = type(act).__name__
    before = site.proxy.done[name]  # the proxy serves every case of the table
    with watching(control_plane.admin, Promise("kept", min_available=2, replicas=3)) as invariants:
        with site.proxy.fault(act, on=on, share=0.5):
            for index in range(4):
                kube.apply(service(f"storm-{index}"))
            kube.apply(service("kept", replicas=3, rollout={"minAvailable": 2}, drain={"timeoutSeconds": 30}))
            kube.delete(API, "InferenceService", "storm-3", "team-a")
            time.sleep(3)
            kube.apply(service("storm-0", replicas=2))
            # A write that hangs keeps its key busy until it times out: the storm lasts until enough of it was felt.
            eventually(lambda: site.proxy.done[name] - before, lambda count: count >= 5, timeout_s=15)

        invariants.check_settled()

    assert deployment(kube, "kept")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 45
    assert site.operator.running


# -- watches -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean")
def test_watches_cut_in_the_middle_of_a_line_lose_nothing(
    control_plane: ControlPlane, kube: KubeClient, site: Site
) -> None:
    kube.apply(service(replicas=2, rollout={"minAvailable": 1}))
    wait_ready(kube)
    cut = 0
    with watching(control_plane.admin, Promise("chat", min_available=1, replicas=2)) as invariants:
        for round_number in range(5):
            cut += site.proxy.cut_watches()
            kube.apply(service(f"cut-{round_number}"))
            vandalise(kube)
            time.sleep(0.4)
        kube.delete(API, "InferenceService", "cut-0", "team-a")
        site.proxy.cut_watches()

        eventually(lambda: grace_s(kube), lambda seconds: seconds == 75, timeout_s=10)
        invariants.check_settled()

    assert cut >= 20
    assert site.operator.running


REFUSED_WATCHES = [
    pytest.param(Answer(410), is_watch, id="410 as status"),
    pytest.param(ErrorEvent(410), is_watch, id="410 as event"),
    pytest.param(ErrorEvent(500), is_watch, id="500 as event"),
    pytest.param(Answer(429, retry_after_s=1), is_watch, id="429"),
    pytest.param(Answer(404), is_watch, id="404"),
    pytest.param(Answer(403), is_watch, id="403"),
    pytest.param(Answer(401), is_any, id="401 for everything"),
    pytest.param(Answer(503), lambda call: call.method == "GET", id="503 for lists too"),
]


@pytest.mark.parametrize(("act", "on"), REFUSED_WATCHES)
@pytest.mark.usefixtures("clean")
def test_an_operator_whose_watches_are_refused_stays_and_recovers(
    kube: KubeClient, site: Site, act: Act, on: Callable[[Call], bool]
) -> None:
    kube.apply(service())
    wait_ready(kube)
    before = site.operator.pid
    faults = site.proxy.done
    felt_before = faults[type(act).__name__]
    with site.proxy.fault(act, on=on):
        site.proxy.cut_watches()
        kube.delete("v1", "Service", "chat", "team-a")
        kube.apply(service("second"))
        eventually(lambda: faults[type(act).__name__] - felt_before, lambda felt: felt >= 10)

    eventually(lambda: kube.get("v1", "Service", "chat", "team-a"), bool, timeout_s=30)
    wait_ready(kube, "second", timeout_s=30)
    assert site.operator.running
    assert site.operator.pid == before


@pytest.mark.usefixtures("clean")
def test_a_watch_that_silently_stalls_is_repaired_by_the_audit_and_reported_by_liveness(
    kube: KubeClient, site: Site
) -> None:
    kube.apply(service())
    wait_ready(kube)
    assert site.operator.probe("healthz")
    assert site.proxy.stall_watches() >= 10

    vandalise(kube)
    eventually(lambda: grace_s(kube), lambda seconds: seconds == 75, timeout_s=30)
    while site.operator.probe("healthz"):
        kube.apply(service(f"unseen-{time.monotonic_ns()}"))
        time.sleep(3)
    site.proxy.cut_watches()

    eventually(lambda: site.operator.probe("healthz"), bool, timeout_s=30)


@pytest.mark.usefixtures("clean")
def test_changes_during_a_compaction_are_found_after_the_410(
    control_plane: ControlPlane, kube: KubeClient, site: Site
) -> None:
    for name in ("chat", "doomed"):
        kube.apply(service(name))
        wait_ready(kube, name)
    refused = site.proxy.done["BlackHole"]
    with watching(control_plane.admin, Promise("chat", min_available=1, replicas=1)) as invariants:
        with site.proxy.fault(BlackHole(), on=is_watch):
            site.proxy.cut_watches()
            eventually(lambda: site.proxy.done["BlackHole"] - refused, lambda count: count >= 10)
            kube.delete(API, "InferenceService", "doomed", "team-a")
            kube.delete("v1", "Service", "chat", "team-a")
            vandalise(kube)
            kube.apply(service("new"))
            compact(control_plane)

        eventually(lambda: kube.get("v1", "Service", "chat", "team-a"), bool, timeout_s=15)
        invariants.check_settled()
        assert grace_s(kube) == 75


# -- the API server ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean")
def test_an_api_server_that_restarts_meets_the_same_operator_and_no_pod_less(
    control_plane: ControlPlane, kube: KubeClient, site: Site
) -> None:
    kube.apply(service(replicas=3, rollout={"minAvailable": 2}))
    wait_ready(kube)
    before = site.operator.pid
    with watching(control_plane.admin, Promise("chat", min_available=2, replicas=3)) as invariants:
        kube.apply(service("during"))
        kube.apply(service(replicas=4, rollout={"minAvailable": 2}))
        control_plane.stop_api_server()
        control_plane.start_api_server()
        kube.delete("v1", "Service", "chat", "team-a")
        vandalise(kube)

        eventually(lambda: kube.get("v1", "Service", "chat", "team-a"), bool, timeout_s=20)
        invariants.check_settled()

    assert grace_s(kube) == 75
    assert site.operator.pid == before


# -- the objects -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean")
def test_a_service_deleted_and_created_again_at_once_runs_as_one(
    control_plane: ControlPlane, kube: KubeClient, site: Site
) -> None:
    kube.apply(service(scaling={"minReplicas": 2, "maxReplicas": 4}))
    wait_ready(kube)
    with watching(control_plane.admin) as invariants:
        for replicas in (1, 2, 3):
            kube.delete(API, "InferenceService", "chat", "team-a")
            created = kube.apply(service(replicas=replicas))
        invariants.check_settled()

    assert {child["metadata"]["labels"]["windlass.dev/owner-uid"] for child in children(kube)} == {
        created["metadata"]["uid"]
    }
    assert deployment(kube)["spec"]["replicas"] == 3
    assert kube.get("autoscaling/v2", "HorizontalPodAutoscaler", "chat", "team-a") is None


@pytest.mark.usefixtures("clean")
def test_a_namespace_deleted_in_the_middle_of_everything_is_left_alone_and_comes_back(
    kube: KubeClient, site: Site
) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-b"}}
    for index in range(4):
        kube.apply(service(f"gone-{index}", namespace="team-b"))
    eventually(lambda: children(kube, "gone-0", "team-b"), bool)

    kube.delete("v1", "Namespace", "team-b")
    eventually(lambda: kube.list(API, "InferenceService", "team-b"), lambda found: not found, timeout_s=30)
    # The Tenant wants it back. Once more by hand: it may have been made already.
    eventually(lambda: apply_if_possible(kube, namespace), bool, timeout_s=30)
    eventually(lambda: apply_if_possible(kube, service("back", namespace="team-b")), bool, timeout_s=30)

    wait_ready(kube, "back", "team-b")
    assert site.operator.running


@pytest.mark.usefixtures("clean")
def test_a_crd_removed_and_created_again_needs_no_restart(
    control_plane: ControlPlane, kube: KubeClient, site: Site
) -> None:
    (path,) = (Path(__file__).parents[2] / "crds").glob("*inferenceservices*.yaml")
    crd = yaml.safe_load(path.read_text())
    kube.apply(service())
    wait_ready(kube)
    before = site.operator.pid

    kube.delete(crd["apiVersion"], crd["kind"], crd["metadata"]["name"])
    eventually(lambda: kube.get(crd["apiVersion"], crd["kind"], crd["metadata"]["name"]), lambda found: found is None)
    eventually(lambda: children(kube), lambda found: not found, timeout_s=30)
    eventually(lambda: site.operator.probe("readyz"), lambda ready: not ready)
    kube.apply(crd)
    eventually(lambda: apply_if_possible(kube, service("after")), bool)

    wait_ready(kube, "after")
    eventually(lambda: site.operator.probe("readyz"), bool)
    assert site.operator.pid == before


@pytest.mark.usefixtures("clean", "site")
def test_a_webhook_that_does_not_answer_is_named_in_the_status(kube: KubeClient, webhook: Manifest) -> None:
    kube.apply(webhook)
    kube.apply(service())
    eventually(lambda: condition(kube), lambda found: "gate.example.com" in found.get("message", ""))
    assert kube.get("v1", "Service", "chat", "team-a"), "the other children are there"

    kube.delete(webhook["apiVersion"], webhook["kind"], webhook["metadata"]["name"])
    kube.apply(service(drain={"timeoutSeconds": 30}))  # sooner than its retry, a minute later

    wait_ready(kube)


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean")
def test_an_operator_killed_at_random_moments_leaves_nothing_double_and_nobody_short(
    control_plane: ControlPlane, kube: KubeClient, build_site: Build
) -> None:
    site, chance = build_site(QUICK), random.Random(20)
    site.start()
    kube.apply(service("kept", replicas=3, rollout={"minAvailable": 2}, **H200))
    wait_ready(kube, "kept")
    interrupted, kept = 0, Promise("kept", min_available=2, replicas=3)
    with watching(control_plane.admin, kept, Limit("h200", 6)) as invariants:
        with site.proxy.fault(Delay(0.05), on=is_write):  # so that a write is always under way
            for number in range(3):
                burst(kube, number)
                moment = len(site.proxy.of_objects()) + chance.randint(2, 25)
                wait_for_writes(site, moment)
                site.operator.kill()
                interrupted += any(0 < len(children(kube, name)) < len(CHILD_KINDS) - 1 for name in names_of(number))
                site.start()
        invariants.check_settled(timeout_s=60)

    assert interrupted, "no kill hit the middle of an apply"
    assert deployment(kube, "kept")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 42


@pytest.mark.usefixtures("clean")
def test_wrong_clocks_neither_give_a_lease_away_nor_keep_it_for_ever(kube: KubeClient, build_site: Build) -> None:
    late, early = (build_site(QUICK, (sys.executable, "-c", SKEWED, shift_s)) for shift_s in ("-3600", "3600"))
    late.start()
    early.operator.start()
    kube.apply(service())
    wait_ready(kube)
    assert clock_of_leader(kube) < -datetime.timedelta(minutes=50), "the clock was right"
    time.sleep(6)  # longer than the lease, which by the standby's clock ended an hour ago
    assert (late.operator.leads(), early.operator.leads()) == (True, False)
    assert early.proxy.of_objects() == []

    late.operator.kill()
    early.wait_leads(15)
    vandalise(kube)
    eventually(lambda: grace_s(kube), lambda seconds: seconds == 75, timeout_s=5)

    late.operator.start()
    assert clock_of_leader(kube) > datetime.timedelta(minutes=50), "the clock was right"
    early.operator.kill()
    late.wait_leads(15)  # by its clock the lease has an hour to go
    kube.apply(service("second"))
    wait_ready(kube, "second")


@pytest.mark.usefixtures("clean")
def test_a_standby_writes_nothing_and_leads_within_twenty_seconds_of_a_kill(
    control_plane: ControlPlane, kube: KubeClient, build_site: Build
) -> None:
    leader, standby = build_site({}), build_site({})
    leader.start()
    standby.operator.start()
    with watching(control_plane.admin, Promise("chat", min_available=1, replicas=2)) as invariants:
        began = time.monotonic()
        kube.apply(service(replicas=2))
        wait_ready(kube)
        assert len(leader.proxy.of_objects(began)) >= 7
        assert standby.proxy.writes == []

        killed = time.monotonic()
        leader.operator.kill()
        vandalise(kube)
        eventually(lambda: grace_s(kube), lambda seconds: seconds == 75, timeout_s=30)
        took_s = time.monotonic() - killed
        invariants.check_settled()

    assert standby.operator.leads()
    assert took_s <= 20, f"repaired {took_s:.1f} s after the leader was killed"
    assert_one_writer(leader.proxy, standby.proxy, since=began)


@pytest.mark.usefixtures("clean")
def test_a_leader_that_is_asked_to_go_hands_over_in_a_moment(kube: KubeClient, build_site: Build) -> None:
    leader, standby = build_site({}), build_site({})
    leader.start()
    standby.operator.start()
    began = time.monotonic()
    for index in range(4):
        kube.apply(service(f"handed-{index}"))
    eventually(lambda: leader.proxy.of_objects(began), lambda writes: len(writes) >= 5)

    assert leader.operator.stop() == 0
    standby.wait_leads(5)

    for index in range(4):
        wait_ready(kube, f"handed-{index}")
    assert_one_writer(leader.proxy, standby.proxy, since=began)


PARTITIONS = ["paused", "cut off"]


@pytest.mark.parametrize("how", PARTITIONS)
@pytest.mark.usefixtures("clean")
def test_a_leader_that_was_away_longer_than_its_lease_does_not_write_when_it_returns(
    control_plane: ControlPlane, kube: KubeClient, build_site: Build, how: str
) -> None:
    leader, standby = build_site(QUICK), build_site(QUICK)
    leader.start()
    standby.operator.start()
    with watching(control_plane.admin, Promise("chat", min_available=1, replicas=2)) as invariants:
        began = time.monotonic()
        kube.apply(service(replicas=2))
        wait_ready(kube)
        with leader.proxy.fault(Delay(0.02), on=is_write):
            for index in range(6):
                kube.apply(service(f"away-{index}"))
            eventually(lambda: leader.proxy.of_objects(began), lambda writes: len(writes) >= 12)
            with absent(leader, how):
                standby.wait_leads(15)
                for index in range(6):
                    wait_ready(kube, f"away-{index}")
            returned = time.monotonic()
            kube.apply(service("afterwards"))
            wait_ready(kube, "afterwards")
            time.sleep(2)
        invariants.check_settled()

    assert leader.proxy.of_objects(returned) == []
    assert (leader.operator.leads(), standby.operator.leads()) == (False, True)
    assert_one_writer(leader.proxy, standby.proxy, since=began)


# -- words -------------------------------------------------------------------------------------------------------------


def vandalise(kube: KubeClient) -> None:
    """Edit a field of ours."""
    kube.merge(deployment(kube), {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}})


def grace_s(kube: KubeClient) -> int:
    """The field that `vandalise` edits."""
    found: int = deployment(kube)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    return found


def clock_of_leader(kube: KubeClient) -> datetime.timedelta:
    """How far the clock of the operator that leads is ahead."""
    lease = kube.get("coordination.k8s.io/v1", "Lease", "windlass-operator", "windlass-system") or {}
    return datetime.datetime.fromisoformat(lease["spec"]["renewTime"]) - datetime.datetime.now(datetime.UTC)


def compact(control_plane: ControlPlane) -> None:
    """Forget every earlier revision, as etcd does every few minutes, and tidy up."""
    revision = etcd(control_plane, "kv/range", {"key": "AA=="})["header"]["revision"]
    etcd(control_plane, "kv/compaction", {"revision": revision, "physical": True})
    etcd(control_plane, "maintenance/defragment", {})


def etcd(control_plane: ControlPlane, path: str, body: dict[str, object]) -> Any:
    """One call of etcd's JSON gateway."""
    request = urllib.request.Request(f"{control_plane.etcd_url}/v3/{path}", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read().splitlines()[0])


def apply_if_possible(kube: KubeClient, manifest: Manifest) -> bool:
    """Whether the server took it: it does not while a namespace or a kind comes and goes."""
    with contextlib.suppress(RefusedError):
        return bool(kube.apply(manifest))
    return False


def wait_for_writes(site: Site, count: int) -> None:
    """Return as soon as an operator has written so many objects."""
    eventually(lambda: len(site.proxy.of_objects()), lambda found: found >= count)


def names_of(number: int) -> list[str]:
    """Services of one burst."""
    return [f"burst-{number}-{index}" for index in range(5)]


def burst(kube: KubeClient, number: int) -> None:
    """Create, edit and delete services all at once; the first two of each burst want a device of those before."""
    for index, name in enumerate(names_of(number)):
        kube.apply(service(name, **(H200 if index < 2 else {})))
    kube.apply(service("kept", replicas=3, rollout={"minAvailable": 2}, drain={"timeoutSeconds": 25 + number}, **H200))
    if number:
        first, second, third, *_ = names_of(number - 1)
        for name in (first, second):
            kube.delete(API, "InferenceService", name, "team-a")
        kube.apply(service(third, replicas=2))


@contextlib.contextmanager
def absent(site: Site, how: str) -> Iterator[None]:
    """An operator that its server does not hear from."""
    if how == "paused":
        site.operator.pause()
        yield
        site.operator.resume()
    else:
        with site.proxy.fault(BlackHole(), on=is_any):
            site.proxy.stall_watches()
            yield
        site.proxy.cut_watches()


SKEWED = """
import datetime, runpy, sys, time
shift, sys.argv = float(sys.argv[1]), ["windlass", *sys.argv[2:]]
now, Real = time.time, datetime.datetime
time.time = lambda: now() + shift
class Skewed(Real):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=shift)
datetime.datetime = Skewed
runpy.run_module("windlass_operator", run_name="__main__", alter_sys=False)
"""
"""An operator whose wall clock is wrong by the seconds of its first argument; its monotonic clock goes on as it does on
every machine."""

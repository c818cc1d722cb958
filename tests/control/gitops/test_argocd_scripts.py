"""Argo CD sees each of our kinds as its status means it: its scripts on fixtures and on every reason."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.argocd import CUSTOMIZATIONS, EXAMPLES, read_fixture, run_script
from support.builders import (
    build_batch,
    build_gpu_class,
    build_node,
    build_service,
    build_snapshot,
    build_tenant,
    build_workload,
)
from windlass_operator import domain
from windlass_operator.api.meta import API_VERSION
from windlass_operator.api.v1alpha1.batch_inference import BatchInferenceStatus
from windlass_operator.api.v1alpha1.gpu_class import GPUClassStatus
from windlass_operator.api.v1alpha1.inference_service import Failure, InferenceService, InferenceServiceStatus
from windlass_operator.api.v1alpha1.tenant import Tenant, TenantStatus
from windlass_operator.domain.batch_plan import plan_batches
from windlass_operator.domain.batch_status import plan_batch_status
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_gpu_class, plan_service, plan_tenant
from windlass_operator.domain.snapshot import BatchRun, Revision, Taking, TakingCause, Workload
from windlass_operator.domain.status import (
    plan_gpu_class_status,
    plan_service_status,
    plan_tenant_status,
    status_document,
)

OURS = CUSTOMIZATIONS / "windlass.dev"
SETTINGS = FleetSettings()
NOW = "2026-03-01T10:00:00Z"
SCALED = {"scaling": {"minReplicas": 2, "maxReplicas": 8}}
LOST = {"name": "night", "timeZone": "Mars/Base", "start": "22:00", "end": "06:00", "minReplicas": 2}
CRASH = Failure(reason="OOMKilled", message="killed for memory", pod="chat-5d8f7-x2x9p", exit_code=137, time=NOW)
DONE = BatchRun("nightly-a", succeeded=4, outcome="Complete", started=NOW, finished=NOW)
BROKEN = BatchRun("nightly-a", False, 3, 1, "2", "Failed", "Job has failed indexes", NOW, NOW)
OLD = (Revision("a", 1, 1, "h200", newest=True),)
QUOTA = {"classes": ["h200"], "replicas": 4, "world": [build_tenant(gpus={"h200": 2})]}


def service(
    workload: Workload | None = None,
    *,
    world: Sequence[Any] = (),
    others: Mapping[str, Workload] | None = None,
    problems: tuple[str, ...] = (),
    **fields: Any,
) -> dict[str, Any]:
    """An InferenceService with the status that Windlass writes for it."""
    item = build_service(**{"uri": "pvc://models/chat", "generation": 3, **fields})
    return service_document(item, workload, world, problems, others)


def service_document(
    item: InferenceService,
    workload: Workload | None,
    world: Sequence[Any] = (),
    problems: tuple[str, ...] = (),
    others: Mapping[str, Workload] | None = None,
) -> dict[str, Any]:
    key = f"{item.metadata.namespace}/{item.metadata.name}"
    runs = {**(others or {}), **({} if workload is None else {key: workload})}
    snapshot = build_snapshot(item, build_gpu_class(), *world, nodes=[build_node(devices=8)], workloads=runs)
    status = plan_service_status(
        plan_service(item, snapshot, SETTINGS), workload, InferenceServiceStatus(), NOW, problems
    )
    return document("InferenceService", item, status_document(status))


def taken_from(cause: TakingCause) -> dict[str, Any]:
    """A service that has lost one of two replicas to others."""
    runs = build_workload(1, gpu_class="h200", takings=(Taking(0, 1, 1, cause),))
    return service(runs, classes=["h200"], replicas=2, world=[build_tenant(gpus={"h200": 1})])


def waiting_for_pods() -> dict[str, Any]:
    """A service whose device is held by a pod of another one that is being stopped."""
    leaving = build_workload(2, gpu_class="h200", wanted=1)
    world = [build_service("old", classes=["h200"], replicas=1), build_tenant(gpus={"h200": 2}), build_gpu_class()]
    item = build_service(classes=["h200"], created="2026-02-01T00:00:00Z")
    plan = plan_service(item, build_snapshot(item, *world, workloads={"team-a/old": leaving}), SETTINGS)
    status = plan_service_status(plan, None, InferenceServiceStatus(), NOW)
    return document("InferenceService", item, status_document(status))


def tenant(item: Tenant | None = None, *others: Tenant, problems: tuple[str, ...] = ()) -> dict[str, Any]:
    """A Tenant with the status that Windlass writes for it."""
    item = item or build_tenant(generation=2, gpus={"h200": 4})
    plan = plan_tenant(item, build_snapshot(item, *others, build_gpu_class(), nodes=[build_node()]), SETTINGS)
    return document("Tenant", item, status_document(plan_tenant_status(plan, TenantStatus(), NOW, problems)))


def gpu_class(nodes: Sequence[Any] | None) -> dict[str, Any]:
    """A GPUClass with the status that Windlass writes for it."""
    item = build_gpu_class()
    plan = plan_gpu_class(item, build_snapshot(item, nodes=nodes))
    return document("GPUClass", item, status_document(plan_gpu_class_status(plan, GPUClassStatus(), NOW)))


def batch(
    run: BatchRun | None = None,
    workload: Workload | None = None,
    *,
    world: Sequence[Any] = (),
    problems: tuple[str, ...] = (),
    **fields: Any,
) -> dict[str, Any]:
    """A BatchInference with the status that Windlass writes for it."""
    item = build_batch(**{"generation": 3, **fields})
    key = f"{item.metadata.namespace}/{item.metadata.name}"
    (plan,) = plan_batches(
        build_snapshot(
            item,
            build_gpu_class(),
            *world,
            nodes=[build_node(devices=8)],
            batch_workloads={} if workload is None else {key: workload},
            runs={} if run is None else {key: run},
        ),
        SETTINGS,
    )
    status = plan_batch_status(plan, run, workload, BatchInferenceStatus(), NOW, problems)
    return document("BatchInference", item, status_document(status))


def document(kind: str, item: Any, status: Mapping[str, Any]) -> dict[str, Any]:
    """The object as the API server shows it, without what is irrelevant here."""
    body = item.model_dump(mode="json", by_alias=True, exclude_unset=True)
    metadata = {key: body["metadata"][key] for key in ("name", "namespace", "generation") if key in body["metadata"]}
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": body["spec"],
        "status": dict(status),
    }


def without_status(manifest: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != "status"}


def edited_since(manifest: dict[str, Any]) -> dict[str, Any]:
    metadata = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "generation": metadata["generation"] + 1}}


def with_conditions_of_a_later_release(manifest: dict[str, Any]) -> dict[str, Any]:
    foreign = [
        {"type": "Stopped", "status": "False", "reason": "NotStopped", "message": ""},
        {"type": "CanaryReady", "status": "Unknown", "reason": "NoCanary", "message": ""},
    ]
    status = manifest["status"]
    return {**manifest, "status": {**status, "conditions": [*foreign, *status["conditions"]]}}


FIXTURES: dict[str, dict[str, Any]] = {
    "InferenceService/no_status": without_status(service()),
    "InferenceService/stale_generation": edited_since(service(build_workload(2), replicas=2)),
    "InferenceService/progressing": service(build_workload(2, updated=1, updated_ready=1), replicas=2),
    "InferenceService/progressing_pods_pending": service(
        build_workload(0, replicas=1, updated=1, wanted=1, pending_reason="0/4 nodes are available")
    ),
    "InferenceService/progressing_draining": service(build_workload(1), suspend=True),
    "InferenceService/healthy": service(build_workload(2), replicas=2),
    "InferenceService/healthy_scaled_to_zero": service(build_workload(0), replicas=0),
    "InferenceService/healthy_autoscaler_silent": service(
        build_workload(2, autoscaler_problem="unable to get metric windlass_queue_depth"), **SCALED
    ),
    "InferenceService/healthy_later_release": with_conditions_of_a_later_release(
        service(build_workload(2), replicas=2)
    ),
    "InferenceService/suspended": service(build_workload(0), suspend=True),
    "InferenceService/degraded": service(tier="Realtime", world=[build_tenant()]),
    "InferenceService/degraded_still_serving": service(build_workload(2, gpu_class="h200"), **QUOTA),
    "InferenceService/degraded_refused_by_cluster": service(
        build_workload(1), problems=("Deployment/chat: exceeded quota: tenant-quota",)
    ),
    "BatchInference/no_status": without_status(batch()),
    "BatchInference/stale_generation": edited_since(batch(DONE)),
    "BatchInference/progressing": batch(BatchRun("nightly-a", succeeded=1, started=NOW), build_workload(2)),
    "BatchInference/suspended": batch(BatchRun("nightly-a", suspended=True), suspend=True),
    "BatchInference/healthy": batch(DONE),
    "BatchInference/degraded": batch(BROKEN),
    "BatchInference/degraded_not_admitted": batch(tier="Realtime", world=[build_tenant()]),
    "Tenant/no_status": without_status(tenant()),
    "Tenant/stale_generation": edited_since(tenant()),
    "Tenant/healthy": tenant(),
    "Tenant/degraded": tenant(
        build_tenant(generation=1),
        build_tenant("older", created="2025-01-01T00:00:00Z"),
    ),
    "GPUClass/no_status": without_status(gpu_class([build_node()])),
    "GPUClass/stale_generation": edited_since(gpu_class([build_node()])),
    "GPUClass/healthy": gpu_class([build_node()]),
    "GPUClass/healthy_without_nodes": gpu_class([]),
}
"""Fixture -> the object as Windlass would show it in that state."""

REASONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Healthy": [
        ("ReplicasReady", service(build_workload(2), replicas=2)),
        ("ScaledToZero", service(build_workload(0), replicas=0)),
        ("BatchCompleted", batch(DONE)),
        ("Granted", tenant()),
        ("NodesReady", gpu_class([build_node()])),
        ("NoReadyNodes", gpu_class([])),
        ("NodesUnknown", gpu_class(None)),
    ],
    "Suspended": [
        ("Suspended", service(build_workload(0), suspend=True)),
        ("Suspended", batch(BatchRun("nightly-a", suspended=True), suspend=True)),
    ],
    "Progressing": [
        ("RollingOut", service()),
        ("ReplicasNotReady", service(build_workload(2, updated=2, updated_ready=1), replicas=2)),
        ("PodsPending", service(build_workload(0, updated=1, wanted=1, pending_reason="0/4 nodes are available"))),
        (
            "RolloutWaitsForDevice",
            service(
                build_workload(8, gpu_class="h200", updated=0, updated_ready=0),
                classes=["h200"],
                replicas=8,
                rollout={"minAvailable": 8},
            ),
        ),
        ("QuotaReturning", waiting_for_pods()),
        (
            "RolloutQueued",
            service(
                build_workload(1, gpu_class="h200", template="b", paused=True, observed=False, revisions=OLD),
                classes=["h200"],
                world=[build_service("rival", classes=["h200"])],
                others={"team-a/rival": build_workload(6, gpu_class="h200", devices=7, leaving=1)},
            ),
        ),
        ("ReplicaFailed", service(build_workload(0, updated=1, wanted=1, last_failure=CRASH))),
        ("Draining", service(build_workload(1), suspend=True)),
        ("Draining", batch(BatchRun("nightly-a", suspended=True), build_workload(1), suspend=True)),
        ("BatchStarting", batch()),
        ("BatchRunning", batch(BatchRun("nightly-a"), build_workload(2))),
        ("PodsPending", batch(BatchRun("nightly-a"), build_workload(0, replicas=2, pending_reason="0/4 nodes"))),
    ],
    "Degraded": [
        ("ApplyRefused", service(build_workload(1), problems=("Deployment/chat: exceeded quota",))),
        ("ApplyRefused", batch(problems=("Job/nightly-a: exceeded quota",))),
        ("BatchFailed", batch(BROKEN)),
        ("QuotaExceeded", batch(classes=["h200"], world=[build_tenant(gpus={"h200": 1})])),
        ("ApplyRefused", tenant(problems=("Role/windlass-editor: forbidden",))),
        ("ReplicaFailed", service(build_workload(0, updated=1, wanted=1, last_failure=CRASH, restarts=5))),
        ("CacheTooLarge", service(cache={"memory": "8Gi"}, podTemplate={"resources": {"memory": "4Gi"}})),
        ("ConflictingReplicas", service(replicas=1, **SCALED)),
        ("InvalidName", service(name="1st")),
        ("InvalidScaling", service(scaling={"minReplicas": 3, "maxReplicas": 2})),
        ("ModelSourceUnusable", service(uri="pvc://models/../chat")),
        ("NamespaceConflict", tenant(build_tenant(), build_tenant("older", created="2025-01-01T00:00:00Z"))),
        ("NamespaceReserved", tenant(build_tenant(namespaces=["windlass-system"]))),
        ("NoTenant", service(world=[build_tenant(namespaces=["team-b"])])),
        ("QuotaExceeded", service(**{**QUOTA, "replicas": None, **SCALED, "world": [build_tenant(gpus={"h200": 1})]})),
        ("QuotaLimited", service(build_workload(2, gpu_class="h200"), **QUOTA)),
        ("QuotaPreempted", taken_from(TakingCause.TIER)),
        ("QuotaReclaimed", taken_from(TakingCause.LENDER)),
        ("RequirementsNotMet", service(accelerator={"requirements": {"memory": "999Gi"}})),
        ("TierNotAllowed", service(tier="Realtime", world=[build_tenant()])),
        ("UnknownGPUClass", service(classes=["gone"])),
        ("UnknownTimeZone", service(scaling={"maxReplicas": 2, "schedules": [LOST]})),
        ("UnknownGPUClass", tenant(build_tenant(gpus={"gone": 1}))),
    ],
}
"""Health -> the reasons of Ready that mean it, each with an object that Windlass gives this reason."""


def health_of(manifest: dict[str, Any]) -> dict[str, str]:
    health: dict[str, str] = run_script(OURS / manifest["kind"] / "health.lua", manifest)
    return health


def outline(manifest: dict[str, Any]) -> dict[str, Any]:
    """The object without the words for people, which may change without changing any health."""
    status = dict(manifest.get("status", {}))
    status.pop("decisions", None)
    status["conditions"] = [(item["type"], item["status"], item["reason"]) for item in status.get("conditions", ())]
    return {**manifest, "status": status}


def ready_of(manifest: dict[str, Any]) -> dict[str, str]:
    conditions: list[dict[str, str]] = manifest["status"]["conditions"]
    return next(condition for condition in conditions if condition["type"] == "Ready")


def health_tests() -> list[Any]:
    """What the health_test.yaml files list, as Argo CD's own test reads them."""
    listed = []
    for path in sorted(CUSTOMIZATIONS.glob("*/*/health_test.yaml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            name = f"{path.parent.name}/{Path(test['inputPath']).stem}"
            listed.append(pytest.param(path.parent / test["inputPath"], test["healthStatus"], id=name))
    return listed


def reasons_in_the_domain() -> set[str]:
    """Reasons that the source hands to a Refusal or a Finding."""
    found = set()
    for path in Path(domain.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            position = {"Refusal": 0, "Finding": 1}.get(node.func.id)
            if position is None or len(node.args) <= position:
                continue
            argument = node.args[position]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return found


@pytest.mark.parametrize(("path", "expected"), health_tests())
def test_each_fixture_has_the_health_its_list_promises(path: Path, expected: dict[str, str]) -> None:
    assert run_script(path.parents[1] / "health.lua", read_fixture(path)) == expected


@pytest.mark.parametrize("name", FIXTURES)
def test_each_fixture_is_what_windlass_would_write(name: str) -> None:
    kind, state = name.split("/")

    assert outline(read_fixture(OURS / kind / "testdata" / f"{state}.yaml")) == outline(FIXTURES[name])


def test_every_fixture_is_listed_and_has_a_source() -> None:
    files = set(CUSTOMIZATIONS.glob("*/*/testdata/*.yaml"))
    listed = {parameters.values[0] for parameters in health_tests()}
    ours = {f"{path.parents[1].name}/{path.stem}" for path in files if path.is_relative_to(OURS)}

    assert files == listed
    assert ours == set(FIXTURES)


@pytest.mark.parametrize(
    ("health", "reason", "manifest"),
    [
        pytest.param(health, reason, manifest, id=f"{manifest['kind']} {reason}")
        for health, cases in REASONS.items()
        for reason, manifest in cases
    ],
)
def test_every_reason_has_the_health_it_means(health: str, reason: str, manifest: dict[str, Any]) -> None:
    found = health_of(manifest)

    assert ready_of(manifest)["reason"] == reason
    assert found["status"] == health
    assert found["message"].startswith(f"{reason}: ")
    assert len(found["message"]) > len(f"{reason}: ")


def test_no_reason_of_the_domain_is_without_a_health() -> None:
    mapped = {reason for cases in REASONS.values() for reason, _ in cases}
    not_a_summary = {"NotAdmitted"}  # of WorkloadReady only, behind a refusal that is the summary

    assert reasons_in_the_domain() - not_a_summary <= mapped


@pytest.mark.parametrize("name", [name for name in FIXTURES if "no_status" not in name])
def test_an_edited_object_is_progressing_whatever_the_old_status_says(name: str) -> None:
    assert health_of(edited_since(FIXTURES[name]))["status"] == "Progressing"


@pytest.mark.parametrize("kind", ["InferenceService", "BatchInference", "Tenant", "GPUClass"])
@pytest.mark.parametrize(
    "status",
    [
        pytest.param({}, id="empty"),
        pytest.param({"observedGeneration": 1}, id="no conditions"),
        pytest.param({"observedGeneration": 1, "conditions": []}, id="an empty list"),
        pytest.param({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "Unknown"}]}, id="unknown"),
        pytest.param({"observedGeneration": 1, "conditions": [{"type": "Other", "status": "True"}]}, id="strangers"),
    ],
)
def test_a_status_that_says_nothing_yet_is_progressing(kind: str, status: dict[str, Any]) -> None:
    manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "a", "generation": 1}, "status": status}

    assert health_of(manifest)["status"] == "Progressing"


def test_actions_are_offered_where_they_change_something() -> None:
    folder = OURS / "InferenceService" / "actions"
    for test in yaml.safe_load((folder / "action_test.yaml").read_text())["discoveryTests"]:
        offered = run_script(folder / "discovery.lua", read_fixture(folder / test["inputPath"]))

        assert offered == {action["name"]: {"disabled": action["disabled"]} for action in test["result"]}


def test_actions_change_the_one_field_they_name() -> None:
    folder = OURS / "InferenceService" / "actions"
    for test in yaml.safe_load((folder / "action_test.yaml").read_text())["actionTests"]:
        changed = run_script(folder / test["action"] / "action.lua", read_fixture(folder / test["inputPath"]))

        assert changed == read_fixture(folder / test["expectedOutputPath"])


def test_the_install_snippet_holds_the_scripts_word_for_word() -> None:
    expected: dict[str, Any] = {}
    for path in CUSTOMIZATIONS.glob("*/*/health.lua"):
        expected[f"resource.customizations.health.{path.parents[1].name}_{path.parent.name}"] = path.read_text()
    for path in CUSTOMIZATIONS.glob("*/*/actions/discovery.lua"):
        definitions = [
            {"name": action.parent.name, "action.lua": action.read_text()}
            for action in sorted(path.parent.glob("*/action.lua"))
        ]
        name = f"resource.customizations.actions.{path.parents[2].name}_{path.parents[1].name}"
        expected[name] = {"discovery.lua": path.read_text(), "definitions": definitions}

    data = yaml.safe_load((EXAMPLES / "install" / "argocd-cm.yaml").read_text())["data"]

    found = {key: yaml.safe_load(text) if ".actions." in key else text for key, text in data.items()}
    assert found == expected

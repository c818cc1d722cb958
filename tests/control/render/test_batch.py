"""The objects of a batch: an Indexed Job whose pods are replicas' pods with another command."""

from __future__ import annotations

from typing import Any

import pytest

from support.builders import build_batch, build_gpu_class, build_node, build_snapshot, build_tenant
from windlass_operator.domain.batch_plan import plan_batches
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.render.batch import render_batch
from windlass_runtime.main import command_line

SETTINGS = FleetSettings()


def render(**spec: Any) -> dict[str, Any]:
    """Children of a batch on H200s, by kind."""
    batch = build_batch(**{"classes": ["h200"], **spec})
    world = [build_gpu_class(), build_tenant(gpus={"h200": 8})]
    (plan,) = plan_batches(build_snapshot(batch, *world, nodes=[build_node()]), SETTINGS)
    return {child["kind"]: child for child in render_batch(plan, SETTINGS)}


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_the_job_has_one_index_per_shard_and_spares_the_rest_when_one_fails() -> None:
    spec = render(shards=8, parallelism=3, retriesPerShard=5)["Job"]["spec"]

    rules = spec.pop("podFailurePolicy")["rules"]
    spec.pop("template")
    assert spec == {
        "completionMode": "Indexed",
        "completions": 8,
        "parallelism": 3,
        "backoffLimitPerIndex": 5,
        "podReplacementPolicy": "Failed",
        "suspend": False,
    }
    assert [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in rules] == [
        ("FailJob", [2]),
        ("Ignore", None),
    ]


def test_a_worker_is_a_replica_without_a_server() -> None:
    children = render()
    pod = children["Job"]["spec"]["template"]["spec"]
    worker = container(children["Job"])

    assert children.keys() == {"ServiceAccount", "ConfigMap", "NetworkPolicy", "Job"}
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} & worker.keys()
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (pod["restartPolicy"], pod["priorityClassName"]) == ("Never", "windlass-batch")
    assert children["NetworkPolicy"]["spec"]["ingress"] == []
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_the_runtime_understands_the_arguments_of_a_worker() -> None:
    name, *arguments = container(render()["Job"])["args"]

    command = command_line.commands[name]  # type: ignore[attr-defined]
    parsed = command.make_context(name, list(arguments)).params

    assert parsed["shards"] == 4
    assert str(parsed["requests"]) == "/batch/input/in/requests.jsonl"
    assert str(parsed["results"]) == "/batch/results/out"
    assert str(parsed["launch_file"]) == "/etc/windlass/launch-spec.json"


@pytest.mark.parametrize(
    ("uri", "volumes"),
    [
        pytest.param("pvc://other/in.jsonl", {"input": "other", "results": "batches"}, id="two claims"),
        pytest.param("pvc://batches/in.jsonl", {"results": "batches"}, id="one claim for both"),
    ],
)
def test_input_is_mounted_for_reading_and_results_for_writing(uri: str, volumes: dict[str, str]) -> None:
    job = render(input=uri)["Job"]

    mounts = {item["mountPath"]: item for item in container(job)["volumeMounts"]}
    claims = {
        item["name"]: item["persistentVolumeClaim"]["claimName"]
        for item in job["spec"]["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in item and item["name"] != "model"
    }
    assert claims == volumes
    assert mounts["/batch/input"]["readOnly"] is True
    assert "readOnly" not in mounts["/batch/results"]
    assert {mounts["/batch/input"]["name"], mounts["/batch/results"]["name"]} == set(volumes)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        pytest.param({"parallelism": 1}, True, id="number of workers"),
        pytest.param({"suspend": True}, True, id="suspended"),
        pytest.param({"shards": 5}, False, id="shards"),
        pytest.param({"retriesPerShard": 9}, False, id="retries"),
        pytest.param({"limits": {"maxRunningRequests": 8}}, False, id="launch settings"),
        pytest.param({"podTemplate": {"env": [{"name": "A", "value": "b"}]}}, False, id="pod"),
    ],
)
def test_only_what_a_job_cannot_change_makes_another_job(changes: dict[str, Any], same: bool) -> None:
    assert (render()["Job"]["metadata"]["name"] == render(**changes)["Job"]["metadata"]["name"]) is same


def test_a_suspended_batch_keeps_its_job() -> None:
    spec = render(suspend=True)["Job"]["spec"]

    assert (spec["suspend"], spec["parallelism"]) == (True, 1)


def test_names_stay_within_their_limit() -> None:
    children = render(name="n" * 40, shards=1000)

    assert all(len(child["metadata"]["name"]) <= 63 for child in children.values())
    assert len(children["Job"]["metadata"]["name"]) + len("-999-x2x9p") <= 63
    assert len(children["Job"]["metadata"]["labels"]["app.kubernetes.io/instance"]) <= 63

"""`windlass explain`: the planner's own words, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from windlass_operator.cli.explain import explain

FLEET = """
apiVersion: windlass.dev/v1alpha1
kind: GPUClass
metadata: {name: h200}
spec: {nodeSelector: {nvidia.com/gpu.product: NVIDIA-H200}, memory: 141Gi, computeCapability: "9.0"}
---
apiVersion: windlass.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec: {namespaces: [team-a], quota: {gpus: [{name: h200, nominal: 2}]}}
---
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata: {name: chat, namespace: team-a}
spec: {model: {uri: "hf://org/chat@v1"}, accelerator: {classes: [h200]}, scaling: {maxReplicas: 4}}
---
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata: {name: large, namespace: team-a}
spec: {model: {uri: "hf://org/large@v1"}, accelerator: {classes: [h200]}, replicas: 3}
"""


@pytest.fixture
def run(tmp_path: Path):
    def run_explain(*arguments: str, text: str = FLEET) -> Result:
        file = tmp_path / "in.yaml"
        file.write_text(text)
        return CliRunner().invoke(explain, [str(file), *arguments])

    return run_explain


def test_it_says_what_was_chosen_why_and_what_is_created(run):
    result = run("--service", "team-a/chat")

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "InferenceService team-a/chat"
    assert "  precision          BF16" in lines
    assert "                       compute capability 9.0 has BF16" in lines
    assert lines[-1] == (
        "  creates: ServiceAccount chat-runtime, ConfigMap chat-launch, NetworkPolicy chat, Service chat, "
        "Deployment chat, HorizontalPodAutoscaler chat, PodDisruptionBudget chat"
    )
    assert "large" not in result.stdout


def test_a_refusal_comes_first_with_its_numbers_and_the_next_step(run):
    lines = run("--service", "team-a/large").stdout.splitlines()

    assert lines[1] == "  refused (QuotaExceeded): needs 3 x h200, acme uses 1 of 2"
    assert lines[2] == (
        "  next step: Lower spec.replicas to 1, "
        "or ask the platform team to raise nominal of h200 in Tenant acme from 2 to 4"
    )
    assert lines[-1] == "  creates: nothing"


def test_programs_get_the_same_as_data(run):
    chat, large = json.loads(run("-o", "json").stdout)["services"]

    assert (chat["name"], chat["runs"], large["name"], large["runs"]) == ("chat", True, "large", False)
    assert {"topic": "replicas", "choice": "1 to 2"}.items() <= next(
        decision for decision in chat["decisions"] if decision["topic"] == "replicas"
    ).items()
    assert large["refusal"]["reason"] == "QuotaExceeded"
    assert large["creates"] == []
    assert {"kind": "Deployment", "name": "chat"} in chat["creates"]


def test_what_would_admit_a_service_comes_with_the_patch_that_does(run):
    (large,) = json.loads(run("-o", "json", "--service", "team-a/large").stdout)["services"]

    assert large["suggestions"] == [
        {
            "remedy": "LowerReplicas",
            "order": "lower spec.replicas to 1",
            "devices": 2,
            "by": "tenant",
            "change": {
                "kind": "InferenceService",
                "namespace": "team-a",
                "name": "large",
                "patch": {"spec": {"replicas": 1}},
            },
        },
        {
            "remedy": "RaiseNominal",
            "order": "raise nominal of h200 in Tenant acme from 2 to 4",
            "devices": 2,
            "by": "platform team",
            "change": {
                "kind": "Tenant",
                "namespace": "",
                "name": "acme",
                "patch": {"spec": {"quota": {"gpus": [{"name": "h200", "nominal": 4}]}}},
            },
        },
    ]
    assert large["quota"]["reason"] == "QuotaExceeded"
    assert "  would admit it: lower spec.replicas to 1 (tenant)" in run("--service", "team-a/large").stdout.splitlines()


def test_an_unknown_service_is_answered_with_the_known_ones(run):
    result = run("--service", "team-a/chatt")

    assert result.exit_code == 1
    assert (
        "expected one of the services in these files (team-a/chat, team-a/large), found team-a/chatt" in result.stderr
    )


def test_files_without_services_say_so(run):
    assert run(text=FLEET.split("---")[0]).stdout == "no InferenceService in these files\n"

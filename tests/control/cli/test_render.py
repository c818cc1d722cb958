"""`windlass render`: objects on standard output, complaints on standard error, and an exit code one can rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from windlass_operator.cli.render import render
from windlass_operator.errors import InvalidInput

CLASS = """
apiVersion: windlass.dev/v1alpha1
kind: GPUClass
metadata: {name: h200}
spec: {nodeSelector: {nvidia.com/gpu.product: NVIDIA-H200}, memory: 141Gi, computeCapability: "9.0"}
"""
TENANT = """
apiVersion: windlass.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec: {namespaces: [team-a], quota: {gpus: [{name: h200, nominal: 2}]}}
"""


def service(name: str = "chat", namespace: str = "team-a", spec: str = "") -> str:
    return f"""
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{model: {{uri: "file:///models/chat"}}{spec}}}
"""


@pytest.fixture
def run(tmp_path: Path):
    def run_render(*documents: str, arguments: tuple[str, ...] = ()) -> Result:
        file = tmp_path / "in.yaml"
        file.write_text("---".join(documents))
        return CliRunner().invoke(render, [str(file), *arguments])

    return run_render


def kinds(text: str) -> list[str]:
    return [document["kind"] for document in yaml.safe_load_all(text)]


def test_it_prints_what_the_fleet_the_tenants_and_the_services_need_in_that_order(run):
    result = run(service(), TENANT, CLASS)

    assert result.exit_code == 0
    found = kinds(result.stdout)
    assert found[:4] == ["PriorityClass", "PriorityClass", "PriorityClass", "Namespace"]
    assert found[-1] == "PodDisruptionBudget"
    assert found.index("ResourceQuota") < found.index("Deployment")


def test_documents_may_come_in_any_order(run):
    assert (
        run(service("a"), service("b"), TENANT, CLASS).stdout == run(CLASS, TENANT, service("b"), service("a")).stdout
    )


def test_json_is_one_list_of_the_same_objects(run):
    listed = json.loads(run(service(), arguments=("-o", "json")).stdout)

    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    assert listed["items"] == list(yaml.safe_load_all(run(service()).stdout))


def test_a_refused_service_is_left_out_told_and_fails_the_command(run):
    result = run(service("big", spec=", replicas: 3, accelerator: {classes: [h200]}"), service("small"), TENANT, CLASS)

    assert result.exit_code == 1
    names = [item["metadata"]["name"] for item in yaml.safe_load_all(result.stdout) if item["kind"] == "Deployment"]
    assert names == ["small"]
    assert "InferenceService team-a/big: needs 3 x h200, acme uses 0 of 2" in result.stderr


def test_a_problem_of_a_tenant_is_told_and_fails_the_command(run):
    result = run(TENANT.replace("team-a]", "team-a, monitoring]"), CLASS)

    assert result.exit_code == 1
    assert "Tenant acme: namespace monitoring belongs to the platform" in result.stderr


def test_files_with_problems_print_nothing_at_all(run):
    result = run(service(spec=", replicas: -1"), service("fine"))

    assert result.stdout == ""
    assert isinstance(result.exception, InvalidInput)


def test_options_of_the_installation_reach_the_objects(run):
    result = run(
        service(),
        arguments=("--runtime-image", "r.io/runtime:9", "--gateway-namespace", "edge", "--metrics-namespace", "prom"),
    )

    objects = {item["kind"]: item for item in yaml.safe_load_all(result.stdout)}
    assert objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "r.io/runtime:9"
    trusted = [
        peer["namespaceSelector"]["matchExpressions"][0]["values"]
        for peer in objects["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    ]
    assert trusted == [["edge"], ["prom"], ["team-a"]]


def test_the_launch_spec_is_readable_in_the_output(run):
    assert "    launch-spec.json: |\n" not in run(service()).stdout.split("data:")[0]
    assert '  launch-spec.json: |\n    {\n      "cache_bytes": 0,' in run(service()).stdout


@pytest.mark.parametrize(
    ("documents", "code"),
    [([service()], 0), ([service(spec=", tier: Realtime"), TENANT], 1), (["kind: 1"], 1)],
    ids=["sound", "refused", "invalid"],
)
def test_the_command_line_ends_with_the_right_code(tmp_path, documents, code):
    file = tmp_path / "in.yaml"
    file.write_text("---".join(documents))

    finished = subprocess.run(
        [sys.executable, "-m", "windlass_operator", "render", str(file)], capture_output=True, text=True, timeout=60
    )

    assert finished.returncode == code, finished.stderr
    assert bool(finished.stderr) == bool(code)
    assert "Traceback" not in finished.stderr

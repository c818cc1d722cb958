"""Whole outputs, byte by byte: `golden/NAME.in.yaml` renders to `golden/NAME.out.yaml`.

After a wanted change: `WINDLASS_REGENERATE_GOLDEN=1 pytest tests/control/render/test_golden.py`, then read the diff.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from support.builders import build_gpu_class, build_service, build_snapshot
from windlass_operator.api.load import load_documents
from windlass_operator.cli.render import render_loaded
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.output import to_json, to_yaml
from windlass_operator.render.pod import render_pod_template

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name.removesuffix(".in.yaml") for path in GOLDEN.glob("*.in.yaml"))


def render_case(case: str) -> str:
    loaded = load_documents([GOLDEN / f"{case}.in.yaml"])
    assert not loaded.problems
    rendering = render_loaded(loaded, FleetSettings())
    assert not rendering.complaints
    return to_yaml(rendering.manifests)


@pytest.mark.parametrize("case", CASES)
def test_files_render_to_exactly_the_recorded_objects(case):
    rendered, golden = render_case(case), GOLDEN / f"{case}.out.yaml"
    if os.environ.get("WINDLASS_REGENERATE_GOLDEN"):
        golden.write_text(rendered)

    assert rendered == golden.read_text()


def test_there_are_golden_cases():
    assert CASES == ["cpu", "gpu-scaled", "tenant"]


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_valid_yaml_with_one_object_per_document(case):
    documents = list(yaml.safe_load_all(render_case(case)))

    assert all(document["apiVersion"] and document["kind"] and document["metadata"]["name"] for document in documents)
    identities = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in documents]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("case", CASES)
def test_yaml_and_json_hold_the_same_objects(case):
    rendering = render_loaded(load_documents([GOLDEN / f"{case}.in.yaml"]), FleetSettings())

    assert list(yaml.safe_load_all(to_yaml(rendering.manifests))) == json.loads(to_json(rendering.manifests))["items"]


@pytest.mark.parametrize(
    ("service", "digest"),
    [
        pytest.param(build_service(replicas=2), "c8e4a66241d41ccd", id="cpu"),
        pytest.param(
            build_service(classes=["h200"], uri="hf://org/chat@v1", cache={"memory": "8Gi"}),
            "8aff42a220e05828",
            id="gpu",
        ),
    ],
)
def test_a_new_release_leaves_the_pod_templates_of_running_services_alone(service, digest):
    """A failure here means that upgrading the operator restarts every replica of every fleet. Change it knowingly."""
    settings = FleetSettings(runtime_image="registry.example.com/runtime@sha256:0123")
    template = render_pod_template(
        plan_service(service, build_snapshot(service, build_gpu_class()), settings), settings
    )

    assert hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16] == digest

"""Batches in the commands that read files: checked, explained, rendered and planned like services."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from support.builders import build_batch, build_gpu_class, build_node, build_service, build_snapshot, build_tenant
from support.rule_cases import batch_of, gpu_class_of, tenant_of
from windlass_operator.api.load import load_documents
from windlass_operator.api.meta import API_VERSION
from windlass_operator.cli.explain import explain
from windlass_operator.cli.plan_outline import Intent, outline
from windlass_operator.cli.render import render
from windlass_operator.cli.validate import summarise
from windlass_operator.cluster.kubernetes_cache import ObjectCache
from windlass_operator.cluster.kubernetes_reader import Picture
from windlass_operator.domain.fleet import FleetSettings

GPU = {"accelerator.classes": ["h200"], "shards": 4, "parallelism": 2}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A batch, its tenant with two H200s, and the class."""
    path = tmp_path / "fleet.yaml"
    manifests = [batch_of(GPU), tenant_of({"namespaces": ["default"], "quota.gpus": [{"name": "h200", "nominal": 2}]})]
    path.write_text(yaml.safe_dump_all([*manifests, gpu_class_of()]))
    return path


def run(command: Any, *arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_batches_are_counted_among_what_was_read(file: Path) -> None:
    loaded = load_documents([file])

    assert summarise(loaded) == "valid: read 1 Tenant, 1 GPUClass, 1 BatchInference; no errors"
    assert loaded.source_of(loaded.batches[0]).line == 1


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        pytest.param({"accelerator.classes": ["h2000"]}, "spec.accelerator.classes[0]", id="unknown class"),
        pytest.param({"tier": "Realtime"}, "spec.tier", id="tier that the tenant does not allow"),
    ],
)
def test_a_batch_that_does_not_fit_the_other_objects_is_warned_about(
    tmp_path: Path, changes: dict[str, Any], path: str
) -> None:
    manifests = [
        batch_of(GPU | changes),
        tenant_of({"namespaces": ["default"], "allowedTiers": ["Batch"]}),
        gpu_class_of(),
    ]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(manifests))

    loaded = load_documents([tmp_path])

    assert [(item.subject, item.path) for item in loaded.warnings] == [("BatchInference default/nightly", path)]


def test_explain_says_how_a_batch_would_run(file: Path) -> None:
    text, data = run(explain, file).stdout, json.loads(run(explain, file, "-o", "json").stdout)

    assert text.startswith("BatchInference default/nightly\n")
    assert "  workers      2\n                 spec.parallelism is 2, 4 shards\n" in text
    assert data["services"] == []
    assert [child["kind"] for child in data["batches"][0]["creates"]] == [
        "ServiceAccount", "ConfigMap", "NetworkPolicy", "Job",
    ]  # fmt: skip


def test_render_prints_the_job_and_complains_of_a_batch_that_is_refused(file: Path) -> None:
    fine = run(render, file)
    file.write_text(file.read_text().replace("nominal: 2", "nominal: 1"))
    refused = run(render, file)

    assert "Job" in [one["kind"] for one in yaml.safe_load_all(fine.stdout)]
    assert (fine.exit_code, refused.exit_code) == (0, 1)
    assert "BatchInference default/nightly: needs 2 x h200" in refused.stderr


def test_plan_tells_whether_a_new_batch_would_run_and_whom_it_leaves_without_devices() -> None:
    service, batch = build_service(classes=["h200"], replicas=1), build_batch(classes=["h200"])
    world = [build_gpu_class(), build_tenant(gpus={"h200": 2})]
    picture = Picture(build_snapshot(service, *world, nodes=[build_node()]), ObjectCache())
    body = batch.model_dump(mode="json", by_alias=True, exclude_unset=True)
    after = {"apiVersion": API_VERSION, "kind": "BatchInference", **body}
    intent = Intent("BatchInference", "team-a", "nightly", None, after)

    told = outline([intent], picture, FleetSettings(), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))

    (one,) = told["objects"]
    assert (one["action"], one["runs"], one["refusal"]["reason"]) == ("create", False, "QuotaExceeded")
    assert {item["topic"] for item in one["decisions"]} >= {"tenant", "workers"}

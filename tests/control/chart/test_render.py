"""What the charts make. Golden renders show each change of a template in review; tests beside them say what must not.

After an intended change: WINDLASS_WRITE_GOLDEN=1 pytest tests/control/chart/test_render.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Manifest, Render, only, pod_of

HERE = Path(__file__).parent
CASES = sorted(path.stem for path in (HERE / "values").glob("*.yaml"))
RECOMMENDED = ("name", "instance", "component", "part-of", "managed-by", "version")
DIGEST = f"sha256:{'0' * 64}"
TEMPLATES = [*(ROOT / "helm/windlass/templates").iterdir(), *(ROOT / "helm/windlass-crds/templates").iterdir()]


def without_dashboards(manifests: list[Manifest]) -> list[Manifest]:
    """Dashboards are files of their own; repeating them in a golden render shows nothing."""
    return [
        item | {"data": dict.fromkeys(item["data"], "...")} if item["kind"] == "ConfigMap" else item
        for item in manifests
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_render_is_the_golden_one(render: Render, case: str) -> None:
    values = yaml.safe_load((HERE / "values" / f"{case}.yaml").read_text())
    golden = HERE / "golden" / f"{case}.yaml"

    made = without_dashboards(render(values))

    if os.environ.get("WINDLASS_WRITE_GOLDEN"):
        golden.write_text(yaml.safe_dump_all(made, sort_keys=False, width=120))
    assert list(yaml.safe_load_all(golden.read_text())) == made


@pytest.mark.parametrize("case", CASES)
def test_every_object_has_the_recommended_labels(render: Render, case: str) -> None:
    for manifest in render(yaml.safe_load((HERE / "values" / f"{case}.yaml").read_text())):
        labels = manifest["metadata"]["labels"]
        assert labels.keys() >= {
            f"app.kubernetes.io/{name}"
            for name in ("name", "instance", "component", "part-of", "managed-by", "version")
        }


@pytest.mark.parametrize("case", CASES)
def test_the_selector_never_changes(render: Render, case: str) -> None:
    frozen = {"app.kubernetes.io/instance": "windlass", "app.kubernetes.io/component": "operator"}
    everything = render(yaml.safe_load((HERE / "values" / f"{case}.yaml").read_text()))
    manifests = [item for item in everything if item["metadata"]["labels"].items() >= frozen.items()]

    assert only(manifests, "Deployment")["spec"]["selector"] == {"matchLabels": frozen}
    assert pod_of(manifests)["metadata"]["labels"].items() >= frozen.items()
    for kind in {"Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"} & {m["kind"] for m in manifests}:
        spec = only(manifests, kind)["spec"]
        selector = spec.get("selector") or spec["podSelector"]
        assert selector.get("matchLabels", selector) == frozen


def test_labels_of_users_never_reach_the_selector_nor_replace_ours(render: Render) -> None:
    ours = {"app.kubernetes.io/instance": "mine", "app.kubernetes.io/component": "mine"}

    manifests = render({"commonLabels": ours, "podLabels": ours})

    assert "mine" not in str(manifests)


def test_the_version_is_in_no_pod_template(render: Render) -> None:
    labels = pod_of(render())["metadata"]["labels"]

    assert not [name for name in labels if "version" in name or "chart" in name]


def test_the_pod_passes_the_restricted_level(render: Render) -> None:
    pod = pod_of(render())["spec"]
    (container,) = pod["containers"]

    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_two_operators_are_spread_budgeted_and_probed(render: Render) -> None:
    manifests = render()
    pod = pod_of(manifests)["spec"]
    (container,) = pod["containers"]

    assert only(manifests, "Deployment")["spec"]["replicas"] == 2
    assert [item["topologyKey"] for item in pod["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    for item in pod["topologySpreadConstraints"]:
        assert item["labelSelector"]["matchLabels"] == only(manifests, "Deployment")["spec"]["selector"]["matchLabels"]
    assert only(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert pod["terminationGracePeriodSeconds"] == 30
    assert {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert container["ports"] == [{"name": "probes", "containerPort": 8080, "protocol": "TCP"}]
    assert container["resources"] == {
        "requests": {"cpu": "200m", "memory": "256Mi"},
        "limits": {"memory": "1Gi"},
    }


def test_only_the_operators_pod_gets_a_token(render: Render) -> None:
    manifests = render()

    assert only(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod_of(manifests)["spec"]["automountServiceAccountToken"] is True


def test_service_links_cannot_add_settings_that_nobody_knows(render: Render) -> None:
    assert pod_of(render())["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param({}, "ghcr.io/windlass/windlass-operator:0.1.0", id="the chart's version"),
        pytest.param({"tag": "edge"}, "ghcr.io/windlass/windlass-operator:edge", id="a tag"),
        pytest.param({"repository": "r:5000/o", "tag": "1"}, "r:5000/o:1", id="another registry"),
        pytest.param(
            {"tag": "1", "digest": DIGEST}, f"ghcr.io/windlass/windlass-operator@{DIGEST}", id="a digest wins"
        ),
    ],
)
def test_the_image(render: Render, image: dict[str, str], expected: str) -> None:
    assert pod_of(render({"image": image}))["spec"]["containers"][0]["image"] == expected


@pytest.mark.parametrize(
    ("release", "values", "expected"),
    [
        pytest.param("windlass", {}, "windlass-operator", id="the product's name"),
        pytest.param("prod", {}, "prod-windlass-operator", id="another release"),
        pytest.param("prod", {"nameOverride": "engine"}, "prod-engine-operator", id="name"),
        pytest.param("prod", {"fullnameOverride": "engine"}, "engine-operator", id="full name"),
        pytest.param("x" * 53, {}, f"{'x' * 40}-operator", id="long names are cut"),
    ],
)
def test_names(render: Render, release: str, values: Manifest, expected: str) -> None:
    manifests = render(values, release=release)

    assert only(manifests, "Deployment")["metadata"]["name"] == expected
    assert all(len(manifest["metadata"]["name"]) <= 63 for manifest in manifests)


def test_objects_stay_in_the_operators_namespace_or_in_none(render: Render) -> None:
    manifests = render({"namespaceOverride": "elsewhere"})

    scoped = {item["kind"]: item["metadata"].get("namespace") for item in manifests}
    assert {kind for kind, namespace in scoped.items() if namespace is None} == {"ClusterRole", "ClusterRoleBinding"}
    assert set(scoped.values()) == {"elsewhere", None}
    assert {s["namespace"] for item in manifests for s in item.get("subjects", ())} == {"elsewhere"}


def test_an_account_of_somebody_else_is_bound_but_not_made(render: Render) -> None:
    manifests = render({"serviceAccount": {"create": False, "name": "theirs"}})

    assert not [item for item in manifests if item["kind"] == "ServiceAccount"]
    assert pod_of(manifests)["spec"]["serviceAccountName"] == "theirs"
    assert {s["name"] for item in manifests for s in item.get("subjects", ())} == {"theirs"}


def test_without_rbac_no_role_is_made(render: Render) -> None:
    made = {item["kind"] for item in render({"rbac": {"create": False}})}

    assert not [kind for kind in made if "Role" in kind]


def test_by_default_every_kind_is_one_that_every_cluster_has(render: Render) -> None:
    groups = {item["apiVersion"].rpartition("/")[0] for item in render()}

    assert groups <= {"", "apps", "policy", "networking.k8s.io", "rbac.authorization.k8s.io"}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_no_template_asks_the_cluster_the_clock_or_chance(template: Path) -> None:
    forbidden = r"\b(lookup|now|date|ago|rand\w*|shuffle|uuidv4|gen\w+|derivePassword|env|expandenv|getHostByName)\b"
    actions = " ".join(re.findall(r"\{\{(?!-? */\*)(.*?)\}\}", template.read_text(), re.DOTALL))

    found = re.findall(forbidden, re.sub(r'"[^"]*"', "", actions))
    assert not found
    assert ".Capabilities" not in actions
    assert ".Release.IsUpgrade" not in actions
    assert ".Release.Revision" not in actions
    assert "helm.sh/hook" not in template.read_text()


def test_a_chart_has_no_crds_folder() -> None:
    assert not list((ROOT / "helm").glob("*/crds"))


def test_the_crd_chart_makes_what_lies_in_crds_and_keeps_it(render: Render) -> None:
    plain = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]

    made = render(chart="windlass-crds")

    for crd in made:
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert sorted(made, key=lambda crd: crd["metadata"]["name"]) == plain


def test_labels_and_annotations_are_added_to_every_crd(render: Render) -> None:
    wave = {"argocd.argoproj.io/sync-wave": "-5"}

    for crd in render({"crds": {"labels": {"a": "b"}, "annotations": wave}}, chart="windlass-crds"):
        assert crd["metadata"]["labels"] == {"app.kubernetes.io/part-of": "windlass", "a": "b"}
        assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep", **wave}


def test_crds_can_be_left_out(render: Render) -> None:
    assert render({"crds": {"install": False}}, chart="windlass-crds") == []


def test_two_renders_are_equal(print_chart: Callable[..., str]) -> None:
    values: Any = yaml.safe_load((HERE / "values/everything.yaml").read_text())

    assert print_chart(values) == print_chart(values)

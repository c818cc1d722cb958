"""The ResourceClaimTemplate, and the pod that uses it."""

from __future__ import annotations

from support.builders import build_gpu_class, build_service, build_snapshot
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.workload import render_service

H200 = build_gpu_class("h200", deviceClassName="gpu.nvidia.com", deviceSelectors=["device.a", "device.b"])
A100 = build_gpu_class("a100", deviceClassName="gpu.nvidia.com", tolerations=[{"key": "pool", "operator": "Exists"}])


def render(*classes: str, **spec):
    service = build_service(accelerator={"classes": list(classes), "allocation": "ResourceClaim"}, **spec)
    planned = plan_service(service, build_snapshot(service, H200, A100), FleetSettings())
    children = {child["kind"]: child for child in render_service(planned, FleetSettings())}
    return children["ResourceClaimTemplate"], children["Deployment"]["spec"]["template"]


def test_one_class_is_claimed_exactly():
    template, pod = render("h200")

    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request == {
        "name": "gpu",
        "exactly": {
            "deviceClassName": "gpu.nvidia.com",
            "allocationMode": "ExactCount",
            "count": 1,
            "selectors": [{"cel": {"expression": "device.a"}}, {"cel": {"expression": "device.b"}}],
        },
    }
    assert pod["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "h200"}


def test_several_classes_are_alternatives_on_the_nodes_of_any_of_them():
    template, pod = render("h200", "a100")

    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert [item["name"] for item in request["firstAvailable"]] == ["h200", "a100"]
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["matchExpressions"][0]["values"] for term in terms["nodeSelectorTerms"]] == [["h200"], ["a100"]]
    assert "nodeSelector" not in pod["spec"]
    assert {"key": "pool", "operator": "Exists"} in pod["spec"]["tolerations"]


def test_the_pod_names_the_claim_and_asks_no_device_plugin():
    template, pod = render("h200", "a100")
    resources = pod["spec"]["containers"][0]["resources"]

    name = template["metadata"]["name"]
    assert pod["spec"]["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": name}]
    assert resources["claims"] == [{"name": "gpu"}]
    assert "nvidia.com/gpu" not in {**resources["requests"], **resources.get("limits", {})}
    assert pod["metadata"]["labels"][labels.CLAIM_TEMPLATE] == name
    assert pod["metadata"]["labels"][labels.DEVICES] == "1"


def test_claims_carry_the_labels_by_which_the_operator_finds_them():
    template, _ = render("h200")

    assert template["spec"]["metadata"]["labels"][labels.INSTANCE] == "chat"
    assert template["spec"]["metadata"]["labels"][labels.MANAGED_BY] == labels.MANAGER


def test_the_name_follows_the_content_because_a_template_cannot_be_changed():
    one, other, again = render("h200")[0], render("a100")[0], render("h200", replicas=3)[0]

    assert one["metadata"]["name"] != other["metadata"]["name"]
    assert one["metadata"]["name"] == again["metadata"]["name"]
    assert len(one["metadata"]["name"]) <= 63

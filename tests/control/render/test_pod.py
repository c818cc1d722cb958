"""The pod: restricted whatever the user writes, on the right node, with the model where the replica looks for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_service, build_snapshot
from windlass_contract import endpoints, launch_spec
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.launch import render_launch
from windlass_operator.render.pod import render_pod_template

SETTINGS = FleetSettings()
CLASSES = [
    build_gpu_class(tolerations=[{"key": "dedicated", "value": "inference", "effect": "NoSchedule"}]),
    build_gpu_class("slice", resourceName="nvidia.com/mig-1g.18gb"),
    build_gpu_class("mi300", resourceName="amd.com/gpu"),
]


def render(settings: FleetSettings = SETTINGS, **fields: Any) -> dict[str, Any]:
    service = build_service(**fields)
    return render_pod_template(plan_service(service, build_snapshot(service, *CLASSES), settings), settings)


def container(**fields: Any) -> dict[str, Any]:
    (only,) = render(**fields)["spec"]["containers"]
    return only


def environment(**fields: Any) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(**fields)["env"]}


def assert_restricted(template: dict[str, Any]) -> None:
    """The rules of Pod Security `restricted`, plus our own: read-only root, no token, no service links."""
    spec = template["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers", "ephemeralContainers"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    for item in spec["containers"]:
        assert item["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert all("hostPort" not in port for port in item["ports"])
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "image"}
    assert all(set(volume) <= allowed | {"name"} for volume in spec["volumes"])


keys = st.sampled_from(
    [
        "app.kubernetes.io/instance",
        "app.kubernetes.io/component",
        "windlass.dev/tenant",
        "windlass.dev/config-hash",
        "team",
        "a.b/c",
    ]
)
overlays = st.fixed_dictionaries(
    {
        "labels": st.dictionaries(keys, st.just("mine")),
        "annotations": st.dictionaries(keys, st.just("mine")),
        "nodeSelector": st.dictionaries(st.sampled_from(["nvidia.com/gpu.product", "disk"]), st.just("mine")),
        "tolerations": st.lists(
            st.fixed_dictionaries(
                {"operator": st.just("Exists")},
                optional={"key": st.sampled_from(["spot", "node-role.kubernetes.io/x"])},
            ),
            max_size=3,
        ),
        "env": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["HOME", "LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES", "LOG_LEVEL"]),
                    "value": st.just("x"),
                }
            ),
            max_size=4,
        ),
    }
)


@settings(deadline=None)
@given(
    overlays, st.sampled_from([[], ["h200"]]), st.sampled_from(["hf://a/b@c", "pvc://m", "oci://r.io/x:1", "file:///m"])
)
def test_no_overlay_weakens_a_pod_or_changes_who_it_is(overlay, classes, uri):
    plain, shaped = (render(classes=classes, uri=uri, podTemplate=template) for template in ({}, overlay))

    assert_restricted(shaped)
    for part in ("labels", "annotations"):
        assert plain["metadata"][part].items() <= shaped["metadata"][part].items()
    ours = {item["name"]: item["value"] for item in plain["spec"]["containers"][0]["env"]}
    names = [item["name"] for item in shaped["spec"]["containers"][0]["env"]]
    assert ours.items() <= {item["name"]: item["value"] for item in shaped["spec"]["containers"][0]["env"]}.items()
    assert len(names) == len(set(names))
    assert set(names) - set(ours) <= {"LOG_LEVEL"}
    assert plain["spec"].get("nodeSelector", {}).items() <= shaped["spec"].get("nodeSelector", {}).items()
    assert {item["key"] for item in shaped["spec"].get("tolerations", [])} <= {"nvidia.com/gpu", "dedicated", "spot"}


@pytest.mark.parametrize(
    ("gpu_class", "resource", "taint"),
    [
        pytest.param("h200", "nvidia.com/gpu", "nvidia.com/gpu", id="whole device"),
        pytest.param(
            "slice", "nvidia.com/mig-1g.18gb", "nvidia.com/gpu", id="a slice, its node tainted for the device"
        ),
        pytest.param("mi300", "amd.com/gpu", "amd.com/gpu", id="another vendor"),
    ],
)
def test_a_gpu_pod_asks_for_its_device_and_goes_where_it_is(gpu_class, resource, taint):
    template = render(classes=[gpu_class])

    resources = template["spec"]["containers"][0]["resources"]
    assert resources["limits"][resource] == resources["requests"][resource] == "1"
    assert template["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": gpu_class}
    assert template["spec"]["tolerations"][0] == {"key": taint, "operator": "Exists", "effect": "NoSchedule"}
    assert template["metadata"]["labels"]["windlass.dev/gpu-class"] == gpu_class


def test_a_cpu_pod_sees_no_gpu_even_where_the_container_runtime_shows_them_by_default():
    assert environment()["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(classes=["h200"])
    assert not {"nodeSelector", "tolerations"} & set(render()["spec"])


@pytest.mark.parametrize(
    ("uri", "volume", "mount", "launch_uri"),
    [
        pytest.param(
            "hf://org/chat@v1",
            {"name": "model-cache", "emptyDir": {"sizeLimit": "200Gi"}},
            {"name": "model-cache", "mountPath": "/var/cache/windlass"},
            "hf://org/chat@v1",
            id="downloaded into a bounded cache",
        ),
        pytest.param(
            "pvc://models/a/b",
            {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
            {"name": "model", "mountPath": "/models", "readOnly": True, "subPath": "a/b"},
            "file:///models",
            id="one folder of a claim, read-only",
        ),
        pytest.param(
            "oci://r.io/chat:1",
            {"name": "model", "image": {"reference": "r.io/chat:1", "pullPolicy": "IfNotPresent"}},
            {"name": "model", "mountPath": "/models", "readOnly": True},
            "file:///models",
            id="an image volume",
        ),
    ],
)
def test_the_model_is_where_the_launch_spec_says(uri, volume, mount, launch_uri):
    service = build_service(uri=uri)
    plan = plan_service(service, build_snapshot(service), SETTINGS)
    template = render_pod_template(plan, SETTINGS)

    assert template["spec"]["volumes"][-1] == volume
    assert template["spec"]["containers"][0]["volumeMounts"][-1] == mount
    assert plan.launch.model_uri == launch_uri


def test_a_hub_model_downloads_into_its_cache_folder():
    assert environment(uri="hf://org/chat@v1")["HF_HOME"] == "/var/cache/windlass"
    assert "HF_HOME" not in environment()


def test_the_replica_reads_back_exactly_the_launch_spec_that_was_planned():
    service = build_service(classes=["h200"], cache={"memory": "8Gi"})
    plan = plan_service(service, build_snapshot(service, *CLASSES), SETTINGS)
    template, config = render_pod_template(plan, SETTINGS), render_launch(plan)

    arguments = template["spec"]["containers"][0]["args"]
    volume, mount = template["spec"]["volumes"][0], template["spec"]["containers"][0]["volumeMounts"][0]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert arguments == ["serve", "--launch-spec", f"{mount['mountPath']}/{launch_spec.FILE_NAME}"]
    assert launch_spec.LaunchSpec.from_json(config["data"][launch_spec.FILE_NAME]) == plan.launch


@pytest.mark.parametrize(
    ("change", "rolls"),
    [
        pytest.param({"limits": {"maxRunningRequests": 8}}, True, id="a launch value"),
        pytest.param({"uri": "file:///models/other"}, True, id="the model"),
        pytest.param({"podTemplate": {"env": [{"name": "A", "value": "1"}]}}, True, id="the pod"),
        pytest.param({"replicas": 5}, False, id="the number of replicas"),
        pytest.param({"scaling": {"maxReplicas": 3}}, False, id="an autoscaler"),
        pytest.param({"rollout": {"minAvailable": 0}}, False, id="the rollout"),
        pytest.param({"suspend": True}, False, id="suspension"),
        pytest.param({"generation": 9}, False, id="nothing but the generation"),
    ],
)
def test_pods_restart_exactly_when_what_runs_in_them_changes(change, rolls):
    assert (render(**change) != render()) == rolls


def test_the_grace_period_leaves_room_for_the_hook_and_the_drain():
    template = render(drain={"timeoutSeconds": 90})
    command = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]

    assert template["spec"]["terminationGracePeriodSeconds"] == 105
    assert command[:2] == ["python", "-c"]
    compile(command[2], "preStop", "exec")
    assert f"http://127.0.0.1:{endpoints.RUNTIME_PORT}{endpoints.DRAIN_PATH}" in command[2]
    assert "timeout=95" in command[2]


def test_probes_ask_the_contracts_paths_and_startup_waits_for_the_largest_model():
    item = container()

    paths = {name: item[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert paths == {
        "startup": {"path": endpoints.READY_PATH, "port": "http"},
        "readiness": {"path": endpoints.READY_PATH, "port": "http"},
        "liveness": {"path": endpoints.LIVE_PATH, "port": "http"},
    }
    assert item["ports"] == [{"name": "http", "containerPort": endpoints.RUNTIME_PORT, "protocol": "TCP"}]
    assert (
        item["startupProbe"]["failureThreshold"] * item["startupProbe"]["periodSeconds"] >= SETTINGS.startup_timeout_s
    )


def test_replicas_spread_over_zones_and_hosts_without_refusing_to_share_one():
    constraints = render()["spec"]["topologySpreadConstraints"]

    assert [(item["topologyKey"], item["whenUnsatisfiable"]) for item in constraints] == [
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
        ("kubernetes.io/hostname", "ScheduleAnyway"),
    ]


def test_requests_and_limits_come_out_as_the_api_server_stores_them():
    resources = container(
        podTemplate={"resources": {"cpu": "4000m", "memory": "16384Mi", "ephemeralStorage": "100Gi"}}
    )["resources"]

    assert resources == {
        "requests": {"cpu": "4", "memory": "16Gi", "ephemeral-storage": "100Gi"},
        "limits": {"memory": "16Gi", "ephemeral-storage": "100Gi"},
    }


def test_replicas_of_a_class_that_packs_prefer_nodes_in_use_and_do_not_keep_apart():
    packing = build_gpu_class("h200", placement="Pack")
    service = build_service(classes=["h200"])
    placed, spread = (
        render_pod_template(plan_service(service, build_snapshot(service, item), FleetSettings()), FleetSettings())[
            "spec"
        ]
        for item in (packing, build_gpu_class("h200"))
    )

    (term,) = placed["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == {"windlass.dev/gpu-class": "h200"}
    assert term["podAffinityTerm"]["namespaceSelector"] == {}
    assert [item["topologyKey"] for item in placed["topologySpreadConstraints"]] == ["topology.kubernetes.io/zone"]
    assert "affinity" not in spread
    assert [item["topologyKey"] for item in spread["topologySpreadConstraints"]][-1] == "kubernetes.io/hostname"

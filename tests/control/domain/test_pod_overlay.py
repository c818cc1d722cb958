"""The user's pod overlay shapes a pod; it never weakens one."""

from __future__ import annotations

import pytest

from windlass_operator.api.v1alpha1.inference_service import PodTemplate
from windlass_operator.domain.pod_overlay import guard_overlay


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("labels", {"app.kubernetes.io/instance": "other"}, id="selector label"),
        pytest.param("labels", {"windlass.dev/tenant": "other"}, id="tenant label"),
        pytest.param("labels", {"pod-template-hash": "0"}, id="label of the Deployment controller"),
        pytest.param("annotations", {"windlass.dev/config-hash": "0"}, id="our annotation"),
        pytest.param(
            "annotations", {"argocd.argoproj.io/tracking-id": "x"}, id="tracking that makes Argo CD prune pods"
        ),
        pytest.param(
            "annotations",
            {"container.apparmor.security.beta.kubernetes.io/runtime": "unconfined"},
            id="AppArmor switched off",
        ),
        pytest.param("env", [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}], id="every GPU of the node"),
        pytest.param("env", [{"name": "LD_PRELOAD", "value": "/x.so"}], id="foreign code"),
        pytest.param("env", [{"name": "HF_HOME", "value": "/x"}], id="our cache folder"),
        pytest.param("tolerations", [{"operator": "Exists"}], id="every taint"),
        pytest.param(
            "tolerations",
            [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
            id="control plane nodes",
        ),
    ],
)
def test_what_belongs_to_the_platform_is_dropped_and_named(field, value):
    kept, decisions = guard_overlay(PodTemplate.model_validate({field: value}))

    assert not getattr(kept, field)
    assert len(decisions) == 1
    assert decisions[0].choice.startswith("dropped ")


def test_what_belongs_to_the_user_is_kept_without_a_word():
    template = PodTemplate.model_validate(
        {
            "labels": {"team": "search"},
            "annotations": {"sidecar.istio.io/inject": "true"},
            "nodeSelector": {"disk": "nvme"},
            "tolerations": [{"key": "dedicated", "value": "search", "effect": "NoSchedule"}],
            "env": [{"name": "LOG_LEVEL", "value": "debug"}],
            "resources": {"cpu": "4", "memory": "16Gi"},
        }
    )

    assert guard_overlay(template) == (template, ())


def test_the_decision_lists_everything_that_was_dropped():
    template = PodTemplate.model_validate(
        {
            "labels": {"windlass.dev/tenant": "x", "team": "a"},
            "env": [{"name": "LD_PRELOAD"}, {"name": "A"}],
        }
    )

    kept, (decision,) = guard_overlay(template)

    assert kept.labels == {"team": "a"}
    assert [item.name for item in kept.env] == ["A"]
    assert decision.choice == "dropped label windlass.dev/tenant, environment variable LD_PRELOAD"

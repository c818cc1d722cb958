"""Children of a BatchInference: account, launch settings, policy, and an Indexed Job whose pods are workers.

A worker's pod is a replica's pod that runs another command. The Job's name carries a hash of what cannot be changed in
a Job: another spec is another Job, which goes on from the checkpoint.
"""

from __future__ import annotations

from typing import Any, Final

from windlass_contract.launch_spec import FILE_NAME, MOUNT_PATH
from windlass_operator.domain import labels
from windlass_operator.domain.batch_plan import BatchPlan
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import Action
from windlass_operator.domain.revision import fingerprint
from windlass_operator.render.claim import render_claim_template
from windlass_operator.render.launch import render_launch
from windlass_operator.render.manifest import Manifest, service_child
from windlass_operator.render.network_policy import render_service_policy
from windlass_operator.render.pod import CONTAINER, USER_ID, render_pod_template
from windlass_operator.render.service import render_account
from windlass_operator.render.workload import render_takings

INPUT_MOUNT: Final = "/batch/input"
RESULTS_MOUNT: Final = "/batch/results"
WRONG_USAGE: Final = 2
"""Exit code of a worker that no other attempt would help: the input or the results folder is at fault."""
_SERVER_ONLY: Final = ("ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle")


def render_batch(plan: BatchPlan, settings: FleetSettings) -> tuple[Manifest, ...]:
    """Objects of a plan whose action is Apply, none for Remove. A plan on Hold has no objects to render: ValueError."""
    if plan.action is Action.HOLD:
        raise ValueError(f"{plan.key}: expected a plan to apply or remove, found one on hold")
    if plan.action is Action.REMOVE:
        return ()
    gpu = plan.workers.gpu_class
    return (
        render_account(plan.workers),
        render_launch(plan.workers),
        _policy(plan, settings),
        *([render_claim_template(plan.workers, gpu)] if gpu is not None and gpu.alternatives else []),
        render_job(plan, settings),
    )


def _policy(plan: BatchPlan, settings: FleetSettings) -> Manifest:
    """As for a replica, but nobody connects to a worker."""
    policy = render_service_policy(plan.workers, settings)
    return {**policy, "spec": {**policy["spec"], "ingress": []}}


def render_job(plan: BatchPlan, settings: FleetSettings) -> Manifest:
    """The Job. One index is one shard; a finished worker's successor takes the next one."""
    fixed: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": plan.shards,
        "backoffLimitPerIndex": plan.retries_per_shard,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [WRONG_USAGE]},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": _worker_template(plan, settings),
    }
    spec = {
        **fixed,
        "parallelism": max(1, plan.parallelism),
        "suspend": plan.parallelism == 0,
    }
    name = f"{plan.key.name}-{fingerprint(fixed)[:8]}"
    job = service_child("batch/v1", "Job", name, plan.workers, spec=spec)
    if plan.workers.takings:
        job["metadata"]["annotations"] = {labels.TAKINGS: render_takings(plan.workers.takings)}
    return job


def _worker_template(plan: BatchPlan, settings: FleetSettings) -> dict[str, Any]:
    template = render_pod_template(plan.workers, settings)
    spec = dict(template["spec"])
    container = {name: value for name, value in spec["containers"][0].items() if name not in _SERVER_ONLY}
    container["args"] = _arguments(plan)
    container["volumeMounts"] = [
        *container["volumeMounts"],
        {"name": _volume(plan, "input"), "mountPath": INPUT_MOUNT, "readOnly": True},
        {"name": "results", "mountPath": RESULTS_MOUNT},
    ]
    spec["containers"] = [container]
    spec["restartPolicy"] = "Never"
    # Claims come with the owner of whoever made them; the group lets an unprivileged worker write.
    spec["securityContext"] = {
        **spec["securityContext"],
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
    }
    claims = {"results": plan.results.claim, _volume(plan, "input"): plan.input.claim}
    spec["volumes"] = [
        *spec["volumes"],
        *({"name": name, "persistentVolumeClaim": {"claimName": claim}} for name, claim in claims.items()),
    ]
    return {**template, "spec": spec}


def _volume(plan: BatchPlan, name: str) -> str:
    """One volume for a claim that holds both: some drivers mount a claim once per pod."""
    return "results" if plan.input.claim == plan.results.claim else name


def _arguments(plan: BatchPlan) -> list[str]:
    """The shard is the pod's index, which Kubernetes sets in the environment."""
    return [
        "batch",
        "--launch-spec",
        f"{MOUNT_PATH}/{FILE_NAME}",
        "--input",
        f"{INPUT_MOUNT}/{plan.input.path}",
        "--results",
        f"{RESULTS_MOUNT}/{plan.results.path}",
        "--shards",
        str(plan.shards),
        "--attempts",
        str(plan.attempts_per_request),
    ]

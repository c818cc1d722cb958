"""Read the processes that a service's rendered objects ask for. Pure.

The same manifests go to a cluster and to this machine, so what is tried here is what a cluster would run. Only what a
single machine
must do its own way is replaced: the address to listen on, and paths relative to the file that names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from windlass_contract.launch_spec import FILE_NAME, LaunchSpec
from windlass_operator.cluster.local_processes import Wanted
from windlass_operator.cluster.protocol import Manifest
from windlass_operator.domain import labels

_FILE_SCHEME: Final = "file://"
_GRACE_S: Final = 15.0
"""Time a replica has beyond its drain timeout to say goodbye, as in a pod's grace period."""
_POD_ONLY: Final = frozenset({"HOME", "HF_HOME", "NVIDIA_VISIBLE_DEVICES"})
"""Variables that describe the container's own file system and devices; here the user's stand."""


@dataclasses.dataclass(frozen=True, slots=True)
class LocalWorkload:
    """One service's processes."""

    wanted: Wanted
    launch: LaunchSpec
    """Listens on the loopback interface, on a port of the replica's own choice."""
    env: Mapping[str, str]
    """What the pod template adds to the environment."""
    gpu_class: str = ""


def read_workload(children: Sequence[Manifest], folder: pathlib.Path) -> LocalWorkload | None:
    """Fold a service's children; None when there is no Deployment among them.

    `folder` is where relative paths start.
    """
    by_kind = {child["kind"]: child for child in children}
    deployment = by_kind.get("Deployment")
    if deployment is None:
        return None
    spec = deployment["spec"]
    launch = localise(LaunchSpec.from_json(by_kind["ConfigMap"]["data"][FILE_NAME]), folder)
    env = _plain_env(spec["template"])
    surge, unavailable = _rolling_update(spec)
    wanted = Wanted(
        replicas=_replicas(spec, by_kind.get("HorizontalPodAutoscaler")),
        revision=_revision(launch, env),
        surge=surge,
        unavailable=unavailable,
        drain_timeout_s=launch.drain_timeout_s + _GRACE_S,
    )
    return LocalWorkload(wanted, launch, env, deployment["metadata"].get("labels", {}).get(labels.GPU_CLASS, ""))


def localise(launch: LaunchSpec, folder: pathlib.Path) -> LaunchSpec:
    """Fit a launch spec to this machine."""
    uri = launch.model_uri
    path = uri.removeprefix(_FILE_SCHEME)
    if uri.startswith(_FILE_SCHEME) and not path.startswith("/"):
        uri = _FILE_SCHEME + str((folder / path).resolve())
    return dataclasses.replace(launch, model_uri=uri, host="127.0.0.1", port=0)


def _replicas(spec: Mapping[str, Any], autoscaler: Manifest | None) -> int:
    """Without a cluster nobody scales, so a scaled service runs at its minimum."""
    if "replicas" in spec:
        return int(spec["replicas"])
    return int(autoscaler["spec"].get("minReplicas", 1)) if autoscaler is not None else 1


def _rolling_update(spec: Mapping[str, Any]) -> tuple[int, int]:
    strategy = spec.get("strategy", {})
    if strategy.get("type") == "Recreate":
        return 0, int(spec.get("replicas", 1))
    rolling = strategy.get("rollingUpdate", {})
    surge, unavailable = rolling.get("maxSurge", 1), rolling.get("maxUnavailable", 0)
    surge, unavailable = (value if isinstance(value, int) else 1 for value in (surge, unavailable))
    return (surge, unavailable) if surge or unavailable else (1, 0)


def _plain_env(template: Mapping[str, Any]) -> dict[str, str]:
    container = template["spec"]["containers"][0]
    return {item["name"]: item["value"] for item in container.get("env", ()) if item["name"] not in _POD_ONLY}


def _revision(launch: LaunchSpec, env: Mapping[str, str]) -> str:
    text = launch.to_json() + json.dumps(dict(env), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]

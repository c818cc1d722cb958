"""Canaries as services of their own: what a canary replaces in its service, and the key under which it is planned.

A canary goes through the same admission, quota, class choice and rollout as any service, under the key `chat/next`
beside `chat`. No object's name holds a slash, so nothing else can have such a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from windlass_operator.api.v1alpha1.canary import CanaryPhase, CanaryStatus
from windlass_operator.api.v1alpha1.inference_service import Canary, InferenceService, InferenceServiceStatus, Rollout
from windlass_operator.domain.canary import Reading as Reading
from windlass_operator.domain.canary import advance, find_status, is_aborted
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.snapshot import Key, Workload

_SEPARATOR: Final = "/"
_REPLACED: Final = ("accelerator", "precision", "cache", "limits")
_NOTHING_RUNS: Final = Workload()


def canary_key(service: Key, canary: str) -> Key:
    """Key under which a canary is planned and its workload is known."""
    return service._replace(name=f"{service.name}{_SEPARATOR}{canary}")


def service_key(key: Key) -> Key:
    """Key of the service that a canary belongs to; any other key itself."""
    return key._replace(name=key.name.partition(_SEPARATOR)[0])


def canary_of(key: Key) -> str:
    """Name of the canary behind a key; empty for a service."""
    return key.name.partition(_SEPARATOR)[2]


def object_name(service: str, canary: str) -> str:
    """What a canary's objects are called."""
    return f"{service}-{canary}"


def derive_canaries(service: InferenceService) -> tuple[InferenceService, ...]:
    """Return each canary as a service of its own."""
    return tuple(_derive(service, canary) for canary in service.spec.canaries)


def _derive(service: InferenceService, canary: Canary) -> InferenceService:
    """The same service with some fields replaced. An aborted one wants no replicas, so it gives its devices back."""
    spec, wanted = service.spec, canary.replicas or 1
    served_name = spec.model.served_name or service.metadata.name
    uri = canary.model.uri if canary.model is not None else spec.model.uri
    changes: dict[str, Any] = {
        "canaries": [],
        "scaling": None,
        "replicas": 0 if is_aborted(canary, service.status.canaries) else wanted,
        # Nobody is promised a canary: its stable revision answers in its place, so one replica may always leave.
        "rollout": Rollout(min_available=wanted - 1),
        "model": spec.model.model_copy(update={"uri": uri, "served_name": served_name}),
        **{name: value for name in _REPLACED if (value := getattr(canary, name)) is not None},
    }
    name = f"{service.metadata.name}{_SEPARATOR}{canary.name}"
    return service.model_copy(
        update={
            "metadata": service.metadata.model_copy(update={"name": name}),
            "spec": spec.model_copy(update=changes),
            "status": InferenceServiceStatus(),
        }
    )


def advance_canaries(
    service: InferenceService, workloads: Mapping[Key, Workload], readings: Mapping[str, Reading], now: str
) -> InferenceService:
    """Return the service with the state of its canaries at `now`. `readings`: name -> what a check measured."""
    if not service.spec.canaries and not service.status.canaries:
        return service
    key = Key("InferenceService", service.metadata.namespace or "default", service.metadata.name)
    states = [
        advance(
            canary,
            find_status(service.status.canaries, canary.name),
            workloads.get(canary_key(key, canary.name), _NOTHING_RUNS),
            readings.get(canary.name),
            now,
            suspended=service.spec.suspend,
        )
        for canary in service.spec.canaries
    ]
    return service.model_copy(update={"status": service.status.model_copy(update={"canaries": states})})


def with_refusal(state: CanaryStatus, refusal: Refusal | None) -> CanaryStatus:
    """A canary that may not run says why; one that failed keeps the reason of that."""
    if refusal is None or state.phase is CanaryPhase.ABORTED:
        return state
    update = {
        "phase": CanaryPhase.PENDING,
        "traffic_percent": 0,
        "reason": refusal.reason,
        "message": str(refusal)[:1024],
        "analysis": None,  # what is not running cannot fail; it is judged anew once it runs
    }
    return state.model_copy(update=update)


def explain_canaries(canaries: Iterable[Canary], statuses: Iterable[CanaryStatus]) -> tuple[Decision, ...]:
    """Say what share each canary gets, and why."""
    known = tuple(statuses)
    return tuple(_explain(canary, find_status(known, canary.name)) for canary in canaries)


def _explain(canary: Canary, state: CanaryStatus | None) -> Decision:
    topic = f"canary {canary.name}"
    if state is None:
        return decide(topic, f"{canary.traffic_percent} % of the traffic", "spec.canaries; nothing runs yet")
    return decide(
        topic, f"{state.phase.value}, {state.traffic_percent} % of the traffic", state.message or "spec.canaries"
    )

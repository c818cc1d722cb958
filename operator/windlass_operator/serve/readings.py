"""Choose what an autoscaler is told, from the replicas there are and the samples at hand. Pure.

A value is told only when it is fresh. For one pod that means a missing item. For a sum over a service every ready
replica must have a fresh value: a sum over some of them would look like less demand, and the autoscaler would shrink.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from windlass_operator.cluster.gateways import Demand
from windlass_operator.domain import labels
from windlass_operator.errors import RetryLater
from windlass_operator.serve.samples import RATIOS, PodKey, Sample, Samples
from windlass_operator.serve.selectors import Selector, accepts


class NoValue(RetryLater):
    """Nothing fresh is known; answered as 404, so that an autoscaler holds."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One pod of an InferenceService."""

    key: PodKey
    service: str
    labels: Mapping[str, str]
    ip: str = ""
    """Empty until the pod has an address."""
    ready: bool = False
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class PodReading:
    """One metric of one pod."""

    key: PodKey
    sample: Sample


@dataclass(frozen=True, slots=True)
class ServiceReading:
    """One metric of one InferenceService: a sum, or the mean of a share. Its time is that of the oldest sample."""

    namespace: str
    service: str
    sample: Sample


def parse_replica(pod: Mapping[str, Any]) -> Replica:
    """Read what matters here from a Pod."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    names = metadata.get("labels") or {}
    conditions = status.get("conditions") or ()
    return Replica(
        key=PodKey(metadata.get("namespace", ""), metadata["name"]),
        service=names.get(labels.SERVICE) or names.get(labels.INSTANCE, ""),
        labels=names,
        ip=status.get("podIP") or "",
        ready=any(item["type"] == "Ready" and item["status"] == "True" for item in conditions),
        leaving="deletionTimestamp" in metadata,
    )


def read_pods(
    metric: str, replicas: Iterable[Replica], samples: Samples, *, now_s: float, max_age_s: float
) -> tuple[PodReading, ...]:
    """Return the fresh values of some replicas, in the order of their names. Raises NoValue when there is none."""
    asked = list(replicas)
    found = [
        PodReading(replica.key, sample)
        for replica in sorted(asked, key=lambda item: item.key)
        if (sample := fresh_sample(samples, replica.key, now_s=now_s, max_age_s=max_age_s)) is not None
    ]
    if not found:
        raise NoValue(
            f"{metric}: expected a value at most {max_age_s:g} s old, found none for {len(asked)} matching replicas"
        )
    return tuple(found)


def read_service(
    metric: str,
    namespace: str,
    service: str,
    replicas: Iterable[Replica],
    samples: Samples,
    *,
    now_s: float,
    max_age_s: float,
) -> ServiceReading:
    """Return the value of a whole service. Raises NoValue unless every ready replica has a fresh one."""
    subject = f"{metric} of InferenceService {namespace}/{service}"
    ready = [
        replica.key
        for replica in replicas
        if replica.key.namespace == namespace and replica.service == service and replica.ready and not replica.leaving
    ]
    if not ready:
        raise NoValue(f"{subject}: expected a ready replica, found none")
    found = [fresh_sample(samples, key, now_s=now_s, max_age_s=max_age_s) for key in ready]
    known = [sample for sample in found if sample is not None]
    if len(known) < len(ready):
        raise NoValue(
            f"{subject}: expected a value at most {max_age_s:g} s old from all {len(ready)} ready replicas, "
            f"found {len(known)}"
        )
    return ServiceReading(namespace, service, _aggregate(metric, known))


def read_demand(
    namespace: str,
    service: str,
    replicas: Iterable[Replica],
    demand: Demand,
    samples: Sequence[Samples],
    *,
    now_s: float,
    max_age_s: float,
) -> ServiceReading:
    """Return the requests of a service, by its gateways or by its replicas, whichever see more.

    `samples`: running and waiting requests of replicas. Raises NoValue where a gateway or a replica is not heard: what
    it would have said might keep the last replica alive.
    """
    subject = f"requests of InferenceService {namespace}/{service}"
    if demand.asked == 0:
        raise NoValue(f"{subject}: expected a gateway, which alone could wake it again, found none")
    if demand.missing:
        raise NoValue(f"{subject}: expected an answer of all {demand.asked} gateways, {demand.missing} gave none")
    ready = [
        replica.key
        for replica in replicas
        if replica.key.namespace == namespace and replica.service == service and replica.ready and not replica.leaving
    ]
    found = [fresh_sample(kind, key, now_s=now_s, max_age_s=max_age_s) for kind in samples for key in ready]
    known = [sample for sample in found if sample is not None]
    if len(known) < len(found):
        raise NoValue(
            f"{subject}: expected values at most {max_age_s:g} s old from all {len(ready)} ready replicas, "
            f"found {len(known)} of {len(found)}"
        )
    by_replicas = sum(sample.value for sample in known)
    at_s = min([now_s, *(sample.at_s for sample in known)])
    return ServiceReading(namespace, service, Sample(max(demand.of(namespace, service), by_replicas), at_s))


def read_services(
    metric: str,
    namespace: str,
    selector: Selector,
    replicas: Iterable[Replica],
    samples: Samples,
    *,
    now_s: float,
    max_age_s: float,
) -> tuple[ServiceReading, ...]:
    """Return the values of every service whose labels `namespace` and `service` a selector accepts.

    Autoscalers add the items up, so one service without a value takes away the whole answer. Raises NoValue.
    """
    there = [replica for replica in replicas if replica.key.namespace == namespace and replica.service]
    names = sorted({replica.service for replica in there})
    chosen = [name for name in names if accepts(selector, external_labels(namespace, name))]
    if not chosen:
        raise NoValue(f"{metric}: expected a matching InferenceService with replicas in {namespace}, found none")
    return tuple(
        read_service(metric, namespace, name, there, samples, now_s=now_s, max_age_s=max_age_s) for name in chosen
    )


def external_labels(namespace: str, service: str) -> dict[str, str]:
    """Labels by which external metrics are selected."""
    return {"namespace": namespace, "service": service}


def fresh_sample(samples: Samples, key: PodKey, *, now_s: float, max_age_s: float) -> Sample | None:
    """Return the sample of a pod unless it is too old, or from a clock that is as far ahead."""
    sample = samples.get(key)
    return sample if sample is not None and abs(now_s - sample.at_s) <= max_age_s else None


def keep_known(old: Samples, new: Samples, replicas: Iterable[Replica]) -> dict[PodKey, Sample]:
    """New samples, and the last known ones of replicas that could not be read this time; they age by themselves."""
    there = {replica.key for replica in replicas}
    return {key: sample for key, sample in {**old, **new}.items() if key in there}


def _aggregate(metric: str, samples: Sequence[Sample]) -> Sample:
    total = sum(sample.value for sample in samples)
    value = total / len(samples) if metric in RATIOS else total
    return Sample(value, min(sample.at_s for sample in samples))

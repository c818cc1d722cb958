"""What must hold while everything around the operator breaks.

`Invariants` follows pods and Deployments by watches of its own, past every fault, so that no moment escapes it:

    with watching(control_plane.admin, Promise("chat", min_available=2, replicas=3)) as invariants:
        ...break things...
        invariants.check()              # nothing dipped so far, nothing is double, orphaned or marked

`assert_one_writer` does the same for two operators, from what their proxies forwarded.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support.control_plane import Access
from support.fault_proxy import FaultProxy, Write
from support.kube_client import KubeClient, Manifest, RefusedError, eventually
from support.services import API, APPS, CHILD_KINDS, OWNED, RUNTIME, is_ready

INSTANCE = "app.kubernetes.io/instance"
OWNER_UID = "windlass.dev/owner-uid"
GPU_CLASS = "windlass.dev/gpu-class"
WATCH_S = 2
"""Length of one watch; also how long the end of the block waits for the followers."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a service holds from the moment it first did: so many pods serve, so many are asked for."""

    service: str
    min_available: int = 0
    replicas: int = 0
    namespace: str = "team-a"


@dataclass(frozen=True, slots=True)
class Limit:
    """Devices of a class that pods of a namespace may hold at any moment: none is given out twice."""

    gpu_class: str
    devices: int
    namespace: str = "team-a"


class Invariants:
    """Use through `watching`."""

    def __init__(self, access: Access, rules: tuple[Promise | Limit, ...]) -> None:
        self._access = access
        self._kube = KubeClient(access)
        self._promises = [rule for rule in rules if isinstance(rule, Promise)]
        self._limits = [rule for rule in rules if isinstance(rule, Limit)]
        self._peaks = dict.fromkeys(self._limits, 0)
        self._kept: set[tuple[str, Promise]] = set()
        self._objects: dict[str, dict[str, Manifest]] = {"Pod": {}, "Deployment": {}}
        self._stop = threading.Event()
        self.broken: list[str] = []
        """Promises and limits that were broken at some moment, in words."""
        self.seen = 0
        """Changes of pods and Deployments that went by."""

    def check(self) -> None:
        """Assert that no promise was ever broken and that nothing is double, orphaned or marked now."""
        assert self.seen, "nothing was followed"
        assert all(self._peaks.values()), f"a limit was never touched: {self._peaks}"
        assert not self.broken, "\n".join(self.broken)
        problems = eventually(lambda: [*self._doubles(), *self._orphans(), *self._marks()], lambda found: not found)
        assert not problems

    def check_settled(self, *, timeout_s: float = 45.0) -> None:
        """Wait until every service is Ready and runs exactly what it asks for, then `check`."""
        eventually(lambda: list(self._unsettled()), lambda found: not found, timeout_s=timeout_s)
        self.check()

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _children(self) -> Iterator[Manifest]:
        for api, kind in CHILD_KINDS:
            for child in self._kube.list(api, kind, selector=f"{OWNED},{RUNTIME}"):
                yield {**child, "kind": kind}

    def _doubles(self) -> Iterator[str]:
        found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for child in self._children():
            metadata = child["metadata"]
            found[child["kind"], metadata["namespace"], metadata["labels"][INSTANCE]].append(metadata["name"])
        yield from (f"{kind} of {ns}/{service}: {names}" for (kind, ns, service), names in found.items() if names[1:])

    def _orphans(self) -> Iterator[str]:
        owners = {owner["metadata"]["uid"] for owner in self._kube.list(API, "InferenceService")}
        for child in self._children():
            metadata = child["metadata"]
            uids = {owner["uid"] for owner in metadata.get("ownerReferences", ())}
            if len(uids) != 1 or not uids <= owners or metadata["labels"].get(OWNER_UID) not in uids:
                yield f"{child['kind']} {metadata['namespace']}/{metadata['name']} belongs to {uids or 'nobody'}"

    def _marks(self) -> Iterator[str]:
        for kind in ("InferenceService", "Tenant", "GPUClass"):
            for found in self._kube.list(API, kind):
                metadata = found["metadata"]
                marks = [name for name in ("finalizers", "annotations") if metadata.get(name)]
                yield from (f"{kind} {metadata['name']} carries {name}: {metadata[name]}" for name in marks)

    def _unsettled(self) -> Iterator[str]:
        wanted = {}
        for service in self._kube.list(API, "InferenceService"):
            metadata = service["metadata"]
            name = f"{metadata['namespace']}/{metadata['name']}"
            wanted[name] = service
            if not is_ready(service):
                yield f"{name} is not Ready: {service.get('status', {}).get('conditions')}"
        for child in self._children():
            metadata = child["metadata"]
            name = f"{metadata['namespace']}/{metadata['labels'][INSTANCE]}"
            if name not in wanted:
                yield f"{child['kind']} {name} is left"
            elif child["kind"] == "Deployment" and child.get("status", {}).get("replicas") != child["spec"]["replicas"]:
                yield f"{name} runs {child.get('status', {}).get('replicas')} of {child['spec']['replicas']} pods"

    # -- all the while -------------------------------------------------------------------------------------------------

    def follow(self, api_version: str, kind: str) -> None:
        """List and watch one kind until `stop`; run by a thread."""
        path, version = self._kube.collection_of(api_version, kind, ""), ""
        while not self._stop.is_set():
            try:
                version = version or self._list(kind, path)
                query = f"watch=1&timeoutSeconds={WATCH_S}&labelSelector={RUNTIME}&resourceVersion={version}"
                for line in _stream(self._access, f"{path}?{query}"):
                    version = self._take_event(kind, json.loads(line))
            except (OSError, http.client.HTTPException, RefusedError, ValueError):
                version = ""  # the server is away, or the version too old for it
                self._stop.wait(0.1)

    def _list(self, kind: str, path: str) -> str:
        listed = self._kube.request("GET", f"{path}?labelSelector={RUNTIME}")
        self._take(kind, {_name(item): item for item in listed["items"]})
        return str(listed["metadata"]["resourceVersion"])

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()

    def _take_event(self, kind: str, event: Mapping[str, Any]) -> str:
        if event["type"] == "ERROR":
            raise ValueError(event)
        objects = dict(self._objects[kind])
        objects.pop(_name(event["object"]), None)
        if event["type"] != "DELETED":
            objects[_name(event["object"])] = event["object"]
        self._take(kind, objects)
        return str(event["object"]["metadata"]["resourceVersion"])

    def _take(self, kind: str, objects: dict[str, Manifest]) -> None:
        self.seen += self._objects[kind] != objects
        self._objects[kind] = objects
        for limit in self._limits if kind == "Pod" else ():
            held = sum(_devices(pod, limit) for pod in objects.values())
            self._peaks[limit] = max(held, self._peaks[limit])
            if held > limit.devices:
                self.broken.append(f"{time.strftime('%X')} {limit.gpu_class}: {held} devices, limit {limit.devices}")
        for promise in self._promises:
            if kind == "Pod" and promise.min_available:
                serving = sum(_serves(pod, promise) for pod in objects.values())
                self._judge("pods that serve", promise, serving, promise.min_available)
            found = objects.get(f"{promise.namespace}/{promise.service}")
            if kind == "Deployment" and promise.replicas and found is not None:
                self._judge("spec.replicas", promise, found["spec"]["replicas"], promise.replicas)

    def _judge(self, what: str, promise: Promise, found: int, promised: int) -> None:
        if found >= promised:
            self._kept.add((what, promise))
        elif (what, promise) in self._kept:
            self.broken.append(f"{time.strftime('%X')} {promise.service}: {what}: {found}, promised {promised}")


@contextlib.contextmanager
def watching(access: Access, *rules: Promise | Limit) -> Iterator[Invariants]:
    """Invariants that are followed until the block ends; `access` goes past every fault."""
    invariants = Invariants(access, rules)
    kinds = (("v1", "Pod"), (APPS, "Deployment"))
    threads = [threading.Thread(target=invariants.follow, args=kind, daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    try:
        yield invariants
    finally:
        invariants.stop()
        for thread in threads:
            thread.join(2 * WATCH_S)


def assert_one_writer(*proxies: FaultProxy, since: float = 0.0, handovers: int = 1) -> None:
    """Assert that writes of different operators never overlap, and that the pen went from hand to hand so often."""
    writes = sorted(
        ((write.started, write, number) for number, proxy in enumerate(proxies) for write in proxy.of_objects(since)),
        key=lambda item: item[0],
    )
    assert {number for _, _, number in writes} == set(range(len(proxies))), "not every operator wrote something"
    changes, last = 0, -1
    ended: dict[int, tuple[float, Write]] = {}
    for started, write, number in writes:
        for other, (until, earlier) in ended.items():
            assert other == number or until <= started, f"{earlier} and {write} overlap"
        changes += last not in (-1, number)
        last = number
        ended[number] = max(ended.get(number, (0.0, write)), (write.ended, write), key=lambda item: item[0])
    assert changes == handovers, f"{changes} handovers, expected {handovers}"


def _serves(pod: Manifest, promise: Promise) -> bool:
    metadata = pod["metadata"]
    if (metadata["namespace"], metadata["labels"].get(INSTANCE)) != (promise.namespace, promise.service):
        return False
    ready = any(
        one["type"] == "Ready" and one["status"] == "True" for one in pod.get("status", {}).get("conditions", ())
    )
    return ready and "deletionTimestamp" not in metadata


def _devices(pod: Manifest, limit: Limit) -> int:
    metadata = pod["metadata"]
    if (metadata["namespace"], metadata["labels"].get(GPU_CLASS)) != (limit.namespace, limit.gpu_class):
        return 0
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    limits = [container.get("resources", {}).get("limits", {}) for container in pod["spec"]["containers"]]
    return sum(int(count) for each in limits for name, count in each.items() if name.startswith("nvidia.com/"))


def _stream(access: Access, path: str) -> Iterator[bytes]:
    request = urllib.request.Request(access.url + path, headers=access.headers)
    with urllib.request.urlopen(request, context=access.ssl_context(), timeout=WATCH_S + 5) as answer:
        yield from answer


def _name(manifest: Manifest) -> str:
    return f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}"

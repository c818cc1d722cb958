"""A small fleet to roll in: the Deployment controller, the scheduler and the kubelets as pure steps over one state.

The controller follows the rules of Kubernetes' own (rolling update: scale the new ReplicaSet up within maxSurge, drop
broken old pods, then healthy ones within maxUnavailable). Everybody acts in any order, so a test that walks all orders
sees every race between the operator's decisions and what the cluster does meanwhile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from support.builders import build_gpu_class, build_node, build_service, build_tenant, service_key
from windlass_operator.api.v1alpha1.inference_service import InferenceService, RolloutState, RolloutStatus
from windlass_operator.domain.admission import Admission
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.gpu_class import Candidate
from windlass_operator.domain.quota import Grant
from windlass_operator.domain.rollout import RolloutPlan, RolloutWay, observe_replacement
from windlass_operator.domain.rollout_plan import RolloutClues, hold_floor, plan_replacement
from windlass_operator.domain.rollout_steps import plan_rollout_status
from windlass_operator.domain.scaling import ScalingPlan
from windlass_operator.domain.snapshot import Key, Revision, Snapshot, Workload

SETTINGS = FleetSettings()
NEW, UNPLACED, STARTING, READY, BROKEN, LEAVING = "new", "unplaced", "starting", "ready", "broken", "leaving"
PLACED = frozenset({STARTING, READY, BROKEN, LEAVING})


@dataclass(frozen=True, slots=True, order=True)
class Pod:
    """One pod. Pods of one template and phase are alike, so states that differ in their names only are one."""

    template: str
    phase: str
    gpu_class: str
    size: int = 1
    """Devices."""
    node: int = -1
    """Index of its node in `World.devices`; -1 while it has none."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service: what the user wants, the Deployment as written, and its pods."""

    name: str
    wanted: int
    min_available: int
    target: str = "a"
    """Template the user asks for."""
    gpu_class: str = "h200"
    """Class the user asks for."""
    template: str = "a"
    """Template of the Deployment."""
    size: int = 1
    """Devices per replica that the user asks for."""
    written_class: str = "h200"
    written_size: int = 1
    seen: str = "a"
    """Template that the controller works towards."""
    scaled: int = 0
    """Replicas that the controller has scaled to."""
    max_surge: int = 1
    max_unavailable: int = 0
    paused: bool = False
    floor: int = 0
    """Least replicas that its autoscaler may choose."""
    sets: tuple[tuple[str, int], ...] = ()
    """ReplicaSets, oldest first: template and wanted pods."""
    pods: tuple[Pod, ...] = ()
    status: tuple[str, RolloutState, str] | None = None
    """Of a rollout that is not complete: revision, state and start."""

    def count(self, *phases: str, template: str | None = None) -> int:
        """Pods in some phases."""
        return sum(pod.phase in phases and template in (None, pod.template) for pod in self.pods)

    @property
    def staying(self) -> tuple[Pod, ...]:
        """Pods that are not leaving."""
        return tuple(pod for pod in self.pods if pod.phase != LEAVING)

    @property
    def promise(self) -> int:
        """Replicas that must stay ready."""
        return min(self.min_available, self.wanted)

    @property
    def done(self) -> bool:
        """Whether every pod is of the wanted template and serves."""
        served = [pod.template == self.target and pod.phase == READY for pod in self.pods]
        return self.template == self.target and len(served) == self.wanted and all(served)


@dataclass(frozen=True, slots=True)
class Edit:
    """A user asks for another template, maybe on another class."""

    name: str
    target: str
    gpu_class: str = "h200"
    size: int = 1


@dataclass(frozen=True, slots=True)
class Scale:
    """An autoscaler asks for a number of replicas, within the bounds it was given."""

    name: str
    replicas: int


@dataclass(frozen=True, slots=True)
class Foreign:
    """Pods outside our books hold so many devices of the first node of a class from now on."""

    gpu_class: str
    devices: int


@dataclass(frozen=True, slots=True)
class Break:
    """A ready pod of the template it runs breaks."""

    name: str
    template: str = "a"


Event = Edit | Scale | Foreign | Break


@dataclass(frozen=True, slots=True)
class World:
    """The whole fleet."""

    services: tuple[Service, ...]
    devices: tuple[tuple[str, int], ...]
    """Class and devices of each node."""
    foreign: tuple[tuple[str, int], ...] = ()
    """Devices of the first node per class that pods outside our books hold."""
    broken: frozenset[str] = frozenset()
    """Templates whose pods never become ready."""
    quota: int | None = None
    """Devices that the services may hold together."""
    events: tuple[Event, ...] = ()
    """What users, autoscalers and strangers will still do, in this order and at any time."""

    def free_on(self, node: int) -> int:
        """Devices of a node that nobody holds, as the scheduler sees it."""
        gpu_class, devices = self.devices[node]
        first = next(index for index, (name, _) in enumerate(self.devices) if name == gpu_class)
        foreign = dict(self.foreign).get(gpu_class, 0) if node == first else 0
        return devices - foreign - sum(pod.size for one in self.services for pod in one.pods if pod.node == node)

    def free(self, gpu_class: str) -> int:
        """Devices of a class that nobody holds."""
        return sum(self.free_on(node) for node, (name, _) in enumerate(self.devices) if name == gpu_class)

    def nodes_for(self, gpu_class: str, size: int) -> list[int]:
        """Nodes that have room for one more pod."""
        return [node for node, (name, _) in enumerate(self.devices) if name == gpu_class and self.free_on(node) >= size]

    def with_service(self, service: Service) -> World:
        """The world with one service changed."""
        others = {one.name: one for one in self.services} | {service.name: service}
        return replace(self, services=tuple(others[one.name] for one in self.services))


def settled(
    name: str, wanted: int, min_available: int, *, gpu_class: str = "h200", broken: int = 0, node: int = 1
) -> Service:
    """A service that runs template `a` with one device per replica on one node; some of its pods may be broken."""
    pods = (
        *[Pod("a", BROKEN, gpu_class, node=node)] * broken,
        *[Pod("a", READY, gpu_class, node=node)] * (wanted - broken),
    )
    return Service(
        name,
        wanted,
        min_available,
        gpu_class=gpu_class,
        written_class=gpu_class,
        scaled=wanted,
        sets=(("a", wanted),),
        pods=pods,
    )


def settled_on(name: str, size: int, nodes: Iterable[int], min_available: int) -> Service:
    """A service that runs template `a` with `size` devices per replica, one replica on each of some nodes."""
    pods = tuple(Pod("a", READY, "h200", size, node) for node in sorted(nodes))
    wanted = len(pods)
    sets = (("a", wanted),)
    return Service(name, wanted, min_available, size=size, written_size=size, scaled=wanted, sets=sets, pods=pods)


def happen(world: World) -> World:
    """The next event comes."""
    event, left = world.events[0], replace(world, events=world.events[1:])
    if isinstance(event, Foreign):
        first = next(node for node, (name, _) in enumerate(world.devices) if name == event.gpu_class)
        taken = min(event.devices, dict(world.foreign).get(event.gpu_class, 0) + max(0, world.free_on(first)))
        return replace(left, foreign=tuple(sorted({**dict(world.foreign), event.gpu_class: taken}.items())))
    (service,) = [one for one in world.services if one.name == event.name]
    if isinstance(event, Edit):
        return left.with_service(replace(service, target=event.target, gpu_class=event.gpu_class, size=event.size))
    if isinstance(event, Scale):
        return left.with_service(replace(service, wanted=max(event.replicas, service.floor)))
    healthy = [pod for pod in service.pods if pod.phase == READY and pod.template == event.template]
    return left.with_service(_with_pod(service, healthy[0], replace(healthy[0], phase=BROKEN))) if healthy else left


# -- everybody's steps -------------------------------------------------------------------------------------------------


def successors(world: World) -> Iterator[tuple[str, World]]:
    """Every step that somebody can take now and that changes something: who, and the world after it."""
    if world.events:
        yield "event", happen(world)
    for service in world.services:
        candidates = [
            (f"operator {service.name}", world.with_service(reconcile(world, service))),
            (f"controller {service.name}", world.with_service(control(service))),
            *((f"kubelet {service.name}", world.with_service(one)) for one in run_pods(world, service)),
            *((f"scheduler {service.name}", world.with_service(one)) for one in schedule(world, service)),
        ]
        yield from ((who, after) for who, after in candidates if after != world)


def schedule(world: World, service: Service) -> Iterator[Service]:
    """Place one pod, or find that there is no place for it."""
    for pod in sorted(set(service.pods)):
        if pod.phase in (NEW, UNPLACED):
            nodes = world.nodes_for(pod.gpu_class, pod.size)
            for node in nodes:
                yield _with_pod(service, pod, replace(pod, phase=STARTING, node=node))
            if not nodes:
                yield _with_pod(service, pod, replace(pod, phase=UNPLACED))


def run_pods(world: World, service: Service) -> Iterator[Service]:
    """Start one pod, or let one go."""
    for pod in sorted(set(service.pods)):
        if pod.phase == STARTING:
            yield _with_pod(service, pod, replace(pod, phase=BROKEN if pod.template in world.broken else READY))
        elif pod.phase == LEAVING:
            yield _with_pod(service, pod, None)


def control(service: Service) -> Service:
    """One sync of the Deployment controller and of the ReplicaSet controller."""
    sets = dict(service.sets)
    if service.scaled != service.wanted:
        sets = _scale(service, sets)
    elif not service.paused:
        sets.setdefault(service.template, 0)
        sets = _scale_new(service, sets) or _scale_old(service, sets) or sets
    seen = service.template if service.template in sets and not service.paused else service.seen
    kept = tuple((template, count) for template, count in sets.items() if count or template == service.template)
    return _reconcile_sets(replace(service, sets=kept, seen=seen, scaled=service.wanted))


def _scale(service: Service, sets: Mapping[str, int]) -> dict[str, int]:
    """Somebody changed the number of replicas. One set takes it; several keep their shares, roughly: the largest takes
    the difference.
    """
    active = [template for template, count in sets.items() if count] or [next(reversed(sets))]
    if len(active) == 1:
        return {**sets, active[0]: service.wanted}
    if sets.get(service.template, 0) == service.wanted == service.count(READY, template=service.template):
        return {template: count if template == service.template else 0 for template, count in sets.items()}
    left = service.wanted + service.max_surge - sum(sets.values())
    after = dict(sets)
    newest_first = list(reversed(sets)) if left > 0 else list(sets)
    for template in sorted(newest_first, key=lambda one: -sets[one]):
        change = max(left, -after[template])
        after[template] += change
        left -= change
    return after


def _scale_new(service: Service, sets: Mapping[str, int]) -> dict[str, int] | None:
    new = sets[service.template]
    room = service.wanted + service.max_surge - sum(sets.values())
    change = service.wanted - new if new > service.wanted else max(0, min(room, service.wanted - new))
    return {**sets, service.template: new + change} if change else None


def _scale_old(service: Service, sets: Mapping[str, int]) -> dict[str, int] | None:
    ready = {template: service.count(READY, template=template) for template in sets}
    new_unavailable = sets[service.template] - min(sets[service.template], ready[service.template])
    least = service.wanted - service.max_unavailable
    budget = sum(sets.values()) - least - new_unavailable
    if budget <= 0:
        return None
    after = dict(sets)
    for template in sets:
        if template != service.template:
            broken = min(budget, after[template] - min(after[template], ready[template]))
            after[template] -= broken
            budget -= broken
    spare = sum(min(ready[template], sets[template]) for template in sets) - least
    for template in sets:
        if template != service.template:
            stopped = max(0, min(spare, after[template]))
            after[template] -= stopped
            spare -= stopped
    return after if after != sets else None


def _reconcile_sets(service: Service) -> Service:
    """Make and delete pods; who serves least goes first."""
    wanted, pods = dict(service.sets), list(service.pods)
    order = (NEW, UNPLACED, STARTING, BROKEN, READY)
    for template in sorted({pod.template for pod in pods} | wanted.keys()):
        mine = sorted(
            (pod for pod in pods if pod.template == template and pod.phase != LEAVING),
            key=lambda pod: order.index(pod.phase),
        )
        for pod in mine[: max(0, len(mine) - wanted.get(template, 0))]:
            pods.remove(pod)
            if pod.phase in PLACED:
                pods.append(replace(pod, phase=LEAVING))
        written = Pod(template, NEW, service.written_class, service.written_size)
        like = written if template == service.template or not mine else replace(mine[0], phase=NEW, node=-1)
        missing = wanted.get(template, 0) - len(mine)
        pods += [like] * max(0, missing)
    return replace(service, pods=tuple(sorted(pods)))


def _with_pod(service: Service, before: Pod, after: Pod | None) -> Service:
    pods = list(service.pods)
    pods.remove(before)
    return replace(service, pods=tuple(sorted([*pods, after] if after is not None else pods)))


# -- the operator ------------------------------------------------------------------------------------------------------


def reconcile(world: World, service: Service) -> Service:
    """One reconcile: plan with the shipped planner, write the Deployment and the status."""
    plan = plan_of(world, service)
    bounds = ScalingPlan(max(1, service.min_available), 99, (), 0)
    scaling = hold_floor(bounds, plan)
    written = replace(
        service,
        template=service.target,
        written_class=service.gpu_class,
        written_size=service.size,
        max_surge=plan.max_surge,
        max_unavailable=plan.max_unavailable,
        paused=plan.paused,
        floor=scaling.min_replicas if scaling is not None else 0,
    )
    replacement = observe_replacement(workload_of(written), plan.target, service.gpu_class)
    before = None if service.status is None else rollout_status(*service.status)
    status = plan_rollout_status(plan, replacement, written.wanted, service.size, before, now_of(world))
    return replace(written, status=shorten(status))


def plan_of(world: World, service: Service) -> RolloutPlan:
    """What the planner says now."""
    snapshot, candidates = _fleet(world.devices, world.quota)
    view = FleetView(
        replace(
            snapshot,
            services={_key(one): _object(one) for one in world.services},
            workloads={_key(one): workload_of(one) for one in world.services},
        ),
        SETTINGS,
    )
    grant = None
    if world.quota is not None:
        held = sum(workload_of(one).devices for one in world.services)
        grant = Grant(service.gpu_class, service.wanted, 0, 0, world.quota, max(0, world.quota - held))
    candidate = replace(candidates[service.gpu_class], count=service.size)
    verdict = Admission(None, service.wanted, candidate, grant)
    # The scheduler looks again before a refusal is believed, so only one that is still true counts.
    refused_s = 0.0 if world.nodes_for(service.gpu_class, service.size) else math.inf
    return plan_replacement(_object(service), verdict, service.wanted, view, RolloutClues(service.target, refused_s))


@functools.cache
def workload_of(service: Service) -> Workload:
    """What the operator sees of a service."""
    staying = service.staying
    revisions = []
    for template in sorted({pod.template for pod in staying}):
        mine = [pod for pod in staying if pod.template == template]
        ready = sum(pod.phase == READY for pod in mine)
        revisions.append(Revision(template, len(mine), ready, mine[0].gpu_class, template == service.seen))
    updated = [pod for pod in staying if pod.template == service.seen]
    here = sum(pod.size for pod in service.pods if pod.gpu_class == service.written_class)
    behind = sum(pod.size for pod in service.pods) - here
    by_node: dict[str, int] = {}
    for pod in service.pods:
        if pod.node >= 0:
            by_node[f"node-{pod.node}"] = by_node.get(f"node-{pod.node}", 0) + pod.size
    other = next((pod.gpu_class for pod in service.pods if pod.gpu_class != service.written_class), "")
    return Workload(
        replicas=len(staying),
        ready=service.count(READY),
        updated=len(updated),
        updated_ready=sum(pod.phase == READY for pod in updated),
        wanted=service.wanted,
        observed=service.template == service.seen,
        template=service.template,
        revisions=tuple(revisions),
        max_surge=service.max_surge,
        paused=service.paused,
        unplaced=service.count(UNPLACED),
        leaving=service.count(LEAVING),
        overdue=bool(service.count(BROKEN, template=service.seen)),
        gpu_class=service.written_class,
        devices=max(here, service.wanted * service.written_size - behind),
        devices_per_pod=service.written_size,
        devices_by_node=tuple(sorted(by_node.items())),
        devices_left_behind=((other, behind),) if behind else (),
    )


def is_truly_blocked(world: World, service: Service) -> bool:
    """Whether the planner declares the service blocked, and no node has the devices for it."""
    room = world.nodes_for(service.gpu_class, service.size)
    return plan_of(world, service).way is RolloutWay.BLOCKED and not room


def now_of(world: World) -> str:
    """A time after every start so far: the order of starts is all that a plan reads of it."""
    return f"{int(max((one.status[2] for one in world.services if one.status is not None), default='0')) + 1:03}"


def shorten(status: RolloutStatus | None) -> tuple[str, RolloutState, str] | None:
    """Keep what plans read, so that equal situations are equal states."""
    if status is None or status.state is RolloutState.COMPLETE:
        return None
    return status.revision, status.state, status.started


@functools.cache
def rollout_status(revision: str, state: RolloutState, started: str) -> RolloutStatus:
    """The status that a shortened one stands for."""
    return RolloutStatus(revision=revision, state=state, started=started)


def _key(service: Service) -> Key:
    return service_key(_bare(service.name, service.min_available, service.wanted, service.gpu_class, service.size))


def _object(service: Service) -> InferenceService:
    return _with_status(
        service.name, service.min_available, service.wanted, service.gpu_class, service.size, service.status
    )


@functools.cache
def _with_status(
    name: str, min_available: int, wanted: int, gpu_class: str, size: int, status: tuple[str, RolloutState, str] | None
) -> InferenceService:
    bare = _bare(name, min_available, wanted, gpu_class, size)
    if status is None:
        return bare
    return bare.model_copy(update={"status": bare.status.model_copy(update={"rollout": rollout_status(*status)})})


@functools.cache
def _bare(name: str, min_available: int, wanted: int, gpu_class: str, size: int) -> InferenceService:
    accelerator = {"classes": [gpu_class], "count": size}
    return build_service(name, accelerator=accelerator, replicas=wanted, rollout={"minAvailable": min_available})


@functools.cache
def _fleet(devices: tuple[tuple[str, int], ...], quota: int | None) -> tuple[Snapshot, dict[str, Candidate]]:
    classes = {name: build_gpu_class(name) for name, _ in devices}
    built = [build_node(f"node-{index}", gpu=name, devices=count) for index, (name, count) in enumerate(devices)]
    nodes = {node.name: node for node in built if any(node.allocatable.values())}
    counts = {name: sum(bool(count) for other, count in devices if other == name) for name, _ in devices}
    candidates = {name: Candidate(name, classes[name].spec, counts[name]) for name, _ in devices}
    tenants = {} if quota is None else {"acme": build_tenant("acme", gpus=dict.fromkeys(classes, quota))}
    return Snapshot(gpu_classes=classes, nodes=nodes, tenants=tenants), candidates


@dataclass(slots=True)
class Walk:
    """Every state that can be reached, with the steps that lead on from it."""

    start: World
    follow: Callable[[World], Iterable[tuple[str, World]]] = successors
    steps: dict[World, list[tuple[str, World]]] = field(default_factory=dict)

    def explore(self, limit: int = 200_000) -> None:
        """Visit everything. Raises AssertionError beyond `limit` states."""
        waiting = [self.start]
        while waiting:
            world = waiting.pop()
            if world in self.steps:
                continue
            assert len(self.steps) < limit, f"more than {limit} states"
            self.steps[world] = list(self.follow(world))
            waiting += [after for _, after in self.steps[world]]

    def resting(self) -> list[World]:
        """States that nobody leaves."""
        return [world for world, steps in self.steps.items() if not steps]

    def stuck(self) -> list[World]:
        """States from which no resting state can be reached."""
        before: dict[World, list[World]] = {}
        for world, steps in self.steps.items():
            for _, after in steps:
                before.setdefault(after, []).append(world)
        reached: set[World] = set()
        waiting = self.resting()
        while waiting:
            world = waiting.pop()
            if world not in reached:
                reached.add(world)
                waiting += before.get(world, ())
        return [world for world in self.steps if world not in reached]

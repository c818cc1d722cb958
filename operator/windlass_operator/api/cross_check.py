"""What one document cannot show: contradictions between the objects of the same files.

Errors where two objects claim one thing, warnings where a reference has no target among files that hold that side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from windlass_operator.api.check import did_you_mean, show
from windlass_operator.api.loaded import Loaded
from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.errors import Problem


def cross_check(loaded: Loaded) -> Loaded:
    """Return the same objects with the contradictions between them added."""
    return replace(
        loaded,
        problems=(*loaded.problems, *_namespaces_with_two_owners(loaded)),
        warnings=(*loaded.warnings, *_unknown_classes(loaded), *_services_against_tenants(loaded)),
    )


def _problem(
    loaded: Loaded, item: InferenceService | BatchInference | Tenant, path: str, found: str, expected: str
) -> Problem:
    source, metadata = loaded.source_of(item), item.metadata
    name = f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name
    return Problem(path, found, expected, source.file, source.line_of(path), f"{type(item).__name__} {name}")


def _namespaces_with_two_owners(loaded: Loaded) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for tenant in loaded.tenants:
        for index, namespace in enumerate(tenant.spec.namespaces):
            owner = owners.setdefault(namespace, tenant.metadata.name)
            if owner != tenant.metadata.name:
                yield _problem(
                    loaded,
                    tenant,
                    f"spec.namespaces[{index}]",
                    f"{show(namespace)}, which belongs to Tenant {owner}",
                    "a namespace of no other tenant",
                )


def _some_are_broken(loaded: Loaded, kind: str) -> bool:
    """Whether an object of the kind was left out for its errors; then a missing target proves nothing."""
    return any(problem.subject.startswith(f"{kind} ") for problem in loaded.problems)


def _unknown_classes(loaded: Loaded) -> Iterator[Problem]:
    known = [item.metadata.name for item in loaded.gpu_classes]
    if not known or _some_are_broken(loaded, "GPUClass"):
        return
    expected = "a GPUClass of these files, " + ", ".join(known)
    for service in loaded.tenants_work:
        for path, name in _named_classes(service):
            if name not in known:
                yield _problem(loaded, service, path, show(name) + did_you_mean(name, known), expected)
    for tenant in loaded.tenants:
        for index, quota in enumerate(tenant.spec.quota.gpus):
            if quota.name not in known:
                path = f"spec.quota.gpus[{index}].name"
                yield _problem(loaded, tenant, path, show(quota.name) + did_you_mean(quota.name, known), expected)


def _named_classes(service: InferenceService | BatchInference) -> Iterator[tuple[str, str]]:
    """Path and name of every GPUClass that a service with its canaries, or a batch, lists."""
    asked = [("spec.accelerator", service.spec.accelerator)]
    canaries = service.spec.canaries if isinstance(service, InferenceService) else ()
    asked += [(f"spec.canaries[{index}].accelerator", item.accelerator) for index, item in enumerate(canaries)]
    for path, accelerator in asked:
        for index, name in enumerate((accelerator and accelerator.classes) or ()):
            yield f"{path}.classes[{index}]", name


def _services_against_tenants(loaded: Loaded) -> Iterator[Problem]:
    owners = {namespace: tenant for tenant in loaded.tenants for namespace in tenant.spec.namespaces}
    for service in loaded.tenants_work if owners and not _some_are_broken(loaded, "Tenant") else ():
        tenant = owners.get(service.metadata.namespace)
        if tenant is None:
            yield _problem(
                loaded,
                service,
                "metadata.namespace",
                show(service.metadata.namespace) + ", which no tenant owns",
                "a namespace of a Tenant of these files",
            )
        elif service.spec.tier not in tenant.spec.allowed_tiers:
            allowed = ", ".join(tenant.spec.allowed_tiers)
            yield _problem(
                loaded,
                service,
                "spec.tier",
                str(service.spec.tier),
                f"a tier that Tenant {tenant.metadata.name} allows: {allowed}",
            )

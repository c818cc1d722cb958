"""Decide whether a plan may run here, before TensorRT sees it. Pure; every refusal names the way out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from windlass_runtime.engine.manifest import Identity, Manifest


@dataclass(frozen=True, slots=True)
class Here:
    """What a plan is compared with."""

    backend: str
    backend_version: str
    gpu: str | None
    """Such as sm_89; None without one."""
    model_digest: str
    plugins: tuple[str, ...] = ()
    """Names with versions, as in a manifest."""


def find_mismatch(identity: Identity, here: Here) -> str:
    """Why the plan may not run, and what to do about it; empty if it may."""
    name = f"plan {identity.fingerprint[:12]}"
    if here.gpu is None:
        return f"{name}: expected a GPU, found none; serve with torch, or give the replica a GPU"
    if identity.model_digest != here.model_digest:
        return (
            f"{name}: model: expected {identity.model_digest[:12]}…, found {here.model_digest[:12]}…; "
            "build a plan of this checkpoint"
        )
    if identity.backend != here.backend:
        return (
            f"{name}: expected the package {identity.backend}, found {here.backend}; "
            f"build with --backend {here.backend}"
        )
    if identity.backend_version != here.backend_version:
        return (
            f"{name}: {identity.backend}: expected version {identity.backend_version}, found {here.backend_version}; "
            f"build again here, or install {identity.backend}=={identity.backend_version}"
        )
    if here.gpu not in identity.targets:
        return f"{name}: GPU: expected {', '.join(identity.targets)}, found {here.gpu}; build with --target {here.gpu}"
    missing = [plugin for plugin in identity.plugins if plugin not in here.plugins]
    if missing:
        has = ", ".join(here.plugins) or "none"
        return f"{name}: plugins: expected {', '.join(missing)}, found {has}; install the plugin set it was built with"
    return ""


def choose_plan(manifests: Iterable[Manifest], wanted: Identity) -> Manifest | None:
    """The plan that computes what is wanted, holds its sequences and runs on its GPUs: the smallest such capacity, and
    then the most sequences."""

    def serves(found: Identity) -> bool:
        sizes = {name: getattr(found, name) for name in ("capacity", "decode_rows", "prefill_rows", "prefill_tokens")}
        alike = replace(wanted, targets=found.targets, **sizes) == found
        return alike and found.capacity >= wanted.capacity and set(wanted.targets) <= set(found.targets)

    fitting = [manifest for manifest in manifests if serves(manifest.identity)]
    return min(fitting, key=lambda manifest: (manifest.identity.capacity, -manifest.identity.decode_rows), default=None)

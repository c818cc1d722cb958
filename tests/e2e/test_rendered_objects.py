"""What `windlass render` prints, on a real API server: accepted, stored as written, unchanged when applied again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.differences import differences
from support.kube_client import KubeClient, eventually

GOLDEN = Path(__file__).parents[1] / "control" / "render" / "golden"
CASES = sorted(path.name.removesuffix(".out.yaml") for path in GOLDEN.glob("*.out.yaml"))

MANAGER = "e2e"

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def emptied(kube: KubeClient) -> Iterator[None]:
    """Take the namespaces away again: other tests count what runs."""
    yield

    def left() -> list[str]:
        names = [item["metadata"]["name"] for item in kube.list("v1", "Namespace")]
        return [name for name in names if name.startswith("rendered-")]

    for name in left():
        kube.delete("v1", "Namespace", name)
    eventually(left, lambda found: not found, timeout_s=60)


def our_write(stored: dict[str, Any]) -> dict[str, Any]:
    """Our entry among the managed fields: it gets a new time whenever an apply of ours changes the object."""
    (entry,) = [item for item in stored["metadata"]["managedFields"] if item["manager"] == MANAGER]
    return entry


@pytest.mark.parametrize("case", CASES)
def test_rendered_objects_are_accepted_stored_as_written_and_stable(kube: KubeClient, case: str) -> None:
    manifests = list(yaml.safe_load_all((GOLDEN / f"{case}.out.yaml").read_text()))
    namespace = f"rendered-{case}"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    wanted = [_move(manifest, case) for manifest in manifests]

    for manifest in wanted:
        stored = kube.apply(manifest)  # server-side apply refuses fields it does not know
        assert differences(manifest, stored) == [], f"{manifest['kind']} {manifest['metadata']['name']}"
        assert our_write(kube.apply(manifest)) == our_write(stored)


def _move(manifest: dict[str, Any], case: str) -> dict[str, Any]:
    """Give the object namespaces of its own, so that cases and other tests do not meet."""
    moved: dict[str, Any] = yaml.safe_load(yaml.safe_dump(manifest).replace("team-", f"rendered-{case}-"))
    if manifest["kind"] != "PriorityClass" and "namespace" in manifest["metadata"] and case != "tenant":
        moved["metadata"]["namespace"] = f"rendered-{case}"
    return moved

"""docs/howto/upgrade.md knows which chart values restart replicas: each is changed and pod templates are compared."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from support.builders import build_gpu_class, build_service, build_snapshot
from support.documents import ROOT, section, table_rows
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.pod import render_pod_template
from windlass_operator.settings import NOT_FROM_ENVIRONMENT

PAGE = (ROOT / "docs" / "howto" / "upgrade.md").read_text()
CHANGED: dict[str, Any] = {
    "runtime_image": "registry.example/runtime:2",
    "cluster_domain": "example.org",
    "startup_timeout_s": 60,
    "default_cpu": "2",
    "scratch_limit": "1Gi",
    "model_cache_limit": "1Gi",
}
"""Another value for settings whose kind of value matters; all others get a name or a number."""
SERVICES = (
    build_service(),
    build_service("hub", uri="hf://org/model@main"),
    build_service("gpu", classes=["h200"]),
)
FIELDS = [field for field in dataclasses.fields(FleetSettings) if f"fleet.{field.name}" not in NOT_FROM_ENVIRONMENT]


def templates(settings: FleetSettings) -> list[dict[str, Any]]:
    snapshot = build_snapshot(*SERVICES, build_gpu_class())
    return [render_pod_template(plan_service(service, snapshot, settings), settings) for service in SERVICES]


def restarts(field: dataclasses.Field[Any]) -> bool:
    """Whether another value of a setting changes any pod template."""
    other = CHANGED.get(
        field.name, 7 if isinstance(field.default, int) else "8Gi" if "memory" in field.name else "other"
    )
    changed = dataclasses.replace(FleetSettings(), **{field.name: other})
    assert changed != FleetSettings()
    return templates(changed) != templates(FleetSettings())


def named_in(heading: str) -> set[str]:
    """Chart values of the first column of a section's table."""
    cells = " ".join(row[0] for row in table_rows(section(PAGE, heading)))
    return set(re.findall(r"`fleet\.(\w+)`", cells))


def chart_value(field: str) -> str:
    """`startup_timeout_s` is `startupTimeoutSeconds` in the chart."""
    first, *rest = re.sub(r"_s$", "_seconds", field).split("_")
    return first + "".join(word.capitalize() for word in rest)


def test_the_settings_of_a_cluster_are_what_is_compared() -> None:
    assert FleetSettings().platform is Platform.KUBERNETES


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: str(field.name))
def test_a_chart_value_stands_in_the_right_list(field: dataclasses.Field[Any]) -> None:
    right, wrong = "What restarts replicas", "What never restarts replicas"
    if not restarts(field):
        right, wrong = wrong, right

    assert chart_value(field.name) in named_in(right)
    assert chart_value(field.name) not in named_in(wrong)

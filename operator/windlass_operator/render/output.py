"""Manifests as text: YAML documents for people and Git, a List for programs. Equal manifests give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import yaml

from windlass_operator.render.manifest import Manifest


class _Dumper(yaml.SafeDumper):
    """Block style without references: text of several lines stays readable, and nobody meets an anchor."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (signature of PyYAML)
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """One document per object."""
    return "".join(
        "---\n" + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
        for manifest in manifests
    )


def to_json(manifests: Sequence[Manifest]) -> str:
    """A v1 List, which `kubectl apply -f -` takes as well."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}, indent=2) + "\n"

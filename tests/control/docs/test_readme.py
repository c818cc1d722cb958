"""What README.md shows as output is what the commands print."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from support.documents import ROOT
from windlass_operator.main import load_command

README = (ROOT / "README.md").read_text()
BROKEN = """\
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata:
  name: chat
  namespace: search-prod
spec:
  model:
    uri: s3://bucket/model
  replicas: 2
  scaling:
    minReplicas: 2
    maxReplica: 12
  tier: Fast
"""


def shown(command: str) -> str:
    """Output of a command in the README."""
    _, _, rest = README.partition(f"$ {command}\n")
    assert rest, command
    return rest.partition("```")[0]


def test_explain_prints_what_the_overview_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    result = CliRunner().invoke(load_command("explain"), ["examples/fleet", "--service", "search-prod/chat"])

    assert result.output == shown("windlass explain examples/fleet --service search-prod/chat")


def test_validate_prints_what_the_overview_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chat.yaml").write_text(BROKEN)

    result = CliRunner().invoke(load_command("validate"), ["chat.yaml"])

    assert result.output == shown("windlass validate chat.yaml")

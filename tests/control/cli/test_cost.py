"""`windlass cost`: figures from files, in every form, with plots; and what it says about broken ones."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from windlass_operator.cli import cost as cost_command
from windlass_operator.cli.cost_files import Usage
from windlass_operator.main import run

EXAMPLES = Path(__file__).parents[3] / "docs" / "howto" / "cost"
PRICES, THROUGHPUT, USAGE = (str(EXAMPLES / name) for name in ("prices.yaml", "throughput.yaml", "usage.csv"))


def ask(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Run the command; its output."""
    assert run(["cost", *arguments]) == code
    return capsys.readouterr().out


def ask_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(ask(capsys, *arguments, "-o", "json"))


def test_tenants_are_summed_up_and_unknown_tokens_stay_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "show", "--usage", USAGE)

    acme, initech = found["tenants"]
    assert (acme["per_hour"], acme["tokens_per_hour"], acme["share"]) == (27, 25_700_000, 0.8571)
    assert acme["per_million_tokens"] == pytest.approx(27 / 25.7, rel=0.01)
    assert (initech["per_hour"], initech["tokens_per_hour"], initech["per_million_tokens"]) == (4.5, None, None)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_what_show_prints_is_what_it_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    exported = tmp_path / f"usage.{form}"
    exported.write_text(ask(capsys, "show", "--usage", USAGE, "-o", form))

    again = ask_json(capsys, "show", "--usage", str(exported))

    assert again == ask_json(capsys, "show", "--usage", USAGE)


def test_one_namespace_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "show", "--usage", USAGE, "--namespace", "team-initech")

    assert [row["service"] for row in found["usage"]] == ["search"]


def test_a_cluster_is_read_where_no_file_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(kubeconfig: str, namespace: str) -> list[Usage]:
        assert (kubeconfig, namespace) == ("k", "team-a")
        return [Usage(tenant="a", namespace="team-a", service="chat", currency="EUR", per_hour=2)]

    monkeypatch.setattr(cost_command, "_read_cluster", read)

    assert "EUR" in ask(capsys, "show", "--kubeconfig", "k", "--namespace", "team-a")


def test_a_fleet_without_prices_is_told_how_to_get_some(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(kubeconfig: str, namespace: str) -> list[Usage]:
        return []

    monkeypatch.setattr(cost_command, "_read_cluster", read)

    assert "spec.pricePerHour" in ask(capsys, "show")


def test_runs_are_priced_against_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "optimisations", THROUGHPUT)

    first, second, *_ = found["runs"]
    assert (first["per_million_tokens"], first["change"]) == (1.25, 0)
    assert second["change"] == pytest.approx(1000 / 1700 - 1, abs=1e-4)


def test_renting_and_owning_are_compared_over_levels_of_load(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "compare", PRICES)

    cheaper = [level["cheaper"] for level in found["levels"]]
    assert cheaper == sorted(cheaper, reverse=True), "rent first, own from the break-even point on"
    point = found["break_even"]["utilisation"]
    assert [level["cheaper"] == "own" for level in found["levels"]] == [
        level["utilisation"] >= point for level in found["levels"]
    ]
    assert (found["currency"], found["machines"], found["note"] != "") == ("USD", 1, True)


def test_a_load_is_served_by_as_many_machines_as_its_busiest_hour_needs(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compare", PRICES, "--own", "edge-box-1xl4", "--cloud", "on-demand-l4", "--tokens-per-hour", "1584000")

    found = ask_json(capsys, *arguments, "--peak", "2")

    assert found["machines"] == 4  # twice 440 tokens a second, of 220 each
    assert found["present"]["utilisation"] == 0.5


def test_tables_and_csv_have_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    table = ask(capsys, "compare", PRICES)
    rows = list(csv.DictReader(io.StringIO(ask(capsys, "compare", PRICES, "-o", "csv"))))

    assert len(rows) == 11
    assert "break-even: 33." in table
    assert table.splitlines()[1].split()[0] == "5%"


def test_notes_do_not_disturb_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", PRICES]) == 0

    captured = capsys.readouterr()
    assert "Example values" in captured.err
    assert "Example values" not in captured.out


@pytest.mark.parametrize(
    ("arguments", "picture"),
    [
        (("show", "--usage", USAGE), "cost-by-tenant.png"),
        (("optimisations", THROUGHPUT), "cost-by-optimisation.png"),
        (("compare", PRICES), "cost-rented-or-owned.png"),
    ],
)
def test_plots_are_drawn_into_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], picture: str
) -> None:
    ask(capsys, *arguments, "--plot", str(tmp_path / "new"))

    drawn = (tmp_path / "new" / picture).read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 5000


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        ("compare", "currency: USD\nprice: 3\n", "price: expected a known key, found an unknown key"),
        ("compare", "currency: [", "expected YAML or JSON"),
        ("compare", "7", "expected a valid dictionary"),
        (
            "optimisations",
            "currency: USD\nprice_per_gpu_hour: -1\nruns: []\n",
            "price_per_gpu_hour: expected greater than 0",
        ),
        ("show", "namespace,service,per_hour\na,b,much\n", "usage[0].per_hour: expected a valid number"),
        ("show", "namespace,service,per_hour,currency\na,b,1,USD\na,c,1,EUR\n", "expected one currency"),
    ],
)
def test_a_broken_file_is_named_with_field_and_finding(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, text: str, words: str
) -> None:
    file = tmp_path / "broken"
    file.write_text(text)
    arguments = ["show", "--usage", str(file)] if command == "show" else [command, str(file)]

    code = run(["cost", *arguments])

    assert code == 1
    assert words in capsys.readouterr().err


def test_an_offer_that_is_not_listed_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", PRICES, "--cloud", "cheap"]) == 1

    assert "expected one of on-demand-h200, reserved-h200, on-demand-l4, found cheap" in capsys.readouterr().err

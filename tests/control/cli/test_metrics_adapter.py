"""Rules for another adapter name every metric that our autoscalers ask for, by queries that are well formed."""

from __future__ import annotations

import json

import promql_parser
import pytest
import yaml

from windlass_operator import main
from windlass_operator.render.autoscaler import POD_METRICS


def test_rules_serve_every_metric_that_autoscalers_ask_of_pods(capsys):
    assert main.run(["metrics-adapter", "rules", "-o", "json"]) == 0

    rules = json.loads(capsys.readouterr().out)["rules"]

    assert {rule["name"]["as"] for rule in rules} == set(POD_METRICS.values())
    for rule in rules:
        promql_parser.parse(rule["seriesQuery"])
        series = rule["seriesQuery"].partition("{")[0]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        promql_parser.parse(query.replace("<<.LabelMatchers>>", 'namespace="team-a"'))


def test_both_forms_say_the_same(capsys):
    main.run(["metrics-adapter", "rules", "-o", "json", "--window", "120"])
    as_json = json.loads(capsys.readouterr().out)
    main.run(["metrics-adapter", "rules", "--window", "120"])

    assert yaml.safe_load(capsys.readouterr().out) == as_json
    assert "[120s]" in str(as_json)


@pytest.mark.parametrize("window", ["0", "many"])
def test_a_window_out_of_range_is_refused(window, capsys):
    assert main.run(["metrics-adapter", "rules", "--window", window]) == 2

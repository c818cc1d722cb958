"""`windlass shape` prints what spec.model.shape takes, and names what is wrong with a config.json."""

from __future__ import annotations

import json

import pytest
import yaml

from support.documents import ROOT
from windlass_operator.api.v1alpha1.inference_service import ModelShape
from windlass_operator.main import run

TINY = ROOT / "examples" / "models" / "windlass-tiny"
CONFIG = json.loads((TINY / "config.json").read_text())


def test_the_printed_block_is_a_valid_shape(capsys):
    assert run(["shape", str(TINY)]) == 0

    shape = ModelShape.model_validate(yaml.safe_load(capsys.readouterr().out)["shape"])
    assert (shape.layers, shape.hidden_size) == (CONFIG["num_hidden_layers"], CONFIG["hidden_size"])


def test_json_holds_the_same(capsys):
    run(["shape", str(TINY / "config.json"), "-o", "json"])
    from_json = json.loads(capsys.readouterr().out)
    run(["shape", str(TINY)])

    assert yaml.safe_load(capsys.readouterr().out)["shape"] == from_json


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            {"hidden_size": "many"}, "hidden_size: expected a whole number of at least 1, found 'many'", id="text"
        ),
        pytest.param(
            {"vocab_size": None}, "vocab_size: expected a whole number of at least 1, found None", id="absent"
        ),
    ],
)
def test_a_config_without_sizes_is_an_error_that_names_the_key(tmp_path, capsys, change, words):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))

    assert run(["shape", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_heads_that_are_not_stated_follow_the_convention(tmp_path, capsys):
    config = {key: value for key, value in CONFIG.items() if key not in ("num_key_value_heads", "head_dim")}
    (tmp_path / "config.json").write_text(json.dumps(config))

    run(["shape", str(tmp_path), "-o", "json"])

    shape = json.loads(capsys.readouterr().out)
    assert shape["keyValueHeads"] == shape["queryHeads"]
    assert shape["headSize"] == CONFIG["hidden_size"] // CONFIG["num_attention_heads"]

"""`windlass shape`: the sizes of a checkpoint as the block that goes under spec.model.shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click
import yaml

from windlass_operator.cli.output import output_option, print_json
from windlass_operator.errors import WindlassError

CONFIG_FILE: Final = "config.json"
_FIELDS: Final = {
    "layers": "num_hidden_layers",
    "hiddenSize": "hidden_size",
    "feedForwardSize": "intermediate_size",
    "queryHeads": "num_attention_heads",
    "vocabularySize": "vocab_size",
    "maxPositions": "max_position_embeddings",
}


@click.command()
@click.argument("checkpoint", metavar="FOLDER", type=click.Path(exists=True, path_type=Path))
@output_option("yaml", "json")
def shape(checkpoint: Path, output: str) -> int:
    """Print spec.model.shape for the checkpoint in FOLDER (or for one config.json)."""
    found = read_shape(checkpoint / CONFIG_FILE if checkpoint.is_dir() else checkpoint)
    if output == "json":
        print_json(found)
    else:
        click.echo(yaml.safe_dump({"shape": found}, sort_keys=False), nl=False)
    return 0


def read_shape(config_file: Path) -> dict[str, Any]:
    """Read the sizes. Raises WindlassError for a file that does not have them."""
    try:
        config = json.loads(config_file.read_text())
    except (OSError, ValueError) as exc:
        raise WindlassError(f"{config_file}: expected the config.json of a checkpoint, found {exc}") from exc
    if not isinstance(config, dict):
        raise WindlassError(f"{config_file}: expected an object, found {type(config).__name__}")
    sizes = {name: _whole(config, key, config_file) for name, key in _FIELDS.items()}
    heads = sizes["queryHeads"]
    return {
        **sizes,
        "keyValueHeads": _whole(config, "num_key_value_heads", config_file, heads),
        "headSize": _whole(config, "head_dim", config_file, sizes["hiddenSize"] // heads),
        "tiedHead": config.get("tie_word_embeddings") is True,
    }


def _whole(config: dict[str, Any], key: str, config_file: Path, otherwise: int | None = None) -> int:
    value = config.get(key)
    if value is None and otherwise is not None:
        return otherwise
    if type(value) is not int or value < 1:
        raise WindlassError(f"{config_file}: {key}: expected a whole number of at least 1, found {value!r}")
    return value

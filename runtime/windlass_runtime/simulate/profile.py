"""What a simulated replica costs: the figures of one accelerator and model, and what goes wrong with it.

Figures come from a named profile, a file and command-line flags, each overriding the one before. The named ones are
assumptions from data sheets, not measurements; `NAMED` shows the arithmetic.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import pydantic
from pydantic import Field


class ProfileError(ValueError):
    """The profile cannot be used; names the key, the finding and what is accepted."""


class Answer(enum.StrEnum):
    """What a simulated replica says."""

    WORDS = "words"
    """A fixed sentence, over and over."""
    CLOCK = "clock"
    """Each token is the moment at which it was computed; see `clock_text`."""


Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
PositiveCount = Annotated[int, Field(ge=1, le=2**24)]


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """One simulated replica."""

    prefill_tokens_per_s: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = 20_000.0
    """Prompt tokens computed per second."""
    step_s: Seconds = 0.01
    """Seconds of one step, whatever is in it: the weights are read once."""
    per_sequence_s: Seconds = 0.0001
    """Seconds that each decoding sequence adds to a step."""
    kv_pages: PositiveCount = 4096
    page_tokens: PositiveCount = 64
    """Positions per page."""
    max_sequence_tokens: PositiveCount = 8192
    """Prompt plus output; a launch spec may lower it."""
    load_s: Seconds = 0.0
    """Seconds until the replica is ready."""
    answer: Answer = Answer.WORDS
    answer_tokens: PositiveCount = 200
    """Length at which an answer ends by itself, on average."""
    answer_spread: Share = 0.0
    """Answers end between (1 - spread) and (1 + spread) times `answer_tokens`, uniformly."""
    jitter: Share = 0.0
    """Steps take between (1 - jitter) and (1 + jitter) times their time, uniformly."""
    failure_share: Share = 0.0
    """Share of sequences that fail at their first token, as a model that computes NaN does."""
    crash_after_requests: Count = 0
    """The process dies when this many sequences have begun; 0: never."""
    crash_after_s: Seconds = 0.0
    """The process dies this many seconds after it became ready; 0: never."""
    seed: Count = 0
    """Equal seeds draw equal lengths, failures and jitter, in the order of arrival."""

    def step_seconds(self, prompt_tokens: int, decoding_sequences: int) -> float:
        """Time of one step without jitter."""
        return self.step_s + prompt_tokens / self.prefill_tokens_per_s + decoding_sequences * self.per_sequence_s

    def to_json(self) -> str:
        """The form that `parse_file` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


NAMED: Final[Mapping[str, Profile]] = {
    # Llama-3-8B-like in FP16: 16 GB of weights, 128 KiB of keys and values per token, 16 GFLOP per token. Assumed are
    # 1,000 tokens of context, 70 % of the memory bandwidth for a step, 40 % of the dense FP16 rate for prefill, and
    # 85 % of the memory left for pages.
    # H200: 4.8 TB/s, 989 TFLOP/s, 141 GB.
    "h200-8b": Profile(
        step_s=0.005, per_sequence_s=0.00005, prefill_tokens_per_s=24_000.0, kv_pages=12_000, load_s=40.0
    ),
    # L4: 300 GB/s, 121 TFLOP/s, 24 GB.
    "l4-8b": Profile(step_s=0.076, per_sequence_s=0.0006, prefill_tokens_per_s=3_000.0, kv_pages=800, load_s=60.0),
    # No accelerator at all: as fast as this process runs, for functional tests.
    "instant": Profile(step_s=0.0, per_sequence_s=0.0, prefill_tokens_per_s=1e9, answer_tokens=20),
}


def build_profile(base: Profile, changes: Mapping[str, Any], source: str) -> Profile:
    """`base` with `changes`. Raises ProfileError, naming `source`."""
    known = [field.name for field in dataclasses.fields(Profile)]
    unknown = next((key for key in changes if key not in known), None)
    if unknown is not None:
        raise ProfileError(f"{source}: {unknown}: unknown key; expected one of {', '.join(known)}")
    try:
        return _PROFILE.validate_python({**dataclasses.asdict(base), **changes})
    except pydantic.ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"][:1].lower() + fault["msg"][1:]
        raise ProfileError(f"{source}: {key}: {message}, found {fault['input']!r}") from exc


def find_profile(name_or_file: str) -> Profile:
    """A named profile, or the one in a YAML or JSON file. Raises ProfileError."""
    if name_or_file in NAMED:
        return NAMED[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise ProfileError(f"profile {name_or_file!r}: expected a file or one of {', '.join(NAMED)}, found neither")
    return build_profile(Profile(), _read_object(path), str(path))


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text("utf-8")
        data = json.loads(text) if path.suffix == ".json" else _parse_yaml(text)
    except (OSError, ValueError) as exc:
        raise ProfileError(f"{path}: {exc}") from exc
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ProfileError(f"{path}: expected an object of key and value, found {type(data).__name__}")
    return data


def _parse_yaml(text: str) -> Any:
    # Here, because most simulated replicas read no file and start by the hundred.
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ValueError(f"expected YAML, found {' '.join(str(exc).split())}") from exc


_PROFILE: Final = pydantic.TypeAdapter(Profile)

"""Files of `windlass cost`: usage, throughput figures and price lists. Parsed once, with every mistake named."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from windlass_operator.domain.cost import money_per_million
from windlass_operator.domain.ownership import Owned, Rented
from windlass_operator.errors import InvalidInput, Problem

Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Record(BaseModel):
    """Base of every record: unknown keys are mistakes, because a misspelt price would count as none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(Record):
    """What one service spends and serves in an hour."""

    tenant: str = ""
    namespace: str
    service: str
    currency: str = ""
    per_hour: Money
    tokens_per_hour: Money | None = None
    """None: not known."""
    per_million_tokens: Money | None = None
    """Computed from the other two where they are known."""

    @property
    def per_million(self) -> float | None:
        """What a million tokens cost."""
        if self.tokens_per_hour is None:
            return self.per_million_tokens
        return money_per_million(self.per_hour, self.tokens_per_hour)


class UsageFile(Record):
    """What `windlass cost show -o json` prints."""

    usage: list[Usage]
    tenants: list[dict[str, Any]] = []
    """Sums; computed anew."""


class Run(Record):
    """Throughput that was measured with some optimisations."""

    name: str
    tokens_per_second: Positive
    gpus: Positive = 1.0
    quality: str = ""
    """What the optimisation costs in quality, in words."""
    source: str = ""
    """Where the figure was measured."""


class Throughput(Record):
    """Figures of one model on one kind of GPU. The first run is the baseline."""

    model: str = ""
    accelerator: str = ""
    currency: str
    price_per_gpu_hour: Positive
    note: str = ""
    runs: Annotated[list[Run], Field(min_length=1)]


class Electricity(Record):
    """Power at the place where own machines stand."""

    price_per_kwh: Money
    pue: Annotated[float, Field(ge=1, le=3)] = 1.0


class CloudOffer(Record):
    """One line of a price list."""

    name: str
    accelerator: str
    price_per_gpu_hour: Positive
    source: str = ""


class OwnMachine(Record):
    """One kind of machine that can be bought."""

    name: str
    accelerator: str
    gpus: Annotated[int, Field(ge=1)]
    purchase: Money
    amortisation_years: Positive
    residual_value: Money = 0.0
    maintenance_per_year: Money = 0.0
    hosting_per_month: Money = 0.0
    idle_watts: Money = 0.0
    full_watts: Money
    source: str = ""


class PriceList(Record):
    """Prices to compare. All of one currency."""

    currency: str
    as_of: str
    """When they held."""
    note: str = ""
    tokens_per_second: Annotated[dict[str, Positive], Field(min_length=1)]
    """What one busy GPU serves, by accelerator."""
    electricity: Electricity
    cloud: Annotated[list[CloudOffer], Field(min_length=1)]
    own: Annotated[list[OwnMachine], Field(min_length=1)]

    def rented(self, name: str | None) -> Rented:
        """An offer by name; the first one without. Raises InvalidInput."""
        offer = _choose(self.cloud, name, "cloud")
        return Rented(offer.name, offer.price_per_gpu_hour, self._throughput(offer.accelerator, offer.name))

    def owned(self, name: str | None) -> Owned:
        """A machine by name; the first one without. Raises InvalidInput."""
        machine = _choose(self.own, name, "own")
        return Owned(
            name=machine.name,
            gpus=machine.gpus,
            purchase=machine.purchase,
            amortisation_years=machine.amortisation_years,
            tokens_per_s=self._throughput(machine.accelerator, machine.name),
            residual_value=machine.residual_value,
            maintenance_per_year=machine.maintenance_per_year,
            hosting_per_month=machine.hosting_per_month,
            idle_watts=machine.idle_watts,
            full_watts=machine.full_watts,
            price_per_kwh=self.electricity.price_per_kwh,
            pue=self.electricity.pue,
        )

    def _throughput(self, accelerator: str, name: str) -> float:
        if accelerator not in self.tokens_per_second:
            known = ", ".join(self.tokens_per_second)
            raise InvalidInput((Problem(f"tokens_per_second of {name}", accelerator, f"one of {known}"),))
        return self.tokens_per_second[accelerator]


Named = TypeVar("Named", CloudOffer, OwnMachine)
Parsed = TypeVar("Parsed", bound=BaseModel)

USAGE_COLUMNS: Final = tuple(Usage.model_fields)


def read_usage(path: str) -> list[Usage]:
    """Read what `windlass cost show` wrote with `-o csv` or `-o json`; `-` is standard input. Raises InvalidInput."""
    text = _read(path)
    if text.lstrip().startswith("{"):
        return _check(UsageFile, _load(text, path), path).usage
    rows = list(csv.DictReader(io.StringIO(text)))
    filled = [{key: value for key, value in row.items() if value not in ("", None)} for row in rows]
    return _check(UsageFile, {"usage": filled}, path).usage


def read_throughput(path: str) -> Throughput:
    """Read throughput figures, YAML or JSON. Raises InvalidInput."""
    return _check(Throughput, _load(_read(path), path), path)


def read_prices(path: str) -> PriceList:
    """Read a price list, YAML or JSON. Raises InvalidInput."""
    return _check(PriceList, _load(_read(path), path), path)


def _read(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput((Problem("", str(exc), "a readable text file", path),)) from exc


def _load(text: str, path: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as exc:
        raise InvalidInput((Problem("", " ".join(str(exc).split()), "YAML or JSON", path),)) from exc


def _check(kind: type[Parsed], value: Any, path: str) -> Parsed:
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        raise InvalidInput(tuple(_problem(item, path) for item in exc.errors())) from exc


def _problem(item: Any, path: str) -> Problem:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    if item["type"] == "extra_forbidden":
        return Problem(place, "an unknown key", "a known key", path)
    if item["type"] == "missing":
        return Problem(place, "nothing", "a value", path)
    words = item["msg"].removeprefix("Input should be ")
    return Problem(place, repr(item["input"])[:80], words, path)


def _choose(items: list[Named], name: str | None, field: str) -> Named:
    if name is None:
        return items[0]
    for item in items:
        if item.name == name:
            return item
    known = ", ".join(item.name for item in items)
    raise InvalidInput((Problem(field, name, f"one of {known}"),))

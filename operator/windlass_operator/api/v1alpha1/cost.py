"""Cost: what a service or a tenant spends on GPUs, and on a million tokens. Part of their status."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from windlass_operator.api.meta import ApiModel

_MONEY = r"^[0-9]+(\.[0-9]+)?$"


class Cost(ApiModel):
    """Prices of GPUClasses times devices held, against tokens served; renewed at most every 15 minutes."""

    currency: Annotated[str, Field(max_length=3, description="ISO 4217 code: the currency of the fleet.")]
    per_hour: Annotated[
        str,
        Field(max_length=32, pattern=_MONEY, description="Price of the devices that pods on nodes hold, for an hour."),
    ]
    tokens_per_hour: Annotated[
        int | None,
        Field(
            ge=0,
            le=10**15,
            description="Tokens of prompts and answers, for an hour. Unset: not known yet, or not read.",
        ),
    ] = None
    per_million_tokens: Annotated[
        str | None,
        Field(max_length=32, pattern=_MONEY, description="What a million of those tokens cost. Unset without any."),
    ] = None
    measured_seconds: Annotated[int | None, Field(ge=0, description="Time over which they were counted.")] = None
    time: Annotated[str, Field(max_length=32, description="When these figures were renewed, RFC 3339.")] = ""

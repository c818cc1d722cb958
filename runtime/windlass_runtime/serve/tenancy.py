"""Whose request it is: the replica's own tenant, or the one that a gateway proves. Never what the client says."""

from __future__ import annotations

import dataclasses
import hmac
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from windlass_contract.endpoints import TENANT_HEADER, TENANT_PROOF_HEADER, prove_tenant
from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime.errors import RuntimeFault
from windlass_runtime.serve.faults import UntrustedTenant

_LEAST_KEY_BYTES: Final = 16


class TenancyError(RuntimeFault):
    """The settings of tenants cannot be used; names the field, what was found and what is expected."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tenancy:
    """How requests are told apart."""

    own: str
    """The tenant of requests that name none."""
    key: bytes = b""
    """Shared with gateways; empty: nobody else's word counts, and every request is `own`'s."""

    def tenant_of(self, headers: Mapping[str, str]) -> str:
        """Raises UntrustedTenant for a name without its proof."""
        named = headers.get(TENANT_HEADER)
        if named is None or not self.key:
            return self.own
        proof = headers.get(TENANT_PROOF_HEADER, "")
        if not hmac.compare_digest(prove_tenant(self.key, named).encode(), proof.encode("utf-8", "replace")):
            raise UntrustedTenant(f"{TENANT_HEADER}: expected the gateway's proof beside it, found none that fits")
        return named


def read_tenancy(spec: LaunchSpec) -> Tenancy:
    """Read the shared key. Raises TenancyError."""
    if not spec.tenant_key_file:
        return Tenancy(spec.tenant)
    try:
        key = Path(spec.tenant_key_file).read_bytes().strip()
    except OSError as exc:
        raise TenancyError(f"tenant_key_file {spec.tenant_key_file}: expected a readable file, found {exc}") from exc
    if len(key) < _LEAST_KEY_BYTES:
        raise TenancyError(
            f"tenant_key_file {spec.tenant_key_file}: expected at least {_LEAST_KEY_BYTES} bytes, found {len(key)}"
        )
    return Tenancy(spec.tenant, key)


def parse_weights(text: str) -> dict[str, float]:
    """Parse `team-a=3,team-b=0.5`. Raises TenancyError."""
    weights = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = entry.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise TenancyError(f"tenant_weights: expected NAME=NUMBER with a number above 0, found {entry!r}")
        weights[name] = weight
    return weights

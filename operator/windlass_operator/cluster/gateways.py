"""What gateways hold and answer: the demand for services that may have no replica to report it.

Gateways are read directly, not through Prometheus: a request that waits for the first replica cannot wait for two
scrapes too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from windlass_contract import endpoints, metric_names
from windlass_operator.domain import labels

log = logging.getLogger(__name__)

SELECTOR: Final = f"{labels.PART_OF}={labels.PRODUCT},{labels.COMPONENT}={labels.GATEWAY}"
GATEWAY_PORT: Final = 8080
GATEWAY_URL: Final = f"http://{{ip}}:{GATEWAY_PORT}{endpoints.METRICS_PATH}"
MAX_PAGE_BYTES: Final = 16 * 1024 * 1024

ServiceName = tuple[str, str]
"""Namespace and name."""
ListPods = Callable[[], AsyncIterator[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests that gateways hold or answer, the most at once within their last minute."""

    by_service: Mapping[ServiceName, float] = field(default_factory=dict)
    missing: int = 0
    """Gateways that did not answer: the numbers may be too low."""
    asked: int = 0

    def of(self, namespace: str, name: str) -> float:
        """Requests of one service."""
        return self.by_service.get((namespace, name), 0.0)


def parse_demand(text: str) -> dict[ServiceName, float]:
    """Read one gateway's page. Raises ValueError where a line of the metric is not in the exposition format."""
    ours = [line for line in text.splitlines() if line.startswith(metric_names.GATEWAY_DEMAND + "{")]
    found: dict[ServiceName, float] = {}
    for family in text_string_to_metric_families("\n".join(ours) + "\n"):
        for sample in family.samples:
            name = (sample.labels.get("namespace", ""), sample.labels.get("service", ""))
            found[name] = found.get(name, 0.0) + float(sample.value)
    return found


def add_up(pages: Sequence[Mapping[ServiceName, float] | None]) -> Demand:
    """Sum over gateways; None stands for one that did not answer."""
    total: dict[ServiceName, float] = {}
    for page in pages:
        for name, value in (page or {}).items():
            total[name] = total.get(name, 0.0) + value
    return Demand(total, sum(page is None for page in pages), len(pages))


class Gateways:
    """Reads all gateways. Use as an asynchronous context manager."""

    def __init__(self, list_pods: ListPods, url: str = GATEWAY_URL, timeout_s: float = 2.0) -> None:
        """`list_pods`: yields the pods of SELECTOR; `url`: where one has its metrics, with {ip} and {pod}."""
        self._list_pods, self._url, self._timeout_s = list_pods, url, timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(self) -> Demand:
        """Ask every running gateway. Raises what `list_pods` raises."""
        urls = [
            self._url.format(ip=_bracketed(pod["status"]["podIP"]), pod=pod["metadata"]["name"])
            async for pod in self._list_pods()
            if _serves(pod)
        ]
        return add_up(await asyncio.gather(*(self._read_one(url) for url in urls)))

    async def _read_one(self, url: str) -> dict[ServiceName, float] | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.get(url, allow_redirects=False) as answer,
            ):
                answer.raise_for_status()
                page = await answer.content.read(MAX_PAGE_BYTES)
                while not answer.content.at_eof() and len(page) < MAX_PAGE_BYTES:
                    page += await answer.content.read(MAX_PAGE_BYTES - len(page))
            return parse_demand(page.decode("utf-8", errors="replace"))
        except (TimeoutError, aiohttp.ClientError, ValueError, OSError) as exc:
            log.info("A gateway was not read. url=%s error=%s: %s", url, type(exc).__name__, exc)
            return None


def _serves(pod: Mapping[str, Any]) -> bool:
    """Whether a gateway's numbers count: it has an address and is not over. One that leaves may still hold requests."""
    status = pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase") == "Running"


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip

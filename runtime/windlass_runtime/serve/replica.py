"""The state of one replica as its HTTP face sees it: loading, ready, draining or failed."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING

from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime import errors
from windlass_runtime.loop import Engine
from windlass_runtime.metrics import RuntimeMetrics
from windlass_runtime.serve.faults import UnknownModel
from windlass_runtime.text import TextCodec

if TYPE_CHECKING:  # the library behind it is loaded where a model is
    from windlass_runtime.backends.grammars import GrammarCompiler


class Phase(enum.StrEnum):
    """What /health/ready reports."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Replica:
    """Lives on the event loop; the engine appears once the model is loaded."""

    def __init__(self, spec: LaunchSpec, metrics: RuntimeMetrics, started_unix_s: int) -> None:
        self.spec = spec
        self.metrics = metrics
        self.started_unix_s = started_unix_s
        self.in_flight = 0
        """HTTP requests that generate."""
        self.quiet = asyncio.Event()
        """Set while nothing is in flight."""
        self.quiet.set()
        self._engine: Engine | None = None
        self._tokenizer: TextCodec | None = None
        self._grammars: GrammarCompiler | None = None
        self._draining = False

    @property
    def phase(self) -> Phase:
        if self._engine is not None and not self._engine.healthy:
            return Phase.FAILED
        if self._draining:
            return Phase.DRAINING
        return Phase.LOADING if self._engine is None else Phase.READY

    @property
    def loaded_engine(self) -> Engine | None:
        """None while loading."""
        return self._engine

    def become_ready(
        self, engine: Engine, tokenizer: TextCodec | None, grammars: GrammarCompiler | None = None
    ) -> None:
        self._engine, self._tokenizer, self._grammars = engine, tokenizer, grammars

    def begin_drain(self) -> None:
        """Refuse new requests from now on; idempotent."""
        self._draining = True
        if self._engine is not None:
            self._engine.drain()

    def require_engine(self) -> Engine:
        """The engine, if it takes requests. Raises Draining or NotServing."""
        if self._draining:
            raise errors.Draining("the replica is draining and accepts no new requests")
        if self._engine is None:
            raise errors.NotServing("the model is still loading")
        return self._engine

    def require_tokenizer(self) -> TextCodec:
        """Raises NotServing while loading, RequestError for a model without one."""
        self.require_engine()
        if self._tokenizer is None:
            raise errors.RequestError("this model has no tokenizer.json; it cannot be served as text")
        return self._tokenizer

    def require_grammars(self, field: str) -> GrammarCompiler:
        """Raises RequestError, naming `field`, where answers cannot be held to a grammar."""
        if self._grammars is None:
            raise errors.RequestError(f"{field}: this replica cannot hold answers to a grammar", field)
        return self._grammars

    def require_model(self, name: str | None) -> None:
        """Check a request's `model`; None means whatever is served. Raises UnknownModel."""
        if name is not None and name != self.spec.served_name:
            raise UnknownModel(f"model {name[:200]!r}: this replica serves {self.spec.served_name!r}", "model")

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Counts one request that a drain waits for."""
        self.in_flight += 1
        self.quiet.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.quiet.set()

    async def wait_quiet(self, timeout_s: float) -> bool:
        """Whether everything in flight ended within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.quiet.wait()
        except TimeoutError:
            return False
        return True

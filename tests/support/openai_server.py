"""A real replica server on a loopback port, in a thread, on a backend of the test's choice."""

import asyncio
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterator
from typing import Any

from support import letters
from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime import launch
from windlass_runtime.backends.base import Backend
from windlass_runtime.launch import LoadedModel, ModelLoader
from windlass_runtime.serve import process
from windlass_runtime.testing import FakeBackend
from windlass_runtime.tokenizer import Tokenizer

MODEL = "letters"


@dataclasses.dataclass(frozen=True)
class ServedReplica:
    """A server that is ready."""

    url: str
    backend: Backend

    @property
    def fake(self) -> FakeBackend:
        assert isinstance(self.backend, FakeBackend)
        return self.backend


def build_spec(**changes: Any) -> LaunchSpec:
    defaults: dict[str, Any] = {
        "model_uri": "file:///nowhere",
        "served_name": MODEL,
        "tenant": "team-a",
        "host": "127.0.0.1",
        "port": 0,
        "drain_timeout_s": 5.0,
    }
    return LaunchSpec(**{**defaults, **changes})


@contextlib.contextmanager
def served(
    backend: Backend | None = None, tokenizer: Tokenizer | None = None, **spec_changes: Any
) -> Iterator[ServedReplica]:
    """Serve until the block ends; by default the letters model. Fails when the server does not stop cleanly."""
    backend = backend or letters.build_backend()
    tokenizer = tokenizer or letters.build_tokenizer()
    loaded = LoadedModel(backend, tokenizer, grammars=launch.build_grammars(backend, tokenizer))
    with listening(lambda _: loaded, build_spec(**spec_changes)) as events:
        url = str(events.get(timeout=10)["url"])
        assert events.get(timeout=10)["event"] == "ready"
        yield ServedReplica(url, backend)


@contextlib.contextmanager
def listening(load: ModelLoader, spec: LaunchSpec) -> Iterator[queue.SimpleQueue[dict[str, object]]]:
    """Run the server process's main coroutine in a thread; yields the events it reports."""
    events: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
    faults: list[BaseException] = []
    loop = asyncio.new_event_loop()
    main = loop.create_task(process.serve(spec, load, lambda event, fields: events.put({"event": event, **fields})))

    def run() -> None:
        try:
            loop.run_until_complete(main)
        except asyncio.CancelledError:
            pass
        except BaseException as exc:  # handed to the test below
            faults.append(exc)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=run, name="served-replica")
    thread.start()
    try:
        yield events
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(main.cancel)
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
    if faults:
        raise faults[0]

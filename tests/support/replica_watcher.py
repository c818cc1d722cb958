"""Sample the replicas of one service while something happens to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from support.kube_client import KubeClient
from support.services import deployment, ready_pods


class ReplicaWatcher:
    """Samples replicas and ready pods of one service as fast as the API server answers."""

    def __init__(self, kube: KubeClient, name: str) -> None:
        self._kube = kube
        self._name = name
        self._stop = threading.Event()
        self.wanted: list[int] = []
        self.ready: list[int] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(10)

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.wanted.append(deployment(self._kube, self._name)["spec"]["replicas"])
            self.ready.append(ready_pods(self._kube, self._name))

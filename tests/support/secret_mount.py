"""What a kubelet does with a Secret that a pod mounts: its data as files, kept fresh."""

from __future__ import annotations

import base64
import contextlib
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path

from support.kube_client import KubeClient


@contextlib.contextmanager
def mounted_secret(kube: KubeClient, namespace: str, name: str, folder: Path) -> Iterator[None]:
    """Copy a Secret to a folder, now and whenever it changes, while the block runs. The Secret may come later."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = threading.Event()

    def follow() -> None:
        while not ends.wait(0.2):
            with contextlib.suppress(OSError, urllib.error.URLError):
                secret = kube.get("v1", "Secret", name, namespace) or {}
                for key, data in (secret.get("data") or {}).items():
                    file, content = folder / key, base64.b64decode(data)
                    if not file.exists() or file.read_bytes() != content:
                        file.write_bytes(content)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join(10)

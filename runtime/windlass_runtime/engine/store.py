"""A folder of plans, shared by processes and machines: found by fingerprint, built once, never half written.

    STORE/FINGERPRINT/manifest.json, engine.*.plan, lease     STORE/.locks/FINGERPRINT     STORE/.building-FINGERPRINT

Locks are flock locks, which end with their process: on one machine always, between machines on file systems that carry
them (NFSv4, CephFS, Lustre with -o flock). `lease` is held shared while a plan is in use, and its time says when that
last began.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from windlass_runtime.engine.manifest import FILE_NAME, Manifest, parse_manifest
from windlass_runtime.errors import EngineError

logger = logging.getLogger(__name__)

_LEASE: Final = "lease"
_LOCKS: Final = ".locks"
_BUILDING: Final = ".building-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One plan of a store."""

    folder: Path
    manifest: Manifest
    size: int
    """Bytes of the plan's file; 0 where it is gone."""
    last_used_s: float
    """Unix time at which a use of it last began."""

    @property
    def plan(self) -> Path:
        return self.folder / self.manifest.plan_file


@dataclass(frozen=True, slots=True)
class Eviction:
    """What became of one candidate."""

    fingerprint: str
    size: int
    evicted: bool
    reason: str


class EngineStore:
    """See the module. Folders that are no plans are left alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, fingerprint: str) -> Entry | None:
        """The finished plan; None if there is none. Raises EngineError for a manifest that cannot be used."""
        return _read_entry(self.root / fingerprint)

    def entries(self) -> list[Entry]:
        """All finished plans, used last first. Those with a manifest that cannot be used are left out; see `scan`."""
        entries, faults = self.scan()
        for fault in faults.values():
            logger.warning("a plan is left out: %s", fault)
        return entries

    def scan(self) -> tuple[list[Entry], dict[str, EngineError]]:
        """The same, and by folder what is wrong with the others: damaged, or written by another version."""
        entries: list[Entry] = []
        faults: dict[str, EngineError] = {}
        for path in sorted(self.root.glob(f"*/{FILE_NAME}")):
            if path.parent.name.startswith("."):
                continue
            try:
                entry = _read_entry(path.parent)
            except EngineError as exc:
                faults[path.parent.name] = exc
                continue
            if entry is not None:
                entries.append(entry)
        return sorted(entries, key=lambda entry: -entry.last_used_s), faults

    @contextlib.contextmanager
    def building(self, fingerprint: str, on_wait: Callable[[], None]) -> Iterator[Path]:
        """Hold the right to build this plan; yields an empty folder to build in.

        Another process that holds it is waited for, after one call of `on_wait`; look again with `find` then. What a
        killed build left is removed.
        """
        (self.root / _LOCKS).mkdir(parents=True, exist_ok=True)
        with (self.root / _LOCKS / fingerprint).open("w") as lock:
            if not _try_lock(lock, fcntl.LOCK_EX):
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            work = self.root / f"{_BUILDING}{fingerprint}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def publish(self, work: Path, manifest: Manifest) -> Entry:
        """Give a finished build its name, in the place of an older one. Call while `building` holds."""
        (work / FILE_NAME).write_text(manifest.to_json())
        (work / _LEASE).touch()
        for name in (FILE_NAME, manifest.plan_file):
            with (work / name).open("rb") as file:
                os.fsync(file.fileno())
        target = self.root / manifest.fingerprint
        if target.exists():
            # A reader of the old plan keeps its open file.
            os.replace(target, work / "replaced")
        os.replace(work, target)
        shutil.rmtree(target / "replaced", ignore_errors=True)
        entry = _read_entry(target)
        if entry is None:
            raise EngineError(f"{target}: expected the plan just built, found it evicted; build it again")
        return entry

    @contextlib.contextmanager
    def using(self, entry: Entry) -> Iterator[Entry]:
        """Hold a plan so that no eviction removes it. Raises EngineError if that has just happened."""
        with self._lease(entry.folder) as lease:
            if lease is None or not _try_lock(lease, fcntl.LOCK_SH) or not entry.plan.is_file():
                raise EngineError(f"{entry.folder}: expected a plan, found it evicted; build it again")
            os.utime(entry.folder / _LEASE)
            yield entry

    def evict(self, keep_bytes: int, *, idle_s: float, now_s: float | None = None) -> list[Eviction]:
        """Remove plans, longest unused first, until at most `keep_bytes` remain.

        Spared are plans in use by any process, and those used within `idle_s`, which also covers machines whose locks
        this one does not see.
        """
        entries, now = self.entries(), time.time() if now_s is None else now_s
        results = []
        for entry, reason in choose_victims(entries, keep_bytes, idle_s=idle_s, now_s=now):
            reason = reason or ("" if self._remove(entry) else "in use")
            fingerprint = entry.manifest.fingerprint
            results.append(Eviction(fingerprint, entry.size, not reason, reason or "longest unused"))
        return results

    def _remove(self, entry: Entry) -> bool:
        with self._lease(entry.folder) as lease:
            if lease is None or not _try_lock(lease, fcntl.LOCK_EX):
                return False
            # The manifest first: without it nobody finds the rest.
            (entry.folder / FILE_NAME).unlink(missing_ok=True)
            shutil.rmtree(entry.folder, ignore_errors=True)
            return True

    @contextlib.contextmanager
    def _lease(self, folder: Path) -> Iterator[Any]:
        try:
            file = (folder / _LEASE).open("a")
        except FileNotFoundError:
            yield None
            return
        with file:
            yield file


def choose_victims(
    entries: Sequence[Entry], keep_bytes: int, *, idle_s: float, now_s: float
) -> list[tuple[Entry, str]]:
    """Candidates in order with the reason to spare each, empty where there is none. Pure."""
    excess, chosen = sum(entry.size for entry in entries) - keep_bytes, []
    for entry in sorted(entries, key=lambda entry: entry.last_used_s):
        if excess <= 0:
            break
        idle = now_s - entry.last_used_s
        reason = "" if idle >= idle_s else f"used {max(0, round(idle))} s ago"
        chosen.append((entry, reason))
        excess -= 0 if reason else entry.size
    return chosen


def verify_plan(entry: Entry) -> None:
    """Check size and sha256 of a plan. Raises EngineError."""
    if not entry.plan.is_file():
        raise EngineError(f"{entry.plan}: expected the plan, found nothing; build it again")
    if entry.size != entry.manifest.plan_bytes:
        raise EngineError(
            f"{entry.plan}: expected {entry.manifest.plan_bytes} bytes, found {entry.size}; build it again"
        )
    with entry.plan.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.manifest.plan_sha256:
        raise EngineError(
            f"{entry.plan}: expected sha256 {entry.manifest.plan_sha256[:16]}…, found {found[:16]}…; "
            "the file is damaged: build it again"
        )


def _read_entry(folder: Path) -> Entry | None:
    """None if there is none, which an eviction by another process may bring about at any moment."""
    path = folder / FILE_NAME
    try:
        manifest = parse_manifest(path.read_text("utf-8"), str(path))
        plan, lease = folder / manifest.plan_file, folder / _LEASE
        size = plan.stat().st_size if plan.is_file() else 0
        return Entry(folder, manifest, size, (lease if lease.exists() else path).stat().st_mtime)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise EngineError(f"{path}: cannot be read: {exc}") from exc


def _try_lock(file: Any, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

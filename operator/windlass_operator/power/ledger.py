"""What GPUs were like before the agent changed them: a file that is written before the first change of each.

NVML cannot say which clocks are locked, so of clocks the file keeps only that we capped them; taking a cap back frees
the clock. After a reboot the driver has forgotten every limit, and so does the file.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from windlass_operator.errors import WindlassError

log = logging.getLogger(__name__)

FILE_NAME: Final = "found.json"
VERSION: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class LedgerError(WindlassError):
    """The file cannot be read or written. Without it no GPU may be changed: nobody could change it back."""


@dataclass(frozen=True, slots=True)
class Found:
    """What we changed of one GPU, as it was before."""

    power_mw: int | None = None
    """Power limit before our first write; None: we have not set it."""
    clock_capped: bool = False
    """Whether we capped its clock."""


UNCHANGED: Final = Found()


def read_boot_id(path: Path = _BOOT_ID) -> str:
    """Return what tells this boot from others; empty where the kernel does not say."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class Ledger:
    """The file and its content. Not shared between threads."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        """Read what an earlier run left. Raises LedgerError."""
        self._path, self._boot_id = folder / FILE_NAME, boot_id
        self._found = self._read()

    def found(self, uuid: str) -> Found:
        """Return what we changed of a GPU; UNCHANGED for one we did not."""
        return self._found.get(uuid, UNCHANGED)

    @property
    def changed(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that are not as we found them, in order."""
        return tuple(sorted(self._found))

    def note(self, uuid: str, found: Found) -> None:
        """Replace the entry of a GPU, on disk before this returns; UNCHANGED removes it. Raises LedgerError."""
        if self.found(uuid) == found:
            return
        kept = {name: entry for name, entry in self._found.items() if name != uuid}
        if found != UNCHANGED:
            kept[uuid] = found
        self._write(kept)
        self._found = kept

    def check(self) -> None:
        """Prove that the file can be written, before any GPU depends on it. Raises LedgerError."""
        self._write(self._found)

    def _read(self) -> dict[str, Found]:
        try:
            data = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise LedgerError(f"{self._path}: expected a file, found {exc.strerror or exc}") from exc
        except ValueError as exc:
            raise LedgerError(
                f"{self._path}: expected the limits that an earlier run found, found {exc}; reset the GPUs with "
                "`nvidia-smi --power-limit` and `nvidia-smi --reset-gpu-clocks`, then delete the file"
            ) from exc
        return self._parse(data)

    def _parse(self, data: Any) -> dict[str, Found]:
        try:
            if data["version"] != VERSION:
                raise LedgerError(f"{self._path}: version: expected {VERSION}, found {data['version']!r}")
            if self._boot_id and data["bootId"] and data["bootId"] != self._boot_id:
                log.info("The machine was started anew; limits of the boot before are gone. file=%s", self._path)
                return {}
            return {
                uuid: Found(
                    power_mw=None if entry["powerMilliwatts"] is None else int(entry["powerMilliwatts"]),
                    clock_capped=bool(entry["clockCapped"]),
                )
                for uuid, entry in data["gpus"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise LedgerError(
                f"{self._path}: expected a file of this agent, found {type(exc).__name__}: {exc}"
            ) from exc

    def _write(self, found: dict[str, Found]) -> None:
        gpus = {
            uuid: {"powerMilliwatts": entry.power_mw, "clockCapped": entry.clock_capped}
            for uuid, entry in sorted(found.items())
        }
        text = json.dumps({"version": VERSION, "bootId": self._boot_id, "gpus": gpus}, indent=1) + "\n"
        aside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
        except OSError as exc:
            raise LedgerError(
                f"{self._path}: expected a folder that keeps what GPUs were like before, found {exc.strerror or exc}"
            ) from exc


def with_power(found: Found, power_mw: int | None) -> Found:
    """Return the entry with another power limit."""
    return dataclasses.replace(found, power_mw=power_mw)


def with_clock(found: Found, capped: bool) -> Found:
    """Return the entry with or without a cap."""
    return dataclasses.replace(found, clock_capped=capped)

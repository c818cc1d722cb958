"""Describe this machine as the one node of a local cluster, with the labels that GPU feature discovery would set."""

from __future__ import annotations

import asyncio
import dataclasses
import platform
import shutil
from typing import Final

from windlass_operator.domain.snapshot import Node

_QUERY: Final = "--query-gpu=index,name,memory.total,compute_cap"
_TIMEOUT_S: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """One device, as the driver tells it."""

    index: str
    name: str
    memory_mib: int
    compute_capability: str


async def observe_gpus() -> tuple[Gpu, ...]:
    """Ask the NVIDIA driver's own tool; a machine without it, or without a working driver, has none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    process = await asyncio.create_subprocess_exec(
        program,
        _QUERY,
        "--format=csv,noheader,nounits",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return ()
    return parse_gpus(output.decode(errors="replace")) if process.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Read the tool's comma-separated lines; a line of another shape is no device."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[2].isdigit():
            gpus.append(Gpu(fields[0], fields[1], int(fields[2]), fields[3]))
    return tuple(gpus)


def describe_machine(name: str, gpus: tuple[Gpu, ...]) -> Node:
    """Build the node. Devices of several models are listed under the first model's name, as one node of a cluster
    would be.
    """
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": platform.system().lower(),
        "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
    }
    if not gpus:
        return Node(name, labels, {})
    first = gpus[0]
    same = [gpu for gpu in gpus if gpu.name == first.name]
    major, _, minor = first.compute_capability.partition(".")
    labels |= {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": first.name.replace(" ", "-"),
        "nvidia.com/gpu.memory": str(first.memory_mib),
        "nvidia.com/gpu.count": str(len(same)),
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
    }
    return Node(name, labels, {"nvidia.com/gpu": len(same)})

"""What GPU is here, as plans name it."""

from __future__ import annotations

import torch


def find_gpu() -> str | None:
    """The first CUDA device, such as sm_89; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"

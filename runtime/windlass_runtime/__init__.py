"""One replica of a model: load it, run it, serve it. `AutoModel` and `InferenceConfig` are the Python API.

Names are loaded on first use, so that `import windlass_runtime` stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from windlass_runtime.auto_model import AutoModel as AutoModel
    from windlass_runtime.settings import InferenceConfig as InferenceConfig

__all__ = ["AutoModel", "InferenceConfig"]


def __getattr__(name: str) -> object:
    if name == "AutoModel":
        from windlass_runtime.auto_model import AutoModel

        return AutoModel
    if name == "InferenceConfig":
        from windlass_runtime.settings import InferenceConfig

        return InferenceConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""foveal: Qwen3-VL from pixels to text, on the machine you have.

import foveal
model = foveal.load()                      # the embedded model; or a folder, or "Qwen/Qwen3-VL-2B-Instruct"
for piece in model.ask("What is in this picture?", "photo.png"):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.config import ModelConfig, preset
    from foveal.errors import FovealError
    from foveal.generate import Answer, Pipeline
    from foveal.media import ClipSampling
    from foveal.patches import Budget
    from foveal.sampler import Sampling

__version__ = "0.1.0"
__all__ = ["Answer", "Budget", "ClipSampling", "FovealError", "ModelConfig", "Pipeline", "Sampling", "load", "preset"]

_HOME = {
    "Answer": "generate", "Budget": "patches", "ClipSampling": "media", "FovealError": "errors", "ModelConfig": "config",
    "Pipeline": "generate", "Sampling": "sampler", "preset": "config",
}  # fmt: skip


def load(
    name: str | None = None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    bits: int | None = None,
    kv_cache: str | None = None,
    revision: str | None = None,
) -> Pipeline:
    """Load a model: a checkpoint folder, a hub name, or None for the embedded one. See `Pipeline.load`."""
    from foveal.generate import Pipeline

    return Pipeline.load(name, device=device, dtype=dtype, bits=bits, kv_cache=kv_cache, revision=revision)


def __getattr__(name: str) -> Any:
    # Lazily (PEP 562): importing foveal must not import torch.
    if name not in _HOME:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"foveal.{_HOME[name]}"), name)

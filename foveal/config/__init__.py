"""The shape of a model: shape.py what it is, file.py a checkpoint's config.json, presets.py the released sizes."""

from foveal.config.file import read_json
from foveal.config.presets import PRESETS, preset
from foveal.config.shape import CACHE_DTYPES, DTYPE_BYTES, ModelConfig, MoeConfig, RopeConfig, TextConfig, VisionConfig

__all__ = [
    "CACHE_DTYPES",
    "DTYPE_BYTES",
    "PRESETS",
    "ModelConfig",
    "MoeConfig",
    "RopeConfig",
    "TextConfig",
    "VisionConfig",
    "preset",
    "read_json",
]

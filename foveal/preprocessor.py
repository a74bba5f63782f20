"""A checkpoint's preprocessor files: budgets in vision tokens, pixel normalisation, and how clips are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.config import VisionConfig, read_json
from foveal.errors import CheckpointError
from foveal.media import ClipSampling
from foveal.patches import Budget

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"


def read_preprocessors(directory: Path, vision: VisionConfig) -> tuple[VisionConfig, Budget]:
    """Read a checkpoint's preprocessor files: budgets in tokens, pixel normalisation into the vision config.

    Raise CheckpointError when their patch geometry is not the model's, or when they ask for what foveal does not do.
    """
    images, videos = read_optional(directory / IMAGE_FILE), read_optional(directory / VIDEO_FILE)
    for raw, file in ((images, directory / IMAGE_FILE), (videos, directory / VIDEO_FILE)):
        _check_preprocessor(raw, vision, file)
    mean, std = images.get("image_mean"), images.get("image_std")
    for key, value in (("image_mean", mean), ("image_std", std)):
        if value is not None and videos.get(key, value) != value:
            raise CheckpointError(
                f"{directory}: {key} is {value} for pictures and {videos[key]} for clips; the model has one normalisation"
            )
    if mean is not None:
        vision = replace(vision, image_mean=tuple(map(float, mean)))
    if std is not None:
        vision = replace(vision, image_std=tuple(map(float, std)))
    return vision, Budget(
        image=_tokens(images, Budget().image, vision.factor**2, directory / IMAGE_FILE),
        clip=_tokens(videos, Budget().clip, vision.factor**2 * vision.temporal_patch_size, directory / VIDEO_FILE),
    )


def _tokens(raw: Mapping[str, Any], default: tuple[int, int], pixels: int, file: Path) -> tuple[int, int]:
    """Read a size in pixels: areas for pictures, T*H*W volumes for clips, under either of the two spellings in use."""
    size = raw.get("size") or {}
    if not isinstance(size, Mapping) or not set(size) <= {"shortest_edge", "longest_edge"}:
        raise CheckpointError(f"{file}: size is {size!r}; expected shortest_edge and longest_edge, in pixels of area")
    low, high = size.get("shortest_edge", raw.get("min_pixels")), size.get("longest_edge", raw.get("max_pixels"))
    for value in (low, high):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise CheckpointError(f"{file}: a size is {value!r}; expected a number of pixels")
    least = default[0] if low is None else -(-low // pixels)
    most = default[1] if high is None else max(1, high // pixels)
    # A bound that is not given yields to the one that is.
    least = min(least, most) if low is None else least
    most = max(least, most) if high is None else most
    if least > most:
        raise CheckpointError(f"{file}: the smallest size is {least} vision tokens, the largest {most}")
    return least, most


def _check_preprocessor(raw: Mapping[str, Any], vision: VisionConfig, file: Path) -> None:
    for theirs, ours in (
        ("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"), ("temporal_patch_size", "temporal_patch_size"),
    ):  # fmt: skip
        if raw.get(theirs, getattr(vision, ours)) != getattr(vision, ours):
            raise CheckpointError(f"{file}: {theirs} is {raw[theirs]}, but config.json says {getattr(vision, ours)}")
    # What changes pixels and is the same in every released checkpoint: bicubic, x / 255, then mean and deviation.
    for key, expected in (("do_resize", True), ("do_rescale", True), ("do_normalize", True), ("resample", 3)):
        if raw.get(key) not in (None, expected):
            raise CheckpointError(f"{file}: {key} is {raw[key]!r}; foveal does what released models need, {expected!r}")
    if abs((raw.get("rescale_factor") or 1 / 255) - 1 / 255) > 1e-9:
        raise CheckpointError(f"{file}: rescale_factor is {raw['rescale_factor']}; expected 1/255")
    for key in ("image_mean", "image_std"):
        value = raw.get(key)
        right = isinstance(value, list) and len(value) == vision.in_channels and all(isinstance(x, int | float) for x in value)
        if value is not None and not (right and (key == "image_mean" or all(x > 0 for x in value))):
            raise CheckpointError(f"{file}: {key} is {value!r}; expected {vision.in_channels} numbers")


def read_clip_sampling(directory: Path) -> ClipSampling:
    """Read how the checkpoint's own files sample clips."""
    raw = read_optional(directory / VIDEO_FILE)
    known = {name: raw[name] for name in ("fps", "num_frames", "min_frames", "max_frames") if raw.get(name) is not None}
    if known.get("fps") == 2:
        del known["fps"]  # the default, which leaves lists of pictures whole
    return ClipSampling(**known)


def read_optional(file: Path) -> dict[str, Any]:
    """Read a JSON object, an empty one if there is no such file."""
    return read_json(file) if file.is_file() else {}

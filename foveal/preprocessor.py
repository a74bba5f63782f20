"""A checkpoint's preprocessor files: budgets in vision tokens, pixel normalisation, and how clips are sampled.

Released checkpoints have a file for pictures and one for clips; transformers 5 saves both as sections of one
processor_config.json instead. Both are read, the files of their own first; where the two contradict one another,
CheckpointError is raised, because transformers would follow the sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.config import VisionConfig, read_json
from foveal.errors import CheckpointError
from foveal.media import ClipSampling
from foveal.patches import Budget

IMAGE_FILE, VIDEO_FILE, SHARED_FILE = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
_SECTIONS = {IMAGE_FILE: "image_processor", VIDEO_FILE: "video_processor"}
_SAMPLING = ("fps", "num_frames", "min_frames", "max_frames")
_READ = ("size", "min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size", "do_resize", "do_rescale",
         "do_normalize", "resample", "rescale_factor", "image_mean", "image_std", "cap_pixels_per_frame",
         "max_video_tokens", *_SAMPLING)  # fmt: skip


def read_preprocessors(directory: Path, vision: VisionConfig) -> tuple[VisionConfig, Budget]:
    """Read a checkpoint's preprocessor files: budgets in tokens, pixel normalisation into the vision config.

    Raise CheckpointError when their patch geometry is not the model's, or when they ask for what foveal does not do.
    """
    (images, image_place), (videos, video_place) = _read(directory, IMAGE_FILE), _read(directory, VIDEO_FILE)
    _check_preprocessor(images, vision, image_place)
    _check_preprocessor(videos, vision, video_place)
    # A file that says nothing means the released values, which are the vision config's own.
    mean, std = (_normalisation(directory, key, getattr(vision, key), images, videos) for key in ("image_mean", "image_std"))
    vision = replace(vision, image_mean=mean, image_std=std)
    return vision, Budget(
        image=_tokens(images, Budget().image, vision.factor**2, image_place),
        clip=_tokens(videos, Budget().clip, vision.factor**2 * vision.temporal_patch_size, video_place),
        single=_single(videos, video_place),
    )


def _normalisation(
    directory: Path, key: str, default: tuple[float, ...], images: Mapping[str, Any], videos: Mapping[str, Any]
) -> tuple[float, ...]:
    """Read a mean or a deviation, which pictures and clips must share, if both are read at all."""
    said = [tuple(map(float, default if raw.get(key) is None else raw[key])) for raw in (images, videos) if raw]
    if len(set(said)) > 1:
        raise CheckpointError(
            f"{directory}: {key} is {list(said[0])} for pictures and {list(said[1])} for clips; the model has one normalisation"
        )
    return said[0] if said else default


def _single(videos: Mapping[str, Any], place: str) -> int | None:
    """Read how many tokens one frame of a clip may have at most, where frames are capped."""
    cap, most = videos.get("cap_pixels_per_frame"), videos.get("max_video_tokens")
    if cap not in (None, True, False):
        raise CheckpointError(f"{place}: cap_pixels_per_frame is {cap!r}; expected true or false")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise CheckpointError(f"{place}: max_video_tokens is {most!r}; expected a number of tokens")
    return (most or 768) if cap else None


def has_preprocessors(directory: Path) -> bool:
    """Tell whether a folder holds any preprocessor file."""
    return any((directory / file).is_file() for file in (IMAGE_FILE, VIDEO_FILE, SHARED_FILE))


def _read(directory: Path, file: str) -> tuple[Mapping[str, Any], str]:
    """Read one preprocessor from its own file, else its section of the shared one; return where it was found for messages."""
    own, section = directory / file, _SECTIONS[file]
    nested, place = read_optional(directory / SHARED_FILE).get(section), f"{directory / SHARED_FILE}: {section}"
    if nested is not None and not isinstance(nested, Mapping):
        raise CheckpointError(f"{place} is a {type(nested).__name__}; an object was expected")
    if not own.is_file():
        return (nested, place) if nested is not None else ({}, str(own))
    raw = read_json(own)
    other = nested or {}
    for key in _READ:
        if raw.get(key) is not None and other.get(key) not in (None, raw[key]):
            raise CheckpointError(
                f"{own}: {key} is {raw[key]!r}, but {SHARED_FILE} has {other[key]!r} in {section}; remove what is out of date"
            )
    return raw, str(own)


def _tokens(raw: Mapping[str, Any], default: tuple[int, int], pixels: int, place: str) -> tuple[int, int]:
    """Read a size in pixels: areas for pictures, T*H*W volumes for clips, under either of the two spellings in use."""
    size = raw.get("size") or {}
    if not isinstance(size, Mapping) or not set(size) <= {"shortest_edge", "longest_edge"}:
        raise CheckpointError(f"{place}: size is {size!r}; expected shortest_edge and longest_edge, in pixels of area")
    low, high = size.get("shortest_edge", raw.get("min_pixels")), size.get("longest_edge", raw.get("max_pixels"))
    for value in (low, high):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise CheckpointError(f"{place}: a size is {value!r}; expected a number of pixels")
    least = default[0] if low is None else -(-low // pixels)
    most = default[1] if high is None else max(1, high // pixels)
    # A bound that is not given yields to the one that is.
    least = min(least, most) if low is None else least
    most = max(least, most) if high is None else most
    if least > most:
        raise CheckpointError(f"{place}: the smallest size is {least} vision tokens, the largest {most}")
    return least, most


def _check_preprocessor(raw: Mapping[str, Any], vision: VisionConfig, place: str) -> None:
    for theirs, ours in (
        ("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"), ("temporal_patch_size", "temporal_patch_size"),
    ):  # fmt: skip
        if raw.get(theirs, getattr(vision, ours)) != getattr(vision, ours):
            raise CheckpointError(f"{place}: {theirs} is {raw[theirs]}, but config.json says {getattr(vision, ours)}")
    # What changes pixels and is the same in every released checkpoint: bicubic, x / 255, then mean and deviation.
    for key, expected in (("do_resize", True), ("do_rescale", True), ("do_normalize", True), ("resample", 3)):
        if raw.get(key) not in (None, expected):
            raise CheckpointError(f"{place}: {key} is {raw[key]!r}; foveal does what released models need, {expected!r}")
    if abs((raw.get("rescale_factor") or 1 / 255) - 1 / 255) > 1e-9:
        raise CheckpointError(f"{place}: rescale_factor is {raw['rescale_factor']}; expected 1/255")
    for key in ("image_mean", "image_std"):
        value = raw.get(key)
        right = isinstance(value, list) and len(value) == vision.in_channels and all(isinstance(x, int | float) for x in value)
        if value is not None and not (right and (key == "image_mean" or all(x > 0 for x in value))):
            raise CheckpointError(f"{place}: {key} is {value!r}; expected {vision.in_channels} numbers")


def read_clip_sampling(directory: Path) -> ClipSampling:
    """Read how the checkpoint's own files sample clips."""
    raw, _ = _read(directory, VIDEO_FILE)
    known = {name: raw[name] for name in _SAMPLING if raw.get(name) is not None}
    if known.get("fps") == 2:
        del known["fps"]  # the default, which leaves lists of pictures whole
    return ClipSampling(**known)


def read_optional(file: Path) -> dict[str, Any]:
    """Read a JSON object, an empty one if there is no such file."""
    return read_json(file) if file.is_file() else {}

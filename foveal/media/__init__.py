"""Path, URL, data URL, bytes, PIL image or array to `Frames`. What a file is, its bytes decide, never its name.

Every failure is a MediaError that says what was found. Limits are checked on headers, before memory or time is spent.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foveal.errors import MediaError
from foveal.media.kinds import ANIMATED, PICTURES, identify
from foveal.media.sampling import DEFAULT_FPS, ClipSampling
from foveal.media.sampling import Timeline as _Timeline
from foveal.media.sampling import choose as _choose
from foveal.media.source import Fetch, fetch, resolve
from foveal.media.values import Deadline, Fit, Frames, Limits, Probe, resized, target_size

__all__ = ["DEFAULT_FPS", "ClipSampling", "Frames", "Limits", "Probe", "load", "load_clip", "load_image", "probe"]


def load(
    source: Any,
    *,
    sampling: ClipSampling | None = None,
    limits: Limits | None = None,
    fit: Fit | None = None,
    fetch: Fetch = fetch,
) -> Frames:
    """Load a picture or a clip, as its bytes say; an animation gives its first frame, a list of pictures a clip."""
    if isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4):
        return load_clip(source, sampling=sampling, limits=limits, fit=fit, fetch=fetch)
    if _is_picture_value(source):
        return load_image(source, limits=limits)
    limits = limits or Limits()
    found = resolve(source, limits, fetch)
    kind = identify(found.head(), found.name)
    if kind in PICTURES:
        return _picture(found.read(limits), kind, found.name, limits)
    return _video(found, kind, sampling or ClipSampling(), limits, fit)


def probe(source: Any, *, sampling: ClipSampling | None = None, limits: Limits | None = None, fetch: Fetch = fetch) -> Probe:
    """Say what `load` would give for a path, URL, data URL or bytes, from headers and at most one decoded frame."""
    limits = limits or Limits()
    found = resolve(source, limits, fetch)
    kind = identify(found.head(), found.name)
    if kind in PICTURES:
        from foveal.media.picture import probe_picture

        return Probe(np.zeros(1), "image", probe_picture(found.read(limits), kind, found.name, limits), found.name)
    from foveal.media.clip import probe_video

    deadline = Deadline(found.name, limits)
    size, times = probe_video(found, kind, sampling or ClipSampling(), limits, deadline)
    return Probe(times, "video", size, found.name)


def load_image(source: Any, *, limits: Limits | None = None, fetch: Fetch = fetch) -> Frames:
    """Load a picture: one frame, the first of an animation. Raise MediaError if it is a clip."""
    limits = limits or Limits()
    if isinstance(source, np.ndarray):
        return _array(source, limits)
    if _is_picture_value(source):
        from foveal.media.picture import from_pil

        return from_pil(source, limits)
    found = resolve(source, limits, fetch)
    kind = identify(found.head(), found.name)
    if kind not in PICTURES:
        raise MediaError(f"{found.name}: is a clip ({kind}) where a picture was expected; give it as a clip")
    return _picture(found.read(limits), kind, found.name, limits)


def load_clip(
    source: Any, *, sampling: ClipSampling | None = None, limits: Limits | None = None, fit: Fit | None = None,
    sample_fps: float = DEFAULT_FPS, fetch: Fetch = fetch,
) -> Frames:  # fmt: skip
    """Load a clip: a video file, an animation, or pictures that were taken `sample_fps` a second."""
    limits, sampling = limits or Limits(), sampling or ClipSampling()
    if isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4):
        return _pictures(source, sampling, limits, fit, sample_fps, fetch)
    if _is_picture_value(source):
        raise MediaError("found one picture where a clip was expected; give a list of pictures, or give it as a picture")
    found = resolve(source, limits, fetch)
    kind = identify(found.head(), found.name)
    if kind not in PICTURES:
        return _video(found, kind, sampling, limits, fit)
    if kind in ANIMATED:
        from foveal.media.picture import load_animation

        return load_animation(found.read(limits), kind, found.name, sampling, limits, fit, Deadline(found.name, limits))
    raise MediaError(f"{found.name}: is a {kind} picture where a clip was expected; give it as a picture")


def _picture(data: bytes, kind: str, name: str, limits: Limits) -> Frames:
    from foveal.media.picture import load_picture

    return load_picture(data, kind, name, limits)


def _video(found: Any, kind: str, sampling: ClipSampling, limits: Limits, fit: Fit | None) -> Frames:
    from foveal.media.clip import load_video

    return load_video(found, kind, sampling, limits, fit, Deadline(found.name, limits))


def _is_picture_value(source: Any) -> bool:
    """Tell an array or PIL image, without importing Pillow for those who have none, from what is yet to be read."""
    if isinstance(source, np.ndarray):
        return True
    if isinstance(source, str | bytes | bytearray | memoryview | os.PathLike):
        return False
    if hasattr(source, "convert") and hasattr(source, "getexif"):
        return True
    raise MediaError(
        f"found a {type(source).__name__}; give a path, URL, bytes, PIL image, (H, W, 3) uint8 array, or a list of pictures"
    )


def _array(values: np.ndarray, limits: Limits) -> Frames:
    name, shape = "array", values.shape
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or values.dtype not in (np.uint8, np.uint16, np.bool_):
        raise MediaError(f"found an array of shape {shape} and type {values.dtype}; expected (H, W, 3) uint8")
    limits.check_size(name, values.shape[0], values.shape[1], limits.max_pixels)
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    elif values.dtype == np.bool_:
        values = values * np.uint8(255)
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    elif values.shape[2] == 4:
        alpha = values[:, :, 3:].astype(np.uint16)
        values = ((values[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return Frames(np.array(values[None]), np.zeros(1), "image", (values.shape[0], values.shape[1]), name)


def _pictures(
    sources: Sequence[Any] | np.ndarray,
    sampling: ClipSampling,
    limits: Limits,
    fit: Fit | None,
    sample_fps: float,
    fetch: Fetch,
) -> Frames:
    name = "list of pictures"
    if not (math.isfinite(sample_fps) and sample_fps > 0):
        raise MediaError(f"{name}: sample_fps is {sample_fps}; it must be a number greater than 0")
    if not len(sources):
        raise MediaError(f"{name}: is empty; a clip needs at least one picture")
    limits.check_frames(name, len(sources))
    limits.check_duration(name, len(sources) / sample_fps)
    if sampling.fps is None and sampling.num_frames is None:  # they have been sampled already
        sampling = replace(sampling, num_frames=sampling.max_frames)
    times = np.arange(len(sources)) / sample_fps
    chosen = _choose(_Timeline(times, len(sources) / sample_fps, sample_fps), sampling, name)
    deadline = Deadline(name, limits)
    pixels: np.ndarray | None = None
    source_size = size = (0, 0)
    for slot, i in enumerate(chosen):
        deadline.check()
        picture = load_image(sources[int(i)], limits=limits, fetch=fetch)
        if pixels is None:
            source_size = picture.source_size
            size = target_size(name, fit, len(chosen), *source_size, limits)
            pixels = np.empty((len(chosen), *size, 3), np.uint8)
        elif picture.source_size != source_size:
            (height, width), (first_height, first_width) = picture.source_size, source_size
            raise MediaError(
                f"{name}: picture {i + 1} ({picture.name}) is {width} x {height}, those before it are {first_width} x "
                f"{first_height}; the frames of a clip share one size"
            )
        pixels[slot] = resized(picture.pixels[0], size)
    assert pixels is not None  # chosen is never empty
    return Frames(pixels, times[chosen], "video", source_size, name)

"""Decode pictures with Pillow: upright, RGB, alpha flattened on white; animations as clips."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveal.errors import MediaError
from foveal.media.sampling import ClipSampling, Timeline, choose
from foveal.media.values import Deadline, Fit, Frames, Limits, resized, target_size

# What browsers do with animations that name no duration.
_DEFAULT_FRAME_S = 0.1


@contextlib.contextmanager
def _opened(data: bytes, kind: str, name: str) -> Iterator[Image.Image]:
    """Open with one decoder only, and turn whatever it raises into a MediaError with words of our own."""
    try:
        with warnings.catch_warnings():
            # Our own pixel limit is checked on the header before anything is decoded.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                yield image
    except MediaError:
        raise
    except MemoryError as e:
        raise MediaError(f"{name}: not enough memory to decode it") from e
    except Image.DecompressionBombError as e:
        raise MediaError(f"{name}: its header announces more pixels than any limit allows; it is damaged or hostile") from e
    except UnidentifiedImageError as e:
        raise MediaError(f"{name}: begins like {kind} but is damaged or cut off") from e
    except Exception as e:
        # Pillow's decoders raise almost anything on damaged data (OSError, SyntaxError, struct.error, IndexError, ...),
        # and their texts may hold addresses: name the type only.
        raise MediaError(f"{name}: this {kind} is damaged or cut off ({type(e).__name__})") from e


def load_picture(data: bytes, kind: str, name: str, limits: Limits) -> Frames:
    """Decode the first frame of a picture file."""
    with _opened(data, kind, name) as image:
        width, height = image.size
        limits.check_size(name, height, width, limits.max_pixels)
        limits.check_output(name, 1, height, width)
        image.load()
        pixels = to_rgb(image)
    return Frames(pixels[None], np.zeros(1), "image", pixels.shape[:2], name)


def from_pil(image: Image.Image, limits: Limits) -> Frames:
    """Take a PIL image as it is."""
    name = "PIL image"
    limits.check_size(name, image.height, image.width, limits.max_pixels)
    try:
        image.load()
        pixels = to_rgb(image)
    except (OSError, ValueError, SyntaxError) as e:
        raise MediaError(f"{name}: cannot be decoded ({type(e).__name__})") from e
    return Frames(pixels[None], np.zeros(1), "image", pixels.shape[:2], name)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Turn any mode Pillow reads into (H, W, 3) uint8, upright by EXIF, transparency on white."""
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith(("I", "F")):
        return np.repeat(_grey_to_8_bits(np.asarray(image), mode)[:, :, None], 3, axis=2)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _grey_to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Scale 16-bit grey by its type's range (>> 8), not by its content; wider and float modes hold 0..65535 or 0..1 or 0..255."""
    if mode.startswith("I;16"):
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = values.max(initial=0.0)
    scale = 255.0 if mode == "F" and top <= 1.0 else 1.0 if top <= 255.0 else 255.0 / 65535.0
    return np.clip(values * scale, 0, 255).astype(np.uint8)


def is_animated(data: bytes, kind: str, name: str) -> bool:
    """Tell whether a picture file holds more than one frame."""
    with _opened(data, kind, name) as image:
        return getattr(image, "n_frames", 1) > 1


def load_animation(
    data: bytes, kind: str, name: str, sampling: ClipSampling, limits: Limits, fit: Fit | None, deadline: Deadline
) -> Frames:
    """Decode the frames of an animated GIF, WebP or PNG; their durations give the times."""
    with _opened(data, kind, name) as image:
        width, height = image.size
        limits.check_size(name, height, width, limits.max_frame_pixels)
        count = getattr(image, "n_frames", 1)
        limits.check_frames(name, count)
        starts, now = [], 0.0
        for i in range(count):
            deadline.check()
            image.seek(i)
            starts.append(now)
            shown = float(image.info.get("duration") or 0) / 1000
            now += shown if shown > 0 else _DEFAULT_FRAME_S
            limits.check_duration(name, now)
        times = np.array(starts)
        gaps = np.diff([*starts, now])
        even = bool(len(gaps)) and float(np.ptp(gaps)) < 1e-9
        chosen = choose(Timeline(times, now, 1 / gaps[0] if even else None), sampling, name)
        size = target_size(name, fit, len(chosen), height, width, limits)
        frames = []
        for i in chosen:
            deadline.check()
            image.seek(int(i))
            frames.append(resized(to_rgb(image), size))
    return Frames(np.stack(frames), times[chosen], "video", (height, width), name)

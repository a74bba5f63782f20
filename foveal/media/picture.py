"""Pictures: Pillow decodes, one plugin chosen by the file's first bytes; upright, on white, RGB."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from foveal.errors import MediaError
from foveal.media import headers
from foveal.media.headers import Header
from foveal.media.sampling import ClipSampling, Timeline, choose
from foveal.media.values import Deadline, Fit, Frames, Limits, resized, target_size

# Image.open is not used: it tries other formats, and compares sizes with a module global where we have Limits.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


def load_picture(data: bytes, kind: str, name: str, limits: Limits) -> Frames:
    """Decode a still picture, or the first frame of an animated one."""
    deadline = Deadline(name, limits)
    header = _read_header(data, kind, name, limits, deadline)
    limits.check_output(name, 1, header.height, header.width)
    with _decoding(kind, name):
        image = _open(kind, header, name, limits)
        image.load()
        pixels = upright(to_rgb(image, name, bits=header.bits, inverted=header.inverted), header.orientation)
    return _one_frame(pixels, name)


def probe_picture(data: bytes, kind: str, name: str, limits: Limits) -> tuple[int, int]:
    """Return the upright (height, width) `load_picture` would give, without decoding anything."""
    header = _read_header(data, kind, name, limits, Deadline(name, limits))
    with _decoding(kind, name):
        _open(kind, header, name, limits)
    return header.upright_size


def load_animation(
    data: bytes, kind: str, name: str, sampling: ClipSampling, limits: Limits, fit: Fit | None, deadline: Deadline
) -> Frames:
    """Decode the chosen frames of an animated GIF, WebP or PNG. Those before them are decoded too: each builds on the last."""
    header = _read_header(data, kind, name, limits, deadline)
    if not header.delays_s:
        raise MediaError(f"{name}: is a {kind} picture that does not move where a clip was expected; give it as a picture")
    limits.check_size(name, header.height, header.width, limits.max_frame_pixels)
    limits.check_frames(name, len(header.delays_s))
    ends = list(accumulate(header.delays_s))
    limits.check_duration(name, float(ends[-1]))
    rate = float(1 / header.delays_s[0]) if len(set(header.delays_s)) == 1 else None
    timeline = Timeline(np.array([0.0, *map(float, ends[:-1])]), float(ends[-1]), rate)
    chosen = choose(timeline, sampling, name)
    size = target_size(name, fit, len(chosen), *header.upright_size, limits)

    pixels = np.empty((len(chosen), *size, 3), np.uint8)
    slots = {int(frame): slot for slot, frame in enumerate(chosen)}
    with _decoding(kind, name):
        image = _open(kind, header, name, limits)
        for frame in range(int(chosen[-1]) + 1):
            deadline.check()
            image.seek(frame + header.first)
            image.load()  # also when it is not wanted, so that no step decodes many
            if frame in slots:
                rgb = upright(to_rgb(image, name), header.orientation)
                if rgb.shape[:2] != header.upright_size:
                    raise MediaError(f"{name}: frame {frame} has another size than the {kind} header gives; it is damaged")
                pixels[slots[frame]] = resized(rgb, size)
    return Frames(pixels, timeline.times_s[chosen], "video", header.upright_size, name)


def from_pil(image: Image.Image, limits: Limits) -> Frames:
    """Take a PIL image: its current frame, turned upright when it carries an EXIF orientation."""
    name = "PIL image"
    limits.check_size(name, image.height, image.width, limits.max_pixels)
    with _decoding(image.format or "PIL", name):
        image.load()
        orientation = image.getexif().get(0x0112, 1)
        return _one_frame(upright(to_rgb(image, name), orientation if isinstance(orientation, int) else 1), name)


def _one_frame(pixels: np.ndarray, name: str) -> Frames:
    return Frames(pixels[None], np.zeros(1), "image", (pixels.shape[0], pixels.shape[1]), name)


def _read_header(data: bytes, kind: str, name: str, limits: Limits, deadline: Deadline) -> Header:
    header = headers.read(kind, data, name, deadline)
    limits.check_size(name, header.height, header.width, limits.max_pixels)
    return header


def _open(kind: str, header: Header, name: str, limits: Limits) -> ImageFile.ImageFile:
    image = _PLUGINS[kind](io.BytesIO(header.body))
    if image.size != (header.width, header.height):  # two readers of one file that disagree are how limits are passed by
        limits.check_size(name, image.height, image.width, limits.max_pixels)
    return image


@contextmanager
def _decoding(kind: str, name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into MediaError, without its text: that may hold addresses and paths."""
    try:
        yield
    except MediaError:
        raise
    except MemoryError as e:
        raise MediaError(f"{name}: there is not enough memory to decode this {kind} picture; make it smaller") from e
    except Exception as e:  # plugins raise nearly every type there is on damaged files
        cut = isinstance(e, EOFError) or "truncated" in str(e).lower()
        found = "is truncated" if cut else "cannot be decoded: it is damaged, or of a rare kind"
        raise MediaError(f"{name}: found a {kind} picture, but it {found}") from e


def to_rgb(image: Image.Image, name: str, *, bits: int = 16, inverted: bool = False) -> np.ndarray:
    """Return (H, W, 3) uint8. Alpha is flattened on white; grey samples of more than 8 bits keep their upper 8."""
    transparency = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        grey = (samples >> (bits - 8)).astype(np.uint8)
        if inverted:  # Pillow inverts 8-bit samples of this kind itself, and these not
            grey = 255 - grey
        if isinstance(transparency, int):
            grey[samples == transparency] = 255
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        what = "32-bit integer" if image.mode == "I" else "floating-point"
        raise MediaError(f"{name}: found {what} samples, which have no agreed white; convert the picture to 8 or 16 bits")
    if image.mode == "RGB" and isinstance(transparency, tuple) and max(transparency) > 255:
        image = image.copy()  # a 16-bit colour, and Pillow has kept the upper 8 bits of the pixels
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.array(image.convert("RGB"))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8) to (H, W, 3); other values change nothing."""
    match orientation:
        case 2:
            pixels = pixels[:, ::-1]
        case 3:
            pixels = pixels[::-1, ::-1]
        case 4:
            pixels = pixels[::-1]
        case 5:
            pixels = pixels.swapaxes(0, 1)
        case 6:
            pixels = np.rot90(pixels, -1)
        case 7:
            pixels = pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            pixels = np.rot90(pixels, 1)
    return np.ascontiguousarray(pixels)

"""Tiny pictures and clips, made in memory; every frame of a clip carries its own number as a bar code."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

BITS = 10


def gradient(height: int = 12, width: int = 20) -> np.ndarray:
    """(H, W, 3) uint8, smooth and without symmetry, so that a turn or a swap of channels shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = rows * 200 // max(height - 1, 1) + 20
    green = columns * 200 // max(width - 1, 1) + 20
    return np.stack([red, green, np.full_like(red, 90)], axis=2).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """Write one picture (or, with append_images, an animation) in a format of Pillow's."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the writer, on modes it converts: not what is under test
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def barcode(number: int, height: int = 32, width: int = 80) -> np.ndarray:
    """(H, W, 3) uint8: BITS columns, the most significant bit first, bright for 1."""
    bits = (number >> np.arange(BITS - 1, -1, -1)) & 1
    columns = bits[np.minimum(np.arange(width) * BITS // width, BITS - 1)] * 180 + 40
    return np.repeat(np.repeat(columns[None, :, None], height, axis=0), 3, axis=2).astype(np.uint8)


def read_barcodes(frames: np.ndarray) -> list[int]:
    """The numbers on (N, H, W, 3) frames of any size, however badly compressed."""
    numbers = []
    for frame in frames:
        grey = frame.astype(np.float64).mean(axis=(0, 2))
        centres = ((np.arange(BITS) + 0.5) * len(grey) / BITS).astype(int)
        numbers.append(int(sum(1 << (BITS - 1 - i) for i, c in enumerate(centres) if grey[c] > 130)))
    return numbers


def clip(
    count: int,
    *,
    fps: Fraction | int = 30,
    stamps: Sequence[int] | None = None,
    clock: Fraction | None = None,
    size: tuple[int, int] = (32, 80),
    container: str = "mp4",
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop: int = 30,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """Encode `count` numbered frames at `fps`, or at `stamps` in units of `clock` seconds."""
    settings = {"threads": "1", **(options or {})}
    if codec == "libx264":
        settings = {"preset": "ultrafast", "crf": "18", "sc_threshold": "0", "bf": str(b_frames), **settings}
        if b_frames:
            settings["b_strategy"] = "0"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=Fraction(fps), options=settings)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        time_base = clock or 1 / Fraction(fps)
        stream.codec_context.time_base = time_base
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(barcode(number, *size), format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def rotate_mp4(data: bytes, degrees: int) -> bytes:
    """Set the display matrix in the track header of an MP4: `degrees` clockwise, one of 90, 180, 270."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = [cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30]
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags; times, id, duration; reserved; layer to reserved
    return data[:at] + b"".join(v.to_bytes(4, "big", signed=True) for v in matrix) + data[at + 36 :]


def animation(durations_ms: Sequence[int], kind: str = "GIF", size: tuple[int, int] = (32, 80)) -> bytes:
    """An animated GIF, WebP or PNG of numbered frames."""
    frames = [Image.fromarray(barcode(i, *size)) for i in range(len(durations_ms))]
    extra = {"lossless": True} if kind == "WEBP" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=list(durations_ms), loop=0, **extra)

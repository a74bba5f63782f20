"""Damaged files of every format: sane frames or a FovealError, nothing else, and soon."""

from __future__ import annotations

import time

import numpy as np
import pytest

from foveal.errors import FovealError
from foveal.media import Limits, load, load_clip
from tests.media_files import animation, clip, encode, gradient

PICTURES = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
ANIMATIONS = ["animated GIF", "animated WEBP", "animated PNG"]
CLIPS = {"mp4": "libx264", "matroska": "libx264", "avi": "mpeg4", "mpegts": "libx264", "mpeg": "mpeg2video"}
CASES = 75  # for each of 14 kinds: 1,050
LIMITS = Limits(max_pixels=1_000_000, max_frame_pixels=1_000_000, max_output_bytes=2**26, timeout_s=3)


def _whole(kind: str) -> bytes:
    if kind in PICTURES:
        return encode(gradient(), kind)
    if kind in ANIMATIONS:
        return animation([100, 50, 200], kind.split()[1])
    return clip(12, container=kind, codec=CLIPS[kind], gop=4, b_frames=2)


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bytes, fill a stretch, cut the end, cut out or repeat the middle."""
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    match int(rng.integers(5)):
        case 0:
            changed = bytearray(data)
            for i in rng.integers(0, len(data), int(rng.integers(1, 16))):
                changed[i] = int(rng.integers(256))
            return bytes(changed)
        case 1:
            return data[:at] + bytes([int(rng.choice([0, 127, 255]))]) * length + data[at + length :]
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at + length :]
        case _:
            return data[: at + length] + data[at:]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [*PICTURES, *ANIMATIONS, *CLIPS])
def test_damaged_files(kind: str) -> None:
    whole, rng = _whole(kind), np.random.default_rng(len(kind))
    read = load_clip if kind in ANIMATIONS else load
    assert read(whole, limits=LIMITS).pixels.size
    for case in range(CASES):
        started = time.monotonic()
        try:
            frames = read(_damaged(whole, rng), limits=LIMITS)
        except FovealError as e:
            assert str(e), case
        else:
            n, height, width, channels = frames.pixels.shape
            assert frames.pixels.dtype == np.uint8 and n * height * width > 0 and channels == 3, case
            assert frames.times_s.shape == (n,) and np.isfinite(frames.times_s).all(), case
            assert (np.diff(frames.times_s) > 0).all(), case
        assert time.monotonic() - started < LIMITS.timeout_s + 5, case

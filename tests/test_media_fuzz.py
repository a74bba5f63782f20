"""Mutated real files of every format: each either loads to sane frames or raises MediaError, in time and in memory."""

from __future__ import annotations

import io
import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveal.errors import MediaError
from foveal.media import ClipSampling, Frames, Limits, load, load_clip, probe
from tests.media_files import animation, clip, encode, gradient

CASES = 120  # for each of 30 files
LIMITS = Limits(
    max_bytes=2**20, max_pixels=2_000_000, max_frame_pixels=1_000_000, max_frames=2000, max_output_bytes=2**26, timeout_s=5.0
)
SAMPLING = ClipSampling(num_frames=3)
MAX_CASE_S = 8.0  # on a busy machine; Limits.timeout_s is 5
MAX_GROWTH_BYTES = 700 * 2**20

PICTURE = gradient(20, 34)
PALETTE = {"colors": 16}


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def picture(mode: str, kind: str, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        image = Image.fromarray(PICTURE)
        image = Image.fromarray(np.arange(680, dtype=np.uint16).reshape(20, 34) * 90) if mode == "I;16" else image.convert(mode)
        return encode(image, kind, **options)

    return make


FILES: dict[str, Callable[[], bytes]] = {
    "png": picture("RGB", "PNG", exif=exif(6)),
    "png-palette": picture("P", "PNG", transparency=3),
    "png-16": picture("I;16", "PNG"),
    "png-alpha": picture("RGBA", "PNG"),
    "apng": lambda: animation([40, 60, 80], "PNG", (16, 40)),
    "jpeg": picture("RGB", "JPEG", exif=exif(5)),
    "jpeg-progressive": picture("RGB", "JPEG", progressive=True),
    "jpeg-cmyk": picture("CMYK", "JPEG"),
    "webp": picture("RGB", "WEBP", exif=exif(3)),
    "webp-lossless": picture("RGBA", "WEBP", lossless=True),
    "webp-animated": lambda: animation([40, 60, 80], "WEBP", (16, 40)),
    "gif": picture("P", "GIF", comment=b"a comment"),
    "gif-animated": lambda: animation([40, 60, 80], "GIF", (16, 40)),
    "bmp": picture("RGB", "BMP"),
    "bmp-palette": picture("P", "BMP"),
    "tiff": picture("RGB", "TIFF"),
    "tiff-lzw": picture("L", "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": picture("RGB", "TIFF", compression="jpeg"),
    "tiff-16": picture("I;16", "TIFF", compression="tiff_deflate"),
    "mp4": lambda: clip(6, b_frames=2, gop=3, size=(16, 40)),
    "mp4-fragments": lambda: clip(6, gop=3, size=(16, 40), container_options={"movflags": "frag_keyframe+empty_moov"}),
    "mkv": lambda: clip(6, container="matroska", b_frames=2, gop=3, size=(16, 40)),
    "webm": lambda: clip(6, container="webm", codec="libvpx", gop=3, size=(16, 40)),
    "avi": lambda: clip(6, container="avi", codec="mjpeg", pixel_format="yuvj420p", size=(16, 40)),
    "avi-mpeg4": lambda: clip(6, container="avi", codec="mpeg4", gop=3, size=(16, 40)),
    "mpegts": lambda: clip(6, container="mpegts", b_frames=2, gop=3, size=(16, 40)),
    "mpeg": lambda: clip(6, fps=25, container="mpeg", codec="mpeg2video", gop=3, size=(16, 40)),
    "flv": lambda: clip(6, container="flv", codec="flv", gop=3, size=(16, 40)),
    "asf": lambda: clip(6, container="asf", codec="wmv2", gop=3, size=(16, 40)),
    "h264": lambda: clip(6, container="h264", b_frames=2, gop=3, size=(16, 40)),
}
seed_file = cache(lambda name: FILES[name]())


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to three of the usual injuries, more often near the start, where headers are."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = len(result)
        if size < 8:
            break
        at = rng.randrange(size) if rng.random() < 0.5 else rng.randrange(min(size, 300))
        match rng.randrange(8):
            case 0:
                del result[max(at, 1) :]
            case 1:
                result[at] ^= 1 << rng.randrange(8)
            case 2:
                result[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3:
                result[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\0")
                )
            case 4:
                del result[at : at + rng.randrange(1, 64)]
            case 5:
                result[at:at] = result[at : at + rng.randrange(1, 64)]
            case 6:
                result[at:at] = rng.randbytes(rng.randrange(1, 32))
            case 7:
                length, other = rng.randrange(1, 32), rng.randrange(size)
                result[at : at + length] = result[other : other + length]
    return bytes(result)


def assert_sane(frames: Frames) -> None:
    n, height, width, channels = frames.pixels.shape
    assert frames.pixels.dtype == np.uint8 and channels == 3 and min(n, height, width) >= 1
    assert frames.source_size == (height, width)
    assert frames.times_s.shape == (n,) and frames.times_s.dtype == np.float64
    assert np.isfinite(frames.times_s).all() and (np.diff(frames.times_s) > 0).all() and frames.times_s[0] >= 0


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def attempt(data: bytes) -> bool:
    """Load one file every way there is. True if it loaded."""
    loaded = False
    for way in (
        lambda: load(data, sampling=SAMPLING, limits=LIMITS),
        lambda: load_clip(data, sampling=SAMPLING, limits=LIMITS),
        lambda: probe(data, sampling=SAMPLING, limits=LIMITS),
    ):
        begun = time.monotonic()
        try:
            result = way()
            if isinstance(result, Frames):
                assert_sane(result)
            loaded = True
        except MediaError as e:
            assert "0x" not in str(e) and len(str(e)) < 400 and "\n" not in str(e)
        assert time.monotonic() - begun < MAX_CASE_S
    return loaded


@pytest.mark.parametrize(
    "name", [name for name in FILES if name.startswith(("png", "apng", "jpeg", "webp", "gif", "bmp", "tiff"))]
)
def test_whole_files_are_what_pillow_reads(name: str) -> None:
    """What is left out of a file before it is decoded changes no pixel."""
    with Image.open(io.BytesIO(seed_file(name))) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I;16":
            expected = np.repeat((np.asarray(upright) >> 8)[..., None], 3, axis=2).astype(np.uint8)
        else:
            white = Image.new("RGBA", upright.size, "white")
            expected = np.array(Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB"))
    found = load(seed_file(name)).pixels[0]
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1  # two ways to flatten alpha


# Pillow warns of damaged metadata and goes on; as errors, the warnings would hide what comes after.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", FILES)
def test_mutated_files(name: str) -> None:
    data = seed_file(name)
    assert attempt(data), "the file is whole before it is mutated"
    before = peak_bytes()
    rng = random.Random(f"foveal {name}")
    loaded = 0
    for _ in range(CASES):
        loaded += attempt(mutate(data, rng))
    assert peak_bytes() - before < MAX_GROWTH_BYTES
    assert loaded < CASES, "no mutation was ever noticed"


@pytest.mark.parametrize("name", FILES)
def test_every_length(name: str) -> None:
    """A file cut off anywhere."""
    data = seed_file(name)
    for size in sorted({0, 1, 2, 3, 4, 7, 8, 11, 12, 16, 30, *np.linspace(0, len(data) - 1, 25).astype(int).tolist()}):
        attempt(data[:size])


def test_noise_behind_every_signature() -> None:
    rng = random.Random(4)
    for name in FILES:
        for keep in (4, 12, 64):
            attempt(seed_file(name)[:keep] + rng.randbytes(3000))

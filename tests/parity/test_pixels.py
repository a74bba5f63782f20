"""Pixels equal the released image and video processors bit for bit: max |difference| is exactly 0.0.

Both sides normalise in float32: theirs to `pixel_values`, ours only here, from the uint8 rows that travel to the device.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foveal.config import VisionConfig, preset
from foveal.media import Frames
from foveal.patches import Budget, patchify
from tests.parity.reference import image_processor, pixel_values, processor_options, transformers

RELEASED = preset("2B").vision
PATCH_14 = replace(RELEASED, patch_size=14)
AREA = 32 * 32


def _frames(rng: np.random.Generator, n: int, height: int, width: int, kind: str) -> Frames:
    """Make pictures with smooth parts, hard edges and noise, so that overshoot and clamping occur."""
    y, x = np.mgrid[0:height, 0:width]
    wave = 127.5 + 127.5 * np.sin(y / rng.uniform(2, 40) + rng.uniform(0, 6)) * np.cos(x / rng.uniform(2, 40))
    pixels = np.repeat(wave[None, ..., None].astype(np.uint8), n, axis=0).repeat(3, axis=-1)
    pixels[:, height // 3 : height // 2] = rng.choice([0, 255], (n, 1, width, 3))
    noisy = rng.random((n, height, width, 1)) < 0.3
    pixels = np.where(noisy, rng.integers(0, 256, pixels.shape, dtype=np.uint8), pixels)
    return Frames(pixels, np.arange(n) / 2.0, kind, (height, width), "test")  # type: ignore[arg-type]


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw a size: mostly small, some long and thin up to the allowed ratio of 200, some below one patch."""
    kind = rng.integers(0, 10)
    if kind < 7:
        height, width = rng.integers(8, 260, 2)
    elif kind < 9:
        height, width = rng.integers(3, 12), rng.integers(200, 600)
    else:
        height, width = rng.integers(1, 30, 2)
    size = (int(height), int(width))
    return size if rng.random() < 0.5 else size[::-1]


def _same_picture(frames: Frames, vision: VisionConfig, low: int, high: int) -> tuple[int, int]:
    """Compare one picture under a budget of low..high tokens; return its grid."""
    processor = image_processor(vision, (low, high))
    theirs = processor(images=[frames.pixels[0]], return_tensors="pt", input_data_format="channels_last")
    ours = patchify(frames, vision, Budget(image=(low, high)))
    assert theirs["image_grid_thw"].tolist() == [[1, *ours.grids[0]]], frames.source_size
    difference = (pixel_values(ours, vision) - theirs["pixel_values"]).abs().max()
    assert float(difference) == 0.0, f"{frames.source_size} under {low}..{high} tokens"
    return ours.grids[0]


@pytest.mark.parametrize("seed", range(8))
def test_300_pictures(seed: int) -> None:
    transformers()
    rng = np.random.default_rng(seed)
    sizes = set()
    for _ in range(42):
        height, width = _image_size(rng)
        low = int(rng.integers(1, 40))
        high = low + int(rng.integers(1, 60))
        vision = PATCH_14 if rng.random() < 0.25 else RELEASED
        sizes.add(_same_picture(_frames(rng, 1, height, width, "image"), vision, low, high))
    assert len(sizes) > 20


@pytest.mark.parametrize("size", [(1080, 1920), (32, 32), (50, 3000), (33, 47), (640, 480), (1001, 1000)])
def test_pictures_under_the_released_budget(size: tuple[int, int]) -> None:
    transformers()
    _same_picture(_frames(np.random.default_rng(0), 1, *size, "image"), RELEASED, 64, 16384)


def _same_clip(frames: Frames, vision: VisionConfig, low: int, high: int, single: int | None = None) -> tuple[int, int]:
    """Compare one clip under a budget of low..high tokens over all its frame pairs, `single` a frame; return its grid."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    volume = 2 * vision.factor**2
    processor = Qwen3VLVideoProcessor(
        **processor_options(vision, low * volume, high * volume),
        do_sample_frames=False,
        cap_pixels_per_frame=single is not None,
        max_video_tokens=single or 768,
    )
    theirs = processor(videos=[frames.pixels], return_tensors="pt", input_data_format="channels_last")
    ours = patchify(frames, vision, Budget(clip=(low, high), single=single))
    assert theirs["video_grid_thw"].tolist() == [[len(ours.grids), *ours.grids[0]]], frames.pixels.shape
    difference = (pixel_values(ours, vision) - theirs["pixel_values_videos"]).abs().max()
    assert float(difference) == 0.0, f"{frames.pixels.shape} under {low}..{high} tokens"
    return ours.grids[0]


@pytest.mark.parametrize("seed", range(4))
def test_100_clips(seed: int) -> None:
    transformers()
    rng = np.random.default_rng(seed)
    sizes = set()
    for _ in range(27):
        height, width = (int(side) for side in rng.integers(12, 160, 2))
        n = int(rng.integers(2, 10))  # odd ones too: the last frame is repeated
        low = int(rng.integers(1, 20))
        high = low + int(rng.integers(1, 100))
        vision = PATCH_14 if rng.random() < 0.25 else RELEASED
        single = int(rng.integers(1, 30)) if rng.random() < 0.4 else None
        sizes.add(_same_clip(_frames(rng, n, height, width, "video"), vision, low, high, single))
    assert len(sizes) > 12


@pytest.mark.parametrize("shape", [(4, 1080, 1920), (5, 360, 640), (16, 16, 400), (2, 300, 20)])
def test_clips_under_the_released_budget(shape: tuple[int, int, int]) -> None:
    transformers()
    _same_clip(_frames(np.random.default_rng(0), *shape, "video"), RELEASED, 2, 12288)


def test_a_clip_of_one_frame_is_that_frame_twice() -> None:
    """The reference refuses one frame; foveal repeats it, as it does with the last frame of every odd clip."""
    transformers()
    one = _frames(np.random.default_rng(0), 1, 70, 90, "video")
    two = replace(one, pixels=one.pixels.repeat(2, axis=0), times_s=np.array([0.0, 0.0]))
    grid = _same_clip(two, RELEASED, 2, 12288)
    alone = patchify(one, RELEASED, Budget())
    assert alone.grids == (grid,)
    assert np.array_equal(alone.pixels, patchify(two, RELEASED, Budget()).pixels)
    assert alone.times_s == (0.0,)

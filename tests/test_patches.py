"""Sizes, budgets and the layout of patches. Equality with the released processors is in tests/parity/test_pixels.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from foveal.config import preset
from foveal.errors import MediaError, PromptError
from foveal.media import Frames
from foveal.patches import (
    Budget,
    merge_block_coords,
    patchify,
    resize,
    smart_resize,
    smart_resize_clip,
    target_size,
)

VISION = preset("8B").vision
RELEASED: dict[str, Any] = {"factor": 32, "min_tokens": 64, "max_tokens": 16384}
RELEASED_CLIP: dict[str, Any] = {"factor": 32, "temporal_patch_size": 2, "min_tokens": 2, "max_tokens": 12288}


def _frames(n: int, height: int, width: int, kind: Literal["image", "video"] = "video") -> Frames:
    pixels = np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return Frames(pixels, np.arange(n) / 4.0, kind, (height, width), "test")


@pytest.mark.parametrize(
    ("size", "expected", "tokens"),
    [
        ((1080, 1920), (1088, 1920), 2040), ((480, 640), (480, 640), 300), ((224, 224), (256, 256), 64),
        ((32, 32), (256, 256), 64), ((8000, 6000), (4704, 3520), 16170), ((1000, 1001), (992, 992), 961),
        ((50, 3000), (64, 3008), 188), ((33, 47), (224, 320), 70), ((4097, 4097), (4096, 4096), 16384),
        ((5, 900), (32, 3456), 108),
    ],
)  # fmt: skip
def test_sizes_of_pictures(size: tuple[int, int], expected: tuple[int, int], tokens: int) -> None:
    """facts 3c."""
    assert smart_resize(*size, **RELEASED) == expected
    assert expected[0] * expected[1] // 32**2 == tokens
    assert target_size(1, *size, "image", VISION, Budget()) == expected


@pytest.mark.parametrize(
    ("shape", "expected", "tokens"),
    [
        ((4, 1080, 1920), (1088, 1920), 4080), ((5, 1080, 1920), (1088, 1920), 6120), ((16, 480, 640), (480, 640), 2400),
        ((60, 1080, 1920), (480, 832), 11700), ((768, 1080, 1920), (128, 224), 10752), ((768, 720, 1280), (128, 224), 10752),
        ((7, 240, 320), (256, 320), 320), ((2, 16, 400), (32, 800), 25),
    ],
)  # fmt: skip
def test_sizes_of_clips(shape: tuple[int, int, int], expected: tuple[int, int], tokens: int) -> None:
    """facts 3d; tokens are of the padded clip."""
    assert smart_resize_clip(*shape, **RELEASED_CLIP) == expected
    assert -(-shape[0] // 2) * expected[0] * expected[1] // 32**2 == tokens
    assert target_size(*shape, "video", VISION, Budget()) == expected


def test_factor_28() -> None:
    """Patch 14 x merge 2, of the generations before: both sides are multiples of 28."""
    vision = replace(VISION, patch_size=14)
    assert vision.factor == 28
    assert smart_resize(1080, 1920, factor=28, min_tokens=4, max_tokens=16384) == (1092, 1932)
    assert smart_resize(100, 100, factor=28, min_tokens=4, max_tokens=16384) == (112, 112)
    assert smart_resize(1080, 1920, factor=28, min_tokens=4, max_tokens=1280) == (728, 1316)
    patches = patchify(_frames(1, 100, 90, "image"), vision, Budget(image=(4, 1280)))
    assert patches.grids == ((8, 6),)
    assert patches.pixels.shape == (48, 3 * 14 * 14)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 300), st.integers(0, 3000))
def test_sizes_stay_within_the_budget(height: int, width: int, low: int, more: int) -> None:
    """Sides are multiples of the factor; the area respects a budget wide enough to be met."""
    assume(max(height, width) / min(height, width) <= 200)
    high = 2 * low + more + 64
    h, w = smart_resize(height, width, factor=32, min_tokens=low, max_tokens=high)
    assert h % 32 == w % 32 == 0
    assert h >= 32 and w >= 32
    assert h * w // 32**2 >= low
    # A side of one token cannot shrink further; only then may the maximum be passed.
    assert h * w // 32**2 <= high or min(h, w) == 32


@pytest.mark.parametrize("size", [(1, 201), (4020, 20), (1000, 4)])
def test_thin_pictures_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match=r"aspect ratio of 2\d\d.*at most 200"):
        smart_resize(*size, **RELEASED)


def test_thin_clips_are_refused() -> None:
    with pytest.raises(MediaError, match="aspect ratio"):
        smart_resize_clip(4, 40, 9000, **RELEASED_CLIP)


@pytest.mark.parametrize("size", [(0, 10), (10, 0)])
def test_empty_pictures_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match="no area"):
        smart_resize(*size, **RELEASED)
    with pytest.raises(MediaError, match="no area"):
        smart_resize_clip(4, *size, **RELEASED_CLIP)


@pytest.mark.parametrize(
    ("n", "expected"),
    [(2, (640, 1152)), (200, (640, 1152)), (400, (576, 1024)), (768, (384, 736)), (2000, (256, 480))],
)
def test_the_per_frame_mode(n: int, expected: tuple[int, int]) -> None:
    """128 to 768 tokens a frame pair within 90 % of 128,000, as qwen-vl-utils 0.0.14 sizes 1080p clips at factor 32."""
    budget = Budget(clip=(2, 115_200), frame=(128, 768))
    assert target_size(n, 1080, 1920, "video", VISION, budget) == expected


def test_budgets_from_preprocessor_files() -> None:
    """The released files (facts 3a, 3b) say 65536..16777216 pixels a picture and 4096..25165824 a clip."""
    budget = Budget.from_pixels((65536, 16777216), (4096, 25165824), factor=32, temporal_patch_size=2)
    assert budget == Budget() == Budget(image=(64, 16384), clip=(2, 12288))
    assert Budget.from_pixels(None, None, factor=32, temporal_patch_size=2) == Budget()


def test_capped_budgets() -> None:
    assert Budget().capped(1000) == Budget(image=(64, 1000), clip=(2, 1000))
    assert Budget(frame=(128, 768)).capped(100) == Budget(image=(64, 100), clip=(2, 100), frame=(100, 100))


@pytest.mark.parametrize("values", [{"image": (0, 5)}, {"clip": (9, 8)}, {"frame": (-1, 4)}])
def test_impossible_budgets_are_refused(values: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(PromptError, match=f"the {next(iter(values))} budget"):
        Budget(**values)  # type: ignore[arg-type]


def test_rows_hold_the_pixels_their_coordinates_name() -> None:
    """Every row of a clip, against plain slicing: (C, F, p, p) at (t, row, column), four rows a vision token."""
    frames = _frames(4, 64, 96)
    patches = patchify(frames, VISION, Budget())
    assert patches.grids == ((4, 6), (4, 6))
    for row, (t, r, c) in zip(patches.pixels, patches.coords, strict=True):
        square = frames.pixels[2 * t : 2 * t + 2, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16]
        assert np.array_equal(row.reshape(3, 2, 16, 16), square.transpose(3, 0, 1, 2))
    blocks = patches.coords.reshape(-1, 4, 3)
    assert (blocks[:, :, 1:] // 2 == blocks[:, :1, 1:] // 2).all()
    assert patches.num_tokens == 12
    assert patches.lengths() == [24, 24]


def test_a_picture_is_stored_once() -> None:
    patches = patchify(_frames(1, 64, 96, "image"), VISION, Budget(image=(4, 100)))
    assert patches.pixels.shape == (24, 3 * 16 * 16)
    assert patches.pixels.dtype == np.uint8
    assert patches.times_s == (0.0,)


def test_merge_block_order() -> None:
    """facts 3g."""
    order = [tuple(row) for row in merge_block_coords(1, 4, 4, 2)[:, 1:].tolist()]
    assert order[:8] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert order[8:10] == [(2, 0), (2, 1)]
    assert sorted(map(tuple, merge_block_coords(2, 6, 9, 3).tolist())) == [
        (t, r, c) for t in range(2) for r in range(6) for c in range(9)
    ]


@pytest.mark.parametrize(("n", "times"), [(1, (0.0,)), (2, (0.125,)), (3, (0.125, 0.5)), (5, (0.125, 0.625, 1.0))])
def test_odd_clips_repeat_their_last_frame(n: int, times: tuple[float, ...]) -> None:
    frames = _frames(n, 64, 64)
    patches = patchify(frames, VISION, Budget())
    assert patches.times_s == times
    assert patches.grids == ((4, 4),) * len(times)
    if n % 2:
        first, second = patches.pixels[-16:].reshape(16, 3, 2, -1).transpose(2, 0, 1, 3)
        assert np.array_equal(first, second)


def test_frames_fitted_while_decoding_are_not_resized_again() -> None:
    """media shrinks long clips as it decodes; the size it chose stays although this budget would choose another."""
    fitted = replace(_frames(4, 64, 128), source_size=(1080, 2160))
    patches = patchify(fitted, VISION, Budget())
    assert patches.grids == ((4, 8),) * 2
    assert patches.source_size == (1080, 2160)


def test_resize_leaves_the_right_size_alone() -> None:
    pixels = _frames(2, 40, 30).pixels
    assert resize(pixels, (40, 30)) is pixels
    assert resize(pixels, (60, 10)).shape == (2, 60, 10, 3)


def test_resize_of_a_flat_colour_is_that_colour() -> None:
    pixels = np.full((1, 37, 53, 3), (3, 250, 128), np.uint8)
    assert (resize(pixels, (64, 32)) == (3, 250, 128)).all()


def test_take_keeps_whole_tokens_and_the_clock() -> None:
    patches = patchify(_frames(4, 64, 96), VISION, Budget())
    kept = patches.take([1, 5, 6])
    rows = [4, 5, 6, 7, 20, 21, 22, 23, 24, 25, 26, 27]
    assert np.array_equal(kept.pixels, patches.pixels[rows])
    assert np.array_equal(kept.coords, patches.coords[rows])
    assert (kept.grids, kept.times_s, kept.num_tokens) == (patches.grids, patches.times_s, 3)
    assert kept.lengths() == [8, 4]
    assert patches.take([]).lengths() == [0, 0]


def test_take_refuses_tokens_that_are_not_there() -> None:
    patches = patchify(_frames(2, 64, 64), VISION, Budget())
    with pytest.raises(IndexError):
        patches.take([4])
    with pytest.raises(PromptError, match="in order"):
        patchify(_frames(4, 64, 64), VISION, Budget()).take([4, 0]).lengths()

"""Pixels to data URLs and back."""

from __future__ import annotations

import numpy as np

from foveal.media import load_image
from foveal.media.encode import bytes_url, data_url


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_small_pictures_keep_every_pixel_and_large_ones_when_asked() -> None:
    small, large = picture(20, 31), picture(260, 270)
    assert np.array_equal(load_image(data_url(small)).pixels[0], small)
    assert data_url(large).startswith("data:image/jpeg;base64,")
    assert np.array_equal(load_image(data_url(large, lossless=True)).pixels[0], large)


def test_no_side_is_longer_than_allowed() -> None:
    assert load_image(data_url(picture(50, 100), max_side_px=20)).source_size == (10, 20)


def test_bytes_are_written_as_they_are() -> None:
    assert bytes_url(b"ab", "video/mp4") == "data:video/mp4;base64,YWI="

"""What lies behind things: plain, striped, chequered, clouded or photographed, standing still or moving past.

Everything is kept within a few levels of the plain background, so that a colour that stands out against the one stands out
against the other. The photographs and the landscape are sample data of matplotlib's and in the public domain; docs/world.md
names them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from foveal.world.draw import paint_background
from foveal.world.scene import Background
from foveal.world.stamps import data_folder

PATTERNS = ("plain", "stripes", "squares", "clouds", "portrait", "landscape")
_DEPTH = 14.0  # levels a pattern adds or takes at most


@lru_cache(maxsize=2)
def _picture(name: str) -> np.ndarray:
    """Read a grey picture (H, W) float32 in -1..1: Grace Hopper by the U.S. Navy, or the heights of a valley by the USGS."""
    folder = data_folder() / "sample_data"
    if name == "portrait":
        grey = np.asarray(Image.open(folder / "grace_hopper.jpg").convert("L"), dtype=np.float32)
    else:
        with np.load(folder / "jacksboro_fault_dem.npz") as data:
            grey = data["elevation"].astype(np.float32)
    low, high = np.percentile(grey, (2, 98))
    return np.clip(2 * (grey - low) / (high - low) - 1, -1, 1)


def _pattern(rng: np.random.Generator, name: str, size: tuple[int, int]) -> np.ndarray:
    """Draw a pattern (H, W) in -1..1."""
    height, width = size
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    pitch = int(rng.integers(12, 48))
    if name == "stripes":
        angle = rng.uniform(0, np.pi)
        return np.sign(np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / pitch)).astype(np.float32)
    if name == "squares":
        return ((rows // pitch + columns // pitch) % 2 * 2 - 1).astype(np.float32)
    if name == "clouds":
        source = rng.uniform(-1, 1, size=(height // pitch + 2, width // pitch + 2)).astype(np.float32)
        spread = float(pitch)
    else:
        source = _picture(name)
        spread = max(height / source.shape[0], width / source.shape[1], float(rng.uniform(0.6, 1.6)))
    # Sampled between its points, from a corner drawn at random.
    rest = np.array(source.shape) - 1 - (np.array(size) - 1) / spread
    y, x = (float(rng.uniform(0, max(0.0, room))) + np.arange(side) / spread for room, side in zip(rest, size, strict=True))
    return _between(source, y, x)


def _between(source: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Read a picture at rows y and columns x, between its pixels in a straight line."""
    y, x = np.clip(y, 0, source.shape[0] - 1.001), np.clip(x, 0, source.shape[1] - 1.001)
    top, left = y.astype(int), x.astype(int)
    down, right = (y - top).astype(np.float32)[:, None], (x - left).astype(np.float32)[None]
    upper = source[top][:, left] * (1 - right) + source[top][:, left + 1] * right
    lower = source[top + 1][:, left] * (1 - right) + source[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down


def textured(rng: np.random.Generator, background: Background, size: tuple[int, int]) -> np.ndarray:
    """Paint a background with one of the patterns on it: (H, W, 3) uint8."""
    name = PATTERNS[int(rng.integers(len(PATTERNS)))]
    canvas = paint_background(background, size)
    if name == "plain":
        return canvas
    depth = float(rng.uniform(0.3, 1.0)) * _DEPTH
    return np.clip(canvas + depth * _pattern(rng, name, size)[..., None], 0, 255).astype(np.uint8)


def passing(rng: np.random.Generator, background: Background, size: tuple[int, int], frames: int) -> list[np.ndarray]:
    """Paint a background that moves past steadily: `frames` canvases (H, W, 3) uint8, one or two pixels apart either way."""
    dy, dx = (int(step) for step in rng.integers(-2, 3, size=2))
    height, width = size[0] + abs(dy) * (frames - 1), size[1] + abs(dx) * (frames - 1)
    large = textured(rng, background, (height, width))
    out = []
    for i in range(frames):
        y = i * dy if dy >= 0 else height - size[0] + i * dy
        x = i * dx if dx >= 0 else width - size[1] + i * dx
        out.append(large[y : y + size[0], x : x + size[1]])
    return out

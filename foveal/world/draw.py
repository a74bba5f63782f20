"""Paint things on a background, and keep the exact map of which pixel belongs to which thing and character."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveal.world.scene import Background, Thing


def paint_background(background: Background, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) uint8."""
    height, width = size
    first, second = (np.array(colour, dtype=np.float32) for colour in background.colours)
    if background.colours[0] == background.colours[1]:
        canvas = np.broadcast_to(first, (height, width, 3)).copy()
    else:
        dy, dx = np.sin(background.direction), np.cos(background.direction)
        ramp = np.linspace(-dy, dy, height, dtype=np.float32)[:, None] + np.linspace(-dx, dx, width, dtype=np.float32)
        ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
        canvas = first + ramp[..., None] * (second - first)
    if background.noise > 0:
        rng = np.random.default_rng(background.noise_seed)
        grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(background.noise)
        canvas = canvas + grain
    return (np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)


def paint(canvas: np.ndarray, things: Sequence[tuple[int, Thing]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint numbered things on a copy of the canvas.

    Returns:
        pixels (H, W, 3) uint8; object_map (H, W) int16 with the number of the thing, -1 for background;
        char_map (H, W) uint8, an index into CHAR_CLASSES.
    """
    pixels = canvas.copy()
    object_map = np.full(canvas.shape[:2], -1, dtype=np.int16)
    char_map = np.zeros(canvas.shape[:2], dtype=np.uint8)
    for number, thing in things:
        x1, y1, x2, y2 = thing.box
        area = np.s_[y1:y2, x1:x2]
        under = pixels[area].astype(np.int32)
        alpha = thing.stamp.alpha[..., None].astype(np.int32)
        pixels[area] = ((under * (255 - alpha) + np.array(thing.rgb) * alpha + 127) // 255).astype(np.uint8)
        object_map[area][thing.stamp.solid] = number
        if thing.stamp.chars is not None:
            char_map[area] = thing.stamp.chars
    return pixels, object_map, char_map

"""The named colours of the world, and how far apart two colours look."""

from __future__ import annotations

import numpy as np

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (218, 28, 36),
    "green": (28, 158, 58),
    "blue": (34, 72, 214),
    "yellow": (252, 222, 36),
    "orange": (250, 136, 16),
    "purple": (128, 38, 172),
    "pink": (252, 140, 198),
    "cyan": (56, 212, 232),
    "brown": (118, 68, 30),
    "black": (16, 16, 18),
    "white": (250, 250, 250),
    "gray": (128, 128, 130),
}
COLOURS: tuple[str, ...] = tuple(PALETTE)

# sRGB to XYZ under D65, each row divided by the white point (IEC 61966-2-1).
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_XYZ /= np.array([[0.9505], [1.0], [1.089]])


def lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB values (..., 3) in 0..255 to CIE L*a*b*, where distance follows the eye."""
    c = np.asarray(rgb, dtype=np.float64) / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


_PALETTE_LAB = lab(np.array(list(PALETTE.values())))


def far_from(backgrounds: np.ndarray, distance: float) -> list[str]:
    """Name the colours at least `distance` (L*a*b* units) from every background colour (K, 3)."""
    gaps = np.linalg.norm(_PALETTE_LAB[:, None] - lab(backgrounds)[None], axis=-1).min(axis=1)
    return [name for name, gap in zip(COLOURS, gaps, strict=True) if gap >= distance]

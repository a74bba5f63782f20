"""Shapes and icons as polygons in the unit square: a list of (points, ink) painted in order.

y points down. Ink True paints, False cuts a hole through which the background shows, so every thing has one colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Outline = list[tuple[np.ndarray, bool]]


def _poly(*points: tuple[float, float], ink: bool = True) -> tuple[np.ndarray, bool]:
    return np.array(points, dtype=np.float64), ink


def _rect(x1: float, y1: float, x2: float, y2: float, ink: bool = True) -> tuple[np.ndarray, bool]:
    return _poly((x1, y1), (x2, y1), (x2, y2), (x1, y2), ink=ink)


def _arc(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    steps = max(8, round(abs(stop - start) / 8))
    angles = np.radians(np.linspace(start, stop, steps + 1))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)


def _oval(cx: float, cy: float, rx: float, ry: float | None = None, ink: bool = True) -> tuple[np.ndarray, bool]:
    return _arc(cx, cy, rx, rx if ry is None else ry), ink


def _radial(count: int, radii: Sequence[float], first: float = -90.0, centre: float = 0.5) -> tuple[np.ndarray, bool]:
    angles = np.radians(first + np.arange(count) * 360.0 / count)
    r = np.array([radii[i % len(radii)] for i in range(count)])
    return np.stack([centre + r * np.cos(angles), centre + r * np.sin(angles)], axis=1), True


def _heart() -> tuple[np.ndarray, bool]:
    t = np.linspace(0, 2 * np.pi, 48)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1), True


def _moon() -> tuple[np.ndarray, bool]:
    return np.concatenate([_arc(0.5, 0.5, 0.5, 0.5, 50, 310), _arc(0.74, 0.5, 0.38, 0.38, 295, 65)]), True


def _spokes(count: int, inner: float, outer: float, width: float) -> Outline:
    rays: Outline = []
    for angle in np.arange(count) * 2 * np.pi / count:
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)]) * width / 2
        corners = [along * inner + across, along * outer + across, along * outer - across, along * inner - across]
        rays.append((np.array(corners) + 0.5, True))
    return rays


SHAPES: dict[str, Outline] = {
    "circle": [_oval(0.5, 0.5, 0.5)],
    "square": [_rect(0, 0, 1, 1)],
    "triangle": [_poly((0.5, 0.05), (1, 0.92), (0, 0.92))],
    "star": [_radial(10, (0.5, 0.2))],
    "heart": [_heart()],
    "diamond": [_poly((0.5, 0), (0.86, 0.5), (0.5, 1), (0.14, 0.5))],
    "cross": [_rect(0.33, 0, 0.67, 1), _rect(0, 0.33, 1, 0.67)],
    "ring": [_oval(0.5, 0.5, 0.5), _oval(0.5, 0.5, 0.29, ink=False)],
    "hexagon": [_radial(6, (0.5,), first=0.0)],
    "moon": [_moon()],
    "arrow": [_poly((0, 0.35), (0.52, 0.35), (0.52, 0.1), (1, 0.5), (0.52, 0.9), (0.52, 0.65), (0, 0.65))],
}

ICONS: dict[str, Outline] = {
    "house": [
        _poly((0.5, 0), (1, 0.45), (0, 0.45)),
        _rect(0.12, 0.42, 0.88, 1),
        _rect(0.42, 0.62, 0.62, 1.01, ink=False),
        _rect(0.2, 0.53, 0.34, 0.7, ink=False),
        _rect(0.7, 0.53, 0.82, 0.7, ink=False),
    ],
    "tree": [
        _poly((0.5, 0), (0.8, 0.34), (0.2, 0.34)),
        _poly((0.5, 0.18), (0.9, 0.58), (0.1, 0.58)),
        _poly((0.5, 0.38), (1, 0.82), (0, 0.82)),
        _rect(0.41, 0.8, 0.59, 1),
    ],
    "flower": [
        *(_oval(0.5 + 0.2 * np.cos(a), 0.3 + 0.2 * np.sin(a), 0.135) for a in np.arange(6) * np.pi / 3),
        _oval(0.5, 0.3, 0.1, ink=False),
        _rect(0.46, 0.6, 0.54, 1),
        _oval(0.66, 0.8, 0.15, 0.07),
        _oval(0.34, 0.74, 0.15, 0.07),
    ],
    "fish": [
        _oval(0.42, 0.5, 0.42, 0.27),
        _poly((0.7, 0.5), (1, 0.22), (0.94, 0.5), (1, 0.78)),
        _poly((0.3, 0.3), (0.5, 0.08), (0.62, 0.32)),
        _oval(0.2, 0.44, 0.06, ink=False),
    ],
    "sun": [_oval(0.5, 0.5, 0.25), *_spokes(8, 0.33, 0.5, 0.09)],
    "car": [
        _poly((0.2, 0.46), (0.3, 0.2), (0.68, 0.2), (0.82, 0.46)),
        _rect(0, 0.44, 1, 0.7),
        _poly((0.3, 0.43), (0.36, 0.27), (0.47, 0.27), (0.47, 0.43), ink=False),
        _poly((0.53, 0.43), (0.53, 0.27), (0.64, 0.27), (0.72, 0.43), ink=False),
        _oval(0.24, 0.7, 0.17, ink=False),
        _oval(0.76, 0.7, 0.17, ink=False),
        _oval(0.24, 0.7, 0.12),
        _oval(0.76, 0.7, 0.12),
    ],
    "cup": [
        _oval(0.72, 0.45, 0.28, 0.25),
        _oval(0.72, 0.45, 0.17, 0.14, ink=False),
        _poly((0, 0.1), (0.74, 0.1), (0.66, 0.86), (0.08, 0.86)),
        _rect(0, 0.9, 0.76, 0.98),
    ],
    "key": [
        _oval(0.24, 0.5, 0.24),
        _oval(0.22, 0.5, 0.11, ink=False),
        _rect(0.42, 0.44, 1, 0.56),
        _rect(0.72, 0.5, 0.8, 0.76),
        _rect(0.9, 0.5, 1, 0.8),
    ],
    "boat": [
        _poly((0, 0.68), (1, 0.68), (0.8, 0.96), (0.2, 0.96)),
        _rect(0.46, 0.02, 0.51, 0.7),
        _poly((0.55, 0.06), (0.94, 0.6), (0.55, 0.6)),
        _poly((0.42, 0.18), (0.42, 0.6), (0.12, 0.6)),
    ],
    "umbrella": [
        (_arc(0.5, 0.48, 0.5, 0.46, 180, 360), True),
        _oval(0.17, 0.5, 0.14, 0.08, ink=False),
        _oval(0.83, 0.5, 0.14, 0.08, ink=False),
        _rect(0.46, 0.3, 0.54, 0.88),
        (np.concatenate([_arc(0.37, 0.86, 0.17, 0.14, 0, 180), _arc(0.37, 0.86, 0.09, 0.06, 180, 0)]), True),
    ],
    "mushroom": [
        (_arc(0.5, 0.55, 0.5, 0.52, 180, 360), True),
        _oval(0.3, 0.36, 0.08, ink=False),
        _oval(0.58, 0.24, 0.09, ink=False),
        _oval(0.76, 0.42, 0.06, ink=False),
        _poly((0.37, 0.58), (0.63, 0.58), (0.7, 1), (0.3, 1)),
    ],
    "cat": [
        _oval(0.5, 0.58, 0.46, 0.4),
        _poly((0.06, 0.5), (0.08, 0.02), (0.42, 0.26)),
        _poly((0.94, 0.5), (0.92, 0.02), (0.58, 0.26)),
        _oval(0.32, 0.52, 0.08, ink=False),
        _oval(0.68, 0.52, 0.08, ink=False),
        _poly((0.42, 0.68), (0.58, 0.68), (0.5, 0.78), ink=False),
    ],
}

# How far (degrees) each may be turned and still be called by its name; icons stay nearly upright.
TURN: dict[str, float] = {
    "circle": 0, "square": 12, "triangle": 25, "star": 36, "heart": 20, "diamond": 10, "cross": 12,
    "ring": 0, "hexagon": 30, "moon": 180, "arrow": 180,
}  # fmt: skip
ICON_TURN = 10.0
OUTLINES: dict[str, Outline] = {**SHAPES, **ICONS}


def turned(kind: str, degrees: float) -> Outline:
    """Turn an outline and scale it, keeping its proportions, so that its ink has a longer side of exactly 1, at (0, 0)."""
    angle = np.radians(degrees)
    spin = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    parts = [(points @ spin, ink) for points, ink in OUTLINES[kind]]
    inked = np.concatenate([points for points, ink in parts if ink])
    low = inked.min(axis=0)
    scale = 1.0 / (inked.max(axis=0) - low).max()
    return [((points - low) * scale, ink) for points, ink in parts]

"""A page that is drawn thing by thing, and cut to size when it is finished: Sheet, Pen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from foveal.world.colours import PALETTE
from foveal.world.draw import paint, paint_background
from foveal.world.items import Item
from foveal.world.scene import Background, Box, Scene, Thing, shade
from foveal.world.splits import RGB, TONES, Material
from foveal.world.stamps import Stamp, placed_text, text_width

Align = Literal["left", "centre", "right"]


@dataclass(frozen=True)
class Pen:
    """How a text is written: the face, the height of its digits in pixels, the ink by name and by value."""

    face: str
    px: int
    ink: str
    rgb: RGB

    def width(self, text: str) -> int:
        """Pixels a text takes, rounded up."""
        return int(np.ceil(text_width(text, self.face, self.px)))


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around boxes."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


class Sheet:
    """Things in the order they are painted, at any coordinates; `finish` moves them so that all lie inside the page.

    What adds a thing returns its number: boxes are known once the sheet is finished.
    """

    def __init__(self, rng: np.random.Generator, material: Material, dark: bool = False) -> None:
        """Choose the paper. `dark` lets it be a dark one, as screens have."""
        light = [pair for pair in material.tones if dark or sum(TONES[pair[0]]) > 400]
        self.tone, ink = light[int(rng.integers(len(light)))]
        self.ground = TONES[self.tone]
        self.rng, self.material = rng, material
        self.ink, self.rgb = ink, shade(rng, ink)
        self.things: list[Thing] = []

    def pen(self, px: int, ink: str | None = None, face: str | None = None) -> Pen:
        """Take a pen of this paper's ink, or of another that it may carry."""
        faces = self.material.faces
        face = face or faces[int(self.rng.integers(len(faces)))]
        return Pen(face, px, ink or self.ink, shade(self.rng, ink) if ink else self.rgb)

    def faint(self, share: float) -> RGB:
        """Mix ink into the paper: rules, grids and quiet fills."""
        mixed = [round(g + share * (i - g)) for g, i in zip(self.ground, PALETTE[self.ink], strict=True)]
        return mixed[0], mixed[1], mixed[2]

    def text(self, pen: Pen, text: str, x: float, y: float, align: Align = "left", kind: str = "word") -> int:
        """Write a text on the baseline y, from, around or up to x."""
        start = x - {"left": 0.0, "centre": 0.5, "right": 1.0}[align] * text_width(text, pen.face, pen.px)
        stamp, dx, dy = placed_text(text, pen.face, pen.px)
        return self.add(Thing(kind, kind, pen.ink, pen.rgb, stamp, round(start) + dx, round(y) + dy, text))

    def panel(self, box: Sequence[float], rgb: RGB, kind: str = "panel") -> int:
        """Fill a box. What is not a thing one asks about by colour has the colour "none", whatever its ink."""
        x1, y1, x2, y2 = (round(end) for end in box)
        alpha = np.full((max(1, y2 - y1), max(1, x2 - x1)), 255, np.uint8)
        return self.add(Thing("panel", kind, "none", rgb, Stamp(alpha, alpha > 0), x1, y1))

    def frame(self, box: Sequence[float], rgb: RGB, width: int = 1, kind: str = "frame") -> int:
        """Draw the outline of a box, inside it."""
        x1, y1, x2, y2 = (round(end) for end in box)
        alpha = np.full((y2 - y1, x2 - x1), 255, np.uint8)
        alpha[width:-width, width:-width] = 0
        return self.add(Thing("panel", kind, "none", rgb, Stamp(alpha, alpha > 0), x1, y1))

    def add(self, thing: Thing) -> int:
        self.things.append(thing)
        return len(self.things) - 1

    def bounds(self) -> Box:
        """The smallest box around all that is there so far."""
        return union([thing.box for thing in self.things])

    def finish(self, margin: int, least: int = 64) -> Item:
        """Cut the page around its things, at least `least` pixels a side, and paint it."""
        x1, y1, x2, y2 = self.bounds()
        size = max(least, y2 - y1 + 2 * margin), max(least, x2 - x1 + 2 * margin)
        dx, dy = (size[1] - x1 - x2) // 2, (size[0] - y1 - y2) // 2
        things = tuple(replace(thing, x=thing.x + dx, y=thing.y + dy) for thing in self.things)
        noise = 0.0 if self.rng.random() < 0.5 else float(self.rng.uniform(0.5, 4))
        return scene_item(
            Scene(size, Background((self.ground, self.ground), 0.0, noise, int(self.rng.integers(2**31))), things)
        )


def scene_item(scene: Scene, canvas: np.ndarray | None = None) -> Item:
    """Paint a scene or a page, on its own background unless a canvas is given."""
    if canvas is None:
        canvas = paint_background(scene.background, scene.size)
    pixels, object_map, char_map = (layer[None] for layer in paint(canvas, list(enumerate(scene.things))))
    return Item("image", pixels, np.zeros(1), (), object_map, char_map, scene)

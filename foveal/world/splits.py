"""What the items of a split may be made of, so that the test split holds what no training item has shown: Material.

Fonts, words, layouts and pairs of colours are divided. Every split but "test" draws from the training side, each from random
streams of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from foveal.world.colours import COLOURS, PALETTE, lab
from foveal.world.difficulty import ICON_KINDS, SHAPE_KINDS
from foveal.world.emoji import EMOJI
from foveal.world.lexicon import TEST, TRAIN, Lexicon

T = TypeVar("T")
RGB = tuple[int, int, int]

_TRAIN_FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10",
)  # fmt: skip
_TEST_FACES = (
    "NotoSans@300", "NotoSans@400", "NotoSans@500", "NotoSans@700", "NotoSans-Italic@400", "NotoSans-Italic@700",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip

# What is written on: paper and screens.
TONES: dict[str, RGB] = {
    "white": (255, 255, 255), "ivory": (255, 252, 240), "cream": (252, 244, 222), "mist": (236, 242, 250),
    "mint": (228, 244, 232), "rose": (252, 232, 236), "silver": (222, 224, 228), "slate": (52, 60, 72),
    "navy": (22, 28, 62), "night": (24, 24, 28), "pine": (16, 52, 40), "wine": (70, 18, 34),
}  # fmt: skip
_LEGIBLE = 35.0  # difference in lightness (L*) of ink and tone
_KINDS = {kind: number for number, kind in enumerate((*SHAPE_KINDS, *ICON_KINDS, *EMOJI))}
_EVERY = 4  # one pair of colours, or of a kind and a colour, in four is kept for the test split


@dataclass(frozen=True)
class Material:
    """What a split is made of.

    Attributes:
        faces: names of fonts, as `stamps.placed_text` takes them.
        tones: (tone, ink) of everything that is written or drawn on a page.
    """

    name: str
    held_out: bool
    faces: tuple[str, ...]
    lexicon: Lexicon
    tones: tuple[tuple[str, str], ...]

    def may_be(self, kind: str, colour: str) -> bool:
        """Whether a thing of a kind may have a colour."""
        return ((_KINDS[kind] + COLOURS.index(colour)) % _EVERY == 0) == self.held_out

    def colours(self, kind: str) -> list[str]:
        """Name the colours a thing of a kind may have."""
        return [colour for colour in COLOURS if self.may_be(kind, colour)]

    def layouts(self, trained: tuple[T, ...], kept: tuple[T, ...]) -> tuple[T, ...]:
        """Choose between the layouts for training and those kept for the test split."""
        return kept if self.held_out else trained

    def inks(self, tone: str) -> list[str]:
        """Name the inks a tone may carry."""
        return [ink for ground, ink in self.tones if ground == tone]


def _tones(held_out: bool) -> tuple[tuple[str, str], ...]:
    """List legible pairs of this side; black on white and its like are dealt out as all others are."""
    grounds, inks = lab(np.array(list(TONES.values())))[:, 0], lab(np.array(list(PALETTE.values())))[:, 0]
    gaps = np.abs(grounds[:, None] - inks[None])
    return tuple(
        (tone, ink)
        for i, tone in enumerate(TONES)
        for j, ink in enumerate(COLOURS)
        if gaps[i, j] >= _LEGIBLE and ((i + j) % _EVERY == 0) == held_out
    )


_SIDES = (
    Material("train", False, _TRAIN_FACES, TRAIN, _tones(False)),
    Material("test", True, _TEST_FACES, TEST, _tones(True)),
)


def material(split: str) -> Material:
    """What a split is made of."""
    return _SIDES[split == "test"]

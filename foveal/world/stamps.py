"""One drawn thing as a small coverage mask, made once and then placed anywhere: Stamp."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal.errors import MissingDependency
from foveal.world.outlines import turned

FONTS: tuple[str, ...] = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10",
)  # fmt: skip
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
CHAR_CLASSES: tuple[str, ...] = ("none", *CHARACTERS)
_SUPERSAMPLE = 3


@dataclass(frozen=True, eq=False)  # arrays inside: equal means the same one
class Stamp:
    """A thing's ink, cropped so that its bounds are the thing's exact box.

    Attributes:
        alpha: (h, w) uint8 coverage, 255 where the ink is whole.
        solid: (h, w) bool, the pixels that count as the thing: at least half covered, or all of a text's box.
        chars: (h, w) uint8 character class of every pixel (an index into CHAR_CLASSES), or None for a shape or an icon.
    """

    alpha: np.ndarray
    solid: np.ndarray
    chars: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.alpha.shape[0], self.alpha.shape[1]


def _bounds(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def outline_stamp(kind: str, side_px: float, degrees: float) -> Stamp:
    """Draw a shape or an icon with a longer side of `side_px`."""
    scale = side_px * _SUPERSAMPLE
    parts = turned(kind, degrees)
    extent = np.ceil(np.concatenate([points for points, ink in parts if ink]).max(axis=0) * side_px).astype(int) + 1
    canvas = Image.new("L", (int(extent[0]) * _SUPERSAMPLE, int(extent[1]) * _SUPERSAMPLE))
    draw = ImageDraw.Draw(canvas)
    for points, ink in parts:
        draw.polygon((points * scale).ravel().tolist(), fill=255 if ink else 0)
    alpha = np.asarray(canvas.reduce(_SUPERSAMPLE))
    crop = _bounds(alpha >= 128)
    return Stamp(alpha[crop], alpha[crop] >= 128)


@lru_cache(maxsize=1)
def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("matplotlib", "world", "drawing written text (it ships the fonts)") from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=4096)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = _font_folder() / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=256)
def _size_for(name: str, height_px: int) -> int:
    _, top, _, bottom = _font(name, 200).getbbox("0")
    return max(6, round(height_px * 200 / (bottom - top)))


def text_stamp(text: str, font_name: str, height_px: int) -> Stamp:
    """Draw a text whose digits (or capitals) are `height_px` high."""
    font = _font(font_name, _size_for(font_name, height_px))
    left, top, right, bottom = (int(v) for v in font.getbbox(text))
    canvas = Image.new("L", (right - left + 4, bottom - top + 4))
    origin = (2 - left, 2 - top)
    ImageDraw.Draw(canvas).text(origin, text, font=font, fill=255)
    alpha = np.asarray(canvas)
    chars = np.zeros(alpha.shape, dtype=np.uint8)
    edges = [round(origin[0] + font.getlength(text[:i])) for i in range(len(text) + 1)]
    edges[0], edges[-1] = 0, alpha.shape[1]
    for i, character in enumerate(text):
        chars[:, edges[i] : edges[i + 1]] = CHAR_CLASSES.index(character.lower())
    crop = _bounds(alpha >= 96)
    return Stamp(alpha[crop], np.ones(alpha[crop].shape, dtype=bool), chars[crop])

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
_CHAR = {character: index for index, character in enumerate(CHAR_CLASSES)}
_SUPERSAMPLE = 3
_GLYPH_PX = 200  # where a pictogram is measured


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
def data_folder() -> Path:
    """The folder of matplotlib's fonts and sample data."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("matplotlib", "world", "drawing written text (it ships the fonts)") from error
    return Path(matplotlib.get_data_path())


@lru_cache(maxsize=1)
def _noto_folder() -> Path:
    try:
        import manimgx_fonts
    except ImportError as error:
        raise MissingDependency("manimgx-fonts", "world", "drawing emoji and the fonts of the test split") from error
    return Path(manimgx_fonts.__path__[0])


@lru_cache(maxsize=4096)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Open a face of matplotlib's, or, as "family@weight", a weight of a Noto family."""
    family, _, weight = name.partition("@")
    path = _noto_folder() / f"{family}[wght].ttf" if weight else data_folder() / "fonts" / "ttf" / f"{family}.ttf"
    font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    if weight:
        font.set_variation_by_axes([float(weight)])
    return font


@lru_cache(maxsize=256)
def _size_for(name: str, height_px: int) -> int:
    _, top, _, bottom = _font(name, 200).getbbox("0")
    return max(6, round(height_px * 200 / (bottom - top)))


def placed_text(text: str, font_name: str, height_px: int) -> tuple[Stamp, int, int]:
    """Draw a text whose digits (or capitals) are `height_px` high.

    Returns:
        the stamp, and x and y of its top left corner, seen from where the pen starts on the baseline.
    """
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
        chars[:, edges[i] : edges[i + 1]] = _CHAR.get(character.lower(), 0)
    crop = _bounds(alpha >= min(96, int(alpha.max())))  # a small full stop may have no pixel of 96
    stamp = Stamp(alpha[crop], np.ones(alpha[crop].shape, dtype=bool), chars[crop])
    return stamp, crop[1].start - origin[0], crop[0].start - origin[1] - font.getmetrics()[0]


def text_stamp(text: str, font_name: str, height_px: int) -> Stamp:
    """Draw a text whose digits (or capitals) are `height_px` high."""
    return placed_text(text, font_name, height_px)[0]


def text_width(text: str, font_name: str, height_px: int) -> float:
    """How far the pen moves (pixels) while `text` is written."""
    return _font(font_name, _size_for(font_name, height_px)).getlength(text)


def _drawn(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Draw one character, cropped to what it covers at least half."""
    left, top, right, bottom = (int(v) for v in font.getbbox(character))
    canvas = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(canvas).text((2 - left, 2 - top), character, font=font, fill=255)
    alpha = np.asarray(canvas)
    return alpha[_bounds(alpha >= 128)]


@lru_cache(maxsize=1024)
def _glyph_side(character: str, font_name: str) -> int:
    return max(_drawn(character, _font(font_name, _GLYPH_PX)).shape)


def glyph_stamp(character: str, font_name: str, side_px: float) -> Stamp:
    """Draw one pictogram of a font with a longer side of `side_px`."""
    size = max(8, round(_GLYPH_PX * side_px / _glyph_side(character, font_name)))
    alpha = _drawn(character, _font(font_name, size))
    return Stamp(alpha, alpha >= 128)

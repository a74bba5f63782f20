"""What a world may contain, and how hard it is: the kinds of things and of questions, and Difficulty."""

from __future__ import annotations

from dataclasses import dataclass, replace

from foveal.errors import ConfigError
from foveal.world.colours import COLOURS
from foveal.world.emoji import EMOJI
from foveal.world.outlines import ICONS, SHAPES
from foveal.world.stamps import FONTS

SHAPE_KINDS: tuple[str, ...] = tuple(SHAPES)
ICON_KINDS: tuple[str, ...] = tuple(ICONS)
FAMILIES: tuple[str, ...] = ("shape", "icon", "number", "word")
KIND_CLASSES: tuple[str, ...] = ("none", *SHAPE_KINDS, *ICON_KINDS, "number", "word", *EMOJI)
COLOUR_CLASSES: tuple[str, ...] = ("none", *COLOURS)
WORDS: tuple[str, ...] = (
    "apple", "bird", "blue", "book", "bread", "bus", "cake", "cat", "city", "cold", "cow", "day", "dog", "door", "eat",
    "egg", "exit", "fire", "food", "fox", "game", "gold", "go", "green", "hand", "hat", "home", "hot", "ice", "jam", "jump",
    "kite", "lake", "lamp", "leaf", "love", "map", "milk", "moon", "music", "new", "night", "one", "open", "pen", "queen",
    "quiz", "rain", "read", "red", "ship", "six", "snow", "stop", "sun", "tea", "time", "two", "van", "water", "wave",
    "yes", "zero", "zoo",
)  # fmt: skip
PICTURE_KINDS: tuple[str, ...] = (
    "colour", "shape", "icon", "count", "box", "relation", "read_number", "read_word", "describe",
)  # fmt: skip
CLIP_KINDS: tuple[str, ...] = ("appear_time", "vanish_time", "first", "moves", "clip_colour", "clip_count", "timeline")
QUESTION_KINDS: tuple[str, ...] = PICTURE_KINDS + CLIP_KINDS


@dataclass(frozen=True)
class Difficulty:
    """How hard pictures and clips are; every range includes both ends, sides and sizes are pixels.

    Attributes:
        min_side, max_side: of a picture, height and width alike.
        max_ratio: longest side over shortest.
        size: (height, width) of every picture and clip; None draws each its own within the ranges of sides.
        min_object_px: smallest longer side of a shape or an icon; crowded scenes may go below it, to 12.
        max_object_share: largest longer side, as a share of the picture's shorter side.
        text_px: height of written digits; fonts: the faces they are written in.
        families: relative weights of "shape", "icon", "number" and "word".
        counting: share of pictures built around a group to count.
        plain_background: how often the background has no gradient, and how often no noise.
        max_questions: questions an item carries.
        questions: relative weights of question kinds; kinds left out are not asked. Empty asks all alike.
        event_step: things appear and vanish at multiples of so many frames.
    """

    min_side: int = 96
    max_side: int = 288
    max_ratio: float = 2.0
    size: tuple[int, int] | None = None
    min_objects: int = 1
    max_objects: int = 6
    min_object_px: int = 20
    max_object_share: float = 0.5
    text_px: tuple[int, int] = (14, 40)
    number_digits: tuple[int, int] = (2, 4)
    colours: tuple[str, ...] = COLOURS
    shapes: tuple[str, ...] = SHAPE_KINDS
    icons: tuple[str, ...] = ICON_KINDS
    words: tuple[str, ...] = WORDS
    fonts: tuple[str, ...] = FONTS
    families: tuple[tuple[str, float], ...] = (("shape", 6.0), ("icon", 2.0), ("number", 1.0), ("word", 1.0))
    counting: float = 0.4
    plain_background: float = 0.4
    max_questions: int = 6
    questions: tuple[tuple[str, float], ...] = ()
    clip_side: tuple[int, int] = (96, 192)
    clip_frames: tuple[int, int] = (4, 16)
    clip_fps: tuple[float, ...] = (1.0, 2.0, 4.0)
    clip_objects: tuple[int, int] = (1, 4)
    event_step: int = 1

    def __post_init__(self) -> None:
        for what, low, high, floor in (
            ("sides", self.min_side, self.max_side, 32),
            *((("size", min(self.size), max(self.size), 32),) if self.size else ()),
            ("objects", self.min_objects, self.max_objects, 1),
            ("text_px", *self.text_px, 6),
            ("number_digits", *self.number_digits, 1),
            ("clip_side", *self.clip_side, 32),
            ("clip_frames", *self.clip_frames, 2),
            ("clip_objects", *self.clip_objects, 1),
        ):
            if not floor <= low <= high:
                raise ConfigError(f"{what} {low}..{high}: the range must rise and start at {floor} or more")
        for what, names, known in (
            ("families", [name for name, _ in self.families], FAMILIES),
            ("questions", [name for name, _ in self.questions], QUESTION_KINDS),
            ("colours", self.colours, COLOURS),
            ("shapes", self.shapes, SHAPE_KINDS),
            ("icons", self.icons, ICON_KINDS),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ConfigError(f"{what}: {', '.join(unknown)} is not among {', '.join(known)}")
        weights = [weight for _, weight in (*self.families, *self.questions)]
        if min(weights, default=0.0) < 0 or not any(weight > 0 for _, weight in self.families):
            raise ConfigError(f"weights {weights}: none may be negative, and one family must be above 0")
        empty = [what for what in ("colours", "shapes", "icons", "words", "fonts", "clip_fps") if not getattr(self, what)]
        if empty:
            raise ConfigError(f"{', '.join(empty)}: nothing to choose from; name at least one")
        if self.max_ratio < 1 or self.event_step < 1 or min(self.clip_fps) <= 0:
            raise ConfigError("max_ratio and event_step must be 1 or more, clip_fps above 0")

    def asking(self, **weights: float) -> Difficulty:
        """Copy with other question weights, such as more of what a model is weakest at; kinds left out are not asked."""
        return replace(self, questions=tuple(weights.items()))


EASY = Difficulty(min_side=96, max_side=96, max_objects=2, families=(("shape", 1.0),), plain_background=0.7)

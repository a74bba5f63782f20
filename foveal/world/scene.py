"""Decide what a picture shows: Difficulty, Thing, Scene, and the sampling of scenes from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from foveal.errors import ConfigError
from foveal.world.colours import COLOURS, PALETTE, far_from
from foveal.world.outlines import ICON_TURN, ICONS, SHAPES, TURN
from foveal.world.stamps import FONTS, Stamp, outline_stamp, text_stamp

Box = tuple[int, int, int, int]

SHAPE_KINDS: tuple[str, ...] = tuple(SHAPES)
ICON_KINDS: tuple[str, ...] = tuple(ICONS)
KIND_CLASSES: tuple[str, ...] = ("none", *SHAPE_KINDS, *ICON_KINDS, "number", "word")
COLOUR_CLASSES: tuple[str, ...] = ("none", *COLOURS)
WORDS: tuple[str, ...] = (
    "apple", "bird", "blue", "book", "bread", "bus", "cake", "cat", "city", "cold", "cow", "day", "dog", "door", "eat",
    "egg", "exit", "fire", "food", "fox", "game", "gold", "go", "green", "hand", "hat", "home", "hot", "ice", "jam", "jump",
    "kite", "lake", "lamp", "leaf", "love", "map", "milk", "moon", "music", "new", "night", "one", "open", "pen", "queen",
    "quiz", "rain", "read", "red", "ship", "six", "snow", "stop", "sun", "tea", "time", "two", "van", "water", "wave",
    "yes", "zero", "zoo",
)  # fmt: skip


@dataclass(frozen=True)
class Difficulty:
    """How hard pictures and clips are; every range includes both ends.

    Sides are in pixels and drawn per axis; the aspect ratio stays within `max_ratio`. Weights are relative. `families`
    weighs what the things are, `questions` what is asked (a kind with weight 0 or left out is never asked).
    `event_step` makes things appear and vanish only at multiples of so many frames.
    """

    min_side: int = 96
    max_side: int = 288
    max_ratio: float = 2.0
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
        if not 32 <= self.min_side <= self.max_side:
            raise ConfigError(f"sides {self.min_side}..{self.max_side} px: need 32 <= min_side <= max_side")
        if not 1 <= self.min_objects <= self.max_objects:
            raise ConfigError(f"objects {self.min_objects}..{self.max_objects}: need 1 <= min_objects <= max_objects")
        if not any(weight > 0 for _, weight in self.families):
            raise ConfigError("families: at least one family needs a weight above 0")

    def with_questions(self, **weights: float) -> Difficulty:
        """Copy with other question weights, for a trainer that asks more of what is weakest."""
        return replace(self, questions=tuple(weights.items()))


EASY = Difficulty(min_side=96, max_side=96, max_objects=2, families=(("shape", 1.0),), plain_background=0.7)


@dataclass(frozen=True)
class Thing:
    """One object of a picture: what it is, how it looks and where its stamp's top left corner lies (pixels)."""

    family: str
    kind: str
    colour: str
    rgb: tuple[int, int, int]
    stamp: Stamp
    x: int
    y: int
    text: str = ""

    @property
    def box(self) -> Box:
        """(x1, y1, x2, y2) in pixels; the right and lower ends are exclusive."""
        h, w = self.stamp.size
        return self.x, self.y, self.x + w, self.y + h

    @property
    def name(self) -> str:
        """The full name: colour, kind, and the text in lower case if one is written."""
        return f"{self.colour} {self.kind}" + (f" {self.text.lower()}" if self.text else "")


@dataclass(frozen=True)
class Background:
    """Two colours blended along a direction (radians), and the standard deviation of the noise on top (levels)."""

    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    direction: float
    noise: float
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. `group` names what a counting scene repeats: ("kind", "star") or ("colour", "red")."""

    size: tuple[int, int]
    background: Background
    things: tuple[Thing, ...]
    group: tuple[str, str] | None = field(default=None)


def generator(seed: int, split: str, stream: str) -> np.random.Generator:
    """Make the generator of one item. Splits and streams never share a seed sequence: their names are part of it."""
    if seed < 0:
        raise ConfigError(f"seed {seed}: need 0 or more")
    return np.random.default_rng([zlib.crc32(split.encode()), zlib.crc32(stream.encode()), seed])


def sample_size(rng: np.random.Generator, low: int, high: int, max_ratio: float) -> tuple[int, int]:
    """Draw a height and a width in low..high pixels with an aspect ratio of at most `max_ratio` either way."""
    first = int(rng.integers(low, high + 1))
    second = int(rng.integers(max(low, math.ceil(first / max_ratio)), min(high, math.floor(first * max_ratio)) + 1))
    return (first, second) if rng.random() < 0.5 else (second, first)


def sample_background(rng: np.random.Generator, plain: float, usable: Sequence[str]) -> tuple[Background, list[str]]:
    """Draw a background and name the `usable` colours that stand out against all of it (at least four, or all)."""
    while True:
        tone = rng.random()
        level = rng.uniform(205, 255) if tone < 0.6 else rng.uniform(0, 60) if tone < 0.9 else rng.uniform(90, 190)
        tints = level + rng.uniform(-22, 22, size=(2, 3))
        if rng.random() < plain:
            tints[1] = tints[0]
        ends = np.clip(tints, 0, 255).round().astype(int)
        colours = [name for name in far_from(ends, 38.0) if name in usable]
        if len(colours) >= min(4, len(usable)):
            break
    noise = 0.0 if rng.random() < plain else float(rng.uniform(0, 7))
    pair = (tuple(ends[0].tolist()), tuple(ends[1].tolist()))
    return Background(pair, float(rng.uniform(0, 2 * np.pi)), noise, int(rng.integers(2**31))), colours


@dataclass(frozen=True)
class _Idea:
    """A thing before it has a size and a place."""

    family: str
    kind: str
    colour: str
    text: str = ""


def _pick(rng: np.random.Generator, options: Sequence[str], taken: Sequence[str] = ()) -> str:
    """Draw one of `options`, one not yet taken while there is any."""
    free = [option for option in options if option not in taken] or list(options)
    return free[int(rng.integers(len(free)))]


def _text(rng: np.random.Generator, family: str, level: Difficulty) -> str:
    if family == "number":
        digits = int(rng.integers(level.number_digits[0], level.number_digits[1] + 1))
        return str(int(rng.integers(10 ** (digits - 1), 10**digits)))
    word = _pick(rng, level.words)
    return (word, word.upper(), word.capitalize())[int(rng.integers(3))]


def sample_idea(rng: np.random.Generator, level: Difficulty, colours: Sequence[str], others: Sequence[_Idea]) -> _Idea:
    """Draw a thing unlike the `others` in kind and colour, most of the time, so that it can be referred to."""
    names = [name for name, _ in level.families]
    weights = np.array([weight for _, weight in level.families])
    family = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    texts = [idea for idea in others if idea.text]
    if len(texts) >= 2 and family in ("number", "word") and any(name in ("shape", "icon") for name in names):
        family = next(name for name in names if name in ("shape", "icon"))
    taken_kinds = [idea.kind for idea in others] if rng.random() < 0.7 else []
    taken_colours = [idea.colour for idea in others] if rng.random() < 0.7 else []
    colour = _pick(rng, colours, taken_colours)
    if family in ("number", "word"):
        while (text := _text(rng, family, level)).lower() in (idea.text.lower() for idea in others):
            pass
        return _Idea(family, family, colour, text)
    return _Idea(family, _pick(rng, level.shapes if family == "shape" else level.icons, taken_kinds), colour)


def _counting_ideas(
    rng: np.random.Generator, level: Difficulty, colours: Sequence[str]
) -> tuple[list[_Idea], tuple[str, str]]:
    """Repeat a kind or a colour k times, k even over the range, and add things that are not of that group."""
    k = int(rng.integers(1, level.max_objects + 1))
    total = int(rng.integers(max(k, level.min_objects), level.max_objects + 1))
    family, kinds = ("shape", level.shapes) if rng.random() < 0.8 or not dict(level.families).get("icon") else ("icon", level.icons)
    if rng.random() < 0.6 or len(colours) < 2:
        kind = _pick(rng, kinds)
        one_colour = rng.random() < 0.35
        shared = _pick(rng, colours)
        ideas = [_Idea(family, kind, shared if one_colour else _pick(rng, colours)) for _ in range(k)]
        group = ("kind", kind)
    else:
        colour = _pick(rng, colours)
        ideas = [_Idea(family, _pick(rng, kinds), colour) for _ in range(k)]
        group = ("colour", colour)
    while len(ideas) < total:
        idea = sample_idea(rng, level, colours, ideas)
        if getattr(idea, group[0]) != group[1]:
            ideas.append(idea)
    rng.shuffle(ideas)  # type: ignore[arg-type]
    return ideas, group


def make_stamp(rng: np.random.Generator, idea: _Idea, cap_px: float, size: tuple[int, int], level: Difficulty) -> Stamp:
    """Draw the idea with a longer side of at most `cap_px` (a text: a glyph height within the level's range)."""
    height, width = size
    if idea.text:
        low, high = level.text_px
        tallest = min(high, 0.3 * height, 0.85 * width / (0.75 * len(idea.text)))
        glyph = max(low, round(float(rng.uniform(low, max(low, tallest)))))
        return text_stamp(idea.text, FONTS[int(rng.integers(len(FONTS)))], glyph)
    low_px = min(level.min_object_px, cap_px)
    side = math.exp(rng.uniform(math.log(low_px), math.log(max(cap_px, low_px + 1))))
    turn = TURN.get(idea.kind, ICON_TURN)
    return outline_stamp(idea.kind, side, float(rng.uniform(-turn, turn)))


def find_room(
    rng: np.random.Generator, extent: tuple[int, int], size: tuple[int, int], taken: Sequence[Box], margin: int = 3
) -> tuple[int, int] | None:
    """Find (x, y) for a box of height and width `extent` that touches no taken box, or None."""
    rows, columns = size[0] - extent[0] - 2, size[1] - extent[1] - 2
    if rows < 0 or columns < 0:
        return None
    for _ in range(30):
        x, y = 1 + int(rng.integers(columns + 1)), 1 + int(rng.integers(rows + 1))
        right, lower = x + extent[1] + margin, y + extent[0] + margin
        if all(x >= x2 + margin or right <= x1 or y >= y2 + margin or lower <= y1 for x1, y1, x2, y2 in taken):
            return x, y
    return None


def shade(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """Draw a shade a little off the named colour."""
    rgb = np.clip(np.array(PALETTE[colour]) + rng.integers(-7, 8, size=3), 0, 255)
    return int(rgb[0]), int(rgb[1]), int(rgb[2])


def sample_scene(rng: np.random.Generator, level: Difficulty) -> Scene:
    """Draw a scene; things never overlap and lie fully inside the picture."""
    size = sample_size(rng, level.min_side, level.max_side, level.max_ratio)
    background, colours = sample_background(rng, level.plain_background, level.colours)
    group = None
    if rng.random() < level.counting:
        ideas, group = _counting_ideas(rng, level, colours)
    else:
        ideas = []
        for _ in range(int(rng.integers(level.min_objects, level.max_objects + 1))):
            ideas.append(sample_idea(rng, level, colours, ideas))
    cap = min(level.max_object_share * min(size), math.sqrt(0.6 * size[0] * size[1] / len(ideas)))
    for attempt in range(12):
        things: list[Thing] = []
        for idea in sorted(ideas, key=lambda idea: not idea.text):  # texts are the widest: place them first
            stamp = make_stamp(rng, idea, max(12.0, cap * 0.85**attempt), size, level)
            place = find_room(rng, stamp.size, size, [thing.box for thing in things])
            if place is None:
                break
            things.append(Thing(idea.family, idea.kind, idea.colour, shade(rng, idea.colour), stamp, *place, idea.text))
        if len(things) == len(ideas):
            break
    order = rng.permutation(len(things))
    return Scene(size, background, tuple(things[i] for i in order), group)

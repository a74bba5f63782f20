"""Decide what a picture shows: Thing, Scene, and the sampling of scenes from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveal.errors import ConfigError
from foveal.world.colours import PALETTE, far_from
from foveal.world.difficulty import Difficulty
from foveal.world.emoji import EMOJI, EMOJI_FACE
from foveal.world.outlines import ICON_TURN, TURN
from foveal.world.stamps import Stamp, glyph_stamp, outline_stamp, text_stamp

Box = tuple[int, int, int, int]

# Least distance (L*a*b*) between a thing and its background: gray on near-black and pink on pale rose stay legible.
CONTRAST = 42.0


@dataclass(frozen=True, eq=False)  # arrays inside: equal means the same one
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
    group: tuple[str, str] | None = None


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
        low, high, tint = (212, 255, 22) if tone < 0.5 else (0, 36, 14) if tone < 0.9 else (90, 190, 22)
        tints = rng.uniform(low, high) + rng.uniform(-tint, tint, size=(2, 3))
        if rng.random() < plain:
            tints[1] = tints[0]
        ends = np.clip(tints, 0, 255).round().astype(int)
        colours = [name for name in far_from(ends, CONTRAST) if name in usable]
        if len(colours) >= min(4, len(usable)):
            break
    noise = 0.0 if rng.random() < plain else float(rng.uniform(0, 7))
    pair = (tuple(ends[0].tolist()), tuple(ends[1].tolist()))
    return Background(pair, float(rng.uniform(0, 2 * np.pi)), noise, int(rng.integers(2**31))), colours


@dataclass(frozen=True)
class Idea:
    """A thing before it has a size and a place."""

    family: str
    kind: str
    colour: str
    text: str = ""


def pick(rng: np.random.Generator, options: Sequence[str], taken: Sequence[str] = ()) -> str:
    """Draw one of `options`, one not yet taken while there is any."""
    free = [option for option in options if option not in taken] or list(options)
    return free[int(rng.integers(len(free)))]


def _text(rng: np.random.Generator, family: str, level: Difficulty, taken: Sequence[str]) -> str:
    if family == "word":
        word = pick(rng, level.words, taken)
        return (word, word.upper(), word.capitalize())[int(rng.integers(3))]
    digits = int(rng.integers(level.number_digits[0], level.number_digits[1] + 1))
    return str(int(rng.integers(10 ** (digits - 1), 10**digits)))


def _family(rng: np.random.Generator, level: Difficulty, texts: int) -> str:
    """Draw a family; after two texts no third, unless there is nothing else."""
    weights = {name: weight for name, weight in level.families if weight > 0}
    if texts >= 2:
        drawn = {name: weight for name, weight in weights.items() if name in ("shape", "icon")}
        weights = drawn or weights
    share = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(share), p=share / share.sum()))]


def sample_idea(rng: np.random.Generator, level: Difficulty, colours: Sequence[str], others: Sequence[Idea]) -> Idea:
    """Draw a thing unlike the `others` in kind and colour, most of the time, so that it can be referred to."""
    texts = [idea.text.lower() for idea in others if idea.text]
    family = _family(rng, level, len(texts))
    taken_kinds = [idea.kind for idea in others] if rng.random() < 0.7 else []
    taken_colours = [idea.colour for idea in others] if rng.random() < 0.7 else []
    colour = pick(rng, colours, taken_colours)
    if family in ("number", "word"):
        return Idea(family, family, colour, _text(rng, family, level, texts))
    return Idea(family, pick(rng, level.shapes if family == "shape" else level.icons, taken_kinds), colour)


def _counting_ideas(
    rng: np.random.Generator, level: Difficulty, colours: Sequence[str], family: str
) -> tuple[list[Idea], tuple[str, str]]:
    """Repeat a kind or a colour k times, k even over the range, and add things that are not of that group."""
    k = int(rng.integers(1, level.max_objects + 1))
    total = int(rng.integers(max(k, level.min_objects), level.max_objects + 1))
    kinds = level.shapes if family == "shape" else level.icons
    shared = pick(rng, colours)
    if rng.random() < 0.6 or len(colours) < 2:
        group = ("kind", pick(rng, kinds))
        alike = rng.random() < 0.35
        ideas = [Idea(family, group[1], shared if alike else pick(rng, colours)) for _ in range(k)]
    else:
        group = ("colour", shared)
        ideas = [Idea(family, pick(rng, kinds), shared) for _ in range(k)]
    for _ in range(50):  # a level with a single kind may have nothing else to add
        if len(ideas) == total:
            break
        idea = sample_idea(rng, level, colours, ideas)
        if getattr(idea, group[0]) != group[1]:
            ideas.append(idea)
    return ideas, group


def make_stamp(rng: np.random.Generator, idea: Idea, cap_px: float, size: tuple[int, int], level: Difficulty) -> Stamp:
    """Draw the idea with a longer side of at most `cap_px` (a text: a glyph height within the level's range)."""
    height, width = size
    if idea.text:
        low, high = level.text_px
        tallest = min(high, 0.3 * height, 0.85 * width / (0.75 * len(idea.text)))
        glyph = max(low, round(float(rng.uniform(low, max(low, tallest)))))
        return text_stamp(idea.text, level.fonts[int(rng.integers(len(level.fonts)))], glyph)
    low_px = min(level.min_object_px, cap_px)
    side = math.exp(rng.uniform(math.log(low_px), math.log(max(cap_px, low_px + 1))))
    if idea.family == "emoji":
        return glyph_stamp(EMOJI[idea.kind], EMOJI_FACE, side)
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


def place(rng: np.random.Generator, ideas: Sequence[Idea], size: tuple[int, int], level: Difficulty) -> list[Thing] | None:
    """Give every idea a stamp and a place, smaller at each of a few attempts; None if they do not fit."""
    cap = min(level.max_object_share * min(size), math.sqrt(0.6 * size[0] * size[1] / len(ideas)))
    for attempt in range(10):
        things: list[Thing] = []
        for idea in sorted(ideas, key=lambda idea: not idea.text):  # texts are the widest: place them first
            stamp = make_stamp(rng, idea, max(12.0, cap * 0.85**attempt), size, level)
            room = find_room(rng, stamp.size, size, [thing.box for thing in things])
            if room is None:
                break
            things.append(Thing(idea.family, idea.kind, idea.colour, shade(rng, idea.colour), stamp, *room, idea.text))
        if len(things) == len(ideas):
            return [things[i] for i in rng.permutation(len(things))]
    return None


def sample_scene(rng: np.random.Generator, level: Difficulty) -> Scene:
    """Draw a scene; things never overlap and lie fully inside the picture.

    Raises:
        ConfigError: the level asks for more than fits in its pictures.
    """
    countable = [name for name, weight in level.families if weight > 0 and name in ("shape", "icon")]
    for _ in range(20):
        size = level.size or sample_size(rng, level.min_side, level.max_side, level.max_ratio)
        background, colours = sample_background(rng, level.plain_background, level.colours)
        group = None
        if countable and rng.random() < level.counting:
            family = "shape" if "shape" in countable and rng.random() < 0.8 else countable[-1]
            ideas, group = _counting_ideas(rng, level, colours, family)
        else:
            ideas = []
            for _ in range(int(rng.integers(level.min_objects, level.max_objects + 1))):
                ideas.append(sample_idea(rng, level, colours, ideas))
        things = place(rng, ideas, size, level)
        if things is not None:
            return Scene(size, background, tuple(things), group)
    raise ConfigError(
        f"{level.min_objects}..{level.max_objects} objects do not fit in {level.min_side}..{level.max_side} px pictures; "
        "ask for fewer objects, smaller text_px or larger sides"
    )

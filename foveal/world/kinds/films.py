"""Clips of 4 to 64 frames: events at known times, their order, and a code that is seen for a moment only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foveal.world.clip_questions import ask_about_clip, seconds
from foveal.world.clips import Actor, Clip, paint_clip, sample_clip
from foveal.world.colours import far_from
from foveal.world.difficulty import Difficulty
from foveal.world.grounds import passing, textured
from foveal.world.items import Item
from foveal.world.kinds.scenes import DRAWN, level_of, think_of
from foveal.world.kinds.tools import Made, code, one, unasked
from foveal.world.phrases import say
from foveal.world.questions import Question
from foveal.world.scene import CONTRAST, Idea, Thing, find_room, shade
from foveal.world.sheet import union
from foveal.world.splits import Material
from foveal.world.stamps import text_stamp

_LENGTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64)


def _level(material: Material, shortest: int, objects: tuple[int, int]) -> Difficulty:
    return replace(level_of(material), clip_side=(96, 160), clip_frames=(shortest, 64), clip_objects=objects)


def _sample(rng: np.random.Generator, material: Material, level: Difficulty) -> Clip:
    """Draw a clip, as often of few frames as of many, of things the split may show."""
    length = one(rng, [length for length in _LENGTHS if length >= level.clip_frames[0]])

    def draw(rng: np.random.Generator, level: Difficulty, colours: Sequence[str], others: Sequence[Idea]) -> Idea:
        return think_of(rng, material, colours, DRAWN, others)

    return sample_clip(rng, replace(level, clip_frames=(length, length)), draw)


def _film(rng: np.random.Generator, clip: Clip) -> Item:
    """Paint a clip on a ground that stands still or moves past."""
    if rng.random() < 0.5:
        canvases = [textured(rng, clip.background, clip.size)] * clip.num_frames
    else:
        canvases = passing(rng, clip.background, clip.size, clip.num_frames)
    pixels, object_map, char_map = (np.stack(layer) for layer in zip(*paint_clip(clip, canvases), strict=True))
    return Item("video", pixels, clip.times_s, (), object_map, char_map, clip)


def event(rng: np.random.Generator, material: Material) -> Made:
    """Things appear, move and vanish; when, and which way?"""
    level = _level(material, 4, (1, 4))
    while True:
        clip = _sample(rng, material, level)
        level = replace(level, max_questions=3).asking(appear_time=2, vanish_time=2, moves=1)
        found = ask_about_clip(clip, rng, level)
        if found:
            film = _film(rng, clip)
            return Made((film,), found, unasked(ask_about_clip(clip, rng, level), found))


def order(rng: np.random.Generator, material: Material) -> Made:
    """Things appear one after another, no two at once."""
    level = _level(material, 6, (2, 5))
    while True:
        clip = _sample(rng, material, level)
        ordered = sorted(clip.actors, key=lambda actor: actor.appear)
        if len(ordered) >= 2 and len({actor.appear for actor in ordered}) == len(ordered):
            break
    frames, boxes = tuple(a.appear for a in ordered), tuple(a.box(a.appear) for a in ordered)
    names = [actor.thing.name for actor in ordered]
    span = (frames[0] / clip.fps, frames[-1] / clip.fps)
    last = (span[1], span[1])
    film = _film(rng, clip)
    return Made(
        (film,),
        (
            Question("order_list", say(rng, "order_list"), ", ".join(names), boxes, span, frames=frames),
            Question("order_last", say(rng, "order_last"), names[-1], boxes[-1:], last, frames=frames[-1:]),
        ),
    )


def glimpse(rng: np.random.Generator, material: Material) -> Made:
    """A code is seen for one to three frames of a clip in which other things come and go."""
    level = _level(material, 8, (1, 3))
    while True:
        clip = _sample(rng, material, level)
        swept = [union([actor.box(actor.appear), actor.box(actor.vanish - 1)]) for actor in clip.actors]
        secret = code(rng)
        stamp = text_stamp(secret, one(rng, level.fonts), int(rng.integers(10, 22)))
        room = find_room(rng, stamp.size, clip.size, swept)
        if room is not None:
            break
    colour = one(rng, far_from(np.array(clip.background.colours), CONTRAST))
    appear = int(rng.integers(1, clip.num_frames - 3))
    thing = Thing("word", "code", colour, shade(rng, colour), stamp, *room, secret)
    hidden = Actor(thing, appear, appear + int(rng.integers(1, 4)))
    clip = replace(clip, actors=(*clip.actors, hidden))
    span, boxes = (appear / clip.fps, (hidden.vanish - 1) / clip.fps), (thing.box,)
    film = _film(rng, clip)
    return Made(
        (film,),
        (
            Question("glimpse_code", say(rng, "glimpse_code"), secret, boxes, span, frames=(appear,)),
            Question("glimpse_time", say(rng, "glimpse_time"), seconds(span[0]), boxes, span, frames=(appear,)),
        ),
    )

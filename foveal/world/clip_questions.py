"""Questions about a clip, with answers that follow from the ground truth alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foveal.world.clips import Actor, Clip
from foveal.world.difficulty import Difficulty
from foveal.world.phrases import say
from foveal.world.questions import Question, draw_questions, refer


def seconds(time_s: float) -> str:
    """Write a time the way answers do."""
    return f"{time_s:.1f} seconds"


def _about(kind: str, text: str, answer: str, clip: Clip, actor: Actor, name: str, *frames: int) -> Question:
    """Make a question whose evidence is one actor, called `name` there, boxed in the named frames."""
    span = (actor.appear / clip.fps, (actor.vanish - 1) / clip.fps)
    return Question(kind, text, answer, tuple(actor.box(frame) for frame in frames), span, (name,), frames)


def _name(rng: np.random.Generator, clip: Clip, actor: Actor) -> str:
    name = refer(rng, actor.thing, [other.thing for other in clip.actors])
    assert name is not None, "sample_clip gives every actor its own colour and kind"
    return name


def _appear_time(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    for actor in clip.actors:
        if actor.appear == 0 and rng.random() < 0.7:
            continue  # what is there from the start is asked about less often, or 0.0 would be the commonest answer
        name = _name(rng, clip, actor)
        text = say(rng, "appear_time", a=name)
        found.append(_about("appear_time", text, seconds(clip.appear_s(actor)), clip, actor, name, actor.appear))
    return found


def _vanish_time(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    for actor in clip.actors:
        end = clip.vanish_s(actor)
        if end is not None:
            name = _name(rng, clip, actor)
            text = say(rng, "vanish_time", a=name)
            found.append(_about("vanish_time", text, seconds(end), clip, actor, name, actor.vanish - 1))
    return found


def _first(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    names = {id(actor): f"{actor.thing.colour} {actor.thing.kind}" for actor in clip.actors}
    order = sorted(clip.actors, key=lambda actor: actor.appear)
    if len(order) >= 2 and order[0].appear < order[1].appear:
        early = order[0]
        found.append(_about("first", say(rng, "first"), names[id(early)], clip, early, names[id(early)], early.appear))
    for one in clip.actors:
        for other in clip.actors:
            if one.appear != other.appear:
                early = one if one.appear < other.appear else other
                text = say(rng, "first of two", a=names[id(one)], b=names[id(other)])
                found.append(_about("first", text, names[id(early)], clip, early, names[id(early)], early.appear))
    return found


def _moves(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    for actor in clip.actors:
        if actor.direction:
            name = _name(rng, clip, actor)
            text = say(rng, "moves", a=name)
            found.append(_about("moves", text, actor.direction, clip, actor, name, actor.appear, actor.vanish - 1))
    return found


def _clip_colour(clip: Clip, rng: np.random.Generator) -> list[Question]:
    kinds = [actor.thing.kind for actor in clip.actors]
    found = []
    for actor in clip.actors:
        if kinds.count(actor.thing.kind) == 1:
            text = say(rng, "colour", a=actor.thing.kind)
            found.append(_about("clip_colour", text, actor.thing.colour, clip, actor, actor.thing.kind, actor.appear))
    return found


def _clip_count(clip: Clip, rng: np.random.Generator) -> list[Question]:
    whole = (0.0, float(clip.times_s[-1]))
    return [Question("clip_count", say(rng, "clip_count"), str(len(clip.actors)), span_s=whole)]


def _timeline(clip: Clip, rng: np.random.Generator) -> list[Question]:
    order = sorted(clip.actors, key=lambda actor: (actor.appear, actor.thing.y, actor.thing.x))
    events = [
        f"{clip.appear_s(actor):.1f} {actor.thing.name}" + (f" moves {actor.direction}" if actor.direction else "")
        for actor in order
    ]
    whole = (0.0, float(clip.times_s[-1]))
    return [Question("timeline", say(rng, "timeline"), ", ".join(events), span_s=whole)]


_MAKERS: dict[str, Callable[[Clip, np.random.Generator], list[Question]]] = {
    "appear_time": _appear_time,
    "vanish_time": _vanish_time,
    "first": _first,
    "moves": _moves,
    "clip_colour": _clip_colour,
    "clip_count": _clip_count,
    "timeline": _timeline,
}


def ask_about_clip(clip: Clip, rng: np.random.Generator, level: Difficulty) -> tuple[Question, ...]:
    """Draw the questions of a clip."""
    return draw_questions(rng, {kind: make(clip, rng) for kind, make in _MAKERS.items()}, level)

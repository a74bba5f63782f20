"""Questions about a picture, with answers that follow from the ground truth alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.world.difficulty import Difficulty
from foveal.world.phrases import plural, say
from foveal.world.scene import Box, Scene, Thing

# Two things are left and right of each other only if their centres are this far apart (pixels; share of the side).
_APART_PX, _APART_SHARE = 14.0, 0.14


@dataclass(frozen=True)
class Question:
    """One turn: the question, its answer, and where in the picture (pixels) or the clip (seconds) the evidence is.

    names: the words of the question that mean the thing in each box, for the first boxes, or, of a count, the one word that
        means all of them; frames: of a clip, one a box; pictures: of several pictures, the number (from 0) of the one each
        box is in; thinking: reasoning that leads to the answer, "" if none is given; tolerance: how far off a number may be
        and still be right, where the kind is scored so.
    """

    kind: str
    question: str
    answer: str
    boxes: tuple[Box, ...] = ()
    span_s: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    pictures: tuple[int, ...] = ()
    thinking: str = ""
    tolerance: float = 0.0


def references(thing: Thing, things: Sequence[Thing]) -> list[str]:
    """List the phrases that mean this thing and no other: by colour and kind, by kind alone, by what is written."""
    phrases = []
    if sum((other.colour, other.kind) == (thing.colour, thing.kind) for other in things) == 1:
        phrases.append(f"{thing.colour} {thing.kind}")
    if sum(other.kind == thing.kind for other in things) == 1:
        phrases.append(thing.kind)
    if thing.text and sum(other.text.lower() == thing.text.lower() for other in things) == 1:
        phrases.append(f"{thing.kind} {thing.text.lower()}")
    return phrases


def refer(rng: np.random.Generator, thing: Thing, things: Sequence[Thing]) -> str | None:
    """Pick a phrase that means this thing, the fullest most of the time; None if nothing sets it apart."""
    phrases = references(thing, things)
    if not phrases:
        return None
    return phrases[0] if rng.random() < 0.7 else phrases[int(rng.integers(len(phrases)))]


def reading_order(things: Sequence[Thing]) -> list[Thing]:
    """Order things in lines from top to bottom, left to right within a line.

    A line holds the topmost remaining thing and all that stand beside it: the centre of one is within the height of the
    other.
    """
    rest = sorted(things, key=lambda thing: (thing.box[1], thing.box[0]))
    ordered: list[Thing] = []
    while rest:
        _, top, _, lower = rest[0].box
        line = [t for t in rest if t.box[1] + t.box[3] < 2 * lower or 2 * t.box[1] < top + lower]
        ordered += sorted(line, key=lambda thing: thing.box[0] + thing.box[2])
        rest = [thing for thing in rest if thing not in line]
    return ordered


def box_answer(boxes: Sequence[tuple[Box, str]], size: tuple[int, int]) -> str:
    """Write boxes (pixels, label) in the released JSON form, in 0..1000 of the picture's width and height."""
    height, width = size
    rows = []
    for box, label in boxes:
        ends = [round(1000 * end / span) for end, span in zip(box, (width, height, width, height), strict=True)]
        rows.append(f'{{"bbox_2d": {ends}, "label": {json.dumps(label)}}}')
    return "```json\n[" + ",\n".join(rows) + "]\n```"


def _colour(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = []
    for thing in scene.things:
        names = [name for name in references(thing, scene.things) if not name.startswith(thing.colour)]
        if names:
            found.append(Question("colour", say(rng, "colour", a=names[0]), thing.colour, (thing.box,), names=(names[0],)))
    return found


def _alone_in_colour(scene: Scene, family: str) -> list[Thing]:
    """Things of a family whose colour no other thing of the picture has."""
    colours = Counter(thing.colour for thing in scene.things)
    return [thing for thing in scene.things if thing.family == family and colours[thing.colour] == 1]


def _shape(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return [
        Question("shape", say(rng, "shape", c=thing.colour), thing.kind, (thing.box,), names=(thing.colour,))
        for thing in _alone_in_colour(scene, "shape")
    ]


def _icon(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = [
        Question("icon", say(rng, "icon", c=thing.colour), thing.kind, (thing.box,), names=(thing.colour,))
        for thing in _alone_in_colour(scene, "icon")
    ]
    icons = [thing for thing in scene.things if thing.family == "icon"]
    if len(icons) == 1:
        found.append(Question("icon", say(rng, "only icon"), icons[0].kind, (icons[0].box,), names=("icon",)))
    return found


def _count(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Ask about the group a counting picture was built around; elsewhere about everything, or about one family."""
    things: Sequence[Thing] = scene.things
    what = ("objects", "things")[int(rng.integers(2))]
    name = what
    if scene.group is not None and rng.random() < 0.85:
        attribute, value = scene.group
        what = plural(value) if attribute == "kind" else f"{value} things"
        name = what if attribute == "kind" else value
        things = [thing for thing in things if getattr(thing, attribute) == value]
    elif len({thing.family for thing in things}) > 1 and rng.random() < 0.5:
        family = things[int(rng.integers(len(things)))].family
        what = name = f"{family}s"
        things = [thing for thing in things if thing.family == family]
    boxes = tuple(thing.box for thing in things)
    return [Question("count", say(rng, "count", s=what), str(len(things)), boxes, names=(name,))]


def count_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Ask about every group of a picture: everything, each kind, each colour, and each family where there are several."""
    everything = ("objects", "things")[int(rng.integers(2))]
    groups: dict[str, tuple[str, list[Thing]]] = {everything: (everything, list(scene.things))}
    families = {thing.family for thing in scene.things}
    for thing in scene.things:
        named = {plural(thing.kind): plural(thing.kind), f"{thing.colour} things": thing.colour}
        if len(families) > 1:
            named |= {f"{thing.family}s": f"{thing.family}s"}
        for phrase, name in named.items():
            groups.setdefault(phrase, (name, []))[1].append(thing)
    return [
        Question("count", say(rng, "count", s=phrase), str(len(things)), tuple(t.box for t in things), names=(name,))
        for phrase, (name, things) in groups.items()
    ]


def _box(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = []
    for thing in scene.things:
        name = refer(rng, thing, scene.things)
        if name is not None:
            answer = box_answer([(thing.box, name)], scene.size)
            found.append(Question("box", say(rng, "box", a=name), answer, (thing.box,), names=(name,)))
    return found


def _relation(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = []
    height, width = scene.size
    for one in scene.things:
        for other in scene.things:
            a, b = refer(rng, one, scene.things), refer(rng, other, scene.things)
            if one is other or a is None or b is None:
                continue
            dx = (one.box[0] + one.box[2] - other.box[0] - other.box[2]) / 2
            dy = (one.box[1] + one.box[3] - other.box[1] - other.box[3]) / 2
            boxes, names = (one.box, other.box), (a, b)
            if abs(dx) >= max(_APART_PX, _APART_SHARE * width):
                side = "left" if dx < 0 else "right"
                found.append(Question("relation", say(rng, "beside", a=a, b=b), side, boxes, names=names))
            # Asked half as often: left and right is the question of record.
            if abs(dy) >= max(_APART_PX, _APART_SHARE * height) and rng.random() < 0.5:
                side = "above" if dy < 0 else "below"
                found.append(Question("relation", say(rng, "above", a=a, b=b), side, boxes, names=names))
    return found


def _read(scene: Scene, rng: np.random.Generator, family: str) -> list[Question]:
    texts = [thing for thing in scene.things if thing.family == family]
    colours = Counter(thing.colour for thing in texts)
    found = []
    for thing in texts:
        if colours[thing.colour] == 1:
            text = say(rng, "read only" if len(texts) == 1 else "read", n=family, c=thing.colour)
            name = thing.colour if thing.colour in text else family
            found.append(Question(f"read_{family}", text, thing.text.lower(), (thing.box,), names=(name,)))
    return found


def _read_number(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return _read(scene, rng, "number")


def _read_word(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return _read(scene, rng, "word")


def _describe(scene: Scene, rng: np.random.Generator) -> list[Question]:
    ordered = reading_order(scene.things)
    answer = ", ".join(thing.name for thing in ordered)
    return [Question("describe", say(rng, "describe"), answer, tuple(thing.box for thing in ordered))]


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], list[Question]]] = {
    "colour": _colour,
    "shape": _shape,
    "icon": _icon,
    "count": _count,
    "box": _box,
    "relation": _relation,
    "read_number": _read_number,
    "read_word": _read_word,
    "describe": _describe,
}


def draw_questions(rng: np.random.Generator, pools: dict[str, list[Question]], level: Difficulty) -> tuple[Question, ...]:
    """Draw up to `max_questions`, kinds by weight: every kind once before any kind twice."""
    weights = dict(level.questions) if level.questions else dict.fromkeys(pools, 1.0)
    left = {
        kind: [pool[i] for i in rng.permutation(len(pool))]
        for kind, pool in pools.items()
        if pool and weights.get(kind, 0.0) > 0
    }
    drawn: list[Question] = []
    while left and len(drawn) < level.max_questions:
        share = np.array([weights[kind] for kind in left])
        order = rng.choice(np.array(list(left)), size=len(left), replace=False, p=share / share.sum())
        drawn += [left[kind].pop() for kind in order[: level.max_questions - len(drawn)].tolist()]
        left = {kind: pool for kind, pool in left.items() if pool}
    return tuple(drawn)


def ask_about_scene(scene: Scene, rng: np.random.Generator, level: Difficulty) -> tuple[Question, ...]:
    """Draw the questions of a picture."""
    return draw_questions(rng, {kind: make(scene, rng) for kind, make in _MAKERS.items()}, level)

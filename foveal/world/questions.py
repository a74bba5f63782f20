"""Questions about a scene or a clip, with answers that follow from the ground truth alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.world.clips import Actor, Clip
from foveal.world.scene import Box, Difficulty, Scene, Thing

PICTURE_KINDS: tuple[str, ...] = (
    "colour", "shape", "icon", "count", "box", "relation", "read_number", "read_word", "describe",
)  # fmt: skip
CLIP_KINDS: tuple[str, ...] = ("appear_time", "vanish_time", "first", "moves", "clip_colour", "clip_count", "timeline")
QUESTION_KINDS: tuple[str, ...] = PICTURE_KINDS + CLIP_KINDS


@dataclass(frozen=True)
class Question:
    """One turn: the question, its answer, and where in the picture (pixels) or the clip (seconds) the evidence is."""

    kind: str
    question: str
    answer: str
    boxes: tuple[Box, ...] = ()
    span_s: tuple[float, float] | None = None


def _say(rng: np.random.Generator, *forms: str) -> str:
    return forms[int(rng.integers(len(forms)))]


def plural(kind: str) -> str:
    """Write the plural of a kind's name."""
    irregular = {"fish": "fish", "box": "boxes", "cross": "crosses"}
    return irregular.get(kind, kind + "s")


def references(thing: Thing, things: Sequence[Thing]) -> list[str]:
    """List the phrases that mean this thing and no other: by colour and kind, by kind alone, by what is written."""
    phrases = []
    if sum((other.colour, other.kind) == (thing.colour, thing.kind) for other in things) == 1:
        phrases.append(f"{thing.colour} {thing.kind}")
    if sum(other.kind == thing.kind for other in things) == 1:
        phrases.append(thing.kind)
    if thing.text:
        phrases.append(f"{thing.kind} {thing.text.lower()}")
    return phrases


def _refer(rng: np.random.Generator, thing: Thing, things: Sequence[Thing]) -> str | None:
    """Pick a phrase, the full one most of the time."""
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
    rows = []
    for (x1, y1, x2, y2), label in boxes:
        ends = [round(1000 * v / span) for v, span in ((x1, size[1]), (y1, size[0]), (x2, size[1]), (y2, size[0]))]
        rows.append(f'{{"bbox_2d": {ends}, "label": {json.dumps(label)}}}')
    return "```json\n[" + ",\n".join(rows) + "]\n```"


def _colour(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = []
    for thing in scene.things:
        if thing.text:
            name = thing.kind if sum(other.kind == thing.kind for other in scene.things) == 1 else f"{thing.kind} {thing.text.lower()}"
        elif sum(other.kind == thing.kind for other in scene.things) == 1:
            name = thing.kind
        else:
            continue
        text = _say(rng, f"What colour is the {name}?", f"Which colour does the {name} have?",
                    f"What is the colour of the {name}?", f"Name the colour of the {name}.")  # fmt: skip
        found.append(Question("colour", text, thing.colour, (thing.box,)))
    return found


def _by_colour(scene: Scene, family: str) -> list[Thing]:
    """Things of a family whose colour no other thing of the picture has."""
    colours = Counter(thing.colour for thing in scene.things)
    return [thing for thing in scene.things if thing.family == family and colours[thing.colour] == 1]


def _shape(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = []
    for thing in _by_colour(scene, "shape"):
        c = thing.colour
        text = _say(rng, f"What shape is the {c} thing?", f"Which shape is {c}?", f"What is the {c} shape?",
                    f"Name the shape of the {c} object.")  # fmt: skip
        found.append(Question("shape", text, thing.kind, (thing.box,)))
    return found


def _icon(scene: Scene, rng: np.random.Generator) -> list[Question]:
    icons = [thing for thing in scene.things if thing.family == "icon"]
    found = []
    if len(icons) == 1:
        text = _say(rng, "Which icon is shown?", "What does the icon show?", "Name the icon in the picture.")
        found.append(Question("icon", text, icons[0].kind, (icons[0].box,)))
    for thing in _by_colour(scene, "icon"):
        c = thing.colour
        text = _say(rng, f"What is the {c} icon?", f"Which icon is {c}?", f"What does the {c} icon show?")
        found.append(Question("icon", text, thing.kind, (thing.box,)))
    return found


def _how_many(rng: np.random.Generator, what: str, group: Sequence[Thing]) -> Question:
    text = _say(rng, f"How many {what} are there?", f"Count the {what}.", f"How many {what} do you see?",
                f"How many {what} are in the picture?")  # fmt: skip
    return Question("count", text, str(len(group)), tuple(thing.box for thing in group))


def _count(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Ask about the group a counting scene was made around, or about everything, so that answers stay even."""
    things = scene.things
    found = []
    if scene.group is not None:
        attribute, value = scene.group
        group = [thing for thing in things if getattr(thing, attribute) == value]
        found.append(_how_many(rng, plural(value) if attribute == "kind" else f"{value} things", group))
    else:
        found.append(_how_many(rng, _say(rng, "objects", "things"), things))
    return found


def _box(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = []
    for thing in scene.things:
        name = _refer(rng, thing, scene.things)
        if name is None:
            continue
        text = _say(rng, f"Locate the {name} and output its bbox in JSON.", f"Where is the {name}? Answer with a bbox in JSON.",
                    f"Find the {name} and give its bounding box in JSON.", f"Output the bbox of the {name} in JSON.")  # fmt: skip
        found.append(Question("box", text, box_answer([(thing.box, name)], scene.size), (thing.box,)))
    return found


def _relation(scene: Scene, rng: np.random.Generator) -> list[Question]:
    found = []
    height, width = scene.size
    for i in rng.permutation(len(scene.things)):
        for j in rng.permutation(len(scene.things)):
            if i == j:
                continue
            one, other = scene.things[i], scene.things[j]
            a, b = _refer(rng, one, scene.things), _refer(rng, other, scene.things)
            if a is None or b is None:
                continue
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = one.box, other.box
            dx, dy = (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2
            boxes = (one.box, other.box)
            if abs(dx) >= max(14, 0.14 * width):
                text = _say(rng, f"Is the {a} left or right of the {b}?", f"Is the {a} to the left or right of the {b}?",
                            f"On which side of the {b} is the {a}, left or right?")  # fmt: skip
                found.append(Question("relation", text, "left" if dx < 0 else "right", boxes))
            if abs(dy) >= max(14, 0.14 * height) and rng.random() < 0.5:
                text = _say(rng, f"Is the {a} above or below the {b}?", f"Which is true: the {a} is above or below the {b}?")
                found.append(Question("relation", text, "above" if dy < 0 else "below", boxes))
    return found


def _read(kind: str, noun: str) -> Callable[[Scene, np.random.Generator], list[Question]]:
    def make(scene: Scene, rng: np.random.Generator) -> list[Question]:
        texts = [thing for thing in scene.things if thing.family == noun]
        found = []
        for thing in texts:
            c = thing.colour
            if len(texts) == 1:
                text = _say(rng, f"What {noun} is written?", f"Which {noun} is shown?", f"Read the {noun}.",
                            f"What is the {c} {noun}?", f"What {noun} do you see?")  # fmt: skip
            elif sum(other.colour == c for other in texts) == 1:
                text = _say(rng, f"What is the {c} {noun}?", f"Which {noun} is {c}?", f"Read the {c} {noun}.")
            else:
                continue
            found.append(Question(kind, text, thing.text.lower(), (thing.box,)))
        return found

    return make


def _describe(scene: Scene, rng: np.random.Generator) -> list[Question]:
    ordered = reading_order(scene.things)
    text = _say(rng, "Describe the picture.", "List everything in the picture.", "What is in the picture?", "Name all objects.")
    return [Question("describe", text, ", ".join(t.name for t in ordered), tuple(t.box for t in ordered))]


def seconds(time_s: float) -> str:
    """Write a time the way answers do."""
    return f"{time_s:.1f} seconds"


def _span(clip: Clip, actor: Actor) -> tuple[float, float]:
    return actor.appear / clip.fps, (actor.vanish - 1) / clip.fps


def _clip_refer(rng: np.random.Generator, clip: Clip, actor: Actor) -> str:
    name = _refer(rng, actor.thing, [other.thing for other in clip.actors])
    assert name is not None, "names in a clip are unique"
    return name


def _appear_time(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    for actor in clip.actors:
        if actor.appear == 0 and rng.random() < 0.7:
            continue  # what is there from the start is asked about less often, or 0.0 would be the commonest answer
        n = _clip_refer(rng, clip, actor)
        text = _say(rng, f"At what second does the {n} appear?", f"When does the {n} appear?",
                    f"At what time does the {n} show up?", f"When is the {n} first seen?")  # fmt: skip
        found.append(Question("appear_time", text, seconds(clip.appear_s(actor)), (actor.box(actor.appear),), _span(clip, actor)))
    return found


def _vanish_time(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    for actor in clip.actors:
        end = clip.vanish_s(actor)
        if end is None:
            continue
        n = _clip_refer(rng, clip, actor)
        text = _say(rng, f"At what second does the {n} vanish?", f"When does the {n} disappear?",
                    f"At what time does the {n} vanish?")  # fmt: skip
        found.append(Question("vanish_time", text, seconds(end), (actor.box(actor.vanish - 1),), _span(clip, actor)))
    return found


def _first(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    order = sorted(clip.actors, key=lambda actor: actor.appear)
    if len(order) >= 2 and order[0].appear < order[1].appear:
        text = _say(rng, "What appears first?", "Which thing is seen first?", "What is the first thing to appear?")
        name = f"{order[0].thing.colour} {order[0].thing.kind}"
        found.append(Question("first", text, name, (order[0].box(order[0].appear),), _span(clip, order[0])))
    for i in rng.permutation(len(clip.actors)):
        for j in rng.permutation(len(clip.actors)):
            one, other = clip.actors[i], clip.actors[j]
            if one.appear == other.appear:
                continue
            early = one if one.appear < other.appear else other
            a, b = (f"{actor.thing.colour} {actor.thing.kind}" for actor in (one, other))
            text = _say(rng, f"Which appears first, the {a} or the {b}?", f"What appears first: the {a} or the {b}?",
                        f"Does the {a} or the {b} appear first?")  # fmt: skip
            answer = f"{early.thing.colour} {early.thing.kind}"
            found.append(Question("first", text, answer, (early.box(early.appear),), _span(clip, early)))
    return found


def _moves(clip: Clip, rng: np.random.Generator) -> list[Question]:
    found = []
    for actor in clip.actors:
        if not actor.direction:
            continue
        n = _clip_refer(rng, clip, actor)
        text = _say(rng, f"In which direction does the {n} move?", f"Which way does the {n} move?",
                    f"Does the {n} move left, right, up or down?")  # fmt: skip
        boxes = (actor.box(actor.appear), actor.box(actor.vanish - 1))
        found.append(Question("moves", text, actor.direction, boxes, _span(clip, actor)))
    return found


def _clip_colour(clip: Clip, rng: np.random.Generator) -> list[Question]:
    kinds = Counter(actor.thing.kind for actor in clip.actors)
    found = []
    for actor in clip.actors:
        n = actor.thing.kind
        if kinds[n] == 1:
            text = _say(rng, f"What colour is the {n}?", f"Which colour does the {n} have?", f"What is the colour of the {n}?")
            box = actor.box(actor.appear)
            found.append(Question("clip_colour", text, actor.thing.colour, (box,), _span(clip, actor)))
    return found


def _clip_count(clip: Clip, rng: np.random.Generator) -> list[Question]:
    text = _say(rng, "How many things appear in the clip?", "How many objects are seen in the whole clip?",
                "Count the objects in the clip.")  # fmt: skip
    return [Question("clip_count", text, str(len(clip.actors)), span_s=(0.0, float(clip.times_s[-1])))]


def _timeline(clip: Clip, rng: np.random.Generator) -> list[Question]:
    order = sorted(clip.actors, key=lambda actor: (actor.appear, actor.thing.y, actor.thing.x))
    parts = []
    for actor in order:
        part = f"{clip.appear_s(actor):.1f} {actor.thing.name}"
        parts.append(part + (f" moves {actor.direction}" if actor.direction else ""))
    text = _say(rng, "Describe the clip.", "List what appears and when.", "What happens in the clip?")
    return [Question("timeline", text, ", ".join(parts), span_s=(0.0, float(clip.times_s[-1])))]


_PICTURE: dict[str, Callable[[Scene, np.random.Generator], list[Question]]] = {
    "colour": _colour, "shape": _shape, "icon": _icon, "count": _count, "box": _box, "relation": _relation,
    "read_number": _read("read_number", "number"), "read_word": _read("read_word", "word"), "describe": _describe,
}  # fmt: skip
_CLIP: dict[str, Callable[[Clip, np.random.Generator], list[Question]]] = {
    "appear_time": _appear_time, "vanish_time": _vanish_time, "first": _first, "moves": _moves,
    "clip_colour": _clip_colour, "clip_count": _clip_count, "timeline": _timeline,
}  # fmt: skip


def _draw(rng: np.random.Generator, pools: dict[str, list[Question]], level: Difficulty) -> tuple[Question, ...]:
    """Draw up to `max_questions`, kinds by weight: every kind once before any kind twice."""
    weights = dict(level.questions) if level.questions else dict.fromkeys(pools, 1.0)
    pools = {kind: list(rng.permutation(np.array(pool, dtype=object))) for kind, pool in pools.items()}
    drawn: list[Question] = []
    while len(drawn) < level.max_questions:
        open_kinds = [kind for kind, pool in pools.items() if pool and weights.get(kind, 0) > 0]
        if not open_kinds:
            break
        share = np.array([weights[kind] for kind in open_kinds])
        order = rng.choice(len(open_kinds), size=len(open_kinds), replace=False, p=share / share.sum())
        for index in order[: level.max_questions - len(drawn)]:
            drawn.append(pools[open_kinds[index]].pop())
    return tuple(drawn)


def ask_about_scene(scene: Scene, rng: np.random.Generator, level: Difficulty) -> tuple[Question, ...]:
    """Draw the questions of a picture."""
    return _draw(rng, {kind: make(scene, rng) for kind, make in _PICTURE.items()}, level)


def ask_about_clip(clip: Clip, rng: np.random.Generator, level: Difficulty) -> tuple[Question, ...]:
    """Draw the questions of a clip."""
    return _draw(rng, {kind: make(clip, rng) for kind, make in _CLIP.items()}, level)

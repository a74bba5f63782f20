"""Pictures of scattered things: emoji, absent objects, far regions, several pictures, two turns, reasoned counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from foveal.world.colours import far_from
from foveal.world.difficulty import ICON_KINDS, SHAPE_KINDS, Difficulty
from foveal.world.emoji import EMOJI
from foveal.world.grounds import textured
from foveal.world.items import Item
from foveal.world.kinds.tools import Made, ask, between, one, some, unasked
from foveal.world.phrases import plural, say
from foveal.world.questions import Question, box_answer, reading_order, references
from foveal.world.scene import (
    CONTRAST,
    Box,
    Idea,
    Scene,
    Thing,
    find_room,
    make_stamp,
    pick,
    place,
    sample_background,
    sample_size,
    shade,
)
from foveal.world.sheet import scene_item
from foveal.world.splits import Material

DRAWN = (*SHAPE_KINDS, *ICON_KINDS)
_FAMILIES = {**dict.fromkeys(SHAPE_KINDS, "shape"), **dict.fromkeys(ICON_KINDS, "icon"), **dict.fromkeys(EMOJI, "emoji")}
_FAR_TRAINED, _FAR_KEPT = (
    (("top left", "bottom right"), ("top right", "bottom left"), ("bottom left", "top right")),
    (("bottom right", "top left"), ("top left", "top right"), ("bottom left", "bottom right")),
)

Think = Callable[[Sequence[str]], list[Idea]]


def level_of(material: Material) -> Difficulty:
    """How hard the scenes of a split are, with its fonts and words."""
    return Difficulty(
        min_side=128, max_side=320, fonts=material.faces, words=material.lexicon.words, max_object_share=0.35, min_object_px=24
    )


def think_of(
    rng: np.random.Generator, material: Material, colours: Sequence[str], kinds: Sequence[str], others: Sequence[Idea]
) -> Idea:
    """Think of one of `kinds` in one of `colours` that the split may show, unlike the others in both wherever it can be."""
    new = [colour for colour in colours if colour not in [idea.colour for idea in others]]
    for colour in (*some(rng, new, len(new)), *some(rng, colours, len(colours))):
        allowed = [kind for kind in kinds if material.may_be(kind, colour)]
        fresh = [kind for kind in allowed if (kind, colour) not in [(idea.kind, idea.colour) for idea in others]]
        if fresh:
            kind = pick(rng, fresh, [idea.kind for idea in others])
            return Idea(_FAMILIES[kind], kind, colour)
    raise AssertionError(f"{len(others)} ideas leave no kind of {len(kinds)} in any of {', '.join(colours)}")


def think_of_some(rng: np.random.Generator, material: Material, kinds: Sequence[str], count: int) -> Think:
    """Think of `count` different things, or of all there are."""

    def think(colours: Sequence[str]) -> list[Idea]:
        ideas: list[Idea] = []
        there_are = sum(material.may_be(kind, colour) for kind in kinds for colour in colours)
        for _ in range(min(count, there_are)):
            ideas.append(think_of(rng, material, colours, kinds, ideas))
        return ideas

    return think


def compose(rng: np.random.Generator, level: Difficulty, think: Think) -> Scene:
    """Draw a scene of what is thought of, once the background has said which colours can be seen."""
    while True:
        size = sample_size(rng, level.min_side, level.max_side, level.max_ratio)
        background, colours = sample_background(rng, level.plain_background, level.colours)
        things = place(rng, think(colours), size, level)
        if things is not None:
            return Scene(size, background, tuple(things))


def show(rng: np.random.Generator, scene: Scene) -> Item:
    """Paint a scene on one of the grounds."""
    return scene_item(scene, textured(rng, scene.background, scene.size))


def _single(scene: Scene, attribute: str) -> list[int]:
    """Number the things whose colour (or kind) no other thing has."""
    counts = Counter(getattr(thing, attribute) for thing in scene.things)
    return [i for i, thing in enumerate(scene.things) if counts[getattr(thing, attribute)] == 1]


def emoji(rng: np.random.Generator, material: Material) -> Made:
    """One to six emoji."""
    level = replace(level_of(material), min_object_px=36)  # they are drawn in lines
    scene = compose(rng, level, think_of_some(rng, material, tuple(EMOJI), between(rng, 1, 6)))
    item = show(rng, scene)
    found: list[Question] = []
    for i in some(rng, _single(scene, "colour"), 2):
        found.append(ask(rng, "emoji_name", scene.things[i].kind, item, [i], c=scene.things[i].colour))
    for i in some(rng, _single(scene, "kind"), 1):
        thing = scene.things[i]
        found.append(ask(rng, "emoji_colour", thing.colour, item, [i], a=thing.kind))
        found.append(ask(rng, "emoji_find", box_answer([(thing.box, thing.kind)], scene.size), item, [i], a=thing.kind))
    if len(scene.things) == 1:
        found.append(ask(rng, "emoji_only", scene.things[0].kind, item, [0]))
    asked = tuple(some(rng, found, 3))
    for i in _single(scene, "colour"):
        found.append(ask(rng, "emoji_name", scene.things[i].kind, item, [i], c=scene.things[i].colour))
    for i in some(rng, _single(scene, "kind"), 2):
        thing = scene.things[i]
        found.append(ask(rng, "emoji_colour", thing.colour, item, [i], a=thing.kind))
        found.append(ask(rng, "emoji_find", box_answer([(thing.box, thing.kind)], scene.size), item, [i], a=thing.kind))
    return Made((item,), asked, unasked(found, asked))


def absent(rng: np.random.Generator, material: Material) -> Made:
    """Is it there? What is asked about and not there has the kind or the colour of something that is, half of the time."""
    scene = compose(rng, level_of(material), think_of_some(rng, material, DRAWN, between(rng, 2, 7)))
    item = show(rng, scene)
    there = [Idea(thing.family, thing.kind, thing.colour) for thing in scene.things]
    names = [(idea.colour, idea.kind) for idea in there]
    colours = sorted({idea.colour for idea in there})
    missing = [(c, k) for k in DRAWN for c in material.colours(k) if (c, k) not in names]
    near = [(c, k) for c, k in missing if c in colours or k in [idea.kind for idea in there]]
    found = []
    present = some(rng, range(len(names)), between(rng, 0, 2))
    for i in present:
        found.append(ask(rng, "absent_one", "yes", item, [i], a=" ".join(names[i])))
    lacking = some(rng, near if len(near) > 1 and rng.random() < 0.5 else missing, 2 - len(found))
    for name in lacking:
        found.append(ask(rng, "absent_one", "no", item, a=" ".join(name)))
    found = some(rng, found, 2)
    shown = sorted({kind for _, kind in names})
    asked = some(rng, shown, between(rng, 1, min(3, len(shown)))) + some(
        rng, [kind for kind in DRAWN if kind not in shown], between(rng, 0, 3)
    )
    asked = some(rng, asked, len(asked))
    answer = ", ".join(kind for kind in asked if kind not in shown) or "none"
    seen = [[i] for i, thing in enumerate(scene.things) if thing.kind in asked]
    found.append(ask(rng, "absent_list", answer, item, *seen, named=False, a=", ".join(asked)))
    further = []
    for i in some(rng, [i for i in range(len(names)) if i not in present], 2):
        further.append(ask(rng, "absent_one", "yes", item, [i], a=" ".join(names[i])))
    for name in some(rng, [name for name in near if name not in lacking], len(further)):
        further.append(ask(rng, "absent_one", "no", item, a=" ".join(name)))
    return Made((item,), tuple(found), further)


def far(rng: np.random.Generator, material: Material) -> Made:
    """Two far corners of a large picture are to be compared; what lies between does not matter."""
    level = replace(level_of(material), min_side=448, max_side=768, max_objects=8, max_object_share=0.12, text_px=(14, 32))
    size = sample_size(rng, level.min_side, level.max_side, level.max_ratio)
    background, colours = sample_background(rng, level.plain_background, level.colours)
    corners = one(rng, material.layouts(_FAR_TRAINED, _FAR_KEPT))
    numbers = rng.random() < 0.5
    if numbers:
        values = some(rng, range(10, 1000), 2)
        colour = one(rng, colours)
        inks = (colour, colour if rng.random() < 0.5 else one(rng, colours))
        ideas = [Idea("number", "number", ink, str(value)) for ink, value in zip(inks, values, strict=True)]
    else:
        first = think_of(rng, material, colours, DRAWN, [])
        same = rng.random() < 0.5
        kinds = [first.kind] if same else [kind for kind in DRAWN if kind != first.kind]
        usable = [c for c in colours if any(material.may_be(kind, c) for kind in kinds)]
        other = first.colour if first.colour in usable and rng.random() < 0.5 else one(rng, usable)
        second = one(rng, [kind for kind in kinds if material.may_be(kind, other)])
        ideas = [first, Idea(_FAMILIES[second], second, other)]
    things: list[Thing] = []
    for idea, corner in zip(ideas, corners, strict=True):
        stamp = make_stamp(rng, idea, level.max_object_share * min(size), size, level)
        h, w = stamp.size
        inset = between(rng, 6, 24)
        x = inset if "left" in corner else size[1] - w - inset
        y = inset if "top" in corner else size[0] - h - inset
        things.append(Thing(idea.family, idea.kind, idea.colour, shade(rng, idea.colour), stamp, x, y, idea.text))
    quarters = _corner_boxes(size)
    for _ in range(between(rng, 2, 6)):
        idea = think_of(rng, material, colours, DRAWN, [])
        stamp = make_stamp(rng, idea, level.max_object_share * min(size), size, level)
        room = find_room(rng, stamp.size, size, [*(thing.box for thing in things), *quarters])
        if room is not None:
            things.append(Thing(idea.family, idea.kind, idea.colour, shade(rng, idea.colour), stamp, *room))
    item = show(rng, Scene(size, background, tuple(things)))
    a, b = corners
    if numbers:
        more = max(range(2), key=lambda i: int(things[i].text))
        found = ask(rng, "far_number", things[more].text, item, [0], [1], a=a, b=b)
    else:
        answer = "yes" if things[0].kind == things[1].kind else "no"
        found = ask(rng, "far_same", answer, item, [0], [1], a=a, b=b)
    alike = "yes" if things[0].colour == things[1].colour else "no"
    return Made((item,), (found, ask(rng, "far_colour", alike, item, [0], [1], a=a, b=b)))


def _corner_boxes(size: tuple[int, int]) -> list[Box]:
    """The four corners, a quarter of each side: nothing else lies there."""
    h, w = size
    y, x = h // 4, w // 4
    return [(0, 0, x, y), (w - x, 0, w, y), (0, h - y, x, h), (w - x, h - y, w, h)]


def pictures(rng: np.random.Generator, material: Material) -> Made:
    """Two to four pictures; or one and its copy in which a thing has another colour."""
    level = replace(level_of(material), min_side=112, max_side=208)
    if rng.random() < 0.35:
        return _changed(rng, material, level)
    count = between(rng, 2, 4)
    while True:  # few kinds, so that one is in several pictures
        kinds = some(rng, DRAWN, 8)
        scenes = [compose(rng, level, think_of_some(rng, material, kinds, between(rng, 1, 4))) for _ in range(count)]
        if all(scene.things for scene in scenes):
            break
    items = tuple(show(rng, scene) for scene in scenes)
    everything = [(number, thing) for number, scene in enumerate(scenes) for thing in scene.things]
    names = Counter(thing.name for _, thing in everything)

    def which(most: int) -> list[Question]:
        return [
            Question(
                "pictures_which", say(rng, "pictures_which", a=thing.name), str(number + 1), (thing.box,), names=(thing.name,),
                pictures=(number,),
            )
            for number, thing in some(rng, [(n, thing) for n, thing in everything if names[thing.name] == 1], most)
        ]  # fmt: skip

    found = which(1)
    kind = one(rng, everything)[1].kind
    group = [(number, thing) for number, thing in everything if thing.kind == kind]
    boxes, places = tuple(thing.box for _, thing in group), tuple(number for number, _ in group)
    text = say(rng, "pictures_count", s=plural(kind))
    found.append(Question("pictures_count", text, str(len(group)), boxes, names=(plural(kind),), pictures=places))
    return Made(items, tuple(found), unasked(which(3), found))


def _changed(rng: np.random.Generator, material: Material, level: Difficulty) -> Made:
    while True:
        scene = compose(rng, level, think_of_some(rng, material, DRAWN, between(rng, 2, 5)))
        ends = np.array(scene.background.colours)
        alone = [(i, thing) for i, thing in enumerate(scene.things) if thing.kind in references(thing, scene.things)]
        clear = far_from(ends, CONTRAST)
        options = [(i, c) for i, thing in alone for c in clear if c != thing.colour and material.may_be(thing.kind, c)]
        if options:
            break
    i, colour = one(rng, options)
    old = scene.things[i]
    new = replace(old, colour=colour, rgb=shade(rng, colour))
    after = replace(scene, things=(*scene.things[:i], new, *scene.things[i + 1 :]))
    canvas = textured(rng, scene.background, scene.size)
    items = scene_item(scene, canvas), scene_item(after, canvas)
    boxes = (old.box, new.box)
    asked = (
        Question("pictures_changed", say(rng, "pictures_changed"), old.kind, boxes, pictures=(0, 1)),
        Question(
            "pictures_colour", say(rng, "pictures_colour", a=old.kind), colour, boxes[1:], names=(old.kind,), pictures=(1,)
        ),
    )
    return Made(items, asked)


def turns(rng: np.random.Generator, material: Material) -> Made:
    """Two turns; the second asks about what the first has found."""
    while True:
        scene = compose(rng, level_of(material), think_of_some(rng, material, DRAWN, between(rng, 2, 5)))
        if single := _single(scene, "colour"):
            break
    item = show(rng, scene)
    i = one(rng, single)
    it = scene.things[i]
    first = ask(rng, "turns_first", it.kind, item, [i], c=it.colour)
    gaps = sorted((_distance(it, thing), j) for j, thing in enumerate(scene.things) if j != i)
    choice = one(rng, ("find", "nearest", "others"))
    if choice == "nearest" and (len(gaps) == 1 or gaps[1][0] > 1.15 * gaps[0][0] + 8):
        nearest = gaps[0][1]
        second = ask(rng, "turns_nearest", scene.things[nearest].name, item, [nearest], [i])
    elif choice == "others":
        rest = [[j] for j in range(len(scene.things)) if j != i]
        second = ask(rng, "turns_others", str(len(rest)), item, *rest)
    else:
        second = ask(rng, "turns_find", box_answer([(it.box, it.kind)], scene.size), item, [i])
    return Made((item,), (first, second))


def _distance(a: Thing, b: Thing) -> float:
    """Between centres, in pixels."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.box, b.box
    return float(np.hypot(ax1 + ax2 - bx1 - bx2, ay1 + ay2 - by1 - by2)) / 2


def reasoned(rng: np.random.Generator, material: Material) -> Made:
    """Count one kind, or everything; the reasoning lists what is counted, in reading order, with its place in 0..1000."""
    count = between(rng, 1, 8)
    extra = between(rng, 0, 3)

    def think(colours: Sequence[str]) -> list[Idea]:
        kind = one(rng, [kind for kind in DRAWN if any(material.may_be(kind, colour) for colour in colours)])
        allowed = [colour for colour in colours if material.may_be(kind, colour)]
        ideas = [Idea(_FAMILIES[kind], kind, one(rng, allowed)) for _ in range(count)]
        for _ in range(extra):
            ideas.append(think_of(rng, material, colours, [other for other in DRAWN if other != kind], ideas))
        return ideas

    scene = compose(rng, level_of(material), think)
    item = show(rng, scene)
    kinds = Counter(thing.kind for thing in scene.things)
    kind = kinds.most_common(1)[0][0] if rng.random() < 0.75 else ""
    group = [thing for thing in reading_order(scene.things) if kind in ("", thing.kind)]
    height, width = scene.size
    lines = []
    for number, thing in enumerate(group, 1):
        x1, y1, x2, y2 = thing.box
        lines.append(f"{number}. {thing.name} at ({round(500 * (x1 + x2) / width)}, {round(500 * (y1 + y2) / height)})")
    what = plural(kind) if kind else "things"
    thinking = f"The {what} in the picture:\n" + "\n".join(lines) + f"\nThat makes {len(group)}."
    numbers = [[i for i, thing in enumerate(scene.things) if thing is member] for member in group]
    return Made((item,), (ask(rng, "reasoned_count", str(len(group)), item, *numbers, thinking=thinking, s=what),))

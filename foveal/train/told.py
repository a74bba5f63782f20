"""What is looked at while an answer is said, stretch by stretch, as the generator knows it: Told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from foveal.train.view import Place, View
from foveal.world import CHAR_CLASSES, Question
from foveal.world.scene import Box, Thing

BOXES = ("box", "screen_find", "emoji_find", "turns_find")
COUNTS = ("count", "pictures_count", "chart_above", "turns_others", "reasoned_count")
LISTS = ("describe", "order_list")
TIMES = ("appear_time", "vanish_time", "glimpse_time")
# Answers that are written in the picture: each character is read off its own place.
WRITTEN = (
    "receipt_total", "receipt_price", "receipt_shop", "receipt_date", "receipt_quantity", "form_value", "table_cell",
    "table_extreme", "table_name", "paragraph_title", "paragraph_after", "paragraph_line", "paragraph_marked",
    "screen_value", "screen_title", "needle_code", "needle_key", "far_number", "glimpse_code", "read_word",
)  # fmt: skip
HEADS = 2  # of attention, that a stretch may tell where to look


class Told(NamedTuple):
    """Characters first..last of what is said, the head that looks, at which sets of rows, and where that is in 0..1, if one."""

    first: int
    last: int
    head: int
    parts: tuple[np.ndarray, ...]
    place: tuple[float, float] | None = None


def told(question: Question, places: Sequence[Place], view: View) -> Iterator[Told]:
    """Yield what is looked at while the answer is said. Counts are another matter: see `looks`."""
    kind, answer = question.kind, question.answer
    letters = _written(answer, places, view) if kind in WRITTEN else []
    if kind == "read_number":
        for i, digit in enumerate(_evenly(places[0], len(answer))):
            yield _at(i, i + 1, digit, view)
    elif letters:
        for i, letter in enumerate(letters):
            yield _at(i, i + 1, letter, view)
    elif kind in BOXES:
        yield from _box(answer, places[0], view)
    elif kind in LISTS:
        first = 0
        for name, place in zip(answer.split(", "), places, strict=True):
            yield _at(first, first + len(name), place, view)
            if kind == "order_list":
                yield Told(first, first + len(name), 1, (view.stamp(place),))
            first += len(name) + 2
    elif len(places) > HEADS:
        yield Told(0, len(answer), 0, tuple(view.showing(place) for place in places))
    else:  # two places, as of two things or of where one was and where it went, have a head each
        for head, place in enumerate(places):
            yield _at(0, len(answer), place, view, head)
        if kind in TIMES:
            yield from _time(answer, view.stamp(places[0]), view)


def told_in_thought(question: Question, places: Sequence[Place], view: View) -> Iterator[Told]:
    """Yield what is looked at while the reasoning is said: each thing or value in its turn."""
    if question.kind == "reasoned_count":
        said = [match.span() for match in re.finditer(r"^\d+\. .+$", question.thinking, re.MULTILINE)]
    else:  # "A is 3 and B is 5. 5 - 3 = 2."
        said = [match.span() for match in re.finditer(r"\S.*?(?= and |\. )", question.thinking)][:2]
    for (first, last), place in zip(said, places, strict=True):
        yield _at(first, last, place, view)


def _at(first: int, last: int, place: Place, view: View, head: int = 0) -> Told:
    return Told(first, last, head, (view.showing(place),), view.middle(place))


def _evenly(place: Place, count: int) -> list[Place]:
    """Divide a place from left to right: digits are of one width."""
    x1, y1, x2, y2 = place.box
    ends = np.linspace(x1, x2, count + 1).round().astype(int).tolist()
    return [place._replace(box=(ends[i], y1, ends[i + 1], y2)) for i in range(count)]


def _box(answer: str, place: Place, view: View) -> Iterator[Told]:
    """Each number looks at its own end of the thing."""
    first = answer.index(" [") + 2
    x, y = view.middle(place)
    left, top, right, bottom = view.share(place)
    numbers = answer[first : answer.index("]")].split(", ")
    at_ends = ((left, y), (x, top), (right, y), (x, bottom))
    for number, rows, end in zip(numbers, view.ends(place), at_ends, strict=True):
        yield Told(first, first + len(number), 0, (rows,), end)
        first += len(number) + 2


def _time(answer: str, stamp: np.ndarray, view: View) -> Iterator[Told]:
    """Each character of the number looks at its own in the timestamp, half a frame off; at all of it where 9.5 is said 10.0."""
    number = answer.partition(" ")[0]
    digits = stamp[1 : 1 + len(number)]  # after <; this tokenizer has a token for each digit
    if len(stamp) == len(number) + 3:
        for i, row in enumerate(digits):
            yield Told(i, i + 1, 1, (np.array([row]),))
    else:
        yield Told(0, len(number), 1, (stamp,))


def _written(answer: str, places: Sequence[Place], view: View) -> list[Place]:
    """Find where each character of the answer is written, in one text or in several with spaces between; [] if it is not."""
    for place in places:
        x1, y1, x2, y2 = place.box
        texts = [
            thing for thing in view.items[place.medium].things
            if thing.text and x1 <= thing.box[0] and y1 <= thing.box[1] and thing.box[2] <= x2 and thing.box[3] <= y2
        ]  # fmt: skip
        texts.sort(key=lambda thing: thing.text.lower().rstrip(".") != answer.lower())  # what says nothing else first
        for line in (*([text] for text in texts), texts):
            at = " ".join(thing.text for thing in line).lower().find(answer.lower())
            if at >= 0:
                boxes = [box for thing in line for box in (*letters(thing), thing.box)][:-1]  # a text's own box for the space
                return [place._replace(box=box) for box in boxes[at : at + len(answer)]]
    return []


def letters(thing: Thing) -> list[Box]:
    """Return the box of every character of a text, as its stamp has them: neighbours alike share theirs evenly."""
    assert thing.stamp.chars is not None, f"{thing.name} is no text"
    x1, y1, x2, y2 = thing.box
    columns = [(int(c), len(list(run))) for c, run in groupby(thing.stamp.chars[0])]
    said = [(CHAR_CLASSES.index(c) if c in CHAR_CLASSES else 0) for c in thing.text.lower()]
    runs = [(c, len(list(run))) for c, run in groupby(said)]
    if [c for c, _ in columns] != [c for c, _ in runs]:  # a character may have lost its columns to the crop
        columns, runs = [(0, x2 - x1)], [(0, len(said))]
    ends, start = [], x1
    for (_, width), (_, count) in zip(columns, runs, strict=True):
        ends += [start + round(width * i / count) for i in range(count)]
        start += width
    ends.append(x2)
    return [(ends[i], y1, max(ends[i + 1], ends[i] + 1), y2) for i in range(len(said))]

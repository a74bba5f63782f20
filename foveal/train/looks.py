"""Where each row should look: what the generator knows about a question, as rows of the sequence that ask and rows that show.

Two hops find an answer. In an early layer the last word that names a thing looks at the thing; in a later one the rows
that answer do. Every such row has one head told off for it, or four heads could look at four things and one of them would
always be right, whatever was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from foveal.patches import Patches
from foveal.sequence import Sequence
from foveal.tokenizer import Tokenizer
from foveal.world import Item, Question
from foveal.world.scene import Box

WORDS, ANSWER, AGAIN = 0, 1, 2  # which of the layers
SINK = 0  # the first row, which is always there

# A place of a clip or a picture: a frame, and a box in pixels.
Place = tuple[int, Box]


@dataclass(frozen=True)
class Look:
    """A row of a sequence whose `head` in `layer` should share its attention equally among `parts`, sets of rows.

    weight: beside other looks; those of one stretch of an answer weigh as much as one. place: x and y, in 0..1 of the picture,
    of what is looked at, where that is one place. counts: the first part is the reference, and what all others get, as a
    multiple of what it gets, is their number.
    """

    layer: int
    row: int
    head: int
    parts: tuple[np.ndarray, ...]
    weight: float = 1.0
    place: tuple[float, float] | None = None
    counts: bool = False


@dataclass(frozen=True)
class View:
    """An item as the model gets it: which rows of the sequence show a place. frames: of the item in one step of the grid."""

    item: Item
    patches: Patches
    sequence: Sequence
    tokenizer: Tokenizer
    frames: int

    @cached_property
    def slots(self) -> np.ndarray:
        """The rows of all vision tokens, (V,)."""
        return np.flatnonzero(self.sequence.vision_rows >= 0)

    @cached_property
    def coords(self) -> np.ndarray:
        """The step, row and column of all vision tokens, (V, 3)."""
        merge = self.patches.merge
        return self.patches.coords[:: merge * merge] // (1, merge, merge)

    def stamp(self, frame: int) -> np.ndarray:
        """Find the rows of the timestamp before the part of a clip that holds a frame: <, digits, seconds>."""
        row = int(self._cover((frame, (0, 0, 1, 1)))[0][0]) - 2  # before the vision start mark
        rows = [row]
        while b"<" not in self.tokenizer.token_bytes(int(self.sequence.token_ids[rows[-1]])):
            rows.append(rows[-1] - 1)
        return np.array(rows[::-1])

    def showing(self, place: Place) -> np.ndarray:
        """Find the rows whose token the box covers well, and in any case the one that shows most of it."""
        rows, covered, whole = self._cover(place)
        return rows[covered >= min(0.2 * whole, covered.max())]

    def centre(self, place: Place) -> np.ndarray:
        """Find the one row whose token holds the box's centre."""
        frame, (x1, y1, x2, y2) = place
        middle = ((x1 + x2) // 2, (y1 + y2) // 2)
        rows, covered, _ = self._cover((frame, (*middle, middle[0] + 1, middle[1] + 1)))
        return rows[[covered.argmax()]]

    def share(self, box: Box) -> tuple[float, float, float, float]:
        """Say where a box lies in 0..1 of the frame."""
        height, width = self.item.pixels.shape[1:3]
        return box[0] / width, box[1] / height, box[2] / width, box[3] / height

    def middle(self, place: Place) -> tuple[float, float]:
        """Return x and y of the middle of a place, in 0..1 of the frame."""
        x1, y1, x2, y2 = self.share(place[1])
        return (x1 + x2) / 2, (y1 + y2) / 2

    def ends(self, box: Box) -> list[np.ndarray]:
        """Find the rows that show the left end, top, right end and bottom of the thing that has this box in a picture."""
        x1, y1, x2, y2 = box
        height, width = self.item.pixels.shape[1:3]
        rows, columns = (n // self.patches.merge for n in self.patches.grids[0])
        inside = self.item.object_map[0, y1:y2, x1:x2]
        thing = [thing.box for thing in self.item.things].index(box)
        ys, xs = np.nonzero(inside == thing)
        tokens = (ys + y1) * rows // height, (xs + x1) * columns // width
        found = []
        for at_end in (xs == xs.min(), ys == ys.min(), xs == xs.max(), ys == ys.max()):
            seen = np.stack([part[at_end] for part in tokens], axis=1)
            found.append(self.slots[(self.coords[:, None, 1:] == seen[None]).all(-1).any(-1)])
        return found

    def _cover(self, place: Place) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the rows of the place's frame (n,), how many pixels of the box each shows (n,), and a token's pixels."""
        frame, (x1, y1, x2, y2) = place
        t, merge = frame // self.frames, self.patches.merge
        here = np.flatnonzero(self.coords[:, 0] == t)
        size = np.array(self.item.pixels.shape[1:3]) * merge / np.array(self.patches.grids[t])  # of a token, in pixels
        at = self.coords[here, 1:]
        low, high = np.maximum(at * size, (y1, x1)), np.minimum((at + 1) * size, (y2, x2))
        return self.slots[here], np.clip(high - low, 0, None).prod(axis=1), float(size.prod())


def looks(view: View, turns: np.ndarray) -> tuple[Look, ...]:
    """List all looks of an item's conversation. turns: (T,) the question that each answering row belongs to, -1 elsewhere."""
    item, sequence, tokenizer = view.item, view.sequence, view.tokenizer
    lengths = np.array([len(tokenizer.token_bytes(int(i))) for i in sequence.token_ids])
    found: list[Look] = []
    start = int(view.slots[-1]) + 1
    for turn, question in enumerate(item.questions):
        answering = np.flatnonzero(turns == turn)
        text = b"".join(tokenizer.token_bytes(int(i)) for i in sequence.token_ids[start : answering[0]]).decode()
        ends = np.cumsum(lengths[start : answering[0]])
        places = list(zip(question.frames or (0,) * len(question.boxes), question.boxes, strict=True))
        words = {}  # rows of the question's words that name something
        for name in question.names:
            if named := re.search(rf"\b{re.escape(name)}\b", question.question):
                words[name] = start + int(np.searchsorted(ends, text.index(question.question) + named.end()))
        if question.kind == "count":
            found += _counting(words, int(answering[0]), places, view)
        else:
            for name, place in zip(question.names, places, strict=False):
                if name in words:
                    found.append(Look(WORDS, words[name], 0, (view.showing(place),), place=view.middle(place)))
            # The row before a token is the one that says it.
            said = np.concatenate([[0], np.cumsum(lengths[answering[:-1] + 1])])
            for first, last, head, parts, at_place in _told(question, places, view):
                rows = answering[:-1][(said[:-1] < last) & (said[1:] > first)]
                found += [Look(ANSWER, int(row), head, parts, 1 / len(rows), at_place) for row in rows]
        start = int(answering[-1]) + 1
    return tuple(found)


def _counting(words: Mapping[str, int], answer: int, places: list[Place], view: View) -> Iterator[Look]:
    """Yield the looks of a count: the word that names what is counted counts it, and so does the answer, which reads the word.

    To count is to look at one token of each thing, and at the first row, whose share, one in n + 1, says how many others
    there are. A share that is a tenth off matters little elsewhere; here it is wrong. So each part weighs, and two heads with
    keys of their own count in each of three layers: five or six readings of one number.
    """
    parts = (np.array([SINK]), *(view.centre(place) for place in places))
    for layer, row in (*((WORDS, row) for row in words.values()), (ANSWER, answer), (AGAIN, answer)):
        for head in (0, 2):
            yield Look(layer, row, head, parts, weight=0.5 * len(parts), counts=True)
    for row in words.values():
        yield Look(ANSWER, answer, 1, (np.array([row]),))


Told = tuple[int, int, int, tuple[np.ndarray, ...], tuple[float, float] | None]


def _told(question: Question, places: list[Place], view: View) -> Iterator[Told]:
    """Yield (first, last character of the answer, head, parts, place): what is looked at while that stretch is said."""
    answer = question.answer
    if question.kind == "read_number":
        frame, (x1, y1, x2, y2) = places[0]
        ends = np.linspace(x1, x2, len(answer) + 1).round().astype(int).tolist()  # digits are of one width
        for i in range(len(answer)):
            digit = (frame, (ends[i], y1, ends[i + 1], y2))
            yield i, i + 1, 0, (view.showing(digit),), view.middle(digit)
    elif question.kind == "box":
        first = answer.index(" [") + 2
        (place,) = places
        x, y = view.middle(place)
        left, top, right, bottom = view.share(place[1])
        numbers = answer[first : answer.index("]")].split(", ")
        at_ends = ((left, y), (x, top), (right, y), (x, bottom))
        for number, rows, end in zip(numbers, view.ends(place[1]), at_ends, strict=True):
            yield first, first + len(number), 0, (rows,), end
            first += len(number) + 2
    elif question.kind == "describe":
        first = 0
        for name, place in zip(answer.split(", "), places, strict=True):
            yield first, first + len(name), 0, (view.showing(place),), view.middle(place)
            first += len(name) + 2
    else:  # two places, as of two things or of where one was and where it went, have a head each
        for head, place in enumerate(places):
            yield 0, len(answer), head, (view.showing(place),), view.middle(place)
        if question.kind in ("appear_time", "vanish_time"):
            yield 0, len(answer), 1, (view.stamp(places[0][0]),), None

"""Where each row should look: what the generator knows about a question, as rows of the sequence that ask and rows that show.

Two hops find an answer. In an early layer the last word that names a thing looks at the thing; in a later one the rows
that answer do. Every such row has one head told off for it, or four heads could look at four things and one of them would
always be right, whatever was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from foveal.train.told import COUNTS, Told, told, told_in_thought
from foveal.train.view import Place, View
from foveal.world import Question

WORDS, ANSWER, AGAIN = 0, 1, 2  # which of the layers
SINK = 0  # the first row, which is always there


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


def looks(view: View, questions: SequenceOf[Question], turns: np.ndarray, thoughts: SequenceOf[str] = ()) -> tuple[Look, ...]:
    """List all looks of a conversation.

    turns: (T,) the question that each answering row belongs to, -1 elsewhere. thoughts: what is said before each answer, "" for
    nothing; by default nothing is.
    """
    sequence, tokenizer = view.sequence, view.tokenizer
    lengths = np.array([len(tokenizer.token_bytes(int(i))) for i in sequence.token_ids])
    found: list[Look] = []
    start = int(view.slots[-1]) + 1
    for turn, (question, thought) in enumerate(zip(questions, thoughts or [""] * len(questions), strict=True)):
        labelled = np.flatnonzero(turns == turn)
        answering = np.arange(labelled[0], labelled[-1] + 1)  # a closed thought is said, but nothing is learned from it
        text = b"".join(tokenizer.token_bytes(int(i)) for i in sequence.token_ids[start : answering[0]]).decode()
        ends = np.cumsum(lengths[start : answering[0]])
        places = view.places(question)
        words = {}  # rows of the question's words that name something
        for name in question.names:
            if named := re.search(rf"\b{re.escape(name)}\b", question.question):
                words[name] = start + int(np.searchsorted(ends, text.index(question.question) + named.end()))
        # The row before a token is the one that says it.
        said = np.concatenate([[0], np.cumsum(lengths[answering[:-1] + 1])])
        if question.kind in COUNTS and places:
            answer = answering[int(np.searchsorted(said, len(thought), "right")) - 1]
            found += _counting(words, int(answer), places, view)
        else:
            for name, place in zip(question.names, places, strict=False):
                if name in words:
                    found.append(Look(WORDS, words[name], 0, (view.showing(place),), place=view.middle(place)))
            found += _saying(told(question, places, view), len(thought), answering, said)
        if question.thinking and question.thinking in thought:
            lead = thought.index(question.thinking)
            found += _saying(told_in_thought(question, places, view), lead, answering, said)
        start = int(answering[-1]) + 1
    return tuple(found)


def _saying(stretches: Iterable[Told], lead: int, answering: np.ndarray, said: np.ndarray) -> Iterator[Look]:
    """Yield the looks of the rows that say stretches, which begin after `lead` characters."""
    for first, last, head, parts, place in stretches:
        rows = answering[:-1][(said[:-1] < lead + last) & (said[1:] > lead + first)]
        for row in rows:
            yield Look(ANSWER, int(row), head, parts, 1 / len(rows), place)


def _counting(words: Mapping[str, int], answer: int, places: SequenceOf[Place], view: View) -> Iterator[Look]:
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

"""Kinds of the generated world as tasks: both editions, by name, and groups of them.

A task makes its items one by one from seeds of the test split, and any of them again from its id: nobody has to hold the
pictures of an examination.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from foveal.errors import ConfigError
from foveal.evaluate.items import Evidence, Item, Messages
from foveal.evaluate.metrics import Scores
from foveal.evaluate.scorers import SCORERS, infer
from foveal.media import Frames
from foveal.train import mini
from foveal.train.told import letters
from foveal.world import (
    CASE_QUESTIONS,
    CLIP_KINDS,
    PICTURE_KINDS,
    Case,
    Difficulty,
    Question,
    clip_item,
    full_name,
    make,
    picture_item,
)
from foveal.world import Item as WorldItem
from foveal.world import score as world_score
from foveal.world.score import times

LEVELS: dict[str, Callable[[], Difficulty]] = {"world": mini.world, "wide": Difficulty}
"""How hard the world is: as the embedded model is trained for, or all that the generator can make."""

Maker = Callable[[int, Difficulty], tuple[WorldItem, Question] | None]
"""A seed to a picture or clip with the question to ask about it, None where that seed has none."""

LISTS = ("absent_list", "order_list")  # also where one entry has no comma
PATIENCE = 1000  # seeds in a row without a question of a kind


def _asking(kind: str, keep: Callable[[Question], bool] = lambda question: True) -> Maker:
    """Make a maker of a kind's questions, those of its answers that are kept."""
    make = clip_item if kind in CLIP_KINDS else picture_item

    def made(seed: int, level: Difficulty) -> tuple[WorldItem, Question] | None:
        item = make(seed, replace(level, questions=((kind, 1.0),), max_questions=1), "test")
        return (item, item.questions[0]) if item.questions and keep(item.questions[0]) else None

    return made


KINDS: dict[str, Maker] = {kind: _asking(kind) for kind in (*PICTURE_KINDS, *CLIP_KINDS)} | {
    # Which of two is further left is the question of record; above and below can be told from the order of tokens.
    "left_right": _asking("relation", lambda question: question.answer in ("left", "right")),
}
CaseMaker = Callable[[int], tuple[Case, int] | None]
"""A seed to a case with the number of the question to ask about it, None where that seed has none."""


def _case_asking(kind: str, name: str, keep: Callable[[Case, Question], bool] = lambda case, question: True) -> CaseMaker:
    """Make a maker of the second edition's questions of a name, those that are kept; the first of each case."""

    def made(seed: int) -> tuple[Case, int] | None:
        case = make(kind, seed, "test")
        asked = enumerate(case.questions)
        return next(((case, i) for i, q in asked if full_name(kind, q.kind) == name and keep(case, q)), None)

    return made


def _large(case: Case, question: Question) -> bool:
    """Whether a code is written in capitals and digits of 16 pixels or more, before anybody resizes the picture."""
    (box,) = question.boxes
    (text,) = (thing for thing in case.items[0].things if thing.box == box)
    at = text.text.index(question.answer)
    ends = letters(text)
    left, right = ends[at][0] - box[0], ends[at + len(question.answer) - 1][2] - box[0]
    return int((text.stamp.alpha[:, left:right] >= 128).any(axis=1).sum()) >= LARGE_PX


LARGE_PX = 16
# Buttons in a row are the training split's, those at the side the test split's.
_NOT_IN_TEST = ("screen_beside",)
CONVERSATIONS = ("turns",)  # kinds of cases whose later questions mean nothing without the earlier ones
CASES: dict[str, CaseMaker] = {
    name: _case_asking(kind, name) for kind in CASE_QUESTIONS for name in CASE_QUESTIONS[kind] if name not in _NOT_IN_TEST
} | {"needle_16px": _case_asking("needle", "needle_code", _large)}
BARS: dict[str, tuple[str, ...]] = {
    "attribute": ("colour", "shape"), "count_to_8": ("reasoned_count",), "left_right": ("left_right",), "box": ("box",),
    "needle_16px": ("needle_16px",), "words": ("read_word",), "total": ("receipt_total",),
    "event_time": ("event_appear_time", "event_vanish_time"), "event_order": ("order_list",),
    "absent_object": ("absent_one",), "emoji_name": ("emoji_name",),
}  # fmt: skip
"""What the project promises of its embedded model, by the names of its bars."""

SECOND: dict[str, tuple[str, ...]] = {
    # The kind of several pictures cannot have its own name, which is that of an older group.
    "several" if kind == "pictures" else kind: tuple(name for name in names if name in CASES)
    for kind, names in CASE_QUESTIONS.items()
}
"""Kinds of cases, each with its questions."""

GROUPS: dict[str, tuple[str, ...]] = {
    "pictures": PICTURE_KINDS, "clips": CLIP_KINDS, "all": (*PICTURE_KINDS, *CLIP_KINDS),
    "second": tuple(name for names in SECOND.values() for name in names),
    "bars": tuple(name for names in BARS.values() for name in names),
    **BARS, **SECOND,
}  # fmt: skip


@dataclass(frozen=True)
class _Seeds(ABC):
    """A kind of the world's test split, seeds from `first_seed` on; none of it was ever trained on."""

    name: str
    count: int
    first_seed: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Item]:
        seed, idle = self.first_seed, 0
        for _ in range(self.count):
            while (made := self._make(seed)) is None:
                seed, idle = seed + 1, idle + 1
                if idle == PATIENCE:
                    raise ConfigError(f"{PATIENCE} seeds in a row have no question of kind {self._described()}")
            yield made
            seed, idle = seed + 1, 0

    def item(self, id: str) -> Item:
        """Make an item again."""
        made = self._make(int(id.rpartition("/")[2]))
        assert made is not None, f"{id} is not an id of this task"
        return made

    @abstractmethod
    def facts(self) -> dict[str, Any]: ...
    @abstractmethod
    def _described(self) -> str: ...
    @abstractmethod
    def _make(self, seed: int) -> Item | None: ...


@dataclass(frozen=True)
class WorldTask(_Seeds):
    """A kind of the first edition: one picture or clip, one question, as hard as the level says."""

    level: str

    def facts(self) -> dict[str, Any]:
        return {"task": self.name, "difficulty": self.level, "items": self.count, "first_seed": self.first_seed}

    def _described(self) -> str:
        return f"{self.name} at difficulty {self.level}; take another difficulty"

    def _make(self, seed: int) -> Item | None:
        made = KINDS[self.name](seed, LEVELS[self.level]())
        if made is None:
            return None
        picture, question = made
        name = f"{self.name}/{seed}"
        content = [{"type": picture.kind, picture.kind: _frames(picture, name)}, {"type": "text", "text": question.question}]
        return _item(name, [{"role": "user", "content": content}], question)


@dataclass(frozen=True)
class CaseTask(_Seeds):
    """A kind of question of the second edition: one or several pictures or clips.

    Where a question means nothing without those before it, they are given with their true answers: what is examined is this
    turn, not what the first one did to it. Everywhere else a question is asked alone, so that no answer before it helps.
    """

    def facts(self) -> dict[str, Any]:
        return {"task": self.name, "edition": 2, "items": self.count, "first_seed": self.first_seed}

    def _described(self) -> str:
        return f"{self.name} in the test split"

    def _make(self, seed: int) -> Item | None:
        made = CASES[self.name](seed)
        if made is None:
            return None
        case, number = made
        first = 0 if case.kind in CONVERSATIONS else number
        alone = replace(case, questions=case.questions[first : number + 1])
        name = f"{self.name}/{seed}"
        one = len(case.items) == 1
        media = [_frames(item, name if one else f"{name}#{i}") for i, item in enumerate(case.items, 1)]
        # Without the reasoning of earlier turns, as those who ask again leave it out.
        messages = [{key: message[key] for key in ("role", "content")} for message in alone.messages(media)[:-1]]
        return _item(name, messages, case.questions[number])


def _frames(shown: WorldItem, name: str) -> Frames:
    return Frames(shown.pixels, shown.times_s, shown.kind, shown.pixels.shape[1:3], name)


def _item(name: str, messages: Messages, question: Question) -> Item:
    evidence = Evidence(question.boxes, question.frames, question.span_s, question.pictures)
    family = "list" if question.kind in LISTS else _family(question.answer)

    def judge(answer: str) -> Scores:
        # The world's own rule decides; the metrics of the answer's form stand beside it.
        right = float(world_score(question.kind, answer, question))
        return SCORERS[family](answer, question.answer) | {"right": (right, 1.0)}

    return Item(name, messages, (question.answer,), f"world/{family}", judge, evidence)


def _family(answer: str) -> str:
    """Name the scorer whose metrics suit an answer of the world."""
    if re.fullmatch(r"\d+(\.\d+)? seconds", answer):
        return "time"
    family = infer(answer)
    if family == "text" and "seconds" in answer and len(times(answer)) == 2:
        return "span"
    return "list" if family == "text" and ", " in answer else family

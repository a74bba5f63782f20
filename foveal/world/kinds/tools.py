"""What several makers need: draws from lists, and values as documents write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from foveal.world.items import Item
from foveal.world.phrases import say
from foveal.world.questions import Question
from foveal.world.sheet import union
from foveal.world.splits import Material

T = TypeVar("T")
CODE_CHARACTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"  # without those that look alike in some font: I, O, Q, 0, 1


class Made(NamedTuple):
    """What is shown, what is asked about it, and what else may be: drawn last, so that nothing else depends on it."""

    items: tuple[Item, ...]
    questions: tuple[Question, ...]
    further: Sequence[Question] = ()


def one(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one."""
    return options[int(rng.integers(len(options)))]


def some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """Draw `count` different ones, in random order; all of them if there are fewer."""
    return [options[i] for i in rng.permutation(len(options))[:count]]


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw a whole number, both ends included."""
    return int(rng.integers(low, high + 1))


def size_px(rng: np.random.Generator, low: float, high: float) -> int:
    """Draw a height in pixels, as often between 8 and 16 as between 16 and 32."""
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def code(rng: np.random.Generator, length: int = 4) -> str:
    """Draw a code of capitals and digits, with at least one of each."""
    while True:
        text = "".join(one(rng, CODE_CHARACTERS) for _ in range(length))
        if not text.isalpha() and not text.isdigit():
            return text


def unasked(found: Sequence[Question], asked: Sequence[Question]) -> list[Question]:
    """List what was found and not asked, each once: other words for the same question and answer are the same."""
    said = {_gist(question) for question in asked}
    rest = {_gist(question): question for question in found}
    return [question for gist, question in rest.items() if gist not in said]


def _gist(question: Question) -> tuple[str, tuple[str, ...], str]:
    return question.kind, question.names, question.answer


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def date(rng: np.random.Generator) -> str:
    return f"{between(rng, 1990, 2029)}-{between(rng, 1, 12):02d}-{between(rng, 1, 28):02d}"


def ask(
    rng: np.random.Generator, kind: str, answer: str, item: Item, *evidence: Sequence[int], tolerance: float = 0.0,
    thinking: str = "", named: bool = True, **names: str,
) -> Question:  # fmt: skip
    """Put a question about one picture; each group of things, given by their numbers, is a box of evidence.

    `names` fill the question in, and are what it calls the first boxes, unless there are fewer boxes or it is not `named` so.
    """
    boxes = tuple(union([item.things[number].box for number in group]) for group in evidence)
    called = tuple(names.values()) if named and len(names) <= len(boxes) else ()
    return Question(kind, say(rng, kind, **names), answer, boxes, names=called, thinking=thinking, tolerance=tolerance)


def value(rng: np.random.Generator, rule: str, material: Material) -> str:
    """Write what a form's field holds."""
    lexicon = material.lexicon
    person = f"{one(rng, lexicon.first_names)} {one(rng, lexicon.last_names)}"
    word = one(rng, lexicon.words)
    return {
        "person": person,
        "place": one(rng, lexicon.places),
        "phone": f"{between(rng, 200, 999)} {between(rng, 100, 999)} {between(rng, 1000, 9999)}",
        "date": date(rng),
        "code": f"{code(rng)}-{between(rng, 10, 99)}",
        "money": money(between(rng, 100, 99999)),
        "street": f"{between(rng, 1, 199)} {word.capitalize()} Street",
        "small": str(between(rng, 1, 99)),
        "email": f"{person.split()[0].lower()}@{word}.org",
        "digits": str(between(rng, 10000, 99999)),
    }[rule]

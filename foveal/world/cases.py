"""The second edition's unit: what one conversation is about, made from a kind, a seed and a split: Case, make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.errors import ConfigError
from foveal.world.items import Item
from foveal.world.kinds import FILMS, KINDS, QUESTIONS
from foveal.world.kinds.tools import some
from foveal.world.questions import Question
from foveal.world.scene import generator
from foveal.world.splits import material


@dataclass(frozen=True, eq=False)  # arrays inside: equal means the same one
class Case:
    """One or several pictures or clips, and the turns of a conversation about them.

    Attributes:
        kind: one of CASE_KINDS.
        items: what is shown, in order, before the first question; they carry no questions of their own.
        questions: one turn each, in order. A later turn may refer to an earlier one.
    """

    kind: str
    items: tuple[Item, ...]
    questions: tuple[Question, ...]

    def messages(self, media: Sequence[Any]) -> list[dict[str, Any]]:
        """Write the conversation as OpenAI-style messages. `media` stands for the items: paths, or frames."""
        if len(media) != len(self.items):
            raise ConfigError(f"{len(media)} media for a case of {len(self.items)}; give one for each, in order")
        shown = [{"type": item.kind, item.kind: medium} for item, medium in zip(self.items, media, strict=True)]
        out: list[dict[str, Any]] = []
        for turn, question in enumerate(self.questions):
            asked = {"type": "text", "text": question.question}
            out.append({"role": "user", "content": [*(shown if turn == 0 else []), asked]})
            answer: dict[str, Any] = {"role": "assistant", "content": question.answer}
            if question.thinking:
                answer["reasoning_content"] = question.thinking
            out.append(answer)
        return out


def full_name(kind: str, asked: str) -> str:
    """Name a kind of question together with the kind of case it is about, which its own name may say already."""
    return asked if asked.startswith(f"{kind}_") else f"{kind}_{asked}"


CASE_KINDS: tuple[str, ...] = tuple(KINDS)
CLIP_CASES = FILMS
"""The kinds of cases that are about clips."""
CASE_QUESTIONS: dict[str, tuple[str, ...]] = {
    kind: tuple(full_name(kind, asked) for asked in QUESTIONS[kind]) for kind in KINDS
}
"""The full names of the questions that each kind of case may ask."""


def make(kind: str, seed: int, split: str = "train", more: int = 0) -> Case:
    """Make the case of a kind and a seed. Equal arguments give equal cases.

    No two splits share a random stream, and the split "test" also has fonts, words, layouts and pairs of colours that no
    other split has. `more`: how many questions to ask beside those, at most, of the same kinds; all else is the same. To
    learn, a picture is worth as many questions as it answers; to examine, few questions of many pictures tell more.

    Raises:
        ConfigError: there is no such kind, or the seed or `more` is negative.
        MissingDependency: a package of the extra `world` is missing.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r} of case; kinds are {', '.join(KINDS)}")
    if more < 0:
        raise ConfigError(f"more is {more}; a case has no fewer questions than its own, so give 0 or a larger number")
    rng = generator(seed, split, f"case {kind}")
    items, questions, further = KINDS[kind](rng, material(split))
    return Case(kind, items, (*questions, *some(rng, further, more)))

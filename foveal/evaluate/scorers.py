"""How an answer is judged against a reference: one function a kind of answer, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from foveal.errors import DataError
from foveal.evaluate.metrics import (
    Scores,
    box_scores,
    character_errors,
    class_scores,
    entries,
    exact,
    normalised,
    overlap,
    span_scores,
    words,
)
from foveal.world.score import TOLERANCE_S, normalise, parse_boxes, times

Scorer = Callable[[str, str], Scores]
"""(answer, reference) to metrics; "right", in 0 or 1, is always among them."""

_YES_NO = ("yes", "no")


def text(answer: str, truth: str) -> Scores:
    """Right if the same, but for case, spaces and a closing period."""
    same = normalised(answer, truth)
    hits, both = overlap(words(answer), words(truth))
    return {
        "right": (same, 1.0),
        "exact": (exact(answer, truth), 1.0),
        "cer": character_errors(answer, truth),
        "f1": (hits / both if both else same, 1.0),  # of words, a mean over answers
    }


def letter_for_letter(answer: str, truth: str) -> Scores:
    """Right if the same to the letter."""
    return {"right": (exact(answer, truth), 1.0), "cer": character_errors(answer, truth)}


def listed(answer: str, truth: str) -> Scores:
    """Right if the same entries are listed, in any order."""
    said, meant = entries(answer), entries(truth)
    return {"right": (float(sorted(said) == sorted(meant)), 1.0), "f1": overlap(said, meant)}


def box(answer: str, truth: str) -> Scores:
    """Right if every true box is met above an IoU of 0.5 and there is no other."""
    found, wanted = parse_boxes(answer) or [], parse_boxes(truth)
    if not wanted:
        raise DataError(f"the reference {truth[:80]!r} holds no box; expected JSON with bbox_2d, or [x1, y1, x2, y2]")
    scores = box_scores(found, wanted)
    right = scores["iou@0.5"][0] == len(wanted) == len(found)
    return {"right": (float(right), 1.0), **scores}


def time(answer: str, truth: str) -> Scores:
    """Right within half a second; the error is a mean over answers that name a time."""
    said, meant = times(answer), times(truth)
    if not meant:
        raise DataError(f"the reference {truth[:80]!r} holds no time; expected one such as 3.5 seconds or 02:10")
    error = abs(said[0] - meant[0]) if said else 0.0
    return {"right": (float(bool(said) and error <= TOLERANCE_S), 1.0), "error_s": (error, float(bool(said)))}


def span(answer: str, truth: str) -> Scores:
    """Right if the span's IoU reaches 0.5."""
    said, meant = times(answer), times(truth)
    if len(meant) != 2:
        raise DataError(f"the reference {truth[:80]!r} holds {len(meant)} times; a span is two, such as 1.5 to 4.0 seconds")
    scores = span_scores((said[0], said[1]) if len(said) >= 2 else None, (meant[0], meant[1]))
    return {"right": scores["r1@0.5"], **scores}


def yes_no(answer: str, truth: str) -> Scores:
    """Right if the answer begins with the same yes or no; an F1 of either."""
    said, meant = (_first_word(normalise(one)) for one in (answer, truth))
    if meant not in _YES_NO:
        raise DataError(f"the reference {truth[:80]!r} is neither yes nor no")
    return {"right": (float(said == meant), 1.0), **class_scores(said, meant, _YES_NO)}


def _first_word(said: str) -> str:
    found = re.match(r"\w+", said)
    return found[0] if found else ""


SCORERS: dict[str, Scorer] = {
    "text": text, "exact": letter_for_letter, "list": listed, "box": box, "time": time, "span": span, "yesno": yes_no,
}  # fmt: skip


def infer(truth: str) -> str:
    """Name the scorer that a reference asks for by its form: a box, yes or no, else text."""
    if parse_boxes(truth):
        return "box"
    return "yesno" if normalise(truth) in _YES_NO else "text"


def best(name: str, answer: str, references: Sequence[str]) -> Scores:
    """Score against the reference that suits the answer best."""
    found = [SCORERS[name](answer, truth) for truth in references]
    return max(found, key=lambda scores: (scores["right"][0], -badness(scores)))


def badness(scores: Scores) -> float:
    """Say how wrong an answer is, from 0, to put the worst failures first; of ratios 0 / 0 the worst."""
    for name, sign in (("iou", -1), ("tiou", -1), ("error_s", 1), ("cer", 1), ("f1", -1)):
        if name in scores:
            above, below = scores[name]
            value = above / below if below else float("inf") if sign > 0 else 0.0
            return value if sign > 0 else 1.0 - value
    return 1.0 - scores["right"][0]

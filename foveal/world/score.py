"""Decide whether an answer is right."""

from __future__ import annotations

import json
import re

from foveal.world.questions import Question

Ends = tuple[float, float, float, float]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TIME_TOLERANCE_S = 0.5 + 1e-9


def parse_boxes(text: str) -> list[Ends] | None:
    """Read the boxes of a JSON answer, with or without a code fence or words around it.

    Accepts a list of objects with "bbox_2d", one such object, or one bare list of four numbers. None if that is not
    what the first JSON value is.
    """
    start = re.search(r"[\[{]", text)
    if start is None:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start.start())
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        corners = [row["bbox_2d"] if isinstance(row, dict) else row for row in rows]
        boxes = [tuple(float(end) for end in ends) for ends in corners]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if any(len(box) != 4 for box in boxes):
        return None
    return [(box[0], box[1], box[2], box[3]) for box in boxes]


def iou(a: Ends, b: Ends) -> float:
    """Intersection over union of two boxes; 0 for an empty one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def normalise(text: str) -> str:
    """Lower case, single spaces, no closing period."""
    return " ".join(text.lower().split()).rstrip(". ")


def _same_boxes(answer: str, truth: str) -> bool:
    found, wanted = parse_boxes(answer), parse_boxes(truth)
    if not found or not wanted or len(found) != len(wanted):
        return False
    return all(iou(a, b) > 0.5 for a, b in zip(found, wanted, strict=True))


def _same_time(answer: str, truth: str) -> bool:
    found, wanted = _NUMBER.search(answer), _NUMBER.search(truth)
    if found is None or wanted is None:
        return False
    return abs(float(found[0]) - float(wanted[0])) <= _TIME_TOLERANCE_S


def _same_timeline(answer: str, truth: str) -> bool:
    """The same events, each within the time tolerance."""
    found, wanted = (sorted(p.partition(" ")[::-1] for p in normalise(text).split(", ")) for text in (answer, truth))
    if [event for event, *_ in found] != [event for event, *_ in wanted]:
        return False
    return all(_same_time(a[-1], b[-1]) for a, b in zip(found, wanted, strict=True))


def score(kind: str, answer: str, question: Question) -> bool:
    """Tell whether `answer` is right.

    A box is right above an IoU of 0.5, a time within 0.5 s, a description if it names the same things in any order, a
    timeline if it lists the same events within 0.5 s; everything else must be the same words.
    """
    truth = question.answer
    if kind == "box":
        return _same_boxes(answer, truth)
    if kind in ("appear_time", "vanish_time"):
        return _same_time(answer, truth)
    if kind == "timeline":
        return _same_timeline(answer, truth)
    if kind == "describe":
        return sorted(normalise(answer).split(", ")) == sorted(normalise(truth).split(", "))
    return normalise(answer) == normalise(truth)

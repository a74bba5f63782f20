"""Decide whether an answer is right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from foveal.world.questions import Question

Ends = tuple[float, float, float, float]

# 1:02:03.5, 02:03 and 3.5 are all times in seconds.
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")
_LONGEST_S = 1e6  # a number beyond it, as a model that repeats itself writes, names no time
_SIGNED = re.compile(r"-?\d+(?:\.\d+)?")
TOLERANCE_S = 0.5 + 1e-9  # of a time


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
    if not all(len(box) == 4 and all(map(math.isfinite, box)) for box in boxes):
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


def times(text: str) -> list[float]:
    """Read the times of a text in seconds: 3.5, 02:03, 1:02:03."""
    found = [
        3600.0 * float(hours or 0) + 60.0 * float(minutes or 0) + float(seconds)
        for hours, minutes, seconds in _TIME.findall(text)
    ]
    return [time_s for time_s in found if time_s <= _LONGEST_S]


def _same_time(answer: str, truth: str) -> bool:
    found, wanted = times(answer), times(truth)
    return bool(found and wanted) and abs(found[0] - wanted[0]) <= TOLERANCE_S


def _same_timeline(answer: str, truth: str) -> bool:
    """The same events, each within the time tolerance."""
    found, wanted = (sorted(p.partition(" ")[::-1] for p in normalise(text).split(", ")) for text in (answer, truth))
    if [event for event, *_ in found] != [event for event, *_ in wanted]:
        return False
    return all(_same_time(a[-1], b[-1]) for a, b in zip(found, wanted, strict=True))


def _as_number(text: str) -> float | None:
    """Read the first number, whatever currency or unit stands around it; commas may group thousands."""
    found = _SIGNED.search(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))
    return None if found is None else float(found[0])


def _same_value(answer: str, question: Question) -> bool:
    found, wanted = _as_number(answer), _as_number(question.answer)
    return found is not None and wanted is not None and abs(found - wanted) <= question.tolerance + 1e-9


def listed(text: str) -> set[str]:
    """Read a list of names in any order; "none" is the empty list."""
    return {normalise(name) for name in re.split(r",|\band\b", text)} - {"", "none"}


def list_f1(answer: str, truth: str) -> float:
    """F1 of the names an answer lists against the true ones; 1 if both list none."""
    found, wanted = listed(answer), listed(truth)
    if not found and not wanted:
        return float(bool(normalise(answer)))  # an empty answer says nothing
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def yes_no_f1(pairs: Iterable[tuple[str, str]], positive: str = "no") -> float:
    """F1 over (answer, truth) pairs of yes-or-no questions; `positive` is the truth that is to be found ("no": absence)."""
    hits = said = there = 0
    for answer, truth in pairs:
        claims, holds = normalise(answer) == positive, normalise(truth) == positive
        hits, said, there = hits + (claims and holds), said + claims, there + holds
    return 2 * hits / (said + there) if said + there else 1.0


_BOXES = ("box", "screen_find", "emoji_find", "turns_find")
_TIMES = ("appear_time", "vanish_time", "glimpse_time")
_VALUES = ("receipt_total", "receipt_price", "receipt_quantity", "table_cell", "chart_value", "chart_difference")
_LISTS = ("absent_list",)


def score(kind: str, answer: str, question: Question) -> bool:
    """Tell whether `answer` is right.

    A box is right above an IoU of 0.5, a time within 0.5 s, a number within the question's tolerance, a description or a list
    if it names the same things in any order, a timeline if it lists the same events within 0.5 s; everything else must be the
    same words.
    """
    truth = question.answer
    if kind in _BOXES:
        return _same_boxes(answer, truth)
    if kind in _TIMES:
        return _same_time(answer, truth)
    if kind in _VALUES:
        return _same_value(answer, question)
    if kind in _LISTS:
        return list_f1(answer, truth) == 1.0
    if kind == "timeline":
        return _same_timeline(answer, truth)
    if kind == "describe":
        return sorted(normalise(answer).split(", ")) == sorted(normalise(truth).split(", "))
    return normalise(answer) == normalise(truth)

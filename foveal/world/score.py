"""Decide whether an answer is right."""

from __future__ import annotations

import json
import re

from foveal.world.questions import Question

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def parse_boxes(text: str) -> list[tuple[float, float, float, float]] | None:
    """Read the boxes of a JSON answer, with or without a code fence or text around it; None if there is none to read."""
    start, end = text.find("["), text.rfind("]")
    brace = text.find("{")
    if start < 0 or end < start:
        return None
    body = text[start : end + 1]
    if 0 <= brace < start:  # a single object without the list around it
        body = f"[{text[brace : text.rfind('}') + 1]}]"
    try:
        rows = json.loads(body)
    except ValueError:
        return None
    if rows and all(isinstance(v, int | float) for v in rows):
        rows = [rows]
    boxes = []
    for row in rows:
        ends = row.get("bbox_2d") if isinstance(row, dict) else row
        if not isinstance(ends, list) or len(ends) != 4 or not all(isinstance(v, int | float) for v in ends):
            return None
        boxes.append((float(ends[0]), float(ends[1]), float(ends[2]), float(ends[3])))
    return boxes


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes; 0 for an empty one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def normalise(text: str) -> str:
    """Lower case, single spaces, no closing period."""
    return " ".join(text.lower().split()).rstrip(". ")


def score(kind: str, answer: str, question: Question) -> bool:
    """Tell whether `answer` is right.

    A box is right above an IoU of 0.5, a time within 0.5 s, a description if it names the same things in any order;
    everything else must be the same words.
    """
    if kind == "box":
        found, truth = parse_boxes(answer), parse_boxes(question.answer)
        return bool(found and truth) and len(found) == len(truth) and all(map(lambda p: iou(*p) > 0.5, zip(found, truth)))
    if kind in ("appear_time", "vanish_time"):
        found_s, truth_s = _NUMBER.search(answer), _NUMBER.search(question.answer)
        return bool(found_s and truth_s) and abs(float(found_s[0]) - float(truth_s[0])) <= 0.5 + 1e-9
    if kind == "describe":
        return sorted(normalise(answer).split(", ")) == sorted(normalise(question.answer).split(", "))
    return normalise(answer) == normalise(question.answer)

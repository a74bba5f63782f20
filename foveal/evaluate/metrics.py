"""Answers to numbers: metrics of one answer, each a pair (numerator, denominator).

Pairs, because some metrics are ratios of sums: a character error rate divides all edits by all characters, an F1 all hits by
all that was said and meant. A plain mean has the denominator 1. Pairs of many answers are added up; 0 / 0 says nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from foveal.world.score import Ends, iou, normalise

Scores = dict[str, tuple[float, float]]
Span = tuple[float, float]

BOX_THRESHOLDS = (0.5, 0.75)
SPAN_THRESHOLDS = (0.3, 0.5, 0.7)


def exact(answer: str, truth: str) -> float:
    """1 where the texts are the same, white space at the ends aside."""
    return float(answer.strip() == truth.strip())


def normalised(answer: str, truth: str) -> float:
    """1 where the texts are the same in lower case, with single spaces and without a closing period."""
    return float(normalise(answer) == normalise(truth))


def edit_distance(a: str, b: str) -> int:
    """Count the least insertions, deletions and replacements of characters between two texts (Levenshtein)."""
    if not a or not b:
        return len(a) + len(b)
    columns = np.arange(len(b) + 1)
    letters = np.array([ord(c) for c in b])
    row = columns.copy()
    for i, letter in enumerate(a, 1):
        best = np.empty_like(row)
        best[0] = i
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))
        # An insertion costs one a column: the least over all columns to the left, plus their distance.
        row = np.minimum.accumulate(best - columns) + columns
    return int(row[-1])


def character_errors(answer: str, truth: str) -> tuple[float, float]:
    """Return edits and characters of the truth, runs of white space counting as one space."""
    said, meant = " ".join(answer.split()), " ".join(truth.split())
    return float(edit_distance(said, meant)), float(len(meant))


def overlap(answer: Sequence[str], truth: Sequence[str]) -> tuple[float, float]:
    """Return twice the shared entries, and the entries of both: the parts of an F1 over bags."""
    shared = sum((Counter(answer) & Counter(truth)).values())
    return 2.0 * shared, float(len(answer) + len(truth))


def words(text: str) -> list[str]:
    """Split a text into words in lower case."""
    return re.findall(r"\w+", text.lower())


def entries(text: str) -> list[str]:
    """Split a list written with commas."""
    return [entry for part in text.split(",") if (entry := normalise(part))]


def match_boxes(found: Sequence[Ends], wanted: Sequence[Ends]) -> list[float]:
    """Pair boxes, the best overlap first; return the IoU of every wanted box, 0 where nothing is left for it."""
    overlaps = sorted(((iou(f, w), i, j) for i, f in enumerate(found) for j, w in enumerate(wanted)), reverse=True)
    out, taken = [0.0] * len(wanted), set()
    given: set[int] = set()
    for share, i, j in overlaps:
        if i not in taken and j not in given:
            taken.add(i)
            given.add(j)
            out[j] = share
    return out


def box_scores(found: Sequence[Ends], wanted: Sequence[Ends]) -> Scores:
    """Score boxes against the true ones, of which there is at least one. A threshold is passed above it, as in the world."""
    shares, count = match_boxes(found, wanted), float(len(wanted))
    out: Scores = {"iou": (sum(shares), count)}
    for threshold in BOX_THRESHOLDS:
        hits = float(sum(share > threshold for share in shares))
        out[f"iou@{threshold}"] = (hits, count)
        out[f"f1@{threshold}"] = (2 * hits, count + len(found))
    return out


def temporal_iou(a: Span, b: Span) -> float:
    """Intersection over union of two spans in seconds; 0 for one that ends before it begins."""
    if a[1] < a[0] or b[1] < b[0]:
        return 0.0
    if a == b:
        return 1.0  # two equal instants, too, whose union is empty
    union = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / union


def span_scores(found: Span | None, wanted: Span) -> Scores:
    """Score a span: mean IoU, and R@1, the share whose IoU reaches a threshold."""
    share = 0.0 if found is None else temporal_iou(found, wanted)
    return {"tiou": (share, 1.0)} | {f"r1@{t}": (float(share >= t), 1.0) for t in SPAN_THRESHOLDS}


def class_scores(said: str, meant: str, classes: Sequence[str]) -> Scores:
    """Return, for each class, its share of an F1: hits count twice, what was said and what was meant once."""
    return {f"f1 {c}": (2.0 * (said == meant == c), float(said == c) + float(meant == c)) for c in classes}

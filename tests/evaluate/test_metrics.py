"""Metrics and scorers against cases computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.errors import DataError
from foveal.evaluate import metrics
from foveal.evaluate.scorers import SCORERS, badness, best, infer
from foveal.world.score import times


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert metrics.edit_distance(a, b) == distance == metrics.edit_distance(b, a)


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_the_textbook_recursion(a: str, b: str) -> None:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[:], i
        for j, y in enumerate(b, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
    assert metrics.edit_distance(a, b) == row[-1]


def test_character_errors_and_words() -> None:
    assert metrics.character_errors("the  cat", "the cat") == (0.0, 7.0)
    assert metrics.character_errors("a cat", "the cat") == (3.0, 7.0)
    # "the red cat" against "a red cat sat": two words shared of three and four.
    assert metrics.overlap(metrics.words("The red cat."), metrics.words("a red cat sat")) == (4.0, 7.0)
    assert metrics.overlap(["a", "a"], ["a"]) == (2.0, 3.0)


def test_boxes() -> None:
    whole, left, far = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 6.0, 10.0), (50.0, 50.0, 60.0, 60.0)
    assert metrics.match_boxes([left], [whole]) == [0.6]
    assert metrics.match_boxes([far, left], [whole, far]) == [0.6, 1.0]
    assert metrics.match_boxes([left, whole], [whole]) == [1.0]  # the better one, and the other is too much
    assert metrics.match_boxes([], [whole]) == [0.0]
    scores = metrics.box_scores([left, far], [whole])
    assert scores["iou"] == (0.6, 1.0) and scores["iou@0.5"] == (1.0, 1.0) and scores["iou@0.75"] == (0.0, 1.0)
    assert scores["f1@0.5"] == (2.0, 3.0)  # one hit, one true, two found


def test_times_and_spans() -> None:
    assert times("from 1.5 to 02:03, or 1:00:00.5") == [1.5, 123.0, 3600.5]
    assert times(f"{'9' * 400} or 2000000 or 3.5") == [3.5]  # beyond a million seconds it is a runaway, not a time
    assert metrics.temporal_iou((0, 4), (2, 6)) == pytest.approx(1 / 3)
    assert metrics.temporal_iou((0, 1), (2, 3)) == 0.0
    assert metrics.temporal_iou((4, 0), (0, 4)) == 0.0  # ends before it begins
    assert metrics.temporal_iou((2, 2), (2, 2)) == 1.0
    scores = metrics.span_scores((0.0, 4.0), (1.0, 5.0))  # 3 of 5 seconds
    assert scores == {"tiou": (0.6, 1.0), "r1@0.3": (1.0, 1.0), "r1@0.5": (1.0, 1.0), "r1@0.7": (0.0, 1.0)}
    assert metrics.span_scores(None, (1.0, 5.0))["tiou"] == (0.0, 1.0)


def test_f1_of_yes_and_no_adds_up() -> None:
    """Four answers: a hit, a miss, a false alarm and one that is neither; precision 1/2, recall 1/3, F1 2/5."""
    pairs = [metrics.class_scores(said, meant, ("yes", "no"))["f1 yes"]
             for said, meant in (("yes", "yes"), ("no", "yes"), ("yes", "no"), ("perhaps", "yes"))]  # fmt: skip
    assert (sum(n for n, _ in pairs), sum(d for _, d in pairs)) == (2.0, 5.0)


@pytest.mark.parametrize(
    ("scorer", "answer", "truth", "right"),
    [
        ("text", " RED. ", "red", 1), ("text", "dark red", "red", 0), ("exact", "Red", "red", 0), ("exact", "red\n", "red", 1),
        ("list", "a cat, a dog", "a dog, A cat.", 1), ("list", "a cat, a cat", "a cat", 0),
        ("box", '[{"bbox_2d": [0, 0, 10, 6]}]', "[0, 0, 10, 10]", 1), ("box", "[0, 0, 10, 5]", "[0, 0, 10, 10]", 0),
        ("box", '[{"bbox_2d": [0,0,9,9]}, {"bbox_2d": [50,50,60,60]}]', "[0, 0, 10, 10]", 0), ("box", "no box", "[0,0,1,1]", 0),
        ("time", "At 3.0 seconds", "3.5 seconds", 1), ("time", "2.9 seconds", "3.5 seconds", 0), ("time", "soon", "3.5", 0),
        ("time", "00:03", "3.5 seconds", 1), ("span", "1.0 to 4.0", "1.0 to 5.0 seconds", 1), ("span", "at 3", "1 to 5", 0),
        ("yesno", "Yes, there is.", "yes", 1), ("yesno", "There is.", "yes", 0), ("yesno", "No", "no", 1),
    ],
)  # fmt: skip
def test_scorers(scorer: str, answer: str, truth: str, right: int) -> None:
    assert SCORERS[scorer](answer, truth)["right"] == (right, 1.0)


@pytest.mark.parametrize(
    ("scorer", "truth", "says"),
    [
        ("box", "left", "holds no box"),
        ("time", "soon", "holds no time"),
        ("span", "at 3 s", "1 times"),
        ("yesno", "maybe", "nor no"),
    ],
)
def test_a_reference_that_cannot_be_scored(scorer: str, truth: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        SCORERS[scorer]("", truth)


def test_an_error_in_time_speaks_of_answers_that_name_one() -> None:
    assert SCORERS["time"]("4.25 s", "3.5 seconds")["error_s"] == (0.75, 1.0)
    for nothing in ("never", "9" * 400, "99999999"):
        assert SCORERS["time"](nothing, "3.5 seconds") == {"right": (0.0, 1.0), "error_s": (0.0, 0.0)}


def test_the_form_of_a_reference_names_its_scorer() -> None:
    assert [infer(t) for t in ('[{"bbox_2d": [1, 2, 3, 4]}]', "No.", "a red star", "12")] == ["box", "yesno", "text", "text"]


def test_the_reference_that_suits_best_counts() -> None:
    assert best("text", "colour", ["color", "colour"])["right"] == (1.0, 1.0)
    assert best("text", "colours", ["red", "colour"])["cer"] == (1.0, 6.0)


def test_the_worst_come_first() -> None:
    near, far = SCORERS["text"]("rad", "red"), SCORERS["text"]("a long story", "red")
    assert badness(near) < badness(far)
    assert badness(SCORERS["time"]("9", "3")) < badness(SCORERS["time"]("never", "3"))
    assert badness(SCORERS["box"]("[0,0,9,9]", "[0,0,10,10]")) < badness(SCORERS["box"]("?", "[0,0,10,10]")) == 1.0

"""What counts as a right answer."""

from __future__ import annotations

import pytest

from foveal.world import Question, list_f1, score, yes_no_f1
from foveal.world.score import iou, parse_boxes

BOX = Question("box", "", '```json\n[{"bbox_2d": [100, 100, 200, 200], "label": "red star"}]\n```')


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('```json\n[{"bbox_2d": [100, 100, 200, 200], "label": "red star"}]\n```', True),
        ('[{"bbox_2d": [90, 110, 190, 200]}]', True),
        ('{"bbox_2d": [100, 100, 200, 200], "label": "x"}', True),
        ("[100, 100, 200, 200]", True),
        ('The star is here: [{"bbox_2d": [100.5, 100, 200, 200]}] as asked.', True),
        ('[{"bbox_2d": [150, 100, 250, 200]}]', False),
        ('[{"bbox_2d": [100, 100, 200, 200]}, {"bbox_2d": [1, 1, 2, 2]}]', False),
        ('[{"bbox_2d": [200, 200, 100, 100]}]', False),
        ('[{"bbox_2d": [100, 100, 200]}]', False),
        ('[{"bbox_2d": "100, 100, 200, 200"}]', False),
        ('[{"bbox_2d": [NaN, 100, 200, 200]}]', False),
        ('[{"bbox_2d": [100, 100, Infinity, 200]}]', False),
        ('[{"box": [100, 100, 200, 200]}]', False),
        ('```json\n[{"bbox_2d": [100, 100, 200, 2', False),
        ("[]", False),
        ("[" * 100_000, False),
        (f'[{{"bbox_2d": [100, 100, 200, 1{"0" * 400}]}}]', False),
        ("left", False),
        ("", False),
    ],
)
def test_boxes(answer: str, right: bool) -> None:
    assert score("box", answer, BOX) is right


def test_boxes_are_compared_one_by_one() -> None:
    assert parse_boxes('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]') == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert parse_boxes("[NaN, 1, 2, 3]") is None and parse_boxes("[0, 0, Infinity, 3]") is None
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("2.5 seconds", True),
        ("3 seconds", True),
        ("at 2.0 s", True),
        ("3.1 seconds", False),
        ("1.9 seconds", False),
        ("soon", False),
        ("00:02.0", True),
        ("at 00:03", True),
        ("02:30", False),
        ("9" * 400, False),
    ],
)
def test_times_within_half_a_second(answer: str, right: bool) -> None:
    assert score("appear_time", answer, Question("appear_time", "", "2.5 seconds")) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("red", True), (" Red. ", True), ("red star", False), ("dark red", False), ("", False)],
)
def test_words_must_be_the_same(answer: str, right: bool) -> None:
    assert score("colour", answer, Question("colour", "", "red")) is right


def test_descriptions_ignore_order_but_not_number() -> None:
    question = Question("describe", "", "red star, red star, blue circle")
    assert score("describe", "blue circle, red star, red star", question)
    assert not score("describe", "blue circle, red star", question)
    assert not score("describe", "blue circle, blue circle, red star", question)


def test_timelines_allow_half_a_second_an_event() -> None:
    question = Question("timeline", "", "0.0 red star moves left, 2.5 blue circle")
    assert score("timeline", "0.5 red star moves left, 2.0 blue circle", question)
    assert score("timeline", "2.5 blue circle, 0.0 red star moves left", question)
    assert not score("timeline", "0.0 red star moves right, 2.5 blue circle", question)
    assert not score("timeline", "0.0 red star moves left, 3.5 blue circle", question)
    assert not score("timeline", "0.0 red star moves left", question)


def test_numbers_within_the_tolerance() -> None:
    exact, about = Question("receipt_total", "", "$1234.50"), Question("chart_value", "", "40", tolerance=2.0)
    for answer in ("$1234.50", "1234.5", "1,234.50", "The total is $1,234.50."):
        assert score("receipt_total", answer, exact), answer
    for answer in ("1234.51", "1.234,50", "", "total"):
        assert not score("receipt_total", answer, exact), answer
    assert score("chart_value", "41.9", about) and score("chart_value", "about 38", about)
    assert not score("chart_value", "42.1", about) and not score("chart_value", "-40", about)


def test_lists_in_any_order() -> None:
    truth = Question("absent_list", "", "cat, star")
    assert score("absent_list", "star and cat.", truth) and score("absent_list", "Star, cat", truth)
    assert not score("absent_list", "cat", truth) and not score("absent_list", "cat, star, sun", truth)
    assert list_f1("cat", "cat, star") == pytest.approx(2 / 3)
    assert list_f1("none", "none") == 1.0 and list_f1("", "none") == 0.0 and list_f1("cat", "none") == 0.0


def test_f1_of_absence() -> None:
    pairs = [("no", "no"), ("yes", "no"), ("no", "yes"), ("Yes.", "yes"), ("No.", "no")]
    assert yes_no_f1(pairs) == pytest.approx(2 * 2 / (3 + 3))
    assert yes_no_f1([("yes", "yes")]) == 1.0 and yes_no_f1([("yes", "no")]) == 0.0

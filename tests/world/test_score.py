"""What counts as a right answer."""

from __future__ import annotations

import pytest

from foveal.world import Question, score
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

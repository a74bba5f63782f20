"""Intervals: values by hand, coverage on made-up data, and what pairing buys."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foveal.evaluate.bootstrap import _CHUNK, difference, estimate, wilson


def shares(values: np.ndarray) -> np.ndarray:
    return np.stack([values.astype(float), np.ones(len(values))], axis=1)


def test_wilson_by_hand() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)  # as statsmodels has it
    assert wilson(20, 20) == pytest.approx((0.8388747, 1.0), abs=1e-6)
    assert estimate([shares(np.ones(20))], is_share=True).low == pytest.approx(0.8388747, abs=1e-6)


def test_what_is_no_share_is_resampled() -> None:
    """An error of nothing in every item is not a share of successes, however much it looks like one."""
    found = estimate([shares(np.zeros(20))])
    assert (found.low, found.high) == (0.0, 0.0)


def test_a_ratio_is_of_sums() -> None:
    pairs = np.array([[1.0, 10.0], [3.0, 10.0], [0.0, 80.0]])
    found = estimate([pairs])
    assert found.value == 0.04 and found.low < 0.04 < found.high and found.num == 3


def test_the_mean_over_tasks_weighs_tasks_alike() -> None:
    few, many = shares(np.ones(4)), shares(np.zeros(400))
    assert estimate([few, many]).value == 0.5
    assert difference([few, many], [many[:4], many]).value == -0.5


def test_nothing_measured_is_no_number() -> None:
    empty = np.zeros((3, 2))
    assert math.isnan(estimate([empty], is_share=True).value)
    assert math.isnan(estimate([empty]).value) and estimate([empty]).to_json()["value"] is None
    assert math.isnan(estimate([np.zeros((0, 2))]).value)
    assert estimate([shares(np.ones(5)), empty]).value == 1.0  # the other task is left out
    assert math.isnan(difference([np.zeros((0, 2))], [np.zeros((0, 2))]).value)


def test_equal_arms_differ_by_nothing_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    a, b = shares(rng.random(50) < 0.6), shares(rng.random(50) < 0.7)
    same = difference([a], [a])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    one, other = difference([a], [b]), difference([b], [a])
    assert one.value == -other.value and one.low == pytest.approx(-other.high) and one.high == pytest.approx(-other.low)
    assert difference([a], [b]) == one  # seeded


def test_pairing_cancels_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(300) < 0.5
    a = shares(~hard)
    b = shares(np.where(rng.random(300) < 0.05, hard, ~hard))  # agrees on 95 % of the items
    paired, shuffled = difference([a], [b]), difference([a], [b[rng.permutation(300)]])
    assert paired.high - paired.low < 0.6 * (shuffled.high - shuffled.low)


def test_the_interval_of_a_difference_covers() -> None:
    """Of 400 examinations of 80 items, about 95 % of the intervals hold the true difference of 0.1."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        luck = rng.random((2, 80))
        both = rng.random(80) < 0.5  # on half of the items the arms share their luck
        a = luck[0] < 0.6
        b = np.where(both, luck[0], luck[1]) < 0.7
        found = difference([shares(a)], [shares(b)], resamples=400)
        held += found.low <= 0.1 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_many_items_are_drawn_in_pieces() -> None:
    num = _CHUNK // 50
    pairs = np.stack([np.arange(num) % 5 / 4, np.ones(num)], axis=1)
    found = estimate([pairs], resamples=60)  # more than a piece
    spread = pairs[:, 0].std() / math.sqrt(num)
    assert abs(found.value - pairs[:, 0].mean()) < 1e-12
    assert found.value - 4 * spread < found.low < found.value < found.high < found.value + 4 * spread

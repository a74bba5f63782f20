"""The sampler against transformers' own processors and warpers on the same logits, and its bookkeeping."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.errors import CheckpointError, PromptError
from foveal.sampler import Sampler, Sampling
from tests.parity.reference import transformers

R = 300
PROMPT = [3, 5, 5, 250]


Row = npt.NDArray[np.float32]


def _row(seed: int, size: int = R, scale: float = 3.0) -> Row:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32) * np.float32(scale)


def _reference(row: Row, seen: list[int], sampling: Sampling) -> Row:
    """Score as transformers' generate does: penalty, then temperature, top-k, top-p, min-p. Return probabilities (R,)."""
    transformers()
    from transformers.generation import logits_process as lp

    steps: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        steps.append(lp.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(lp.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(lp.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(lp.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        steps.append(lp.MinPLogitsWarper(sampling.min_p))
    scores = torch.from_numpy(row[None].copy())
    for step in steps:
        scores = step(torch.tensor([seen]), scores)
    return scores[0].softmax(-1).numpy()


def _ours(row: Row, sampling: Sampling, answer: list[int]) -> npt.NDArray[np.float64]:
    sampler = Sampler(sampling, PROMPT)
    for token in answer:
        sampler.note(token)
    index, probabilities = sampler.distribution(sampler.penalised(row))
    assert len(set(index.tolist())) == len(index)
    out = np.zeros(len(row))
    out[index] = probabilities
    return out


FILTERS = list(itertools.product((0.3, 1.0, 1.7), (0, 1, 20, 1000), (1.0, 0.8, 0.1), (0.0, 0.05, 1.0), (1.0, 1.3, 0.8)))


@pytest.mark.parametrize("seed", range(3))
def test_distribution_equals_transformers(seed: int) -> None:
    answer = [7, 250, 9, 7]
    row = _row(seed)
    for temperature, top_k, top_p, min_p, repetition in FILTERS:
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition)
        ours, theirs = _ours(row, sampling, answer), _reference(row, PROMPT + answer, sampling)
        assert np.array_equal(ours > 0, theirs > 0), sampling
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [0.01, 6.0])
def test_nucleus_of_a_large_vocabulary_equals_transformers(scale: float) -> None:
    """A flat distribution does not fit the first look among the likeliest tokens, a peaked one does."""
    row, sampling = _row(0, 20_000, scale), Sampling(temperature=1.0, top_p=0.9)
    ours, theirs = _ours(row, sampling, []), _reference(row, PROMPT, sampling)
    kept = int((ours > 0).sum())
    assert kept > 1024 if scale < 1 else kept < 1024
    # Where thousands of tokens are about as likely, float32 sums in another order move the edge by a few of them.
    assert int(((ours > 0) != (theirs > 0)).sum()) <= kept // 1000
    assert float(ours.sum()) == pytest.approx(1, abs=1e-5)


def test_presence_and_frequency_count_the_answer_only() -> None:
    row = _row(1)
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25), PROMPT)
    assert np.array_equal(sampler.penalised(row), row)
    for token in (7, 7, 7, 9):
        sampler.note(token)
    change = sampler.penalised(row) - row
    assert change[7].item() == pytest.approx(-(0.5 + 3 * 0.25), abs=1e-6)
    assert change[9].item() == pytest.approx(-0.75, abs=1e-6)
    assert np.abs(change[PROMPT]).max() == 0 and int((change != 0).sum()) == 2


def test_penalties_do_not_touch_the_model_s_own_logits() -> None:
    row = _row(2)
    before = row.copy()
    sampler = Sampler(Sampling(repetition_penalty=1.5, presence_penalty=1.0), PROMPT)
    for _ in range(3):
        sampler(row)
    assert np.array_equal(row, before)


def test_greedy_is_the_likeliest_and_penalties_move_it_on() -> None:
    row = np.array([1.0, 4.0, 3.5], dtype=np.float32)
    sampler = Sampler(Sampling(frequency_penalty=1.0), [])
    assert [sampler(row) for _ in range(4)] == [1, 2, 1, 2]
    assert [Sampler(Sampling(), [])(row) for _ in range(3)] == [1, 1, 1]


def test_a_seed_repeats_and_another_differs() -> None:
    row = _row(4, scale=0.5)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [])
        return [sampler(row) for _ in range(30)]

    np.random.seed(0)
    first = draw(11)
    np.random.seed(99)  # the process's own generator plays no part
    assert draw(11) == first != draw(12)
    assert draw(None) != draw(None)


def test_a_draw_does_not_turn_on_the_last_bit_of_two_that_are_alike() -> None:
    """Batches of other sizes round differently: whoever is in them, a seed says the same."""
    first, second = (np.array([1.0, 2.0, 1.0, 0.5, 1.0], np.float32) for _ in range(2))
    first[0] = second[4] = np.nextafter(np.float32(1), np.float32(2))
    for seed in range(200):
        sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed)
        assert Sampler(sampling)(first) == Sampler(sampling)(second)


def test_draws_follow_the_distribution() -> None:
    row = np.array([2.0, 1.0, 0.0, -1.0, -9.0], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=1.0, top_k=4, seed=0), [])
    counts = np.bincount([sampler(row) for _ in range(4000)], minlength=5)
    expected = np.exp(row[:4]) / np.exp(row[:4]).sum()
    assert counts[4] == 0
    assert np.abs(counts[:4] / 4000 - expected).max() < 0.03


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=5, top_p=0.9), Sampling(1.0, min_p=0.1)],
)
def test_logits_that_are_no_numbers_are_named(bad: float, sampling: Sampling) -> None:
    row = _row(5)
    row[17] = bad
    with pytest.raises(CheckpointError, match=r"no token can be chosen.*float32"):
        Sampler(sampling, [])(row)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_finite_logit_is_named(temperature: float) -> None:
    with pytest.raises(CheckpointError, match=r"no token can be chosen.*float32"):
        Sampler(Sampling(temperature=temperature), [])(np.full(9, -np.inf, dtype=np.float32))


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-30, 1e-3])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float) -> None:
    row = np.array([-1.0, 2.0, 0.5], dtype=np.float32)
    assert Sampler(Sampling(temperature=temperature, seed=0), [])(row) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_ruled_out_is_never_chosen(temperature: float) -> None:
    row = np.array([-np.inf, 0.0, -np.inf, 0.5], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=temperature, seed=0), [])
    assert {sampler(row) for _ in range(50)} <= {1, 3}


@given(st.floats(1e-3, 5), st.integers(0, 40), st.floats(1e-6, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_any_filters_leave_the_likeliest_token(temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
    row = _row(seed, 40)
    index, probabilities = Sampler(Sampling(temperature, top_k, top_p, min_p), []).distribution(row)
    assert int(row.argmax()) in index.tolist()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5) and bool((probabilities >= 0).all())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected a number"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5; expected a whole number"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; expected a whole number"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"thinking_tokens": -1}, "thinking_tokens is -1"),
        ({"stop": ("",)}, "expected texts of at least one character"),
        ({"seed": -1}, "seed is -1"),
        ({"loop_guard": 3}, "loop_guard is 3"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(PromptError, match=says):
        Sampling(**values)


def test_a_bare_stop_text_is_one_text() -> None:
    assert Sampling(stop="END").stop == ("END",)  # type: ignore[arg-type]


def test_defaults_of_a_checkpoint() -> None:
    raw = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0, "eos_token_id": [1]}
    assert Sampling.from_generation_config(raw) == Sampling(0.7, 20, 0.8)
    assert Sampling.from_generation_config({**raw, "do_sample": False}).temperature == 0
    assert Sampling.from_generation_config({}) == Sampling()
    assert Sampling.from_generation_config({"do_sample": True}).temperature == 1  # transformers' own default

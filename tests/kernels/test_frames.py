"""Attention inside frames: against its NumPy oracle and float64, and what must not change a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import kernels
from foveal.errors import FovealError
from foveal.kernels import oracle
from foveal.kernels.frames import Frames
from tests.kernel_paths import each_path

pytestmark = each_path


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def tables(count: int, dim: int, seed: int = 1) -> tuple[Any, Any]:
    angles = np.random.default_rng(seed).uniform(0, 40, (count, dim // 2)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def attended(rows: Any, lengths: list[int], heads: int, cos: Any = None, sin: Any = None) -> Any:
    frames = Frames(rows, lengths, heads)
    frames.pack(cos, sin)
    return frames.attend(cos, sin)


def exact(rows: Any, lengths: list[int], heads: int) -> Any:
    """Attend in float64, with nothing rounded."""
    out, start = [], 0
    for n in lengths:
        q, k, v = rows[start : start + n].reshape(n, 3, heads, -1).astype(np.float64).transpose(1, 2, 0, 3)
        start += n
        score = q @ k.swapaxes(1, 2) * q.shape[-1] ** -0.5
        weight = np.exp(score - score.max(-1, keepdims=True))
        out.append((weight / weight.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(n, -1))
    return np.concatenate(out)


@pytest.mark.parametrize(
    ("lengths", "heads", "dim"),
    [([1], 1, 64), ([300], 2, 64), ([5, 128, 0, 1, 129, 37], 3, 20), ([49], 1, 256), ([130, 6], 2, 2), ([48, 7], 1, 130)],
)
def test_as_the_oracle(lengths: list[int], heads: int, dim: int) -> None:
    """Frames of unlike lengths, none of them a round number."""
    rows = normal(sum(lengths), 3 * heads * dim) * 2
    cos, sin = tables(len(rows), dim)
    for pair in ((cos, sin), (None, None)):
        want = oracle.frames(rows, lengths, heads, *pair)
        np.testing.assert_allclose(attended(rows, lengths, heads, *pair), want, rtol=0, atol=3e-4 * np.abs(rows).max())


@pytest.mark.parametrize("dim", [1, 7, 33])
def test_an_odd_dim_is_attended_without_a_turn(dim: int) -> None:
    rows = normal(70, 3 * 2 * dim)
    np.testing.assert_allclose(attended(rows, [70], 2), oracle.frames(rows, [70], 2, None, None), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=f"heads of {dim} cannot be turned"):
        Frames(rows, [70], 2).pack(normal(70, dim), normal(70, dim))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300), dim=st.integers(1, 80), size=st.sampled_from([1e-15, 1.0, 1e8]))
@settings(max_examples=25, deadline=None)
def test_any_length_dim_and_size_of_values(seed: int, n: int, dim: int, size: float) -> None:
    rows = normal(n, 3 * dim, seed=seed)
    rows[:, 2 * dim :] *= np.float32(size)
    worst = np.abs(attended(rows, [n], 1) - exact(rows, [n], 1)).max()
    assert worst <= 1e-3 * np.abs(rows[:, 2 * dim :]).max()


@pytest.mark.parametrize("times", [1, 20, 100])
def test_channels_much_larger_than_the_rest(times: int) -> None:
    """Outliers in queries and keys make scores large, whose errors grow alike; values have a scale for every channel."""
    rows = normal(400, 3 * 64)
    rows[:, [3, 70, 77, 130]] *= times
    got, want = attended(rows, [400], 1), exact(rows, [400], 1)
    error = np.linalg.norm(got - want, axis=0) / np.linalg.norm(want, axis=0)  # of every channel
    assert error.max() < (1e-3 if times < 100 else 2e-2)


def test_values_of_one_size_are_kept_exactly_by_any_weights() -> None:
    """Weights sum to one, whatever they are rounded to."""
    rows = normal(333, 3 * 32) * 3
    rows[:, 64:] = 5
    np.testing.assert_allclose(attended(rows, [333], 1), np.full((333, 32), 5.0), rtol=1e-6)


def test_a_peak_in_every_block_and_scores_far_apart() -> None:
    rows = normal(500, 3 * 32)
    rows[:, :32] = rows[0, :32]
    for at, size in ((0, -50), (100, 1), (200, 50), (300, 20), (499, 60)):
        rows[at, 32:64] = rows[0, :32] * size
    want = exact(rows, [500], 1)
    np.testing.assert_allclose(attended(rows, [500], 1), want, rtol=0, atol=1e-3)
    assert np.abs(want[0] - rows[499, 64:]).max() < 1e-6


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, -1)])
def test_nothing_overflows(signs: tuple[int, int]) -> None:
    """Rows as long as they can be, all alike, and every weight the same: sums that come nearest to 2^31."""
    rows = np.full((257, 3 * 256), signs[1], np.float32)
    rows[:, :256] = signs[0]
    np.testing.assert_allclose(attended(rows, [257], 1), rows[:, 512:], rtol=1e-6)
    rows[:, :512] = 0
    rows[:, [0, 256]] = 1e6 * np.array(signs)  # one channel has all the length
    np.testing.assert_allclose(attended(rows, [257], 1), rows[:, 512:], rtol=1e-6)


def test_zeros_and_numbers_too_small_for_a_scale() -> None:
    rows = np.zeros((9, 3 * 8), np.float32)
    assert not attended(rows, [9], 1).any()
    rows[:, 16:] = normal(9, 8)
    np.testing.assert_allclose(attended(rows, [9], 1), np.tile(rows[:, 16:].mean(0), (9, 1)), atol=1e-4)
    assert not attended(np.full((9, 24), 1e-35, np.float32), [9], 1).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    for column, what in ((3, "queries"), (33, "keys or values"), (65, "keys or values")):
        for row in (0, 130, 149):
            rows = normal(150, 3 * 32)
            rows[row, column] = bad
            with pytest.raises(FovealError, match=f"{what} hold NaN or infinity"):
                attended(rows, [150], 1)


@pytest.mark.parametrize("dim", [64, 20])
def test_nothing_that_should_not_changes_a_bit(dim: int) -> None:
    """Not the instruction set, nor the threads, nor how it is cut, nor what other frames there are."""
    lengths = [200, 3, 128, 77]
    rows = torch.from_numpy(normal(sum(lengths), 3 * 3 * dim) * 3)
    cos, sin = (torch.from_numpy(table) for table in tables(len(rows), dim))
    whole = attended(rows, lengths, 3, cos, sin)
    for count in (1, 5):
        kernels.set_threads(count)
        assert torch.equal(attended(rows, lengths, 3, cos, sin), whole)
    frames, out = Frames(rows, lengths, 3), torch.empty_like(whole)
    for block in range(frames.blocks):
        frames.pack(cos, sin, slice(block, block + 1))
    for start in range(0, len(rows), 11):
        part = slice(start, start + 11)
        frames.attend(cos, sin, part, out=out[part])
    assert torch.equal(out, whole)
    start = 0
    for n in lengths:
        part = slice(start, start + n)
        start += n
        assert torch.equal(attended(rows[part], [n], 3, cos[part], sin[part]), whole[part])
    kernels.use_path("portable")
    assert torch.equal(attended(rows, lengths, 3, cos, sin), whole)


def test_rows_may_lie_apart_and_so_may_the_result() -> None:
    rows, wide = normal(60, 100), np.full((60, 40), np.nan, np.float32)
    frames = Frames(rows[:, :96], [60], 2)
    frames.pack(None, None)
    frames.attend(None, None, out=wide[:, :32])
    assert np.array_equal(wide[:, :32], attended(rows[:, :96].copy(), [60], 2)) and np.isnan(wide[:, 32:]).all()


def test_mistakes_are_named() -> None:
    rows = normal(6, 3 * 2 * 8)
    with pytest.raises(ValueError, match="frames of 5 patches in all, but 6 rows"):
        Frames(rows, [2, 3], 2)
    with pytest.raises(ValueError, match="rows of 48 numbers for 5 heads"):
        Frames(rows, [6], 5)
    with pytest.raises(ValueError, match="H 1 to 256 is needed"):
        Frames(normal(2, 3 * 257), [2], 1)
    frames = Frames(rows, [6], 2)
    with pytest.raises(ValueError, match="cos has shape"):
        frames.pack(normal(6, 8), normal(6, 4))
    with pytest.raises(ValueError, match=r"out has shape \(6, 15\); \(6, 16\) is needed"):
        frames.attend(None, None, out=np.zeros((6, 15), np.float32))

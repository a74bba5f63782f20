"""Causal attention of a window in integers: against its NumPy oracle and float64, and what must not change a bit."""

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
from foveal.kernels.window import attend_window
from tests.kernel_paths import each_path

pytestmark = each_path


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def made(n: int, positions: int, heads: int, kv_heads: int, dim: int, seed: int = 0) -> tuple[Any, Any, Any]:
    return (
        normal(n, heads, dim, seed=seed) * 2, normal(kv_heads, positions, dim, seed=seed + 1) * 2,
        normal(kv_heads, positions, dim, seed=seed + 2),
    )  # fmt: skip


def exact(q: Any, keys: Any, values: Any) -> Any:
    """Attend in float64, with nothing rounded."""
    n, heads, dim = q.shape
    each = heads // len(keys)
    k, v = (np.repeat(x.astype(np.float64), each, axis=0) for x in (keys, values))
    score = np.einsum("nhd,hsd->hns", q.astype(np.float64), k) * dim**-0.5
    positions = keys.shape[1]
    score = np.where(np.arange(positions) > np.arange(positions - n, positions)[:, None], -np.inf, score)
    weight = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("hns,hsd->nhd", weight / weight.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(
    ("n", "positions", "heads", "kv_heads", "dim"),
    [
        (1, 1, 1, 1, 64),
        (1, 300, 4, 2, 128),
        (300, 300, 2, 2, 64),
        (37, 301, 6, 2, 20),
        (128, 256, 3, 1, 32),
        (25, 140, 4, 4, 7),
    ],
)
def test_as_the_oracle(n: int, positions: int, heads: int, kv_heads: int, dim: int) -> None:
    """Windows that begin and end inside a block of keys, on its edge, and with one query."""
    q, keys, values = made(n, positions, heads, kv_heads, dim)
    want = oracle.window(q, keys, values)
    np.testing.assert_allclose(attend_window(q, keys, values), want, rtol=0, atol=3e-4 * np.abs(values).max())


@given(seed=st.integers(0, 2**32 - 9), positions=st.integers(1, 400), data=st.data(), dim=st.integers(1, 80))
@settings(max_examples=25, deadline=None)
def test_any_window(seed: int, positions: int, data: st.DataObject, dim: int) -> None:
    n = data.draw(st.integers(1, positions))
    q, keys, values = made(n, positions, 2, 1, dim, seed)
    assert np.abs(attend_window(q, keys, values) - exact(q, keys, values)).max() <= 1e-3 * np.abs(values).max()


def test_no_query_sees_a_later_key() -> None:
    """What comes later may be anything finite: as far as values of its own block leave it, see the module."""
    q, keys, values = made(300, 300, 2, 1, 32)
    whole = attend_window(q, keys, values)
    later = keys.copy()
    later[:, 200:] *= -50
    assert np.array_equal(attend_window(q, later, values)[:200], whole[:200])
    later = values.copy()
    later[:, 256:] *= 1000
    assert np.array_equal(attend_window(q, keys, later)[:256], whole[:256])


def test_a_window_that_begins_later_meets_the_same_integers() -> None:
    q, keys, values = made(300, 384, 4, 2, 64)
    whole = attend_window(q, keys, values)
    for n in (1, 130, 256):
        assert np.array_equal(attend_window(q[-n:].copy(), keys, values), whole[-n:])
    first = attend_window(q[:172].copy(), keys[:, :256].copy(), values[:, :256].copy())  # ends where a block does
    assert np.array_equal(first, whole[:172])
    near = attend_window(q[:150].copy(), keys[:, :234].copy(), values[:, :234].copy())
    np.testing.assert_allclose(near, whole[:150], rtol=0, atol=1e-4 * np.abs(values).max())


def test_threads_paths_and_strides_do_not_change_a_bit() -> None:
    q, keys, values = (torch.from_numpy(x) for x in made(200, 333, 4, 2, 48))
    whole = attend_window(q, keys, values)
    store = torch.full((2, 2, 400, 48), torch.nan)
    store[0, :, :333], store[1, :, :333] = keys, values
    assert torch.equal(attend_window(q, store[0, :, :333], store[1, :, :333]), whole)
    for count in (1, 5):
        kernels.set_threads(count)
        assert torch.equal(attend_window(q, keys, values), whole)
    kernels.use_path("portable")
    assert torch.equal(attend_window(q, keys, values), whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    for which, what in ((0, "queries"), (1, "keys or values"), (2, "keys or values")):
        parts = made(140, 150, 2, 1, 32)
        parts[which].flat[-1] = bad
        with pytest.raises(FovealError, match=f"{what} hold NaN or infinity"):
            attend_window(*parts)


def test_mistakes_are_named() -> None:
    q, keys, values = made(5, 6, 3, 2, 8)
    with pytest.raises(ValueError, match="N must be a multiple of G"):
        attend_window(q, keys, values)
    with pytest.raises(ValueError, match="n at most S"):
        attend_window(normal(7, 2, 8), keys, values)
    with pytest.raises(ValueError, match="H 1 to 256"):
        attend_window(normal(1, 1, 257), normal(1, 1, 257), normal(1, 1, 257))
    with pytest.raises(TypeError, match="keys is float64; float32 is needed"):
        attend_window(normal(5, 4, 8), keys.astype(np.float64), values)
    with pytest.raises(ValueError, match="values has shape"):
        attend_window(normal(5, 4, 8), keys, values[:, :5])
    apart = np.zeros((2, 9, 8), np.float32)[:, :6]
    with pytest.raises(ValueError, match="lie 48 and 72 numbers apart from head to head"):
        attend_window(normal(5, 4, 8), keys, apart)

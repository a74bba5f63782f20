"""Every kernel against its NumPy oracle, on every instruction set this machine has."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import kernels
from foveal.errors import FovealError
from foveal.kernels import oracle
from tests.kernel_paths import each_path

pytestmark = each_path
BITS = (8, 4)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def close(got: Any, want: Any, x: Any, w: Any) -> None:
    """Equal but for the order of float additions: 2e-6 of what the sum of magnitudes is."""
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    worst = np.abs(np.asarray(got, np.float64) - want) - 2e-6 * size
    assert worst.size == 0 or worst.max() <= 0


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (17, 33), (16, 32), (40, 96), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pack(bits: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.from_numpy(normal(*shape)).to(dtype)
    packed = kernels.pack(weight, bits)
    codes, scales = oracle.pack(weight.float().numpy(), bits)
    assert np.array_equal(packed.codes.numpy(), codes)
    assert np.array_equal(packed.scales.numpy().view(np.uint16), scales.view(np.uint16))
    q, s = oracle.quantise_weight(weight.float().numpy(), bits)
    wide = (q * s.astype(np.float32)[..., None]).reshape(q.shape[0], -1)[: shape[0], : shape[1]]
    assert np.array_equal(kernels.unpack(packed).numpy(), wide)
    ids = np.arange(shape[0])[::-1]
    assert np.array_equal(kernels.take_rows(packed, torch.from_numpy(ids.copy())).numpy(), wide[::-1])
    for outside in ([0, shape[0]], [-1]):
        with pytest.raises(IndexError, match=f"0 to {shape[0] - 1} are rows"):
            kernels.take_rows(packed, torch.tensor(outside))


@pytest.mark.parametrize("bits", BITS)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-40, 12))
@settings(max_examples=25, deadline=None)
def test_pack_any_size_of_number(bits: int, seed: int, power: int) -> None:
    weight = normal(5, 70, seed=seed) * np.float32(2.0) ** power
    weight *= normal(5, 70, seed=seed + 1) > 0.5  # many zeros
    packed = kernels.pack(weight, bits)
    codes, scales = oracle.pack(weight, bits)
    assert np.array_equal(packed.codes, codes) and np.array_equal(packed.scales, scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pack_reads_every_half_number(dtype: torch.dtype) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    fits = every.float().abs() < 60000 * 8  # false for NaN, too
    weight = torch.where(fits, every, torch.zeros_like(every)).view(512, 128)
    for bits in BITS:
        packed, (codes, scales) = kernels.pack(weight, bits), oracle.pack(weight.float().numpy(), bits)
        assert np.array_equal(packed.codes.numpy(), codes)
        assert np.array_equal(packed.scales.numpy().view(np.uint16), scales.view(np.uint16))


@pytest.mark.parametrize("bits", BITS)
def test_pack_refuses(bits: int) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for bad in (float("nan"), float("inf"), float("-inf")):
            weight = torch.zeros(20, 40, dtype=dtype)
            weight[19, 39] = bad
            with pytest.raises(FovealError, match="NaN or infinity"):
                kernels.pack(weight, bits)
    with pytest.raises(FovealError, match="too large"):
        kernels.pack(np.full((1, 1), 1e9, np.float32), bits)


def test_pack_takes_rows_of_a_larger_matrix_and_bfloat16_as_bits() -> None:
    whole = torch.from_numpy(normal(20, 100)).bfloat16()
    for weight in (whole[2:19, 5:69], whole[:, :64]):
        want, _ = oracle.pack(weight.float().numpy(), 8)
        assert np.array_equal(kernels.pack(weight, 8).codes.numpy(), want)
        assert np.array_equal(kernels.pack(weight.contiguous().view(torch.uint16).numpy(), 8).codes, want)


@pytest.mark.parametrize("bits", BITS)
def test_importance_decides_where_errors_fall(bits: int) -> None:
    weight, importance = normal(20, 100), np.where(np.arange(100) % 7 == 0, np.float32(50), np.float32(0.1))
    packed = kernels.pack(weight, bits, importance=importance)
    codes, scales = oracle.pack(weight, bits, importance)
    assert np.array_equal(packed.codes, codes) and np.array_equal(packed.scales, scales)
    weighed = [(importance * np.square(kernels.unpack(p) - weight)).sum() for p in (packed, kernels.pack(weight, bits))]
    assert weighed[0] < 0.95 * weighed[1]
    with pytest.raises(ValueError, match="importance has shape"):
        kernels.pack(weight, bits, importance=importance[:99])


@pytest.mark.parametrize(("bits", "less"), [(8, 0.9), (4, 0.95)])
def test_scales_err_less_than_by_the_furthest_value_alone(bits: int, less: float) -> None:
    weight, alike = normal(64, 512), np.ones(512, np.float32) if bits == 8 else None  # 8 bits are searched where columns weigh
    error = np.square(kernels.unpack(kernels.pack(weight, bits, importance=alike)) - weight).mean()
    groups = weight.reshape(64, -1, 32)
    high, low = groups.max(-1, keepdims=True), groups.min(-1, keepdims=True)
    scale = np.maximum(high, -low) / 127 if bits == 8 else np.where(high > -low, high, low) / -8
    q = np.rint(groups / scale).clip(-127 if bits == 8 else -8, 127 if bits == 8 else 7)
    assert error < less * np.square(q * scale - groups).mean()


def test_eight_bits_lie_as_the_furthest_value_says() -> None:
    weight = normal(64, 512)
    groups = weight.reshape(64, -1, 32)
    scale = (np.abs(groups).max(-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    assert np.array_equal(kernels.unpack(kernels.pack(weight, 8)).reshape(groups.shape), (groups / scale).round() * scale)


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8, 33])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 130])
def test_quantise(tokens: int, columns: int) -> None:
    x = normal(tokens, columns)
    for got, want in zip(_parts(kernels.quantise(x)), oracle.quantise(x), strict=True):
        assert np.array_equal(got, oracle.tiles(want))


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("columns", [1, 33, 100, 256])
def test_rms_quantise(tokens: int, columns: int) -> None:
    x, weight = normal(tokens, columns) * 3, normal(columns, seed=1)
    want = oracle.quantise(oracle.rms_norm(x, weight, 1e-6))
    for got, part in zip(_parts(kernels.rms_quantise(x, weight, 1e-6)), want, strict=True):
        assert np.array_equal(got, oracle.tiles(part))
    exact = x * weight / np.sqrt(np.square(x, dtype=np.float64).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(oracle.rms_norm(x, weight, 1e-6), exact, rtol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (3, 24), (2, 128), (5, 34)])
def test_turn(tokens: int, heads: int, dim: int) -> None:
    x, weight = normal(tokens, heads, dim), normal(dim, seed=1)
    cos, sin = normal(tokens, dim // 2, seed=2), normal(tokens, dim // 2, seed=3)
    assert np.array_equal(kernels.turn(x, weight, 1e-6, cos, sin), oracle.turn(x, weight, 1e-6, cos, sin))


def test_turn_refuses_odd_heads_and_other_tables() -> None:
    with pytest.raises(ValueError, match="even"):
        kernels.turn(normal(2, 3, 5), normal(5), 1e-6, normal(2, 2), normal(2, 2))
    with pytest.raises(ValueError, match="cos has shape"):
        kernels.turn(normal(2, 3, 6), normal(6), 1e-6, normal(2, 6), normal(2, 3))


@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-140, 120))
@settings(max_examples=25, deadline=None)
def test_quantise_any_size_of_number(seed: int, power: int) -> None:
    x = (normal(3, 70, seed=seed).astype(np.float64) * 2.0**power).astype(np.float32)
    for got, want in zip(_parts(kernels.quantise(x)), oracle.quantise(x), strict=True):
        assert np.array_equal(got, oracle.tiles(want))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantise_refuses(bad: float) -> None:
    for row, column in ((0, 0), (8, 32), (3, 31)):
        x = normal(9, 33)
        x[row, column] = bad
        with pytest.raises(FovealError, match="activations hold NaN"):
            kernels.quantise(x)
        with pytest.raises(FovealError, match="activations hold NaN"):
            kernels.rms_quantise(x, np.ones(33, np.float32), 1e-6)
        with pytest.raises(FovealError, match="activations hold NaN"):
            kernels.matmul(x, kernels.pack(normal(4, 33), 8))


def _parts(a: kernels.Activations) -> tuple[Any, Any, Any]:
    return a.codes, a.scales, a.sums


# ---------------------------------------------------------------- products


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 6, 7, 8, 33])
@pytest.mark.parametrize("shape", [(1, 1), (17, 31), (16, 33), (50, 200)])
def test_matmul(bits: int, tokens: int, shape: tuple[int, int], path: str) -> None:
    x, weight, bias = normal(tokens, shape[1]), normal(*shape, seed=1), normal(shape[0], seed=2)
    packed = kernels.pack(weight, bits)
    want = oracle.matmul(x, packed.codes, packed.scales, shape[0])
    for got, expected in (
        (kernels.matmul(x, packed), want),
        (kernels.matmul(kernels.quantise(x), packed, bias), want + bias),
    ):
        assert got.shape == (tokens, shape[0]) and got.dtype == np.float32
        close(got, expected, x, weight)
        if path == "portable":
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [9, 18, 531])
def test_matmul_of_many_tiles(bits: int, tokens: int, path: str) -> None:
    """More than one tile, more columns than a slice of groups, more tokens than a chunk: the bits of every token alone."""
    x, weight = normal(tokens, 1100), normal(37, 1100, seed=1)
    packed = kernels.pack(weight, bits)
    got = kernels.matmul(x, packed)
    close(got, oracle.matmul(x, packed.codes, packed.scales, 37), x, weight)
    alone = range(0, tokens, 1 if tokens < 20 else 67)
    assert all(np.array_equal(got[t : t + 1], kernels.matmul(x[t : t + 1], packed)) for t in alone)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_gelu(bits: int, tokens: int, path: str) -> None:
    x, weight, bias = normal(tokens, 100), normal(37, 100, seed=1), normal(37, seed=2)
    packed = kernels.pack(weight, bits)
    want = oracle.gelu(kernels.matmul(x, packed, bias))
    np.testing.assert_allclose(kernels.matmul(x, packed, bias, gelu=True), want, rtol=2e-5, atol=1e-6)


def test_gelu_far_from_zero() -> None:
    x = np.array([[1e9], [-1e9], [1e30], [-1e30], [-12.0], [0.0]], np.float32)
    got = kernels.matmul(x, kernels.pack(np.ones((1, 1), np.float32), 8), gelu=True)[:, 0]
    np.testing.assert_allclose(got, [1e9, 0, 1e30, 0, 0, 0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
@given(
    seed=st.integers(0, 2**32 - 1), tokens=st.integers(0, 20), rows=st.integers(1, 70), columns=st.integers(1, 140),
    size=st.sampled_from([1e-20, 1.0, 1e20]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_matmul_any_shape(bits: int, seed: int, tokens: int, rows: int, columns: int, size: float) -> None:
    x, weight = normal(tokens, columns, seed=seed) * np.float32(size), normal(rows, columns, seed=seed + 1)
    packed = kernels.pack(weight, bits)
    close(kernels.matmul(x, packed), oracle.matmul(x, packed.codes, packed.scales, rows), x, np.abs(weight) + 1e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("x_sign", "w_sign"), [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1)])
def test_nothing_saturates(bits: int, x_sign: int, w_sign: int) -> None:
    """All codes at their ends: what overflows 16-bit sums, were they careless."""
    x, weight = np.full((9, 96), x_sign, np.float32), np.full((20, 96), w_sign, np.float32)
    got = kernels.matmul(x, kernels.pack(weight, bits))
    np.testing.assert_allclose(got, np.full((9, 20), 96.0 * x_sign * w_sign), rtol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_mixed_ends(bits: int) -> None:
    """Codes that are -128 + 128 = 0, 255, 0 and 15 in every order, exact in integers."""
    rng = np.random.default_rng(3)
    weight = rng.choice([-127.0, 127.0, 0.0] if bits == 8 else [-8.0, 7.0, 0.0], (33, 64)).astype(np.float32)
    weight[:, ::32] = -127 if bits == 8 else -8  # the scale is one
    x = rng.choice([-127.0, 127.0, 1.0], (11, 64)).astype(np.float32)
    x[:, ::32] = 127
    assert np.array_equal(kernels.matmul(x, kernels.pack(weight, bits)), x @ weight.T)


def test_zeros() -> None:
    for bits in BITS:
        assert not kernels.matmul(np.zeros((3, 40), np.float32), kernels.pack(normal(5, 40), bits)).any()
        assert not kernels.matmul(normal(3, 40), kernels.pack(np.zeros((5, 40), np.float32), bits)).any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [0, 1, 7, 33])
def test_swiglu(bits: int, tokens: int) -> None:
    x, gate, up = normal(tokens, 100) * 4, normal(40, 100, seed=1), normal(40, 100, seed=2)
    packed = [kernels.pack(w, bits) for w in (gate, up)]
    got = kernels.swiglu(x, *packed)
    # The two products differ from the oracle's by their order of additions (above); what is done with them may not.
    g, u = (kernels.matmul(x, p).astype(np.float64) for p in packed)
    np.testing.assert_allclose(got, g / (1 + np.exp(-g)) * u, rtol=2e-6, atol=1e-30)
    want = oracle.swiglu(x, *((p.codes, p.scales) for p in packed), 40)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-2)


def test_swiglu_far_from_zero() -> None:
    x = np.array([[1000.0], [-1000.0], [88.0], [-88.0], [0.0]], np.float32)
    one = kernels.pack(np.ones((1, 1), np.float32), 8)
    got = kernels.swiglu(x, one, one)[:, 0]
    np.testing.assert_allclose(got, [1e6, 0, 7744, 0, 0], rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("bits", BITS)
def test_eight_bits_are_accurate(bits: int) -> None:
    x, weight = normal(16, 512), normal(64, 512, seed=1)
    exact = x.astype(np.float64) @ weight.T
    error = np.linalg.norm(kernels.matmul(x, kernels.pack(weight, bits)) - exact) / np.linalg.norm(exact)
    assert error < (0.011 if bits == 8 else 0.1)


def test_long_batches_are_cut_into_chunks() -> None:
    """More activations than one chunk holds, and an `out` with rows further apart than they are long."""
    x, packed = normal(70, 5000), kernels.pack(normal(33, 5000, seed=1), 8)
    out = np.full((70, 40), np.nan, np.float32)
    kernels.matmul(x, packed, out=out[:, :33])
    assert np.isnan(out[:, 33:]).all()
    alone = np.concatenate([kernels.matmul(x[t : t + 1], packed) for t in range(70)])
    assert np.array_equal(out[:, :33], alone)  # a row's result does not depend on its company


def test_torch_in_torch_out() -> None:
    x, packed = torch.from_numpy(normal(3, 40)), kernels.pack(torch.from_numpy(normal(5, 40)), 8)
    got = kernels.matmul(x, packed)
    assert isinstance(got, torch.Tensor)
    same = kernels.matmul(x.numpy(), kernels.Packed(8, 5, 40, packed.codes.numpy(), packed.scales.numpy()))
    assert np.array_equal(got.numpy(), same)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dims", [(4, 2, 1, 128), (8, 1, 65, 64), (3, 3, 200, 20), (32, 1, 130, 256), (2, 1, 64, 33)])
def test_attend(kind: str, dims: tuple[int, int, int, int]) -> None:
    heads, kv_heads, positions, dim = dims
    q = normal(heads, dim) * 3
    store = torch.from_numpy(normal(2, kv_heads, positions + 5, dim, seed=1))
    keys, values = store[:, :, :positions]
    scales: dict[str, Any] = {}
    if kind == "bfloat16":
        keys, values = store.bfloat16()[:, :, :positions]
    elif kind == "int8":
        (k, ks), (v, vs) = (kernels.quantise_cache(x.contiguous()) for x in store)
        for x, codes, s in ((store[0], k, ks), (store[1], v, vs)):
            want_codes, want_scales = oracle.quantise_cache(x.numpy())
            assert np.array_equal(codes.numpy(), want_codes) and np.array_equal(s.numpy(), want_scales)
        scales = {"key_scales": ks[:, :positions], "value_scales": vs[:, :positions]}
        keys, values = k[:, :positions], v[:, :positions]
    got = kernels.attend(torch.from_numpy(q), keys, values, **scales).numpy()
    if kind == "int8":
        narrow = [(c.numpy(), s.numpy()) for c, s in zip((keys, values), scales.values(), strict=True)]
        np.testing.assert_allclose(got, oracle.attend_cache(q, *narrow, dim**-0.5), rtol=1e-4, atol=6e-5)
        wide, near = [oracle.unpack_cache(*part) for part in narrow], {"rtol": 0, "atol": 4e-4}
    else:
        wide, near = [x.float().numpy() for x in (keys, values)], {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(got, oracle.attend(q, *wide, dim**-0.5), **near)


@pytest.mark.parametrize("size", [1e-30, 1.0, 100.0])
def test_attend_to_8_bits_of_any_size_gives_the_same_bits_on_every_path(size: float) -> None:
    """Channels of unlike sizes, a peak, equal scores; values too small for a scale become zero."""
    q, keys, values = normal(6, 96), normal(2, 333, 96, seed=1), normal(2, 333, 96, seed=2) * np.float32(size)
    keys[:, 7] = q[::3] * 5
    keys[:, 130:190] = 0
    keys[..., 3] *= 40
    (k, ks), (v, vs) = (kernels.quantise_cache(x) for x in (keys, values))
    got = kernels.attend(q, k, v, key_scales=ks, value_scales=vs)
    want = oracle.attend_cache(q, (k, ks), (v, vs), 96**-0.5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(np.abs(want).max(), 1e-38))
    kernels.use_path("portable")
    assert np.array_equal(kernels.attend(q, k, v, key_scales=ks, value_scales=vs), got)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dim", [128, 50])
def test_attention_and_the_cache_are_the_same_bits_on_every_path(kind: str, dim: int, path: str) -> None:
    """Three heads a key head: two at a time, and one alone."""
    q, store = torch.from_numpy(normal(6, dim)), torch.from_numpy(normal(2, 2, 131, dim, seed=1))
    q[0], store[0, 1, 130] = 4 * q[0], 9 * q[3]

    def everything() -> list[torch.Tensor]:
        if kind != "int8":
            return [kernels.attend(q, *store.to(getattr(torch, kind)))]
        codes, scales = kernels.quantise_cache(store)
        return [codes, scales, kernels.attend(q, *codes, key_scales=scales[0], value_scales=scales[1])]

    here = everything()
    kernels.use_path("portable")
    assert all(torch.equal(a, b) for a, b in zip(here, everything(), strict=True))


@pytest.mark.parametrize("dim", [128, 33])
def test_the_cache_is_written_in_place(dim: int) -> None:
    """Rows (T, G, H) as a model makes them, into the middle of a cache (G, S, H): the bits of the rows alone, and no others."""
    x = torch.from_numpy(normal(150, 3, dim))
    codes, scales = torch.full((3, 200, dim), 99, dtype=torch.int8), torch.full((3, 200, -(-dim // 32)), 7.0).half()
    place = slice(20, 170)
    kernels.quantise_cache(x.transpose(0, 1), out=(codes[:, place], scales[:, place]))
    wanted = kernels.quantise_cache(x.transpose(0, 1).contiguous())
    for got, want, rest in zip((codes, scales), wanted, (99, 7), strict=True):
        assert torch.equal(got[:, place], want)
        assert (got[:, :20] == rest).all() and (got[:, 170:] == rest).all()
    with pytest.raises(ValueError, match="last axis must be contiguous"):
        kernels.quantise_cache(torch.zeros(3, dim, 5).transpose(1, 2), out=(codes[:, :5], scales[:, :5]))
    with pytest.raises(ValueError, match="codes has shape"):
        kernels.quantise_cache(x.transpose(0, 1), out=(codes, scales))
    with pytest.raises(FovealError, match="keys or values hold NaN"):
        kernels.quantise_cache(torch.full((70, 2, dim), torch.nan))
    with pytest.raises(FovealError, match="too large"):
        kernels.quantise_cache(torch.full((2, dim), 1e7))


def test_attend_with_a_peak_at_the_end_and_scores_far_apart() -> None:
    q, keys, values = normal(4, 32), normal(2, 300, 32, seed=1), normal(2, 300, 32, seed=2)
    keys[:, 299] = q[::2] * 50
    keys[:, 0] = -q[::2] * 50
    np.testing.assert_allclose(kernels.attend(q, keys, values), oracle.attend(q, keys, values, 32**-0.5), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- threads, processes, mistakes


@pytest.mark.parametrize("bits", BITS)
def test_one_thread_equals_many(bits: int) -> None:
    x, weight = normal(41, 300), normal(700, 300, seed=1)
    cache, norm = normal(8, 100, 64), np.ones(300, np.float32)

    def everything() -> list[Any]:
        packed = kernels.pack(weight, bits)
        return [
            packed.codes,
            kernels.rms_quantise(x, norm, 1e-6).codes,
            kernels.matmul(x, packed),
            kernels.matmul(x[:1], packed),
            kernels.swiglu(x, packed, packed),
            kernels.attend(normal(16, 64), cache, cache),
        ]

    kernels.set_threads(1)
    one = everything()
    for count in (2, 5):
        kernels.set_threads(count)
        for a, b in zip(one, everything(), strict=True):
            assert np.array_equal(a, b)


def test_two_callers_at_once() -> None:
    weight = kernels.pack(normal(300, 256), 8)
    inputs = [normal(5, 256, seed=seed) for seed in range(4)]
    want = [kernels.matmul(x, weight) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(150):
            if not np.array_equal(kernels.matmul(inputs[i], weight), want[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_the_child_of_a_fork_works(path: str) -> None:
    """In a process of its own: forking under pytest would copy its threads' locks."""
    code = f"""
import os, signal, numpy as np
from foveal import kernels
kernels.use_path({path!r})
kernels.set_threads(2)
w, x = kernels.pack(np.ones((512, 64), np.float32), 8), np.ones((9, 64), np.float32)
before = kernels.matmul(x, w)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    os._exit(0 if np.array_equal(kernels.matmul(x, w), before) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert np.array_equal(kernels.matmul(x, w), before)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_named() -> None:
    x, packed = normal(3, 40), kernels.pack(normal(5, 40), 8)
    with pytest.raises(ValueError, match="x has 40 columns, the weight 41"):
        kernels.matmul(x, kernels.pack(normal(5, 41), 8))
    with pytest.raises(TypeError, match="x is float64; float32 is needed"):
        kernels.matmul(x.astype(np.float64), packed)
    with pytest.raises(TypeError, match="x is a list"):
        kernels.matmul([[1.0]], packed)
    with pytest.raises(ValueError, match="rows must be contiguous"):
        kernels.quantise(x[:, ::2])
    with pytest.raises(ValueError, match="2 axes are needed"):
        kernels.quantise(x[0])
    with pytest.raises(ValueError, match=r"bias has shape \(4,\); \(5,\) is needed"):
        kernels.matmul(x, packed, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"out has shape \(3, 4\)"):
        kernels.matmul(x, packed, out=np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match="must be alike"):
        kernels.swiglu(x, packed, kernels.pack(normal(5, 40), 4))
    with pytest.raises(ValueError, match="3 bits"):
        kernels.pack(normal(5, 40), 3)
    with pytest.raises(ValueError, match=r"codes has shape \(1, 2, 512\); \(1, 2, 256\) is needed"):
        kernels.Packed(4, 5, 40, packed.codes, packed.scales)
    with pytest.raises(ValueError, match="N must be"):
        kernels.attend(normal(3, 16), normal(2, 4, 16), normal(2, 4, 16))
    with pytest.raises(ValueError, match="needs key_scales"):
        kernels.attend(normal(2, 32), *[np.zeros((2, 4, 32), np.int8)] * 2)
    with pytest.raises(FovealError, match="no path 'sse'; it has portable"):
        kernels.use_path("sse")
    with pytest.raises(FovealError, match="0 threads"):
        kernels.set_threads(0)

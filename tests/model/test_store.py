"""What is kept in 8 bits: the bits of the oracle, however it is written, wherever it lies, with and without a compiler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveal import kernels
from foveal.config import CACHE_DTYPES
from foveal.errors import FovealError
from foveal.kernels import oracle
from foveal.model import Qwen3VL
from foveal.model.attention import KVCache, attend
from foveal.model.paged import KVPool, PagedCache, PagedCaches
from foveal.model.store import KVStore, quantise, widen
from tests.tiny import CONFIGS

LAYERS, GROUPS = 2, 3


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(kernels, "available", lambda: False)
    return str(request.param)


def new_cache(dim: int = 40, capacity: int = 4) -> KVCache:
    return KVCache(LAYERS, GROUPS, dim, dtype=torch.int8, device="cpu", capacity=capacity)


def rows(tokens: int, dim: int = 40) -> tuple[Tensor, Tensor]:
    """Make keys and values (T, G, H) of unlike sizes, some of them nothing."""
    keys, values = torch.randn(2, tokens, GROUPS, dim)
    keys[::3] *= 50
    values[1::4] = 0
    return keys, values


def kept_by_oracle(*parts: Tensor) -> list[Tensor]:
    made = [oracle.quantise_cache(part.transpose(0, 1).contiguous().numpy()) for part in parts]
    return [torch.from_numpy(one[i].copy()) for i in (0, 1) for one in made]  # codes of both, scales of both


@pytest.mark.parametrize("dim", [128, 64, 33, 20, 1])
def test_torch_gives_the_oracle_s_bits(dim: int) -> None:
    x = torch.randn(5, 7, dim) * torch.logspace(-9, 6, 7)[:, None]  # scales from below float16's least to near its largest
    x[0, 0] = 0
    codes, scales = quantise(x)
    wanted, wanted_scales = oracle.quantise_cache(x.numpy())
    assert torch.equal(codes, torch.from_numpy(wanted)) and torch.equal(scales, torch.from_numpy(wanted_scales))
    keys, _ = widen((codes, codes, scales, scales), torch.float32)
    assert torch.equal(keys, torch.from_numpy(oracle.unpack_cache(wanted, wanted_scales)))


@pytest.mark.parametrize("cuts", [(23,), (1, 1, 1, 20), (16, 7), (5, 0, 18)])
def test_appended_is_the_oracle_s_whole(way: str, cuts: tuple[int, ...]) -> None:
    """A cache that grows holds the same bits however its rows came."""
    keys, values = rows(23)
    cache = new_cache(capacity=1)
    for new_keys, new_values in zip(keys.split(cuts), values.split(cuts), strict=True):
        cache.reserve(len(new_keys))
        for layer in range(LAYERS):
            kept = cache.write(layer, new_keys * (layer + 1), new_values)
        cache.length += len(new_keys)
    for got, wanted in zip(kept, kept_by_oracle(2 * keys, values), strict=True):
        assert torch.equal(got, wanted)
    first = [part[0, :, :23] for part in cache.views() or ()]
    assert all(torch.equal(a, b) for a, b in zip(first, kept_by_oracle(keys, values), strict=True))


def test_attention_reads_what_is_kept(way: str) -> None:
    """Prompt and single tokens, against float attention over the same rounded keys and values."""
    cache, plain = new_cache(), KVCache(1, GROUPS, 40, dtype=torch.float32, device="cpu")
    for tokens in (9, 1, 1, 5, 1):
        q, (k, v) = torch.randn(tokens, 2 * GROUPS, 40), rows(tokens)
        cache.reserve(tokens)
        plain.reserve(tokens)
        got = attend(q, k, v, [tokens], [cache], 0)
        rounded = (part.transpose(0, 1) for part in widen(cache.write(0, k, v), torch.float32))
        wanted = attend(q, *(part[-tokens:] for part in rounded), [tokens], [plain], 0)
        # The kernels round a single token's query and weights to 16 bits.
        torch.testing.assert_close(got, wanted, atol=3e-4 if way == "compiled" and tokens == 1 else 2e-5, rtol=1e-4)
        cache.length += tokens
        plain.length += tokens


@pytest.mark.parametrize("blocks", [(1, 2, 3), (5, 0, 2)])
def test_paged_is_contiguous(way: str, blocks: tuple[int, ...]) -> None:
    """Blocks in a row and scattered ones keep and say the same bits; the second sequence shares the step only."""
    pool = KVPool(LAYERS, GROUPS, 40, num_blocks=8, block_size=8, dtype=torch.int8, device="cpu")
    paged, other, plain = PagedCache(pool, blocks), PagedCache(pool, (7, 6)), new_cache()
    for tokens in (10, 1, 6, 1):
        q, (k, v) = torch.randn(tokens + 1, 2 * GROUPS, 40), rows(tokens + 1)
        plain.reserve(tokens)
        got = attend(q, k, v, [tokens, 1], PagedCaches([paged, other], [tokens, 1]), 1)[:tokens]
        assert torch.equal(got, attend(q[:tokens], k[:tokens], v[:tokens], [tokens], [plain], 1))
        for cache, n in ((paged, tokens), (other, 1), (plain, tokens)):
            cache.length += n
    whole = plain.write(1, *(part[:0] for part in rows(1)))
    assert all(torch.equal(a, b) for a, b in zip(paged.write(1, *(part[:0] for part in rows(1))), whole, strict=True))
    target = [4, 7, 6]
    pool.copy(blocks, target)
    assert all(
        torch.equal(a, b) for a, b in zip(PagedCache(pool, target, 18).write(1, *(p[:0] for p in rows(1))), whole, strict=True)
    )


def test_numbers_without_an_8_bit_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels refuse them; in torch they stay what they are, as in a cache of floats."""
    keys, values = rows(4)
    keys[2, 1, 5], values[1, 0, 35] = torch.nan, torch.inf
    if kernels.available():
        with pytest.raises(FovealError, match="keys or values hold NaN or infinity"):
            new_cache().write(0, keys, values)
    monkeypatch.setattr(kernels, "available", lambda: False)
    wide = widen(new_cache().write(0, keys, values), torch.float32)
    assert wide[0][1, 2, :32].isnan().all() and wide[1][0, 1, 32:].isnan().all()
    assert wide[0].isnan().sum() == 32 and wide[1].isnan().sum() == 8


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_bytes_are_those_of_the_closed_form(name: str, dtype: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = Qwen3VL(config)
    model.kv_cache = getattr(torch, dtype)
    cache = model.new_cache(capacity=100)
    assert cache.dtype == model.cache_dtype and cache.num_bytes == 100 * config.text.kv_bytes_per_token(dtype)


def test_a_store_of_no_rows_reads_as_nothing() -> None:
    store = KVStore(1, 2, 33, slots=4, dtype=torch.int8, device="cpu")
    assert [tuple(part.shape) for part in store.read(0, slice(0, 0))] == [(2, 0, 33)] * 2 + [(2, 0, 2)] * 2

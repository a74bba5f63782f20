"""Attention against a plain loop over queries, and the cache's bookkeeping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveal.model.attention import KVCache, attend, attend_frames


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with each of n queries (n, N, H) to the keys up to its own place, the queries being the last n of S."""
    n, heads, dim = q.shape
    total, groups = k.shape[:2]
    out = torch.empty_like(q)
    for i in range(n):
        for head in range(heads):
            group, seen = head // (heads // groups), total - n + i + 1
            weights = torch.softmax(k[:seen, group] @ q[i, head] / dim**0.5, dim=0)
            out[i, head] = weights @ v[:seen, group]
    return out


def _qkv(tokens: int, heads: int, groups: int, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(tokens, heads, dim), torch.randn(tokens, groups, dim), torch.randn(tokens, groups, dim)


def _cache(groups: int, capacity: int = 4, layers: int = 1) -> KVCache:
    return KVCache(layers, groups, 8, dtype=torch.float32, device="cpu", capacity=capacity)


@pytest.mark.parametrize("lengths", [[5, 1, 9], [8, 10, 0, 9, 1, 3, 10], [7], [1, 1], [0, 4]])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (4, 1)])
def test_packed_sequences_do_not_see_one_another(heads: int, groups: int, lengths: list[int]) -> None:
    """Alone, in groups of like length that are filled up, and empty."""
    q, k, v = _qkv(sum(lengths), heads, groups)
    expected = torch.cat([_plain(*part) for part in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)])
    torch.testing.assert_close(attend(q, k, v, lengths, None, 0), expected)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (4, 1)])
def test_cached_sequences_continue(heads: int, groups: int) -> None:
    """Three sequences with unlike pasts, continued by one, several and one token."""
    pasts, news = [3, 6, 1], [1, 4, 1]
    caches, expected, rows = [_cache(groups) for _ in pasts], [], []
    for cache, past, new in zip(caches, pasts, news, strict=True):
        q, k, v = _qkv(past + new, heads, groups)
        cache.reserve(past)
        cache.write(0, k[:past], v[:past])
        cache.length += past
        cache.reserve(new)
        rows.append((q[past:], k[past:], v[past:]))
        expected.append(_plain(q[past:], k, v))
    q, k, v = (torch.cat(part) for part in zip(*rows, strict=True))
    torch.testing.assert_close(attend(q, k, v, news, caches, 0), torch.cat(expected))


def test_frames_see_all_of_themselves_and_nothing_else() -> None:
    lengths = [4, 4, 0, 6, 4, 1]
    q, k, v = _qkv(sum(lengths), 3, 3)
    expected = []
    for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", a, b) / 8**0.5
        expected.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    torch.testing.assert_close(attend_frames(q, k, v, lengths), torch.cat(expected))


def test_a_cache_keeps_what_it_was_given_through_growth() -> None:
    cache = _cache(2, capacity=1, layers=2)
    written: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for new in (1, 2, 5, 1, 30):
        cache.reserve(new)
        for layer in range(2):
            keys, values = torch.randn(new, 2, 8), torch.randn(new, 2, 8)
            written[layer].append((keys, values))
            seen = cache.write(layer, keys, values)
            for got, all_of in zip(seen, zip(*written[layer], strict=True), strict=True):
                assert torch.equal(got, torch.cat(all_of).transpose(0, 1))
        cache.length += new
    assert cache.length == 39


def test_a_cache_grows_by_doubling() -> None:
    cache = _cache(1, capacity=4)
    sizes = set()
    for _ in range(1000):
        cache.reserve(1)
        sizes.add(cache.num_bytes)
        cache.length += 1
    assert len(sizes) == 9  # 4, 8, ..., 1024
    assert max(sizes) == 1024 * 2 * 8 * 4


def test_a_truncated_cache_overwrites() -> None:
    cache = _cache(1)
    keys = torch.randn(4, 1, 8)
    cache.write(0, keys, keys)
    cache.length = 4
    cache.truncate(1)
    fresh = torch.randn(2, 1, 8)
    seen, _ = cache.write(0, fresh, fresh)
    assert torch.equal(seen[0], torch.cat([keys[:1], fresh])[:, 0])

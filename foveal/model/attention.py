"""Attention over packed rows: `attend` for the decoder with or without a cache, `attend_frames` for the vision encoder.

This is the plain version, by `scaled_dot_product_attention`: one call a sequence with a cache, without one a call for all
sequences of like length. Every faster path is tested against it, and it against a loop over queries. The kernels attend with
one row to a cache that is narrower than the queries, and with many rows of a model whose weights are packed.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal import kernels
from foveal.kernels.frames import MOST_DIM
from foveal.kernels.window import attend_window
from foveal.model.store import Kept, KVStore, native, widen

WINDOW = 32  # rows from which it pays to make integers of all keys and values first


class KVCache:
    """Keys and values of one request in all layers, as floats or, of dtype int8, in 8 bits; grows by doubling.

    `length` counts the tokens every layer holds. A forward pass first writes all its layers, then advances it once.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device | str,
        capacity: int = 256,
    ) -> None:  # fmt: skip
        self.length = 0
        self._store = KVStore(num_layers, num_kv_heads, head_dim, slots=capacity, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        return self._store.num_bytes

    @property
    def dtype(self) -> torch.dtype:
        return self._store.dtype

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more; copies at most log2 times over a request's life."""
        need, have = self.length + tokens, self._store.slots
        if need > have:
            self._store.grow(max(need, 2 * have), self.length)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> Kept:
        """Append (T, G, H) rows to a layer; return all it keeps, (G, length + T, H)."""
        end = self.length + keys.shape[0]
        self._store.write(layer, slice(self.length, end), keys, values)
        return self._store.read(layer, slice(0, end))

    def views(self) -> Kept | None:
        """Return what all layers keep, (L, G, capacity, H) each, or None where it does not lie in a row."""
        return self._store.views(slice(None))

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        assert 0 <= length <= self.length
        self.length = length


class CacheBatch(Sequence[KVCache], ABC):
    """Caches of several sequences that know how to attend together: see `paged.py`."""

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], layer: int, *, in_integers: bool = False
    ) -> Tensor:
        """Write the new rows and attend; shapes as of `attend`."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], caches: Sequence[KVCache] | None, layer: int, *,
    in_integers: bool = False,
) -> Tensor:  # fmt: skip
    """Attend causally inside every sequence of a packed batch.

    q: (T, N, H); k, v: (T, G, H) with N a multiple of G; lengths: the new rows of each sequence, summing to T;
    caches: one a sequence, holding what came before. in_integers: let the kernels attend from WINDOW rows of a sequence on.
    Return (T, N, H).
    """
    if caches is None:
        return _attend_together(q, k, v, lengths)
    if isinstance(caches, CacheBatch):
        return caches.attend(q, k, v, lengths, layer, in_integers=in_integers)
    out, start = [], 0
    for i, n in enumerate(lengths):
        rows = slice(start, start + n)
        start += n
        out.append(attend_one(q[rows], *caches[i].write(layer, k[rows], v[rows]), in_integers=in_integers))
    return out[0] if len(out) == 1 else torch.cat(out)


def _attend_together(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attend inside whole sequences, those of like length in one call."""
    if len(lengths) == 1:
        return attend_one(q, k.transpose(0, 1), v.transpose(0, 1))
    groups, back = _groups(tuple(lengths), q.device)
    out = []
    for rows, real in groups:
        queries, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))  # (B, heads, L, H)
        done = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        out.append(done.transpose(1, 2).flatten(0, 1)[real])
    return torch.cat(out)[back]


@functools.lru_cache(maxsize=4)
def _groups(lengths: tuple[int, ...], device: torch.device) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Group sequences of like length, the shortest at least four fifths of the longest.

    Return for each group the (B, L) packed rows of its sequences, filled up at their ends, and which of the B * L are real;
    then the place of every packed row among all real ones. Under a causal mask no row that counts sees what was filled up.
    Kept, on the device, for all layers of a batch.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    groups, packed = [], []
    while order:
        longest = lengths[order[0]]
        group = [i for i in order if lengths[i] >= 0.8 * longest]
        order = order[len(group) :]
        steps = np.arange(longest)
        sizes = np.array([lengths[i] for i in group])[:, None]
        rows = starts[group][:, None] + np.minimum(steps, sizes - 1)
        real = np.flatnonzero(steps < sizes)
        packed.append(rows.ravel()[real])
        groups.append((torch.from_numpy(rows).to(device), torch.from_numpy(real).to(device)))
    return groups, torch.from_numpy(np.argsort(np.concatenate(packed))).to(device)


def attend_one(q: Tensor, *kept: Tensor, in_integers: bool = False) -> Tensor:
    """Attend with q (n, N, H) as the last n of the S positions in keys and values (G, S, H), kept as `KVStore` keeps them."""
    n, heads, dim = q.shape
    if kept[0].dtype != q.dtype:
        if n == 1 and native(q):
            key_scales, value_scales = kept[2:] or (None, None)
            one: Tensor = kernels.attend(q[0], *kept[:2], key_scales=key_scales, value_scales=value_scales)
            return one[None]
        kept = widen(kept, q.dtype)
    if in_integers and n >= WINDOW and native(q) and dim <= MOST_DIM:
        window: Tensor = attend_window(q.contiguous(), *kept)
        return window
    keys, values = kept
    groups, total = keys.shape[0], keys.shape[1]
    if n == 1:
        # One query a group of heads: the heads take the place of the positions, and no key is copied.
        grouped = q.view(1, groups, heads // groups, dim)
        return F.scaled_dot_product_attention(grouped, keys[None], values[None]).reshape(1, heads, dim)
    mask = None
    if total > n:
        mask = torch.ones(n, total, dtype=torch.bool, device=q.device).tril(total - n)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None,
        enable_gqa=heads != groups,
    )  # fmt: skip
    return out[0].transpose(0, 1)


def attend_frames(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attend in both directions inside every frame. q, k, v: (P, heads, H); lengths sum to P. Return (P, heads, H)."""
    out, start = [], 0
    for n, count in _runs(lengths):
        rows = slice(start, start + n * count)
        start += n * count
        shape = (count, n, *q.shape[1:])
        queries, keys, values = (x[rows].view(shape).transpose(1, 2) for x in (q, k, v))
        out.append(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Group neighbours of equal length: [(length, how many), ...]; frames of one clip then take one call."""
    runs: list[tuple[int, int]] = []
    for n in lengths:
        if n == 0:
            continue
        if runs and runs[-1][0] == n:
            runs[-1] = (n, runs[-1][1] + 1)
        else:
            runs.append((n, 1))
    return runs

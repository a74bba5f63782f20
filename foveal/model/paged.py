"""Keys and values in blocks: one pool for many sequences, and attention over it.

The pool keeps the slots of all blocks on one axis, (G, Z * Y, H) a layer. A sequence whose blocks lie behind one another is
then a view of it, with the strides of a cache of its own, and costs nothing; whoever hands out blocks tries to keep it so. A
sequence that is scattered, because it shares a prefix, is gathered a layer at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from foveal.model.attention import CacheBatch, KVCache, attend_one
from foveal.model.store import Kept, KVStore


class KVPool:
    """Z blocks of Y tokens of keys and values in all layers. The memory is the system's until a block is first written."""

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, *, num_blocks: int, block_size: int, dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:  # fmt: skip
        self.num_blocks, self.block_size = num_blocks, block_size
        self.store = KVStore(
            num_layers, num_kv_heads, head_dim, slots=num_blocks * block_size, dtype=dtype, device=device
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        return self.store.num_bytes

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy whole blocks, all layers of them."""
        to, what = (torch.tensor(blocks, device=self.store.device) for blocks in (target, source))
        for part in self.store.parts:
            blocks = part.unflatten(3, (self.num_blocks, self.block_size))
            blocks[:, :, :, to] = blocks[:, :, :, what]


class PagedCache(KVCache):
    """Keys and values of one sequence in blocks of a pool; the blocks are whoever schedules' to give."""

    def __init__(self, pool: KVPool, blocks: Sequence[int] = (), length: int = 0) -> None:
        self.pool, self.length = pool, length
        self.blocks: list[int] = []
        self.in_a_row = True  # the blocks lie behind one another
        self._views: tuple[slice | None, Kept] = None, ()  # as long as the place is the same the views are
        self.extend(blocks)

    @property
    def num_bytes(self) -> int:
        """Bytes of its blocks, shared ones included."""
        return self.pool.num_bytes // self.pool.num_blocks * len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.pool.store.dtype

    @property
    def capacity(self) -> int:
        return len(self.blocks) * self.pool.block_size

    def extend(self, blocks: Sequence[int]) -> None:
        """Add blocks at the end."""
        for block in blocks:
            self.in_a_row = self.in_a_row and (not self.blocks or block == self.blocks[-1] + 1)
            self.blocks.append(block)

    def replace(self, blocks: Sequence[int]) -> list[int]:
        """Take other blocks that hold the same, or none; return those it had."""
        old, self.blocks, self.in_a_row = self.blocks, [], True
        self.extend(blocks)
        return old

    def reserve(self, tokens: int) -> None:
        """Check that there is room for `tokens` more; a pool's blocks are handed out before a step, not in it."""
        if self.length + tokens > self.capacity:
            raise ValueError(
                f"{self.length} + {tokens} tokens do not fit the {self.capacity} of {len(self.blocks)} blocks; give it more"
            )

    def slots(self, start: int, stop: int) -> slice | Tensor:
        """Name the places of tokens start..stop in the pool: a slice where they lie in a row, else their numbers on the CPU."""
        size = self.pool.block_size
        if self.in_a_row:
            first = self.blocks[0] * size if self.blocks else 0
            return slice(first + start, first + stop)
        places = torch.tensor(self.blocks)[:, None] * size + torch.arange(size)
        return places.view(-1)[start:stop]

    def views(self) -> Kept | None:
        """Return what all layers keep, (L, G, capacity, H) each, or None where it does not lie in a row."""
        place = self.slots(0, self.capacity)
        if not isinstance(place, slice) or not self.blocks:
            return None
        if place != self._views[0]:
            self._views = place, self.pool.store.views(place)
        return self._views[1]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> Kept:
        """Append (T, G, H) rows to a layer; return all it keeps, (G, length + T, H), copied if scattered."""
        end = self.length + keys.shape[0]
        new, all_of_it = (_on(place, keys.device) for place in (self.slots(self.length, end), self.slots(0, end)))
        self.pool.store.write(layer, new, keys, values)
        return self.pool.store.read(layer, all_of_it)


class PagedCaches(CacheBatch):
    """The caches of one step's sequences, in the order of the batch; places are worked out once for all layers.

    lengths: the new rows of each.
    """

    def __init__(self, caches: Sequence[PagedCache], lengths: Sequence[int]) -> None:
        self._caches, self._lengths, self._pool = list(caches), list(lengths), caches[0].pool
        for cache, n in zip(caches, lengths, strict=True):
            cache.reserve(n)

    @overload
    def __getitem__(self, index: int) -> PagedCache: ...
    @overload
    def __getitem__(self, index: slice) -> list[PagedCache]: ...
    def __getitem__(self, index: int | slice) -> PagedCache | list[PagedCache]:
        return self._caches[index]

    def __len__(self) -> int:
        return len(self._caches)

    @functools.cached_property
    def _places(self) -> tuple[slice | Tensor, list[slice | Tensor]]:
        """Name the places of all new rows, and those each sequence sees; a step in one call needs neither."""
        device, pairs = self._pool.store.device, list(zip(self._caches, self._lengths, strict=True))
        new = [cache.slots(cache.length, cache.length + n) for cache, n in pairs]
        seen = [_on(cache.slots(0, cache.length + n), device) for cache, n in pairs]
        if len(new) == 1 and isinstance(new[0], slice):
            return new[0], seen
        return torch.cat([_numbers(place) for place in new]).to(device), seen

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], layer: int, *, in_integers: bool = False
    ) -> Tensor:
        """Write the new rows of all sequences, then attend as `attend` does."""
        store = self._pool.store
        new, seen = self._places
        store.write(layer, new, k, v)
        out, start = [], 0
        for n, place in zip(lengths, seen, strict=True):
            out.append(attend_one(q[start : start + n], *store.read(layer, place), in_integers=in_integers))
            start += n
        return out[0] if len(out) == 1 else torch.cat(out)


def _numbers(place: slice | Tensor) -> Tensor:
    return torch.arange(place.start, place.stop) if isinstance(place, slice) else place


def _on(place: slice | Tensor, device: torch.device) -> slice | Tensor:
    return place if isinstance(place, slice) else place.to(device)

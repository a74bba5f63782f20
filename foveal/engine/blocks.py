"""Whose blocks are whose: reference counts, the free ones, those kept because the same prompt may come again, and their keys.

Numbers only: the tensors are `model/paged.py`'s. A block is free, held (by one sequence or several), or cached: held by nobody,
but full, and known under a key that says all its keys and values depend on. Cached blocks are taken back, least recently used
first, when free ones run out.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import numpy as np

from foveal.sequence import Sequence


class BlockPool:
    """Z blocks of Y tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} tokens; at least one of one is needed")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.evicted = 0  # cached blocks that were taken back so far
        self._free = np.ones(num_blocks, dtype=bool)
        self._held = np.zeros(num_blocks, dtype=bool)
        self._num_free = num_blocks
        self._holders = [0] * num_blocks
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that can be had at once: free ones and cached ones."""
        return self._num_free + len(self._cached)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Count the blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def take(self, count: int, after: int | None = None) -> list[int] | None:
        """Take `count` blocks, behind block `after` as long as those are free; None, with none taken, where there are fewer.

        Without `after` they come from the longest run of free blocks, far from where its neighbour may want to grow.
        """
        if count > self.available:
            return None
        while self._num_free < count:
            self._forget(next(iter(self._cached)))
            self.evicted += 1
        taken: list[int] = []
        at = None if after is None else after + 1
        while len(taken) < count:
            if at is None or at >= self.num_blocks or not self._free[at]:
                at = self._place(count - len(taken))
            taken.append(at)
            self._free[at] = False
            at += 1
        self._num_free -= count
        self._held[taken] = True
        for block in taken:
            self._holders[block] = 1
        return taken

    def take_run(self, count: int) -> list[int] | None:
        """Take blocks that lie in a row, where the fewest cached ones must go for it; None where no such run is unheld."""
        if count > self.num_blocks:
            return None
        held, free = (np.concatenate([[0], np.cumsum(of)]) for of in (self._held, self._free))
        starts = np.flatnonzero(held[count:] == held[:-count])
        if not len(starts):
            return None
        start = self._place(count)
        if start + count > self.num_blocks or not self._free[start : start + count].all():
            start = int(starts[(free[starts + count] - free[starts]).argmax()])
        for block in range(start, start + count):
            if block in self._cached:
                self._forget(block)
                self.evicted += 1
        return self.take(count, after=start - 1)

    def share(self, block: int) -> None:
        """Hold a block that is held already, or cached."""
        self._cached.pop(block, None)
        assert not self._free[block]
        self._held[block] = True
        self._holders[block] += 1

    def give_back(self, blocks: SequenceOf[int]) -> None:
        """Let go of a sequence's blocks, in its order. The last are evicted first: beginnings are shared more often."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} is given back more often than it was taken"
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            self._held[block] = False
            if block in self._keys:
                self._cached[block] = None
            else:
                self._release(block)

    def register(self, block: int, key: bytes) -> None:
        """Say what a full block holds. Where another block is known for the same, that one stays the known one."""
        assert self._holders[block] > 0
        if key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def lookup(self, key: bytes) -> int | None:
        """Find a block by what it holds."""
        return self._by_key.get(key)

    def forget_cached(self) -> None:
        """Make every cached block free."""
        while self._cached:
            self._forget(next(iter(self._cached)))

    def check(self, held: Iterable[SequenceOf[int]]) -> None:
        """Assert that the books agree with the blocks sequences say they hold, and that no block is in two places."""
        counts = np.bincount([block for blocks in held for block in blocks] or [0], minlength=self.num_blocks)
        if not any(held):
            counts[0] = 0
        assert counts.tolist() == self._holders, "reference counts differ from the blocks that are held"
        for block in range(self.num_blocks):
            places = bool(self._free[block]) + (block in self._cached) + (self._holders[block] > 0)
            assert places == 1, f"block {block} is in {places} of free, cached and held"
            assert not (self._free[block] and block in self._keys), f"block {block} is free and has a key"
        assert self._num_free == int(self._free.sum())
        assert self._held.tolist() == [holders > 0 for holders in self._holders]
        assert {key: block for block, key in self._keys.items()} == self._by_key

    def _place(self, count: int) -> int:
        """Choose where `count` blocks of a new run start; where no run is as long, the start of the longest."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self._free.view(np.int8), [0]])))
        starts, stops = edges[::2], edges[1::2]
        if not len(starts):
            return self.num_blocks
        longest = int((stops - starts).argmax())
        start, stop = int(starts[longest]), int(stops[longest])
        if start == 0 or stop - start <= count:
            return start
        # Whoever ends where the run starts may go on growing into it.
        return min(start + (stop - start) // 2, stop - count)

    def _forget(self, block: int) -> None:
        del self._cached[block]
        del self._by_key[self._keys.pop(block)]
        self._release(block)

    def _release(self, block: int) -> None:
        assert not self._free[block]
        self._free[block] = True
        self._num_free += 1


class PrefixKeys:
    """Keys of a sequence's blocks: a chain of SHA-256, so that a key stands for everything up to its block.

    What keys and values depend on goes in: token ids, their positions, and of vision tokens the digest of their picture or
    clip and their row in it. Dropped vision tokens change ids, positions and digests; whatever else changes what a model
    computes (its weights, a tenant who must not learn what others asked) belongs into `root`.
    """

    def __init__(
        self, root: bytes, sequence: Sequence, digests: SequenceOf[bytes], rows: SequenceOf[int], block_size: int
    ) -> None:
        self._keys: list[bytes] = []
        self._last, self._size = hashlib.sha256(b"prefix" + root).digest(), block_size
        self._sequence, self._digests = sequence, tuple(digests)
        starts = np.concatenate([[0], np.cumsum(np.asarray(rows, dtype=np.int64))])
        seen, named = sequence.vision_rows >= 0, sequence.vision_rows
        self._media = np.where(seen, np.searchsorted(starts, named, side="right") - 1, -1)  # (T,), -1 for text
        self._rows = np.where(seen, named - starts[self._media], -1)  # in its medium
        for stop in range(block_size, len(sequence) + 1, block_size):
            at = slice(stop - block_size, stop)
            self._add(sequence.token_ids[at], sequence.position_ids[:, at], self._media[at], self._rows[at])

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, block: int) -> bytes:
        return self._keys[block]

    def copy(self) -> PrefixKeys:
        """Let another reply to the same prompt continue the chain its own way."""
        other = object.__new__(PrefixKeys)
        other.__dict__.update(self.__dict__)
        other._keys = list(self._keys)
        return other

    def extend(self, reply: SequenceOf[int]) -> None:
        """Add keys for the blocks that are full with the tokens of a reply, all of it so far, behind the prompt."""
        prompt = self._sequence
        while (start := len(self._keys) * self._size) + self._size <= len(prompt) + len(reply):
            cut = min(start, len(prompt))
            inside = slice(cut, min(start + self._size, len(prompt)))
            first, stop = start + (inside.stop - cut) - len(prompt), start + self._size - len(prompt)
            ids = np.concatenate([prompt.token_ids[inside], np.asarray(reply[first:stop], dtype=np.int64)])
            later = np.broadcast_to(np.arange(first, stop) + prompt.next_position, (3, stop - first))
            positions = np.concatenate([prompt.position_ids[:, inside], later], axis=1)
            text = np.full(stop - first, -1)
            media, rows = (np.concatenate([part[inside], text]) for part in (self._media, self._rows))
            self._add(ids, positions, media, rows)

    def _add(self, ids: np.ndarray, positions: np.ndarray, media: np.ndarray, rows: np.ndarray) -> None:
        digest = hashlib.sha256(self._last)
        digest.update(ids.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(positions, dtype="<i8").tobytes())
        # Every field has the same length in every block, but for the digests: 32 bytes each, as many as the rows name.
        digest.update(rows.astype("<i8").tobytes())
        named = np.unique(media[media >= 0])
        digest.update(np.searchsorted(named, media).astype("<i8").tobytes())
        for index in named:
            digest.update(self._digests[index])
        self._last = digest.digest()
        self._keys.append(self._last)

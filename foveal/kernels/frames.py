"""Attention inside frames, for the vision encoder: every patch of a frame with every other, in 16 bits; see attention.c.

    frames = Frames(rows, lengths, heads)              # rows (P, 3 * heads * H): queries, keys and values side by side
    frames.pack(cos, sin)                              # keys and values, turned, to integers; or some blocks of them at a time
    out = frames.attend(cos, sin)                      # (P, heads * H); or of some rows

What a row becomes depends on its frame alone: not on other frames, on the number of threads, on the instruction set, nor on
how blocks and rows are cut.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveal.kernels.arrays import Array, dense, empty, matrix
from foveal.kernels.library import done, native

KEYS, ROWS, MOST_DIM = 128, 24, 256  # keys a block, queries a part, as in attention.c


class PackedBlocks:
    """Room for so many blocks of KEYS keys and values of one head, as integers and their scales. `at`: their addresses."""

    def __init__(self, like: Array, count: int, dim: int) -> None:
        sizes = (ctypes.c_int64 * 4)()
        done(native().foveal_frames_sizes(dim, sizes), "rows")
        kinds = ("int16", "int16", "float32", "float32")
        self._parts = [empty(like, (count * size,), kind) for size, kind in zip(sizes, kinds, strict=True)]
        self.at = [
            dense(part, "packed rows", (kind,), (count * size,))
            for part, size, kind in zip(self._parts, sizes, kinds, strict=True)
        ]


class Frames:
    """Frames of `lengths` patches each, packed behind one another, and the integers their keys and values become."""

    def __init__(self, rows: Array, lengths: Sequence[int], heads: int) -> None:
        """Raise ValueError for lengths that do not sum to P, for heads that do not divide the rows, and for H above 256."""
        self._at, _, self._stride = matrix(rows, "rows", ("float32",))
        self._rows, self._heads = rows, heads  # the address is the rows'
        self.dim, rest = divmod(int(rows.shape[1]), 3 * heads)
        if rest or not 1 <= self.dim <= MOST_DIM:
            raise ValueError(
                f"rows of {rows.shape[1]} numbers for {heads} heads; 3 * heads * H with H 1 to {MOST_DIM} is needed"
            )
        if sum(lengths) != rows.shape[0]:
            raise ValueError(f"frames of {sum(lengths)} patches in all, but {rows.shape[0]} rows")
        self._starts, self._blocks = _blocks(tuple(lengths))
        self._packed = PackedBlocks(rows, heads * self.blocks, self.dim)

    @property
    def blocks(self) -> int:
        """How many blocks keys and values are packed in."""
        return len(self._blocks)

    def pack(self, cos: Array | None, sin: Array | None, blocks: slice | None = None) -> None:
        """Pack all keys and values, or some blocks of them; keys are turned by tables (P, H / 2) where there are any.

        Raise FovealError for NaN and infinity.
        """
        first, stop, _ = (blocks or slice(None)).indices(self.blocks)
        own = 4 * self._heads * self.dim
        status = native().foveal_frames_pack(
            self._at + own, self._at + 2 * own, self._stride, self.dim, self._heads, self.dim, *self._tables(cos, sin),
            self._blocks.ctypes.data, first, max(stop - first, 0), *self._packed.at,
        )  # fmt: skip
        done(status, "keys or values")

    def attend(
        self, cos: Array | None, sin: Array | None, rows: slice | None = None, *, scale: float | None = None,
        out: Array | None = None,
    ) -> Array:  # fmt: skip
        """Attend with all queries, or with those of some rows, over what their frames' packed blocks hold.

        Return (rows, heads * H) float32; `scale` is H ** -0.5 where it is not given. Raise FovealError for NaN and infinity.
        """
        first, stop, _ = (rows or slice(None)).indices(int(self._rows.shape[0]))
        queries = self._queries(first, stop)
        shape = (max(stop - first, 0), self._heads * self.dim)
        out = empty(self._rows, shape, "float32") if out is None else out
        to, _, stride = matrix(out, "out", ("float32",))
        if tuple(out.shape) != shape:
            raise ValueError(f"out has shape {tuple(out.shape)}; {shape} is needed")
        status = native().foveal_frames_attend(
            self._at, self._stride, self._heads, self._heads, self.dim, *self._tables(cos, sin), self._blocks.ctypes.data,
            queries.ctypes.data, len(queries), 0, self.dim**-0.5 if scale is None else scale, *self._packed.at,
            to - 4 * first * stride, stride,
        )  # fmt: skip
        done(status, "queries")
        return out

    def _tables(self, cos: Array | None, sin: Array | None) -> list[int | None]:
        if cos is None or sin is None:
            return [None, None]
        if self.dim % 2:
            raise ValueError(f"heads of {self.dim} cannot be turned; an even H is needed")
        shape = (int(self._rows.shape[0]), self.dim // 2)
        return [dense(table, what, ("float32",), shape) for table, what in ((cos, "cos"), (sin, "sin"))]

    def _queries(self, first: int, stop: int) -> NDArray[np.int64]:
        """Cut rows into parts: first row, how many, first and last + 1 block of their frame, keys in the last one."""
        out = []
        for (start, end), (block, last) in self._starts:
            for row in range(max(start, first), min(end, stop), ROWS):
                out.append((row, min(ROWS, end - row, stop - row), block, last, self._blocks[last - 1, 1]))
        return np.array(out, np.int64).reshape(-1, 5)


@functools.lru_cache(maxsize=8)
def _blocks(lengths: tuple[int, ...]) -> tuple[list[tuple[tuple[int, int], tuple[int, int]]], NDArray[np.int64]]:
    """Cut frames into blocks of keys.

    Return rows and blocks, first and last + 1, of every frame; and of every block its first row and their number, (B, 2).
    """
    frames, blocks, start = [], list[tuple[int, int]](), 0
    for n in lengths:
        first = len(blocks)
        blocks += [(start + at, min(KEYS, n - at)) for at in range(0, n, KEYS)]
        frames.append(((start, start + n), (first, len(blocks))))
        start += n
    return frames, np.array(blocks, np.int64).reshape(-1, 2)

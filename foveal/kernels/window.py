"""Causal attention of a prompt's window over what its sequence keeps, in 16 bits; see attention.c.

A window is the last n positions of S. Keys and values are rounded in blocks of KEYS positions from the first on, as they are
inside frames: a window that begins later meets the same integers, but for the values of the block that it ends in.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from foveal.kernels.arrays import Array, dense, dense_rows, empty, facts
from foveal.kernels.frames import KEYS, MOST_DIM, ROWS, PackedBlocks
from foveal.kernels.library import done, native


def attend_window(q: Array, keys: Array, values: Array, *, scale: float | None = None, out: Array | None = None) -> Array:
    """Attend with q (n, N, H) float32 as the last n of the S positions in keys and values (G, S, H) float32; return (n, N, H).

    N is a multiple of G, H is 256 or less; the first axis of keys and values may be strided, of both alike. `scale` is
    H ** -0.5 where it is not given. Raise ValueError for shapes that do not fit, FovealError for NaN and infinity.
    """
    facts(q, "q", ("float32",), 3), facts(keys, "keys", ("float32",), 3)
    n, heads, dim = (int(size) for size in q.shape)
    kv_heads, positions = int(keys.shape[0]), int(keys.shape[1])
    at = dense(q, "q", ("float32",), (n, heads, dim))
    shape = (kv_heads, positions, dim)
    (keys_at, _, strides), (values_at, _, others) = (
        dense_rows(x, what, ("float32",), shape) for x, what in ((keys, "keys"), (values, "values"))
    )
    if not kv_heads or heads % kv_heads or n > positions or not 1 <= dim <= MOST_DIM:
        raise ValueError(f"q {(n, heads, dim)} over keys {shape}: N must be a multiple of G, n at most S, H 1 to {MOST_DIM}")
    if kv_heads > 1 and strides != others:
        raise ValueError(f"keys and values lie {strides[0]} and {others[0]} numbers apart from head to head; alike is needed")
    out = empty(q, (n, heads, dim), "float32") if out is None else out
    to = dense(out, "out", ("float32",), (n, heads, dim))
    blocks, queries = _cut(positions, n)
    packed = PackedBlocks(q, kv_heads * len(blocks), dim)
    status = native().foveal_frames_pack(
        keys_at, values_at, dim, strides[0], kv_heads, dim, None, None, blocks.ctypes.data, 0, len(blocks), *packed.at
    )
    done(status, "keys or values")
    status = native().foveal_frames_attend(
        at, heads * dim, heads, kv_heads, dim, None, None, blocks.ctypes.data, queries.ctypes.data, len(queries), 1,
        dim**-0.5 if scale is None else scale, *packed.at, to, heads * dim,
    )  # fmt: skip
    done(status, "queries")
    return out


@functools.lru_cache(maxsize=8)
def _cut(positions: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut positions into blocks of keys, and the last n into groups of queries none of which lies in two blocks.

    Return of every block its first position and their number, (B, 2), and of every group its first row and how many, the blocks
    it sees, first and last + 1, and how many keys of the last one its first query sees, (Q, 5).
    """
    blocks = [(at, min(KEYS, positions - at)) for at in range(0, positions, KEYS)]
    groups, at = [], positions - n
    while at < positions:
        inside = at % KEYS
        count = min(ROWS, KEYS - inside, positions - at)
        groups.append((at - (positions - n), count, 0, at // KEYS + 1, inside + 1))
        at += count
    return np.array(blocks, np.int64).reshape(-1, 2), np.array(groups, np.int64).reshape(-1, 5)

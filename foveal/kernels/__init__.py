"""Block-quantised linear algebra on CPUs: weights in 8 or 4 bits, activations in 8, decode attention; in C, called here.

    packed = kernels.pack(weight, bits=4)       # (N, K) float32, bfloat16 or float16
    y = kernels.matmul(x, packed)               # (T, K) float32 → (T, N) float32

Arrays are NumPy's or torch CPU tensors, and results are of the kind that came in. `available()` says whether the library is
there, `reason()` why not. Formats and method: foveal_kernels.c; the same in NumPy: oracle.py. Calls release the GIL and may
come from several threads; the library's own threads work for one of them at a time.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from foveal.errors import FovealError
from foveal.kernels import oracle
from foveal.kernels.arrays import TYPES, Array, as_numpy, dense, dense_rows, empty, facts, is_torch, matrix
from foveal.kernels.library import done, load, native

__all__ = [
    "Activations",
    "Packed",
    "attend",
    "available",
    "matmul",
    "pack",
    "packed_shapes",
    "path",
    "paths",
    "quantise",
    "quantise_cache",
    "read_bandwidth",
    "reason",
    "rms_quantise",
    "set_threads",
    "swiglu",
    "take_rows",
    "threads",
    "turn",
    "unpack",
    "use_path",
]

_GROUP, _LANES = oracle.GROUP, oracle.LANES


# ---------------------------------------------------------------- the library


def available() -> bool:
    """Say whether the library is there, compiling it first where that is needed and possible."""
    return load()[0] is not None


def reason() -> str:
    """Say why the library is not there and what to do; empty when it is."""
    return load()[1]


def paths() -> list[str]:
    """List the instruction sets this machine can use, slowest first."""
    library, found, i = native(), [], 0
    while (name := library.foveal_path_name(i)) is not None:
        found.append(name.decode())
        i += 1
    return [name for name in found if name]


def path() -> str:
    """Name the instruction set in use."""
    library = native()
    return str(library.foveal_path_name(library.foveal_get_path()).decode())


def use_path(name: str | None) -> None:
    """Use another instruction set, for tests and comparisons; None takes the fastest again."""
    library, have = native(), paths()
    if name is not None and name not in have:
        raise FovealError(f"this machine has no path {name!r}; it has {', '.join(have)}")
    wanted, i = (name or have[-1]).encode(), 0
    while library.foveal_path_name(i) != wanted:
        i += 1
    library.foveal_set_path(i)


def threads() -> int:
    """Return how many threads a call uses, the caller's included."""
    return int(native().foveal_get_threads())


def set_threads(count: int) -> None:
    """Set how many threads a call uses, 1 to 256; results do not depend on it."""
    if native().foveal_set_threads(count):
        raise FovealError(f"{count} threads; 1 to 256 are possible")


def read_bandwidth(megabytes: int = 256, runs: int = 3) -> float:
    """Measure how many bytes a second all threads together can read from memory, the best of some runs."""
    library, words = native(), np.ones(megabytes << 17, np.uint64)
    best = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        library.foveal_read(words.ctypes.data, words.size)
        best = min(best, time.perf_counter() - start)
    return words.nbytes / best


# ---------------------------------------------------------------- values


def packed_shapes(rows: int, columns: int, bits: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shapes of codes, uint8, and scales, float16, of a packed weight."""
    blocks, groups = -(-rows // _LANES), -(-columns // _GROUP)
    return (blocks, groups, oracle.BLOCK_BYTES[bits]), (blocks, groups, _LANES)


@dataclass(frozen=True, eq=False)
class Packed:
    """A quantised weight (rows, columns): codes uint8 (N / 16, K / 32, 512 or 256), scales float16 (N / 16, K / 32, 16).

    Made by `pack`, or from arrays that were saved; codes that start on a multiple of 64 bytes are read fastest.
    """

    bits: int
    rows: int
    columns: int
    codes: Array = field(repr=False)
    scales: Array = field(repr=False)
    at: tuple[int, int] = field(init=False, repr=False)  # the addresses of both

    def __post_init__(self) -> None:
        if self.bits not in oracle.BLOCK_BYTES or self.rows < 1 or self.columns < 1:
            raise ValueError(f"{self.bits} bits, {self.rows} rows, {self.columns} columns; 8 or 4 bits, 1 or more of each")
        codes, scales = packed_shapes(self.rows, self.columns, self.bits)
        at = dense(self.codes, "codes", ("uint8",), codes), dense(self.scales, "scales", ("float16",), scales)
        object.__setattr__(self, "at", at)

    def __reduce__(self) -> tuple[type[Packed], tuple[int, int, int, Array, Array]]:
        return Packed, (self.bits, self.rows, self.columns, self.codes, self.scales)  # a copy has addresses of its own

    @property
    def num_bytes(self) -> int:
        return int(self.codes.nbytes + self.scales.nbytes)


@dataclass(frozen=True, eq=False)
class Activations:
    """Quantised rows (T, K) in the order the kernels read them; made by `quantise` or `rms_quantise` for any number of uses."""

    rows: int
    columns: int
    codes: Array = field(repr=False)
    scales: Array = field(repr=False)
    sums: Array = field(repr=False)
    at: tuple[int, int, int] = field(init=False, repr=False)  # the addresses of all three

    def __post_init__(self) -> None:
        count = self.rows * -(-self.columns // _GROUP)
        codes = dense(self.codes, "codes", ("int8",), (count * _GROUP,))
        scales = dense(self.scales, "scales", ("float32",), (count,))
        object.__setattr__(self, "at", (codes, scales, dense(self.sums, "sums", ("int32",), (count,))))


# ---------------------------------------------------------------- functions


def pack(weight: Array, bits: int, *, importance: Array | None = None, out: Packed | None = None) -> Packed:
    """Quantise a weight (N, K) of float32, bfloat16 (uint16 in NumPy) or float16, symmetric in groups of 32 along K.

    Each group's scale is, of a few, the one with the least squared error; 8 bits without importance put the furthest value
    at 127. importance (K,) float32, greater than zero, says what an error in each column costs; all alike without it. `out`
    takes the result into arrays that exist. Raise FovealError for NaN, infinity and values beyond float16 scales.
    """
    address, dtype, stride = matrix(weight, "weight", ("float32", "bfloat16", "uint16", "float16"))
    rows, columns = (int(n) for n in weight.shape)
    if out is None:
        if bits not in oracle.BLOCK_BYTES or rows < 1 or columns < 1:
            raise ValueError(f"a weight of shape {(rows, columns)} in {bits} bits; 8 or 4 bits and no empty axis are needed")
        codes, scales = packed_shapes(rows, columns, bits)
        out = Packed(bits, rows, columns, empty(weight, codes, "uint8"), empty(weight, scales, "float16"))
    elif (out.bits, out.rows, out.columns) != (bits, rows, columns):
        raise ValueError(f"out is {out}; {bits} bits, {rows} rows, {columns} columns are needed")
    costs = None if importance is None else dense(importance, "importance", ("float32",), (columns,))
    done(native().foveal_pack(address, TYPES[dtype], bits, rows, columns, stride, costs, *out.at), "weights")
    return out


def unpack(packed: Packed) -> Array:
    """Return the quantised weight (N, K) as float32."""
    whole = oracle.unpack(as_numpy(packed.codes), as_numpy(packed.scales), packed.rows, packed.columns)
    return sys.modules["torch"].from_numpy(whole) if is_torch(packed.codes) else whole


def take_rows(packed: Packed, ids: Array) -> Array:
    """Return rows `ids` (n,) int64 of the quantised weight as float32, (n, K): an embedding that stays packed.

    Raise IndexError for an id that is not a row.
    """
    count = int(ids.shape[0])
    at = dense(ids, "ids", ("int64",), (count,))
    out = empty(packed.codes, (count, packed.columns), "float32")
    to = dense(out, "out", ("float32",), (count, packed.columns))
    if native().foveal_take_rows(packed.bits, *packed.at, packed.rows, packed.columns, at, count, to):
        raise IndexError(f"ids are {int(ids.min())} to {int(ids.max())}; 0 to {packed.rows - 1} are rows")
    return out


def quantise(x: Array, *, out: Activations | None = None) -> Activations:
    """Quantise rows (T, K) float32 to 8 bits in groups of 32; raise FovealError for NaN and infinity."""
    return _quantise(x, None, 0.0, out)


def rms_quantise(x: Array, weight: Array, eps: float, *, out: Activations | None = None) -> Activations:
    """Quantise the RMSNorm of rows (T, K) float32, its weight (K,) float32, in one pass."""
    return _quantise(x, dense(weight, "norm weight", ("float32",), (int(x.shape[-1]),)), eps, out)


def _quantise(x: Array, norm: int | None, eps: float, out: Activations | None) -> Activations:
    address, _, stride = matrix(x, "x", ("float32",))
    rows, columns = x.shape
    if columns < 1:
        raise ValueError(f"x has shape {(rows, columns)}; 1 or more columns are needed")
    if out is None:
        count = rows * -(-columns // _GROUP)
        arrays = (empty(x, (count * _GROUP,), "int8"), empty(x, (count,), "float32"), empty(x, (count,), "int32"))
        out = Activations(rows, columns, *arrays)
    elif (out.rows, out.columns) != (rows, columns):
        raise ValueError(f"out is for {out.rows} rows of {out.columns}; {rows} of {columns} are needed")
    done(native().foveal_quantise_rows(address, norm, eps, rows, columns, stride, *out.at), "activations")
    return out


def turn(x: Array, weight: Array, eps: float, cos: Array, sin: Array) -> Array:
    """Norm heads x (T, N, H) float32 by RMSNorm with a weight (H,), then turn their halves by cos and sin (T, H / 2).

    Return (T, N, H). Raise ValueError for an odd H, TypeError and ValueError for arrays of another type, shape or layout.
    """
    if x.ndim != 3 or x.shape[2] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; (T, N, H) with an even H is needed")
    tokens, heads, dim = (int(n) for n in x.shape)
    at = dense(x, "x", ("float32",), (tokens, heads, dim))
    tables = [dense(table, what, ("float32",), (tokens, dim // 2)) for table, what in ((cos, "cos"), (sin, "sin"))]
    out = empty(x, (tokens, heads, dim), "float32")
    to = dense(out, "out", ("float32",), (tokens, heads, dim))
    norm = dense(weight, "norm weight", ("float32",), (dim,))
    done(native().foveal_turn(at, norm, eps, *tables, tokens, heads, dim, to), "heads")
    return out


def matmul(
    x: Array | Activations, weight: Packed, bias: Array | None = None, *, gelu: bool = False, out: Array | None = None
) -> Array:
    """Multiply rows (T, K) by a packed weight: x W^T + bias, (T, N) float32. x may be quantised already.

    With `gelu`, return the GELU of that, in its tanh form.
    """
    at = None if bias is None else dense(bias, "bias", ("float32",), (weight.rows,))
    return _product(x, weight, None, at, gelu, out)


def swiglu(x: Array | Activations, gate: Packed, up: Packed, *, out: Array | None = None) -> Array:
    """Return silu(x G^T) * (x U^T), (T, N) float32, with nothing in between stored."""
    if (gate.bits, gate.rows, gate.columns) != (up.bits, up.rows, up.columns):
        raise ValueError(f"gate is {gate}, up is {up}; they must be alike")
    return _product(x, gate, up, None, False, out)


def _product(
    x: Array | Activations, weight: Packed, up: Packed | None, bias: int | None, gelu: bool, out: Array | None
) -> Array:
    a = x if isinstance(x, Activations) else quantise(x)
    if a.columns != weight.columns:
        raise ValueError(f"x has {a.columns} columns, the weight {weight.columns}")
    if out is None:
        out = empty(a.codes, (a.rows, weight.rows), "float32")
    elif tuple(out.shape) != (a.rows, weight.rows):
        raise ValueError(f"out has shape {tuple(out.shape)}; {(a.rows, weight.rows)} is needed")
    address, _, stride = matrix(out, "out", ("float32",))
    second = (None, None) if up is None else up.at
    status = native().foveal_matmul(
        weight.bits, *weight.at, *second, weight.rows, weight.columns, *a.at, a.rows, bias, gelu, address, stride
    )
    done(status, "products")
    return out


def attend(
    q: Array, keys: Array, values: Array, *, scale: float | None = None, key_scales: Array | None = None,
    value_scales: Array | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """Attend with one token's heads q (N, H) float32 over a cache, keys and values (G, S, H); return (N, H) float32.

    The cache is float32, bfloat16 (uint16 in NumPy), or int8 with float16 scales (G, S, ceil(H / 32)) as `quantise_cache`
    makes them; the first axis may be strided, as a view of a larger cache is. N is a multiple of G, at most 32 times G; H is
    256 or less. `scale` is H ** -0.5 where it is not given. Over int8 the query, and the softmax's weights times the scales of
    values, are rounded to 16 bits, as `oracle.attend_cache` has it: 1e-4 of the output.
    """
    address, _, _ = facts(q, "q", ("float32",), 2)
    heads, dim = (int(n) for n in q.shape)
    dense(q, "q", ("float32",), (heads, dim))
    kv_heads, positions = int(keys.shape[0]), int(keys.shape[1]) if keys.ndim == 3 else 0
    kinds = ("float32", "bfloat16", "uint16", "int8")
    key_at, dtype, (key_stride,) = dense_rows(keys, "keys", kinds, (kv_heads, positions, dim))
    value_at, _, (value_stride,) = dense_rows(values, "values", (dtype,), (kv_heads, positions, dim))
    if not kv_heads or not positions or heads % kv_heads or heads > 32 * kv_heads or not 1 <= dim <= 256:
        raise ValueError(
            f"q {(heads, dim)} over keys {tuple(keys.shape)}: N must be 1 to 32 times G, S at least 1, H at most 256"
        )
    scales: list[tuple[int | None, int]] = [(None, 0), (None, 0)]
    if dtype == "int8":
        if key_scales is None or value_scales is None:
            raise ValueError("an int8 cache needs key_scales and value_scales")
        shape = (kv_heads, positions, -(-dim // _GROUP))
        named = ((key_scales, "key_scales"), (value_scales, "value_scales"))
        for i, (x, what) in enumerate(named):
            scale_at, _, (stride,) = dense_rows(x, what, ("float16",), shape)
            scales[i] = scale_at, stride
    out = empty(q, (heads, dim), "float32") if out is None else out
    (key_scale_at, key_scale_stride), (value_scale_at, value_scale_stride) = scales
    status = native().foveal_attend(
        address, key_at, value_at, TYPES[dtype], key_scale_at, value_scale_at, heads, kv_heads, positions, dim, key_stride,
        value_stride, key_scale_stride, value_scale_stride, dim**-0.5 if scale is None else scale,
        dense(out, "out", ("float32",), (heads, dim)),
    )  # fmt: skip
    done(status, "keys or values")
    return out


def quantise_cache(x: Array, *, out: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """Quantise keys or values (..., H) float32: int8 codes of that shape, float16 scales (..., ceil(H / 32)).

    `out` takes the result into arrays that exist, of x (G, T, H): views of a cache, the first axis strided. The first two axes
    of x may then be, too. Raise FovealError for NaN, infinity and values beyond float16 scales.
    """
    shape = tuple(int(n) for n in x.shape)
    dim, groups = shape[-1], -(-shape[-1] // _GROUP)
    if out is None:
        heads, rows, strides = 1, math.prod(shape[:-1]), (0, dim)
        address = dense(x, "keys or values", ("float32",), shape)
        codes, scales = out = empty(x, shape, "int8"), empty(x, (*shape[:-1], groups), "float16")
        at = dense(codes, "codes", ("int8",), shape), dense(scales, "scales", ("float16",), (*shape[:-1], groups))
        to_strides = 0, 0
    else:
        address, _, (*outer, inner) = facts(x, "keys or values", ("float32",), 3)
        if inner != 1 and dim > 1:
            raise ValueError(f"keys or values have strides {(*outer, inner)}; the last axis must be contiguous")
        (heads, rows, _), strides = shape, (outer[0], outer[1])
        codes_at, _, (code_stride,) = dense_rows(out[0], "codes", ("int8",), shape)
        scales_at, _, (scale_stride,) = dense_rows(out[1], "scales", ("float16",), (heads, rows, groups))
        at, to_strides = (codes_at, scales_at), (code_stride, scale_stride)
    done(native().foveal_quantise_cache(address, heads, rows, dim, *strides, *at, *to_strides), "keys or values")
    return out

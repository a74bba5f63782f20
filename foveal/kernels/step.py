"""A step of decoding in one call: one new token of each of some sequences through all layers of a dense decoder.

    step = Step(layers, heads=16, kv_heads=8, head_dim=128, eps=1e-6)
    step(x, cos, sin, caches)                     # x (T, D), in place; T caches

The same kernels in the same order as `rms_quantise`, `matmul`, `turn`, `attend` and `swiglu` called one by one, to the bit;
between calls from Python the other threads fall asleep, and waking them takes as long as a small product.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from foveal.kernels import Packed
from foveal.kernels.arrays import TYPES, Array, dense, dense_rows, empty, facts
from foveal.kernels.library import done, native

_KINDS = ("float32", "bfloat16", "uint16", "int8")


class _Matrix(ctypes.Structure):
    _fields_ = [("codes", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("bias", ctypes.c_void_p),
                ("bits", ctypes.c_int64), ("rows", ctypes.c_int64), ("columns", ctypes.c_int64)]  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
    ]


class _Decoder(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "inner", "heads", "kv_heads", "dim")),
        ("eps", ctypes.c_float), ("scale", ctypes.c_float),
    ]  # fmt: skip


class _Cached(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_int64) for name in ("type", "layer_stride", "head_stride")),
        *((name, ctypes.c_int64) for name in ("scale_layer_stride", "scale_head_stride", "length")),
    ]


@dataclass(frozen=True)
class Layer:
    """Weights of one layer: norms float32 (D,) and (H,), matrices that are packed, biases float32 (N,) or None."""

    input_norm: Array
    post_norm: Array
    q_norm: Array
    k_norm: Array
    q: Packed
    k: Packed
    v: Packed
    o: Packed
    gate: Packed
    up: Packed
    down: Packed
    biases: tuple[Array | None, ...] = (None, None, None, None)  # of q, k, v, o


@dataclass(frozen=True)
class Cached:
    """The cache of one sequence: keys and values (L, G, S, H) of which `length` positions are filled, with room for one more.

    float32, bfloat16 (uint16 in NumPy), or int8 with float16 scales (L, G, S, ceil(H / 32)). The first two axes may be
    strided, alike in keys and values.
    """

    keys: Array
    values: Array
    length: int
    key_scales: Array | None = None
    value_scales: Array | None = None
    # Addresses and strides by what is asked of the shape, once they are checked.
    _known: dict[tuple[int, ...], _Cached] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    def at(self, length: int) -> Cached:
        """Return the same memory with another length. Checks of the memory are done once for all of its lengths."""
        return replace(self, length=length)

    def of(self, layers: slice) -> Cached:
        """Return the same of some layers."""
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        keys, values, *scales = (None if part is None else part[layers] for part in parts)
        return Cached(keys, values, self.length, *scales)


class Step:
    """All layers of a dense decoder, ready to be called. Keeps the weights' arrays alive."""

    def __init__(self, layers: Sequence[Layer], *, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        """Raise ValueError where shapes do not fit together, or are more than the kernels take."""
        if not layers or kv_heads < 1 or heads % kv_heads or heads > 32 * kv_heads or head_dim % 2 or not 2 <= head_dim <= 256:
            raise ValueError(
                f"{len(layers)} layers, {heads} heads over {kv_heads} of {head_dim}: one layer or more, N 1 to 32 times G, "
                "an even H up to 256 are needed"
            )
        self.hidden, self.kv_heads, self.head_dim = layers[0].q.columns, kv_heads, head_dim
        self._kept = list(layers)  # the addresses below are theirs
        self._layers = (_Layer * len(layers))(*(self._lay_out(layer, heads) for layer in layers))
        inner = max(layer.gate.rows for layer in layers)
        self._decoder = _Decoder(len(layers), self.hidden, inner, heads, kv_heads, head_dim, eps, head_dim**-0.5)

    def _lay_out(self, layer: Layer, heads: int) -> _Layer:
        query, key, inner = heads * self.head_dim, self.kv_heads * self.head_dim, layer.gate.rows
        shapes = {
            "q": (query, self.hidden), "k": (key, self.hidden), "v": (key, self.hidden), "o": (self.hidden, query),
            "gate": (inner, self.hidden), "up": (inner, self.hidden), "down": (self.hidden, inner),
        }  # fmt: skip
        biases = dict(zip("qkvo", layer.biases, strict=True))
        out = _Layer()
        norms = {"input_norm": self.hidden, "post_norm": self.hidden, "q_norm": self.head_dim, "k_norm": self.head_dim}
        for name, size in norms.items():
            setattr(out, name, dense(getattr(layer, name), name, ("float32",), (size,)))
        for name, shape in shapes.items():
            packed: Packed = getattr(layer, name)
            if (packed.rows, packed.columns) != shape:
                raise ValueError(f"{name} is {packed.rows} x {packed.columns}; {shape[0]} x {shape[1]} is needed")
            bias = biases.get(name)
            at = None if bias is None else dense(bias, f"bias of {name}", ("float32",), shape[:1])
            setattr(out, name, _Matrix(*packed.at, at, packed.bits, *shape))
        if layer.gate.bits != layer.up.bits:
            raise ValueError(f"gate has {layer.gate.bits} bits, up {layer.up.bits}; they must be alike")
        return out

    def __call__(self, x: Array, cos: Array, sin: Array, caches: Sequence[Cached], counts: Sequence[int] | None = None) -> None:
        """Run rows x (T, D) float32 through all layers, in place, and fill the next position of each of T caches.

        With counts: so many rows of each cache, T in all, and as many of its positions. To the kernels they are as many caches
        over the same memory, each a position longer than the one before: a layer writes the keys and values of all rows
        before any of them attends. cos, sin: (T, H / 2) float32. Raise FovealError for NaN and infinity, after which x and
        those positions hold anything.
        """
        counts = [1] * len(caches) if counts is None else counts
        tokens = sum(counts)
        at = dense(x, "x", ("float32",), (tokens, self.hidden))
        tables = [dense(t, what, ("float32",), (tokens, self.head_dim // 2)) for t, what in ((cos, "cos"), (sin, "sin"))]
        if not tokens:
            return
        placed = (self._place(cache, n) for cache, n in zip(caches, counts, strict=True))
        places = (_Cached * tokens)(*(_later(place, i) for place, n in zip(placed, counts, strict=True) for i in range(n)))
        library = native()
        scratch = empty(x, (library.foveal_step_scratch(ctypes.byref(self._decoder), tokens),), "uint8")
        to = facts(scratch, "scratch", ("uint8",), 1)[0]
        status = library.foveal_step(ctypes.byref(self._decoder), self._layers, tokens, at, *tables, places, to)
        done(status, "activations")

    def _place(self, cache: Cached, count: int) -> _Cached:
        slots = int(cache.keys.shape[2])
        if not 0 <= cache.length <= slots - count:
            more = "one more" if count == 1 else f"{count} more"
            raise ValueError(f"a cache of {slots} positions holds {cache.length}; {more} must fit")
        key = (len(self._layers), self.kv_heads, self.head_dim)
        if key not in cache._known:
            cache._known[key] = self._check(cache, slots)
        place = _Cached.from_buffer_copy(cache._known[key])
        place.length = cache.length
        return place

    def _check(self, cache: Cached, slots: int) -> _Cached:
        shape = (len(self._layers), self.kv_heads, slots, self.head_dim)
        at, dtype, strides = dense_rows(cache.keys, "keys", _KINDS, shape)
        values_at, _, value_strides = dense_rows(cache.values, "values", (dtype,), shape)
        scales: list[Any] = [None, None]
        scale_strides: tuple[int, ...] = (0, 0)
        value_scale_strides = scale_strides
        if dtype == "int8":
            if cache.key_scales is None or cache.value_scales is None:
                raise ValueError("an int8 cache needs key_scales and value_scales")
            shape = (*shape[:3], -(-self.head_dim // 32))
            scales[0], _, scale_strides = dense_rows(cache.key_scales, "key_scales", ("float16",), shape)
            scales[1], _, value_scale_strides = dense_rows(cache.value_scales, "value_scales", ("float16",), shape)
        if (strides, scale_strides) != (value_strides, value_scale_strides):
            raise ValueError(f"keys and values have strides {strides} and {value_strides}; they must be alike")
        return _Cached(at, values_at, *scales, TYPES[dtype], *strides, *scale_strides, 0)


def _later(place: _Cached, positions: int) -> _Cached:
    """Return the same cache, so many positions longer."""
    if not positions:
        return place
    out = _Cached.from_buffer_copy(place)
    out.length += positions
    return out

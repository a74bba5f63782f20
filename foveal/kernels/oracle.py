"""The kernels in plain NumPy, slow and short: what foveal_kernels.c is tested against, and its formats in a second language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
GROUP, LANES, TILE = 32, 16, 8
SPAN = 64  # positions of a cache of 8 bits whose weights are rounded together
BLOCK_BYTES = {8: 512, 4: 256}
PLACES = {8: (127.0, 125.0, 123.0), 4: (-8.0, -7.6, -7.2)}


def _padded(x: Array, rows: int, columns: int) -> Array:
    """Fill up with zeros to multiples of `rows` and `columns`."""
    return np.pad(x, ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns)))


def quantise_weight(weight: Array, bits: int, importance: Array | None = None) -> tuple[Array, Array]:
    """weight (N, K) float32 → q (N, K / 32, 32) int8 and float16 scales (N, K / 32), both padded."""
    groups = _padded(np.asarray(weight, np.float32), LANES, GROUP)
    groups = groups.reshape(groups.shape[0], -1, GROUP)
    if not np.isfinite(groups).all():
        raise ValueError("weights hold NaN or infinity")
    costs = np.ones(weight.shape[1], np.float32) if importance is None else np.asarray(importance, np.float32)
    costs = np.pad(costs, (0, -len(costs) % GROUP), constant_values=1).reshape(-1, GROUP)
    high, low = groups.max(-1), groups.min(-1)
    furthest = np.where(high > -low, high, -low if bits == 8 else low)  # 4 bits reach one further down than up
    bottom, top = (-127, 127) if bits == 8 else (-8, 7)
    with np.errstate(over="ignore"):
        if not np.isfinite((furthest / np.float32(127 if bits == 8 else -8)).astype(np.float16)).all():
            raise ValueError("weights too large for float16 scales")
    searched = bits == 4 or importance is not None
    best, wanted = np.zeros_like(furthest), np.zeros_like(furthest) if searched else furthest / np.float32(127)
    for place in PLACES[bits] if searched else ():  # where the value furthest from zero may lie
        none = np.abs(furthest) < np.float32(2.0**-30)
        inverse = np.where(none, np.float32(0), np.float32(place) / np.where(none, np.float32(1), furthest))
        q = np.clip(np.rint(groups * inverse[..., None]), bottom, top)
        vq, qq = np.zeros_like(furthest), np.zeros_like(furthest)
        for k in range(GROUP):  # in this order, as the kernel does
            vq += costs[:, k] * q[..., k] * groups[..., k]
            qq += costs[:, k] * q[..., k] * q[..., k]
        fit = np.where(qq == 0, np.float32(0), vq / np.where(qq == 0, np.float32(1), qq))
        better = vq * fit > best
        best, wanted = np.where(better, vq * fit, best), np.where(better, fit, wanted)
    scales = np.clip(wanted, -65504, 65504).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.where(wide == 0, np.float32(0), np.float32(1) / np.where(wide == 0, np.float32(1), wide))
    return np.clip(np.rint(groups * inverse[..., None]), bottom, top).astype(np.int8), scales


def pack(weight: Array, bits: int, importance: Array | None = None) -> tuple[Array, Array]:
    """weight (N, K) → codes uint8 (N / 16, K / 32, 512 | 256), scales float16 (N / 16, K / 32, 16)."""
    q, scales = quantise_weight(weight, bits, importance)
    return arrange(q, bits), np.ascontiguousarray(scales.reshape(-1, LANES, scales.shape[1]).transpose(0, 2, 1))


def arrange(q: Array, bits: int) -> Array:
    """q (N, K / 32, 32) int8, N a multiple of 16 → codes."""
    blocks, groups = q.shape[0] // LANES, q.shape[1]
    quads = q.reshape(blocks, LANES, groups, 8, 4).transpose(0, 2, 3, 1, 4)  # (block, group, quad, row, 4)
    offset = (quads.astype(np.int16) + (128 if bits == 8 else 8)).astype(np.uint8)
    codes = offset if bits == 8 else offset[:, :, :4] | offset[:, :, 4:] << 4
    return codes.reshape(blocks, groups, -1)


def integers(codes: Array) -> Array:
    """codes → q (N, K / 32, 32) int8, padded."""
    blocks, groups, size = codes.shape
    if size == BLOCK_BYTES[8]:
        quads = codes.reshape(blocks, groups, 8, LANES, 4).astype(np.int16) - 128
    else:
        pairs = codes.reshape(blocks, groups, 4, LANES, 4)
        quads = np.concatenate([pairs & 15, pairs >> 4], 2).astype(np.int16) - 8
    return quads.transpose(0, 3, 1, 2, 4).reshape(blocks * LANES, groups, GROUP).astype(np.int8)


def unpack(codes: Array, scales: Array, rows: int, columns: int) -> Array:
    """codes, scales → the quantised weight (N, K) float32."""
    wide = scales.transpose(0, 2, 1).reshape(-1, scales.shape[1], 1).astype(np.float32)
    return (integers(codes) * wide).reshape(wide.shape[0], -1)[:rows, :columns]


def take_rows(codes: Array, scales: Array, ids: Array, columns: int) -> Array:
    """Rows `ids` of the quantised weight, (len(ids), K) float32, without unpacking the rest: an embedding."""
    blocks, groups, size = codes.shape
    block, lane = np.divmod(np.asarray(ids), LANES)
    wide = scales[block, :, lane].astype(np.float32)[:, :, None]  # (ids, K / 32, 1)
    chosen = codes.reshape(blocks, groups, -1, LANES, 4)[block, :, :, lane]  # (ids, K / 32, 8 | 4, 4)
    if size == BLOCK_BYTES[8]:
        q = chosen.astype(np.int16) - 128
    else:
        q = np.concatenate([chosen & 15, chosen >> 4], 2).astype(np.int16) - 8
    return (q.reshape(*wide.shape[:2], GROUP) * wide).reshape(len(block), -1)[:, :columns]


def quantise(x: Array) -> tuple[Array, Array, Array]:
    """x (T, K) float32 → q (T, K / 32, 32) int8, scales (T, K / 32) float32, sums (T, K / 32) int32."""
    groups = _padded(np.asarray(x, np.float32), 1, GROUP)
    groups = groups.reshape(x.shape[0], groups.shape[1] // GROUP, GROUP)
    if not np.isfinite(groups).all():
        raise ValueError("activations hold NaN or infinity")
    amax = np.abs(groups).max(-1)
    none = amax < np.float32(2.0**-100)
    inverse = np.where(none, np.float32(0), np.float32(127) / np.where(none, np.float32(1), amax))
    q = np.rint(groups * inverse[..., None]).astype(np.int8)
    return q, np.where(none, np.float32(0), amax / np.float32(127)), q.sum(-1, dtype=np.int32)


def tiles(values: Array) -> Array:
    """(T, K / 32, ...) → flat, in the order the kernels keep activations: eight rows side by side, group by group."""
    parts = [values[t : t + TILE].swapaxes(0, 1).reshape(-1) for t in range(0, values.shape[0], TILE)]
    return np.concatenate(parts) if parts else values.reshape(-1)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale rows to unit mean square, summed in 16 lanes as the kernel does."""
    x = np.asarray(x, np.float32)
    lanes = np.zeros((x.shape[0], LANES), np.float32)
    for part in np.split(_padded(x * x, 1, LANES), -(-x.shape[1] // LANES), axis=1):
        lanes += part
    total = np.zeros(x.shape[0], np.float32)
    for lane in lanes.T:
        total += lane
    inverse = np.float32(1) / np.sqrt(total / np.float32(x.shape[1]) + np.float32(eps))
    return x * inverse[:, None] * np.asarray(weight, np.float32)


def turn(x: Array, weight: Array, eps: float, cos: Array, sin: Array) -> Array:
    """x (T, N, H), cos and sin (T, H / 2) → every head normed, then its halves turned."""
    first, second = np.split(rms_norm(x.reshape(-1, x.shape[2]), weight, eps).reshape(x.shape), 2, axis=2)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=2)


def matmul(x: Array, codes: Array, scales: Array, rows: int, bias: Array | None = None) -> Array:
    """x (T, K) → (T, N): exact integer sums inside a group, one float32 addition a group."""
    a, a_scales, _ = quantise(x)
    q = integers(codes).astype(np.int32)
    wide = scales.transpose(0, 2, 1).reshape(-1, scales.shape[1]).astype(np.float32)
    out = np.zeros((x.shape[0], q.shape[0]), np.float32)
    for g in range(q.shape[1]):
        whole = a[:, g].astype(np.int32) @ q[:, g].T
        out += whole.astype(np.float32) * (wide[:, g] * a_scales[:, g, None])
    out = out[:, :rows]
    return out if bias is None else out + bias


def gelu(x: Array) -> Array:
    """GELU in its tanh form, in float64."""
    wide = x.astype(np.float64)
    return (wide / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))).astype(np.float32)


def swiglu(x: Array, gate: tuple[Array, Array], up: tuple[Array, Array], rows: int) -> Array:
    """silu(x G^T) * (x U^T)."""
    g = matmul(x, *gate, rows).astype(np.float64)
    return (g / (1 + np.exp(-np.clip(g, -87, None))) * matmul(x, *up, rows)).astype(np.float32)


def attend(q: Array, keys: Array, values: Array, scale: float) -> Array:
    """q (N, H) over keys and values (G, S, H) → (N, H), in float64; N / G neighbouring heads share a key-value head."""
    grouped = q.reshape(keys.shape[0], -1, q.shape[1]).astype(np.float64)
    score = grouped @ keys.astype(np.float64).swapaxes(1, 2) * scale
    weight = np.exp(score - score.max(-1, keepdims=True))
    out = weight / weight.sum(-1, keepdims=True) @ values.astype(np.float64)
    return out.reshape(q.shape).astype(np.float32)


def attend_cache(q: Array, keys: tuple[Array, Array], values: tuple[Array, Array], scale: float) -> Array:
    """The same over a cache of 8 bits, each codes (G, S, H) and scales: rounded where the kernels round, in float64 between.

    A query becomes 16-bit codes, and so do the weights of SPAN positions, times the scales of a group of their values.
    """
    most = np.abs(q).max(-1, keepdims=True).astype(np.float64)
    q = np.rint(q / np.where(most > 0, most, 1) * 32767) * most / 32767
    groups, positions, dim = keys[0].shape
    grouped = q.reshape(groups, -1, dim)
    score = grouped @ unpack_cache(*keys).astype(np.float64).swapaxes(1, 2) * scale
    share = np.exp(score - score.max(-1, keepdims=True))
    out = np.zeros(grouped.shape)
    codes, scales = values[0].astype(np.float64), values[1].astype(np.float64)
    for start in range(0, positions, SPAN):
        part = slice(start, start + SPAN)
        for g in range(scales.shape[-1]):
            weight = share[..., part] * scales[:, None, part, g]
            most = weight.max(-1, keepdims=True)
            weight = np.rint(weight / np.where(most > 0, most, 1) * 32767) * most / 32767
            of = slice(g * GROUP, (g + 1) * GROUP)
            out[..., of] += weight @ codes[:, part, of]
    return (out / share.sum(-1, keepdims=True)).reshape(q.shape).astype(np.float32)


def quantise_cache(x: Array) -> tuple[Array, Array]:
    """x (..., H) → int8 codes of that shape and float16 scales (..., ceil(H / 32))."""
    dim = x.shape[-1]
    groups = _padded(np.asarray(x, np.float32).reshape(-1, dim), 1, GROUP).reshape(*x.shape[:-1], -1, GROUP)
    scales = (np.abs(groups).max(-1) / np.float32(127)).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.where(wide == 0, np.float32(0), np.float32(1) / np.where(wide == 0, np.float32(1), wide))
    q = np.clip(np.rint(groups * inverse[..., None]), -127, 127).astype(np.int8)
    return q.reshape(*x.shape[:-1], -1)[..., :dim], scales


def unpack_cache(codes: Array, scales: Array) -> Array:
    """The float32 values of a quantised cache."""
    return codes * np.repeat(scales.astype(np.float32), GROUP, axis=-1)[..., : codes.shape[-1]]


# ---------------------------------------------------------------- frames and windows: attention in 16-bit integers

KEYS = 128  # rows of values that share a scale


def sixteen_bits(x: Array) -> Array:
    """Queries or keys (..., H) as their 16-bit codes and scales stand for: as fine as products below 2^31 allow."""
    amax = np.abs(x).max(-1, keepdims=True).astype(np.float32)
    none = amax < np.float32(2.0**-100)
    small = np.where(none, np.float32(0), np.float32(1) / np.where(none, np.float32(1), amax))
    length = np.sqrt(np.square(x * small, dtype=np.float64).sum(-1, keepdims=True))
    most = np.minimum(np.divide(46300, length, out=np.zeros_like(length), where=length > 0), 32767)
    codes = np.rint(x * small * most)
    assert np.abs(codes).max(initial=0) <= 32767 and np.square(codes).sum(-1).max(initial=0) < 2**31
    return np.where(most > 0, codes * (amax / np.where(most > 0, most, 1)), 0)


def value_bits(v: Array) -> Array:
    """Values (n, ..., H) of one frame as their codes stand for: a scale for every channel of KEYS rows."""
    out = np.zeros(v.shape)
    for start in range(0, len(v), KEYS):
        block = v[start : start + KEYS]
        scale = np.abs(block).max(0).astype(np.float64) / 16383
        out[start : start + KEYS] = np.rint(block / np.where(scale > 0, scale, 1)) * scale
    return out


def weight_bits(score: Array) -> Array:
    """The softmax of scores (..., n) as the codes of its weights stand for: relative to the largest of KEYS, and sum to one."""
    weight = np.zeros(score.shape)
    for start in range(0, score.shape[-1], KEYS):
        block = score[..., start : start + KEYS]
        top = block.max(-1, keepdims=True)
        share = np.exp(block - top)
        most = np.minimum(130900 / share.sum(-1, keepdims=True), 32767)
        weight[..., start : start + KEYS] = np.rint(share * most) / most * np.exp(top - score.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def frames(rows: Array, lengths: Sequence[int], heads: int, cos: Array | None, sin: Array | None) -> Array:
    """rows (P, 3 * heads * H), queries, keys and values side by side → (P, heads * H): each frame attends inside itself.

    Rounded where the kernels round, in float64 between.
    """
    q, k, v = (np.asarray(x, np.float32) for x in rows.reshape(len(rows), 3, heads, -1).swapaxes(0, 1))
    if cos is not None and sin is not None:
        c, s = cos[:, None], sin[:, None]
        halves = (np.split(x, 2, axis=-1) for x in (q, k))
        q, k = (np.concatenate([a * c - b * s, b * c + a * s], axis=-1) for a, b in halves)
    out, start = [], 0
    for n in filter(None, lengths):
        part = slice(start, start + n)
        start += n
        score = np.einsum("qhd,khd->hqk", sixteen_bits(q[part]), sixteen_bits(k[part])) * q.shape[-1] ** -0.5
        weight = weight_bits(score)
        out.append(np.einsum("hqk,khd->qhd", weight, value_bits(v[part])).reshape(n, -1))
    return np.concatenate(out).astype(np.float32)


def window(q: Array, keys: Array, values: Array) -> Array:
    """q (n, N, H), the last n of the S positions of keys and values (G, S, H) → (n, N, H); no query sees a later position.

    Rounded where the kernels round, in float64 between. What a query does not see weighs nothing in a block that it sees.
    """
    n, heads, dim = q.shape
    each, positions = heads // len(keys), keys.shape[1]
    k, v = np.repeat(sixteen_bits(keys), each, axis=0), np.repeat(value_bits(values.swapaxes(0, 1)), each, axis=1)
    out = np.zeros(q.shape)
    for row, place in enumerate(range(positions - n, positions)):
        score = np.einsum("hd,hsd->hs", sixteen_bits(q[row]), k[:, : place + 1]) * dim**-0.5
        out[row] = np.einsum("hs,shd->hd", weight_bits(score), v[: place + 1])
    return out.astype(np.float32)

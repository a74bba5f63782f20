"""The vision encoder in pieces, for a caller that has other work to do between two and says how large the next may be.

The same products on the same rows as `VisionModel.forward`, a few rows at a time. Attention reads all keys of a frame whatever
its number of queries, so keys and values lie head by head in a row here, and eight queries cost twice a large piece's each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.batch import PatchBatch, VisionTokens
from foveal.kernels.frames import Frames
from foveal.model.rope import vision_tables
from foveal.model.vision import Merger, VisionBlock, VisionModel


@dataclass(frozen=True)
class Piece:
    """What comes next: rows of one kind of work. weight: what such a row costs beside others of its kind."""

    kind: str
    rows: int
    weight: float = 1.0


Work = Generator[Piece, int, None]
Tables = tuple[Tensor, Tensor]  # cosines and sines, (P, H / 2)


def encode_in_pieces(model: VisionModel, batch: PatchBatch) -> Generator[Piece, int, VisionTokens]:
    """Yield what comes next, be sent how many of its rows to do now (at least one is done), and return the tokens.

    For inference only: rows are overwritten in place.
    """
    count, config = len(batch.position_index), model.config
    x, cos, sin = yield from _embedded(model, batch)
    heads = x.new_empty(count * 3 * config.hidden_size)
    seen = torch.empty_like(x)
    joined = config.spatial_merge_size**2
    taps = x.new_empty(len(config.taps), count // joined, config.out_hidden_size)
    merged = x.new_empty(count // joined, config.out_hidden_size)
    for i, block in enumerate(model.blocks):
        assert isinstance(block, VisionBlock)
        yield from _through(block, x, (cos, sin), batch.lengths, heads, seen)
        if i in model.tap_of_block:
            tap = model.tap_of_block[i]
            yield from _merged(model.deepstack_merger_list[tap], x, taps[tap], joined)
    yield from _merged(model.merger, x, merged, joined)
    return VisionTokens(merged, taps, batch.token_coords)


def _rows(kind: str, rows: range, do: Callable[[slice], None], weight: float = 1.0) -> Work:
    """Do something with all of some rows, as many at a time as the caller says."""
    start = rows.start
    while start < rows.stop:
        most = yield Piece(kind, rows.stop - start, weight)
        stop = min(start + max(most, 1), rows.stop)
        do(slice(start, stop))
        start = stop


def _embedded(model: VisionModel, batch: PatchBatch) -> Generator[Piece, int, tuple[Tensor, Tensor, Tensor]]:
    """Return the embedded patches with their learned positions, and the tables of the rotary ones."""
    count, projection = len(batch.position_index), model.patch_embed.proj
    raw = projection.bias.new_empty(count, model.config.hidden_size)
    start = 0
    for pixels, frames in ((batch.stills, 1), (batch.pairs, model.config.temporal_patch_size)):
        if len(pixels):
            yield Piece(f"fold {frames}", 1)
            folded, into = projection.folded(frames), raw[start : start + len(pixels)]

            def embed(
                part: slice, pixels: Tensor = pixels, into: Tensor = into, folded: tuple[Tensor, Tensor] = folded
            ) -> None:
                into[part] = projection.embed(pixels[part], *folded)

            yield from _rows(f"embed {frames}", range(len(pixels)), embed)
            start += len(pixels)
    x = torch.empty_like(raw)
    cos, sin = (torch.empty(count, model.config.head_dim // 2, device=x.device) for _ in range(2))

    def place(part: slice) -> None:
        rows = raw[part] if batch.order is None else raw[batch.order[part]]
        x[part] = model.placed(rows, batch.position_index[part], batch.position_weight[part])
        cos[part], sin[part] = vision_tables(batch.rows_columns[part], model.config.head_dim, model.config.rope_theta)

    yield from _rows("place", range(count), place)
    return x, cos, sin


def _through(block: VisionBlock, x: Tensor, tables: Tables, lengths: tuple[int, ...], heads: Tensor, seen: Tensor) -> Work:
    """Put x (P, C) through a block, in place. heads: (P * 3C,) and seen: (P, C), to be filled."""

    def mlp(part: slice) -> None:
        y = x[part] + block.attn.proj(seen[part])
        x[part] = y + block.mlp(block.norm2(y))

    see = _seen_in_integers if block.attn.in_integers else _seen
    yield from see(block, x, tables, lengths, heads, seen)
    yield from _rows("mlp", range(len(x)), mlp)


def _seen(block: VisionBlock, x: Tensor, tables: Tables, lengths: tuple[int, ...], heads: Tensor, seen: Tensor) -> Work:
    count = len(x)
    by_head = heads.view(3, block.attn.num_heads, count, -1)

    def project(part: slice) -> None:
        made = block.attn.heads(block.norm1(x[part]), (tables[0][part], tables[1][part]))
        for kind, rows in zip(by_head, made, strict=True):
            kind[:, part] = rows.transpose(0, 1)

    yield from _rows("project", range(count), project)
    for frame in _frames(lengths):

        def attend(part: slice, frame: range = frame) -> None:
            all_of_it = slice(frame.start, frame.stop)
            q, k, v = by_head[0][None, :, part], by_head[1][None, :, all_of_it], by_head[2][None, :, all_of_it]
            seen[part] = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)

        yield from _rows("attend", frame, attend, len(frame))


def _seen_in_integers(
    block: VisionBlock, x: Tensor, tables: Tables, lengths: tuple[int, ...], heads: Tensor, seen: Tensor
) -> Work:
    rows = heads.view(len(x), -1)
    frames = Frames(rows, lengths, block.attn.num_heads)

    def project(part: slice) -> None:
        rows[part] = block.attn.qkv(block.norm1(x[part]))

    yield from _rows("project", range(len(x)), project)
    yield from _rows("pack", range(frames.blocks), lambda part: frames.pack(*tables, part))
    for frame in _frames(lengths):
        yield from _rows("attend", frame, lambda part: frames.attend(*tables, part, out=seen[part]), len(frame))


def _frames(lengths: tuple[int, ...]) -> list[range]:
    """Return the rows of each frame."""
    ends = list(itertools.accumulate(lengths))
    return [range(end - n, end) for n, end in zip(lengths, ends, strict=True)]


def _merged(merger: torch.nn.Module, x: Tensor, out: Tensor, joined: int) -> Work:
    """Merge x (P, C) to vision tokens out (V, D); the rows of this work are tokens."""
    assert isinstance(merger, Merger)

    def merge(part: slice) -> None:
        out[part] = merger(x[joined * part.start : joined * part.stop])

    yield from _rows("merge", range(len(out)), merge)

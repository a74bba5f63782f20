"""What travels to the device: patches of many media in one PatchBatch, rows of many sequences in one Batch.

No batch axis, no padding, no masks. The same Batch serves training, prefill and decode.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from foveal.config import VisionConfig
from foveal.errors import PromptError
from foveal.patches import Patches
from foveal.sequence import Sequence, Window


@dataclass(frozen=True)
class PatchBatch:
    """Patches of any number of pictures and clips, ready for the vision encoder.

    stills: (Ps, C*p*p) uint8, pairs: (Pc, C*F*p*p) uint8; order: (P,) where each row of the request lies in
    cat(stills, pairs), None when one of them is empty; rows_columns: (P, 2); position_index, position_weight: (P, 4), the
    neighbours in the learned position table; lengths: rows of every frame; token_coords: (V, 3) of (t, row, column) in
    merged units, t counted within its picture or clip.
    """

    stills: Tensor
    pairs: Tensor
    order: Tensor | None
    rows_columns: Tensor
    position_index: Tensor
    position_weight: Tensor
    lengths: tuple[int, ...]
    token_coords: Tensor

    @classmethod
    def pack(cls, media: SequenceOf[Patches], vision: VisionConfig, device: torch.device | str = "cpu") -> PatchBatch:
        """Lay the patches of all media behind one another, in order."""
        if not media:
            raise PromptError("there is nothing to encode: the request holds no picture and no clip")
        channels = vision.in_channels * vision.patch_size**2
        still = [m.pixels for m in media if m.kind == "image"]
        pair = [m.pixels for m in media if m.kind == "video"]
        stills = np.concatenate(still) if still else np.empty((0, channels), np.uint8)
        pairs = np.concatenate(pair) if pair else np.empty((0, channels * vision.temporal_patch_size), np.uint8)
        order = None
        if still and pair:
            is_pair = np.concatenate([np.full(len(m.pixels), m.kind == "video") for m in media])
            order = torch.from_numpy(np.where(is_pair, len(stills) + np.cumsum(is_pair) - 1, np.cumsum(~is_pair) - 1))
        index, weight = zip(*(_table_neighbours(m, vision.position_side) for m in media), strict=True)
        coords = np.concatenate([m.coords for m in media])
        merge = vision.spatial_merge_size
        tokens = coords[:: merge * merge] // np.array([1, merge, merge], np.int32)
        return cls(
            stills=torch.from_numpy(stills).to(device),
            pairs=torch.from_numpy(pairs).to(device),
            order=None if order is None else order.to(device),
            rows_columns=torch.from_numpy(np.ascontiguousarray(coords[:, 1:])).to(device),
            position_index=torch.from_numpy(np.concatenate(index)).to(device),
            position_weight=torch.from_numpy(np.concatenate(weight)).to(device),
            lengths=tuple(n for m in media for n in m.lengths()),
            token_coords=torch.from_numpy(tokens).to(device),
        )


def _table_neighbours(media: Patches, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the four entries of the side x side table around each patch, and their bilinear weights.

    Corners align: patch 0 sits on entry 0, the last on entry side - 1 (facts 3h, `linspace(0, side - 1, h)`).
    """
    grids = np.array(media.grids, np.int64)[media.coords[:, 0]]  # (P, 2)
    # A side of one patch sits on entry 0, as linspace with one step does.
    place = media.coords[:, 1:] * ((side - 1) / np.maximum(grids - 1, 1))
    low = np.minimum(place.astype(np.int64), side - 1)
    high = np.minimum(low + 1, side - 1)
    part = place - low
    index = np.stack([r * side + c for r in (low[:, 0], high[:, 0]) for c in (low[:, 1], high[:, 1])], axis=1)
    weight = np.stack([r * c for r in (1 - part[:, 0], part[:, 0]) for c in (1 - part[:, 1], part[:, 1])], axis=1)
    return index, weight.astype(np.float32)


@dataclass(frozen=True)
class VisionTokens:
    """What the encoder gives the decoder; embeddings and their taps are never apart.

    embeddings: (V, D); taps: (I, V, D), tap j for decoder layer tap_layers[j]; coords: (V, 3).
    """

    embeddings: Tensor
    taps: Tensor
    coords: Tensor

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @classmethod
    def cat(cls, parts: SequenceOf[VisionTokens]) -> VisionTokens:
        """Put several behind one another."""
        return cls(
            torch.cat([p.embeddings for p in parts]),
            torch.cat([p.taps for p in parts], dim=1),
            torch.cat([p.coords for p in parts]),
        )

    def take(self, rows: Tensor | slice) -> VisionTokens:
        """Keep the given rows, in the given order."""
        return VisionTokens(self.embeddings[rows], self.taps[:, rows], self.coords[rows])

    def merge(self, groups: Tensor, count: int) -> VisionTokens:
        """Average rows into `count` groups; groups: (V,) the group of every row. A group keeps its first row's coordinates.

        Groups on the CPU are checked, PromptError says what is wrong, and moved to the rows. Groups on another device are
        taken at their word, since looking at them would make the host wait: make them from numbers the host has.
        """
        if len(groups) != len(self):
            raise PromptError(f"{len(groups)} rows have a group, but there are {len(self)} vision tokens")
        if groups.device.type == "cpu" and not torch.equal(groups.unique().long(), torch.arange(count)):
            raise PromptError(
                f"every one of the {count} groups needs at least one row, and every row a group of 0 to {count - 1}"
            )
        groups = groups.to(self.embeddings.device, torch.long, non_blocking=True)
        size = torch.zeros(count, device=groups.device).index_add_(0, groups, torch.ones(len(groups), device=groups.device))
        share = (1 / size).to(self.embeddings.dtype)[:, None]
        embeddings = self.embeddings.new_zeros(count, self.embeddings.shape[1]).index_add(0, groups, self.embeddings)
        taps = self.taps.new_zeros(self.taps.shape[0], count, self.taps.shape[2]).index_add(1, groups, self.taps)
        first = torch.full((count,), len(groups), device=groups.device)
        first = first.scatter_reduce(0, groups, torch.arange(len(groups), device=groups.device), "amin")
        return VisionTokens(embeddings * share, taps * share, self.coords[first])


@dataclass(frozen=True)
class Batch:
    """Rows of one or more sequences, packed.

    token_ids: (T,); position_ids: (3, T); lengths: rows of every sequence; vision_slots: (V,) rows whose embedding is
    replaced by the rows of `vision`, in the same order; output_rows: rows to compute logits for, None for all.
    """

    token_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    vision_slots: Tensor
    vision: VisionTokens | None = None
    output_rows: Tensor | None = None

    @classmethod
    def pack(
        cls,
        windows: SequenceOf[Sequence | Window],
        vision: SequenceOf[VisionTokens | None] | VisionTokens | None = None,
        *,
        output: Literal["all", "last"] = "all",
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Pack sequences, or windows of them, one behind the other.

        `vision` holds each sequence's vision tokens (all of the request, not just the window's), or one value with those
        of all sequences in order, when the sequences are whole. output: "all" rows, or the "last" row of each sequence.
        """
        if output not in ("all", "last"):
            raise ValueError(f"output must be 'all' or 'last', not {output!r}")
        ids = np.concatenate([w.token_ids for w in windows])
        lengths = tuple(len(w.token_ids) for w in windows)
        rows = [w.vision_rows for w in windows]
        slots = np.flatnonzero(np.concatenate(rows) >= 0)
        tokens = _gather(rows, vision)
        if len(slots) and tokens is None:
            raise PromptError(f"the sequences hold {len(slots)} vision rows but no vision tokens were given; encode them first")
        last = torch.from_numpy(np.cumsum(lengths) - 1).to(device) if output == "last" else None
        return cls(
            token_ids=torch.from_numpy(ids).to(device),
            position_ids=torch.from_numpy(np.concatenate([w.position_ids for w in windows], axis=1)).to(device),
            lengths=lengths,
            vision_slots=torch.from_numpy(slots).to(device),
            vision=tokens,
            output_rows=last,
        )

    @classmethod
    def step(cls, token_ids: SequenceOf[int], positions: SequenceOf[int], device: torch.device | str = "cpu") -> Batch:
        """Pack one decoded token of every sequence; its three positions are equal."""
        where = torch.tensor(positions, device=device).expand(3, -1)
        empty = torch.empty(0, dtype=torch.long, device=device)
        return cls(torch.tensor(token_ids, device=device), where, (1,) * len(token_ids), empty)

    def with_output(self, rows: Tensor) -> Batch:
        """Ask for the logits of other rows."""
        return replace(self, output_rows=rows)


def _gather(rows: list[np.ndarray], vision: SequenceOf[VisionTokens | None] | VisionTokens | None) -> VisionTokens | None:
    """Collect the vision tokens the rows name, in their order."""
    if vision is None:
        return None
    wanted = [window[window >= 0] for window in rows]
    if isinstance(vision, VisionTokens):
        total = sum(map(len, wanted))
        if total != len(vision) or any(not np.array_equal(w, np.arange(len(w))) for w in wanted):
            raise PromptError(
                f"whole sequences with {len(vision)} vision rows in all were expected, but {total} are named; "
                "give each window its own vision tokens"
            )
        return vision if total else None
    parts = []
    for window, source in zip(wanted, vision, strict=True):
        if len(window):
            if source is None or window.max() >= len(source):
                have = 0 if source is None else len(source)
                raise PromptError(f"the sequence names vision row {window.max()} but {have} vision tokens were given")
            parts.append(_rows(source, window))
    if len(parts) <= 1:
        return parts[0] if parts else None
    return VisionTokens.cat(parts)


def _rows(tokens: VisionTokens, wanted: np.ndarray) -> VisionTokens:
    first, count = int(wanted[0]), len(wanted)
    if np.array_equal(wanted, np.arange(first, first + count)):
        return tokens.take(slice(first, first + count))  # the common case, and no copy
    return tokens.take(torch.from_numpy(wanted).to(tokens.embeddings.device))

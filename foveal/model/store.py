"""How a cache keeps keys and values: as floats, or in 8 bits with a float16 scale for every 32 numbers of a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal import kernels
from foveal.kernels.oracle import GROUP

Kept = tuple[Tensor, ...]  # keys and values (..., S, H) and, where these are int8, the scales of both, (..., S, ceil(H / 32))


class KVStore:
    """Keys and values in all layers: (L, 2, G, S, H), and of int8 float16 scales (L, 2, G, S, ceil(H / 32)).

    A place is a slice of the S slots, or their numbers on the store's device.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, *, slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (num_layers, 2, num_kv_heads, slots)
        self.parts = [torch.empty(*shape, head_dim, dtype=dtype, device=device)]
        if dtype == torch.int8:
            self.parts.append(torch.empty(*shape, -(-head_dim // GROUP), dtype=torch.float16, device=device))

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def slots(self) -> int:
        return self.parts[0].shape[3]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def grow(self, slots: int, keep: int) -> None:
        """Become so many slots; the first `keep` hold what they held."""
        for i, old in enumerate(self.parts):
            self.parts[i] = old.new_empty(*old.shape[:3], slots, old.shape[4])
            self.parts[i][:, :, :, :keep] = old[:, :, :, :keep]

    def write(self, layer: int, place: slice | Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows (T, G, H) at a place of a layer. Raise FovealError for NaN and infinity where the kernels quantise them."""
        for which, new in enumerate((keys, values)):
            rows, into = new.transpose(0, 1), [part[layer, which] for part in self.parts]
            if self.dtype != torch.int8:
                _put(into[0], place, rows)
            elif isinstance(place, slice) and native(new):
                kernels.quantise_cache(rows, out=(into[0][:, place], into[1][:, place]))
            else:
                made = kernels.quantise_cache(rows.contiguous()) if native(new) else quantise(rows)
                for part, narrow in zip(into, made, strict=True):
                    _put(part, place, narrow)

    def read(self, layer: int, place: slice | Tensor) -> Kept:
        """Return what a layer keeps at a place: views of a slice, copies of what is scattered."""
        chosen = [
            part[layer, which, :, place] if isinstance(place, slice) else part[layer, which].index_select(1, place)
            for part in self.parts
            for which in (0, 1)
        ]
        return tuple(chosen)

    def views(self, place: slice) -> Kept:
        """Return what all layers keep at a place, keys and values (L, G, S, H)."""
        return tuple(part[:, which, :, place] for part in self.parts for which in (0, 1))


def native(x: Tensor) -> bool:
    """Say whether the kernels can work with keys, values or queries of this kind."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and kernels.available()


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise keys or values (..., H) by torch, to the bits of `kernels.quantise_cache`; NaN and infinity read back as NaN."""
    dim = x.shape[-1]
    groups = F.pad(x.float(), (0, -dim % GROUP)).unflatten(-1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / 127).half()
    wide = scales.float()
    inverse = torch.where(wide == 0, wide, 1 / wide)
    codes = (groups * inverse[..., None]).round().clamp(-127, 127).nan_to_num().to(torch.int8)
    return codes.flatten(-2)[..., :dim], scales


def widen(kept: Kept, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return keys and values (..., S, H) as floats."""
    keys, values, *scales = kept
    if not scales:
        return keys.to(dtype), values.to(dtype)
    dim = keys.shape[-1]
    wide = [scale.float().repeat_interleave(GROUP, -1)[..., :dim] for scale in scales]
    return (keys * wide[0]).to(dtype), (values * wide[1]).to(dtype)


def _put(part: Tensor, place: slice | Tensor, rows: Tensor) -> None:
    if isinstance(place, slice):
        part[:, place] = rows
    else:
        part.index_copy_(1, place, rows.to(part.dtype))

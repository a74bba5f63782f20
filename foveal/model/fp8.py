"""Checkpoints in 8-bit floats: e4m3 weights with one scale for every block, undone when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.errors import CheckpointError

SUFFIX = "_scale_inv"  # q_proj.weight and q_proj.weight_scale_inv, experts.down_proj and experts.down_proj_scale_inv
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)


@dataclass(frozen=True)
class Blocks:
    """The block of a weight's last two axes that shares a scale, 128 x 128 in released checkpoints."""

    rows: int
    columns: int

    @classmethod
    def from_config(cls, raw: Mapping[str, Any] | None, where: str) -> Blocks | None:
        """Read config.json's `quantization_config`; None if the checkpoint has none.

        Raise CheckpointError for any other way of writing weights in fewer bits.
        """
        if raw is None:
            return None
        if not isinstance(raw, Mapping):
            raise CheckpointError(f"{where}: quantization_config is {raw!r}; an object was expected")
        supported = "foveal reads plain weights and quant_method fp8 (e4m3, scales by block, dynamic activations)"
        method, form = raw.get("quant_method"), raw.get("fmt", "e4m3")
        if method != "fp8" or form != "e4m3":
            kind = repr(method) if method != "fp8" else f"fp8 in fmt {form!r}"
            raise CheckpointError(f"{where}: the weights are quantized with {kind}; {supported}; use what they were made from")
        if (scheme := raw.get("activation_scheme", "dynamic")) != "dynamic":
            raise CheckpointError(f"{where}: activation_scheme is {scheme!r}; {supported}")
        block = raw.get("weight_block_size")
        if not isinstance(block, (list, tuple)) or len(block) != 2 or any(type(n) is not int or n < 1 for n in block):
            raise CheckpointError(f"{where}: weight_block_size is {block!r}, not two counts such as [128, 128]; {supported}")
        return cls(*block)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Say how many scales a weight of `shape` has; a block may stick out of its edge."""
        *outer, rows, columns = shape
        return (*outer, -(-rows // self.rows), -(-columns // self.columns))

    def dequantize(self, values: Tensor, scales: Tensor) -> Tensor:
        """Multiply every block by its scale, in place. values: (..., N, K), float32; scales: `grid` of its shape."""
        wide = scales.float().repeat_interleave(self.columns, dim=-1)[..., : values.shape[-1]]
        for i, rows in enumerate(values.split(self.rows, dim=-2)):
            rows.mul_(wide[..., i : i + 1, :])
        return values

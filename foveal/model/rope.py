"""Rotary positions: two axes in the vision encoder, three interleaved axes in the decoder, YaRN for long contexts.

All of them turn pairs of channels (i, i + half) by position times frequency ("rotate_half"). Tables hold one half: the
reference doubles cos and sin instead, with the same products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveal.config import RopeConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (T, heads, H) by tables (T, H/2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def vision_tables(rows_columns: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Make float32 cos and sin, (P, H/2), of patches at (P, 2) rows and columns; each axis has half of the frequencies."""
    axis = head_dim // 2
    exponent = torch.arange(0, axis, 2, dtype=torch.float32, device=rows_columns.device) / axis
    angles = rows_columns.float()[:, :, None] * (1.0 / theta**exponent)  # (P, 2, H/4)
    angles = angles.flatten(1)
    return angles.cos(), angles.sin()


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Compute the decoder's (H/2,) float32 inverse frequencies and the factor on cos and sin.

    Source for YaRN: transformers `modeling_rope_utils.py::_compute_yarn_parameters` (static: the same at every length).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / rope.theta**exponent
    if rope.rope_type == "default":
        return plain, 1.0
    assert rope.original_max_position_embeddings is not None  # RopeConfig refuses yarn without it

    def dimension(rotations: float) -> float:
        """Find the frequency that turns `rotations` times within the original context."""
        period = rope.original_max_position_embeddings / (rotations * 2 * math.pi)  # type: ignore[operator]
        return head_dim * math.log(period) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension(rope.beta_fast)), 0)
    high = min(math.ceil(dimension(rope.beta_slow)), head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    scale = rope.attention_factor
    if scale is None:
        scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return plain / rope.factor * (1 - keep) + plain * keep, scale


def axis_of_frequency(section: tuple[int, int, int], interleaved: bool) -> Tensor:
    """Say for each of the H/2 frequencies which axis turns it: 0 time, 1 height, 2 width.

    Interleaved: T H W T H W ... while height and width last, the rest is time's (facts 3i: THW x 20, then TTTT).
    Blocked: T ... T H ... H W ... W.
    """
    t, h, w = section
    if not interleaved:
        return torch.tensor([0] * t + [1] * h + [2] * w)
    owner = torch.zeros(t + h + w, dtype=torch.long)
    owner[1 : 3 * h : 3] = 1
    owner[2 : 3 * w : 3] = 2
    return owner


def text_tables(position_ids: Tensor, inv_freq: Tensor, axes: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Make float32 cos and sin, (T, H/2), from positions (3, T)."""
    angles = position_ids.float()[axes].T.contiguous() * inv_freq
    return angles.cos() * scale, angles.sin() * scale

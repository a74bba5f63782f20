"""The vision encoder: patches to vision tokens, with DeepStack taps leaving at chosen blocks.

Attention stays inside each frame. Patch positions come from the rows' own coordinates, so any subset of patches and any
mixture of resolutions is encoded by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.batch import PatchBatch, VisionTokens
from foveal.config import VisionConfig
from foveal.kernels.frames import MOST_DIM, Frames
from foveal.model.attention import attend_frames
from foveal.model.linear import PackedLinear, gelu
from foveal.model.rope import rotate, vision_tables

LAYER_NORM_EPS = 1e-6  # reference: Qwen3VLVisionBlock


class PatchProjection(nn.Module):
    """The patch embedding: the weight keeps the checkpoint's five axes, the product is a Linear, never a Conv3d.

    With stride = kernel a convolution is one matrix product; several backends run Conv3d thousands of times slower.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        shape = (config.hidden_size, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        # Kept as numbers, not buffers: a model built on the meta device needs no second filling.
        self.mean, self.std = config.image_mean, config.image_std

    def folded(self, frames: int) -> tuple[Tensor, Tensor]:
        """Fold pixel normalisation ((x / 255 - mean) / std) into weight and bias; sum the temporal kernels for one frame.

        A picture is the same frame twice, so its product with both kernels is its product with their sum.
        """
        weight = self.weight.float()
        mean, std = (weight.new_tensor(v).view(1, -1, 1, 1, 1) for v in (self.mean, self.std))
        bias = self.bias.float() - (weight * (mean / std)).sum(dim=(1, 2, 3, 4))
        weight = weight / (255.0 * std)
        if frames == 1:
            weight = weight.sum(dim=2, keepdim=True)
        return weight.flatten(1), bias

    def forward(self, pixels: Tensor, frames: int) -> Tensor:
        """Embed (P, C*frames*p*p) uint8 rows. Return (P, C) in the weights' dtype.

        The product is in float32 whatever the weights are: the folded bias nearly cancels the product on grey pictures,
        and in bfloat16 that made the result twelve times less exact than the reference's.
        """
        return self.embed(pixels, *self.folded(frames))

    def embed(self, pixels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Do what `forward` does, with what `folded` returned."""
        return F.linear(pixels.float(), weight, bias).to(self.weight.dtype)


class PatchEmbed(nn.Module):
    """Still pictures and frame pairs through the same kernel, back in the order of the request."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = PatchProjection(config)
        self.temporal_patch_size = config.temporal_patch_size

    def forward(self, batch: PatchBatch) -> Tensor:
        parts = []
        if len(batch.stills):
            parts.append(self.proj(batch.stills, 1))
        if len(batch.pairs):
            parts.append(self.proj(batch.pairs, self.temporal_patch_size))
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return rows if batch.order is None else rows[batch.order]


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
        if self.in_integers:
            frames = Frames(self.qkv(x), lengths, self.num_heads)
            frames.pack(*tables)
            return self.proj(frames.attend(*tables))
        return self.proj(attend_frames(*self.heads(x, tables), lengths).flatten(1))

    @property
    def in_integers(self) -> bool:
        """Say whether queries, keys and values are what the kernels attend with: of a packed linear, heads not too long."""
        return isinstance(self.qkv, PackedLinear) and self.qkv.packed.rows <= 3 * MOST_DIM * self.num_heads

    def heads(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of rows (P, C), (P, heads, H) each."""
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1).unbind(1)
        # The reference turns queries and keys in float32 (apply_rotary_pos_emb_vision).
        q, k = (rotate(part.float(), *tables).to(x.dtype) for part in (q, k))
        return q, k, v


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(gelu(x, self.linear_fc1))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
        x = x + self.attn(self.norm1(x), tables, lengths)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """merge*merge patches to one vision token of the decoder's width.

    The main merger norms each patch before they are joined; a tap's merger norms the joined row. GELU here is the exact
    one, in the blocks the tanh approximation (reference: Qwen3VLVisionPatchMerger).
    """

    def __init__(self, config: VisionConfig, *, norm_joined: bool) -> None:
        super().__init__()
        self.joined = config.hidden_size * config.spatial_merge_size**2
        self.norm = nn.LayerNorm(self.joined if norm_joined else config.hidden_size, eps=LAYER_NORM_EPS)
        self.norm_joined = norm_joined
        self.linear_fc1 = nn.Linear(self.joined, self.joined)
        self.linear_fc2 = nn.Linear(self.joined, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Merge (P, C) rows in merge-block order. Return (V, D)."""
        x = self.norm(x.view(-1, self.joined)) if self.norm_joined else self.norm(x).view(-1, self.joined)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class VisionModel(nn.Module):
    """Patch embedding, learned and rotary positions, blocks, mergers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = Merger(config, norm_joined=False)
        self.deepstack_merger_list = nn.ModuleList(Merger(config, norm_joined=True) for _ in config.taps)
        self.tap_of_block = {block: tap for tap, block in enumerate(config.taps)}

    def forward(self, batch: PatchBatch) -> VisionTokens:
        """Encode packed patches of any number of pictures and clips."""
        x = self.placed(self.patch_embed(batch), batch.position_index, batch.position_weight)
        tables, taps = self._tables(batch), []
        for i, block in enumerate(self.blocks):
            x = block(x, tables, batch.lengths)
            if i in self.tap_of_block:
                taps.append(self.deepstack_merger_list[self.tap_of_block[i]](x))
        merged = self.merger(x)
        return VisionTokens(merged, torch.stack(taps) if taps else merged.new_empty(0, *merged.shape), batch.token_coords)

    def placed(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Add learned positions to embedded patches (P, C); index, weight: (P, 4) as of `PatchBatch`."""
        # The learned table, read bilinearly at each patch: four neighbours and their float32 weights (facts 3h).
        return x + (self.pos_embed(index) * weight[:, :, None]).sum(dim=1).to(x.dtype)

    def _tables(self, batch: PatchBatch) -> tuple[Tensor, Tensor]:
        return vision_tables(batch.rows_columns, self.config.head_dim, self.config.rope_theta)

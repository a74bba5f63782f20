"""The decoder: grouped-query attention with normed queries and keys, SwiGLU, and taps added after chosen layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from foveal.batch import Batch
from foveal.config import TextConfig
from foveal.kernels import Activations
from foveal.model.attention import KVCache, attend
from foveal.model.linear import PackedEmbedding, PackedLinear, swiglu, turned
from foveal.model.moe import SparseMLP
from foveal.model.rms_norm import RMSNorm
from foveal.model.rope import axis_of_frequency, inverse_frequencies, text_tables

FEW = 16  # tokens of a sequence that one call takes: each attends by itself, many are faster together
FEW_PAIRS = 2**14  # of such a token and what it sees, below which attention does not count, and more may come
Tables = tuple[Tensor, Tensor]  # cosines and sines, (T, H / 2)
After = Mapping[int, Callable[[], object]]  # what else is done to the rows behind a layer
Step = Callable[[Tensor, Tables, Sequence[KVCache], Sequence[int], After], bool]


class Attention(nn.Module):
    """Self-attention of one layer; each head of queries and keys is normed before it is turned."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        d, h, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.layer, self.head_dim = layer, h
        self.q_proj = nn.Linear(d, config.num_attention_heads * h, bias=bias)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * h, bias=bias)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * h, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * h, d, bias=bias)
        self.q_norm = RMSNorm(h, config.rms_norm_eps)
        self.k_norm = RMSNorm(h, config.rms_norm_eps)

    def forward(
        self, x: Tensor | Activations, tables: Tables, lengths: Sequence[int],
        caches: Sequence[KVCache] | None,
    ) -> Tensor:  # fmt: skip
        q, k, v = (self._heads(linear(x)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        q, k = turned(self.q_norm, q, *tables), turned(self.k_norm, k, *tables)  # (T, N, H), (T, G, H)
        packed = isinstance(self.q_proj, PackedLinear)
        return self.o_proj(attend(q, k, v, lengths, caches, self.layer, in_integers=packed).flatten(1))

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), -1, self.head_dim)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor | Activations) -> Tensor:
        out: Tensor = self.down_proj(swiglu(x, self.gate_proj, self.up_proj))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added back."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        sparse = config.moe is not None and config.moe.is_sparse(layer)
        self.mlp: nn.Module
        if sparse and config.moe is not None:
            self.mlp = SparseMLP(config.moe, config.hidden_size)
        else:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, tables: Tables, lengths: Sequence[int], caches: Sequence[KVCache] | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tables, lengths, caches)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """Embeddings, layers, final norm. `tap_layers[j]` is the layer after which tap j is added to the vision rows."""

    inv_freq: Tensor
    axes: Tensor

    def __init__(self, config: TextConfig, tap_layers: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.tap_of_layer = {layer: tap for tap, layer in enumerate(tap_layers)}
        self.embed_tokens: nn.Embedding | PackedEmbedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # Puts a few new tokens of each sequence through all layers at once, or says it cannot; quantize.py sets it.
        self.step: Step | None = None
        self.reset_tables()

    def reset_tables(self) -> None:
        """Compute the frequency tables where the weights are, in float32 whatever they are."""
        with torch.device("cpu"):
            inv_freq, self.rope_scale = inverse_frequencies(self.config.rope, self.config.head_dim)
            axes = axis_of_frequency(self.config.rope.mrope_section, self.config.rope.interleaved)
        device = self.norm.weight.device
        if device.type == "meta":
            device = torch.device("cpu")
        self.register_buffer("inv_freq", inv_freq.to(device), persistent=False)
        self.register_buffer("axes", axes.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, cast or allocate (`to`, `bfloat16`, `to_empty`), then make the tables anew.

        A cast would round the frequencies too, and with them every far position: in bfloat16 by 0.4 %, that is by whole
        turns of the fast frequencies a thousand tokens on.
        """
        super()._apply(fn, recurse)
        self.reset_tables()
        return self

    def forward(self, batch: Batch, caches: Sequence[KVCache] | None = None) -> Tensor:
        """Run packed rows through all layers. Return normed hidden states, (T, D)."""
        x = self.embed_tokens(batch.token_ids)
        vision = batch.vision
        if vision is not None:
            x = x.index_copy(0, batch.vision_slots, vision.embeddings.to(x.dtype))
        cos, sin = text_tables(batch.position_ids, self.inv_freq, self.axes, self.rope_scale)
        tables = cos.to(x.dtype), sin.to(x.dtype)  # the reference casts the tables, then multiplies
        if caches is not None and len(caches) != len(batch.lengths):
            raise ValueError(f"{len(batch.lengths)} sequences need as many caches, not {len(caches)} caches")
        for cache, n in zip(caches or (), batch.lengths, strict=False):
            cache.reserve(n)
        taps = {} if vision is None else {i: vision.taps[tap].to(x.dtype) for i, tap in self.tap_of_layer.items()}
        if not self._in_one_call(x, tables, batch, caches, taps):
            for i, layer in enumerate(self.layers):
                x = layer(x, tables, batch.lengths, caches)
                if i in taps:
                    x = x.index_add(0, batch.vision_slots, taps[i])
        for cache, n in zip(caches or (), batch.lengths, strict=False):
            cache.length += n
        return self.norm(x)

    def _in_one_call(
        self, x: Tensor, tables: Tables, batch: Batch, caches: Sequence[KVCache] | None, taps: dict[int, Tensor]
    ) -> bool:
        """Put x (T, D) through all layers in place where something suits the batch; else return False, with nothing done."""
        if not (self.step and caches and any(cache.length or n == 1 for cache, n in zip(caches, batch.lengths, strict=True))):
            return False
        if not all(n <= FEW or n * (n + cache.length) <= FEW_PAIRS for cache, n in zip(caches, batch.lengths, strict=True)):
            return False
        add = {i: partial(x.index_add_, 0, batch.vision_slots, tap) for i, tap in taps.items()}
        return self.step(x, tables, caches, batch.lengths, add)

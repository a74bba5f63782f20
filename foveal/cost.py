"""What a prompt costs, in closed form and without torch: FLOPs by stage, bytes of weights and of the key-value cache.

A FLOP here is one multiplication or one addition of a matrix product, so a product of (a, b) and (b, c) counts 2abc. Norms,
activations, softmax, rotary tables, biases, embedding rows and the bilinear position table are left out: memory bounds
them, not arithmetic. Attention of the decoder counts the positions in view, T(T + 1) / 2, although some
kernels compute the other half as well. A mixture of experts counts the experts a token visits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from foveal.config import CACHE_DTYPES, DTYPE_BYTES, ModelConfig, TextConfig, VisionConfig
from foveal.errors import PromptError

if TYPE_CHECKING:
    from foveal.sequence import Kind  # numpy stays out of a start that only reads configurations


@dataclass(frozen=True)
class VisionFlops:
    """Encoding all pictures and clips of a request."""

    patch_embedding: int = 0
    blocks: int = 0  # the linears: qkv, output, MLP
    attention: int = 0  # scores and sums, inside every frame
    mergers: int = 0  # the main one and the taps'

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class DecoderFlops:
    """Running new tokens through the decoder."""

    layers: int = 0  # the linears: attention projections, router, MLP or visited experts
    attention: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Cost:
    """What one request costs.

    patches, vision_tokens, tokens: rows of the encoder, rows it gives, all rows of the prompt. encode, prefill: FLOPs of the
    whole prompt, which gives the first token; decode: FLOPs of the token after it (attention grows with every further one);
    answer: of all `new_tokens` after the first. weight_bytes: all weights; kv_bytes: the cache of prompt and `new_tokens`;
    decode_read_bytes: what one generated token reads at least, the weights it passes through and the prompt's cache, so
    memory speed / decode_read_bytes bounds tokens a second.
    """

    patches: int
    vision_tokens: int
    tokens: int
    new_tokens: int
    dtype: str  # of the weights
    kv_cache: str  # what the cache holds
    encode: VisionFlops
    prefill: DecoderFlops
    decode: DecoderFlops
    answer: DecoderFlops
    weight_bytes: int
    kv_bytes: int
    decode_read_bytes: int

    @property
    def prompt_flops(self) -> int:
        """FLOPs until the first token."""
        return self.encode.total + self.prefill.total


def encode_flops(vision: VisionConfig, media: Iterable[tuple[Kind, Iterable[int]]]) -> VisionFlops:
    """Count FLOPs of the vision encoder; each media is its kind and the patches of every frame (pair)."""
    c, merge = vision.hidden_size, vision.spatial_merge_size**2
    pixels = vision.in_channels * vision.patch_size**2
    embedding = patches = pairs = 0
    for kind, lengths in media:
        # A still picture goes through the sum of the temporal kernels: half the products of a frame pair.
        inputs = pixels * (1 if kind == "image" else vision.temporal_patch_size)
        for n in lengths:
            embedding += 2 * n * inputs * c
            patches += n
            pairs += n * n
    wide = c * merge
    return VisionFlops(
        patch_embedding=embedding,
        blocks=2 * patches * vision.depth * (4 * c * c + 2 * c * vision.intermediate_size),
        attention=4 * pairs * c * vision.depth,
        mergers=2 * (patches // merge) * (1 + len(vision.taps)) * (wide * wide + wide * vision.out_hidden_size),
    )


def decoder_flops(text: TextConfig, tokens: int, *, cached: int = 0, outputs: int = 1) -> DecoderFlops:
    """Count FLOPs of `tokens` new tokens behind `cached` ones, with logits for `outputs` rows."""
    heads, d = text.num_attention_heads * text.head_dim, text.hidden_size
    projections = 2 * d * heads + 2 * d * text.num_key_value_heads * text.head_dim
    linears = sum(projections + text.mlp_parameters(i, active=True) for i in range(text.num_hidden_layers))
    in_view = tokens * cached + tokens * (tokens + 1) // 2
    return DecoderFlops(
        layers=2 * tokens * linears,
        attention=4 * in_view * heads * text.num_hidden_layers,
        head=2 * outputs * d * text.vocab_size,
    )


def estimate(
    config: ModelConfig,
    media: Iterable[tuple[Kind, Iterable[int]]],
    tokens: int,
    *,
    new_tokens: int = 0,
    dtype: str | None = None,
    kv_cache: str | None = None,
) -> Cost:
    """Price a prompt of `tokens` rows, vision tokens among them.

    dtype defaults to the checkpoint's own, kv_cache, what the cache holds ("int8" too), to dtype.
    Each media is its kind and the patches of every frame (pair), as `Patches.kind` and `Patches.lengths()` give them.
    """
    dtype = dtype or config.dtype
    if dtype not in DTYPE_BYTES:
        raise PromptError(f"dtype is {dtype!r}; expected one of {sorted(DTYPE_BYTES)}")
    kv_cache = kv_cache or dtype
    if kv_cache not in {*DTYPE_BYTES, *CACHE_DTYPES}:
        raise PromptError(f"kv_cache is {kv_cache!r}; expected one of {sorted({*DTYPE_BYTES, *CACHE_DTYPES})}")
    listed = [(kind, list(lengths)) for kind, lengths in media]
    patches = sum(n for _, lengths in listed for n in lengths)
    vision_tokens = patches // config.vision.spatial_merge_size**2
    if not 0 < tokens >= vision_tokens:
        raise PromptError(f"a prompt of {tokens} tokens cannot hold {vision_tokens} vision tokens; count both together")
    later = max(new_tokens - 1, 0)
    per_token = config.text.kv_bytes_per_token(kv_cache)
    return Cost(
        patches=patches,
        vision_tokens=vision_tokens,
        tokens=tokens,
        new_tokens=new_tokens,
        dtype=dtype,
        kv_cache=kv_cache,
        encode=encode_flops(config.vision, listed),
        prefill=decoder_flops(config.text, tokens),
        decode=decoder_flops(config.text, 1, cached=tokens),
        answer=decoder_flops(config.text, later, cached=tokens, outputs=later),
        weight_bytes=config.weight_bytes(dtype),
        kv_bytes=per_token * (tokens + new_tokens),
        decode_read_bytes=config.num_active_parameters * DTYPE_BYTES[dtype] + per_token * tokens,
    )

"""Tiny random models and media for tests, as unkind as a configuration may be.

Unkind: sides that differ, odd tap blocks, several query heads a key head, head_dim other than hidden / heads, norm weights
that are not one, biases that are not zero, tied and untied heads, dense and sparse layers in turn, every patch geometry.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from foveal.config import ModelConfig, MoeConfig, RopeConfig, TextConfig, VisionConfig
from foveal.model import Qwen3VL
from foveal.patches import Patches, merge_block_coords
from foveal.sequence import Segment, Sequence, TextSegment, VisionSegment, build

VOCABULARY = 211
IMAGE, VIDEO, START, END = 200, 201, 202, 203
WORDS = 200  # ids below it are ordinary text

Medium = tuple[Literal["image", "video"], int, int, int]  # kind, temporal patches, rows and columns in vision tokens


def _vision(**changes: object) -> VisionConfig:
    base = VisionConfig(
        depth=5, hidden_size=48, num_heads=3, intermediate_size=72, patch_size=4, temporal_patch_size=2,
        spatial_merge_size=2, in_channels=3, num_position_embeddings=49, out_hidden_size=40, taps=(0, 2, 3),
        tap_layers=(0, 1, 2),
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def _text(**changes: object) -> TextConfig:
    base = TextConfig(
        vocab_size=VOCABULARY, hidden_size=40, intermediate_size=56, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=2, head_dim=24, max_position_embeddings=4096,
        rope=RopeConfig(theta=10000.0, mrope_section=(6, 3, 3)),
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def _model(vision: VisionConfig, text: TextConfig, *, tied: bool) -> ModelConfig:
    return ModelConfig(
        vision=vision, text=text, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START,
        vision_end_token_id=END, tie_word_embeddings=tied, dtype="float32",
    )  # fmt: skip


CONFIGS: dict[str, ModelConfig] = {
    "dense-tied": _model(_vision(), _text(), tied=True),
    # YaRN over a short original context, so that every part of its ramp occurs; biases; the last block tapped.
    "dense-yarn": _model(
        _vision(patch_size=6, taps=(1, 4), tap_layers=(0, 1), num_position_embeddings=25, out_hidden_size=56),
        _text(
            hidden_size=56, num_attention_heads=4, num_key_value_heads=1, attention_bias=True, rms_norm_eps=1e-5,
            rope=RopeConfig(
                theta=5000.0, mrope_section=(4, 4, 4), rope_type="yarn", factor=3.0, original_max_position_embeddings=64
            ),
        ),
        tied=False,
    ),
    # The head widths, axes, table and patch of the released 8B, on narrow layers.
    "released-heads": _model(
        _vision(hidden_size=144, num_heads=2, patch_size=16, num_position_embeddings=2304, out_hidden_size=64, taps=(1, 2, 4)),
        _text(
            hidden_size=64, num_attention_heads=4, head_dim=128, max_position_embeddings=262144,
            rope=RopeConfig(theta=5e6, mrope_section=(24, 20, 20)),
        ),
        tied=False,
    ),
    "moe": _model(
        _vision(),
        _text(num_attention_heads=4, num_key_value_heads=4, moe=MoeConfig(8, 3, 24)),
        tied=False,
    ),
    # Dense and sparse layers in turn (1 and 3 would be sparse, 3 is taken out), three patches a side and a long frame.
    "moe-mixed": _model(
        _vision(temporal_patch_size=3, spatial_merge_size=3, patch_size=2, taps=(1, 3, 4), depth=5),
        _text(num_hidden_layers=6, moe=MoeConfig(6, 2, 16, decoder_sparse_step=2, mlp_only_layers=(3,))),
        tied=True,
    ),
}  # fmt: skip

SCENES: dict[str, tuple[Medium, ...]] = {
    "picture": (("image", 1, 3, 5),),
    "pictures": (("image", 1, 2, 4), ("image", 1, 5, 3)),
    "clip": (("video", 3, 2, 3),),
    "mixed": (("video", 2, 3, 2), ("image", 1, 4, 1), ("video", 3, 1, 4), ("image", 1, 2, 3)),
    "text": (),
}


def new_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen3VL:
    """Make a model whose every parameter is random, of a size that keeps activations and logits near one."""
    model = Qwen3VL(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.empty(parameter.shape).normal_(generator=generator)
            if name.endswith("bias"):
                values *= 0.2
            elif parameter.ndim == 1:  # norms
                values = 1 + 0.3 * values
                if "q_norm" in name:
                    values *= 4  # attention that picks, so that greedy text depends on all of the prompt
            elif "embed_tokens" in name:
                # Small beside what the layers add: a tied head would otherwise only repeat the last token.
                values *= 0.3
            else:
                # Experts are stored transposed: their inputs are the axis before the last.
                inputs = parameter.shape[1] if "experts" in name else parameter[0].numel()
                values *= inputs**-0.5
            parameter.copy_(values)
    return model.to(dtype).eval()


def new_patches(config: VisionConfig, medium: Medium, rng: np.random.Generator) -> Patches:
    """Make random patches of one picture or clip."""
    kind, t, rows, columns = medium
    m = config.spatial_merge_size
    h, w, frames = rows * m, columns * m, 1 if kind == "image" else config.temporal_patch_size
    values = config.in_channels * frames * config.patch_size**2
    return Patches(
        pixels=rng.integers(0, 256, (t * h * w, values), dtype=np.uint8),
        coords=merge_block_coords(t, h, w, m),
        grids=((h, w),) * t,
        times_s=tuple(float(i) for i in range(t)),
        kind=kind,
        merge=m,
        source_size=(h * config.patch_size, w * config.patch_size),
    )


def new_media(config: VisionConfig, scene: tuple[Medium, ...], seed: int = 0) -> list[Patches]:
    rng = np.random.default_rng(seed)
    return [new_patches(config, medium, rng) for medium in scene]


def new_segments(media: list[Patches], seed: int = 0, keep: list[list[int]] | None = None) -> list[Segment]:
    """Lay random words around the media, in the released layout: every frame of a clip in a vision block of its own.

    `keep` lists, for every medium, the vision tokens that stay.
    """
    rng = np.random.default_rng(seed + 1)

    def words(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(0, WORDS, rng.integers(low, high)))

    segments: list[Segment] = [TextSegment(words(2, 6))]
    for i, patches in enumerate(media):
        tokens = patches.coords[:: patches.merge**2]
        if keep is not None:
            tokens = tokens[keep[i]]
        for frame in range(len(patches.grids)):
            stamp = words(1, 4) if patches.kind == "video" else ()
            of_frame = tokens[tokens[:, 0] == frame, 1:] // patches.merge
            kept = None if keep is None else tuple((int(r), int(c)) for r, c in of_frame)
            segments += [TextSegment((*stamp, START)), VisionSegment(i, frame, kept), TextSegment((END,))]
        segments.append(TextSegment(words(0, 4)))
    segments.append(TextSegment(words(3, 7)))
    return segments


def new_sequence(media: list[Patches], merge: int, seed: int = 0, keep: list[list[int]] | None = None) -> Sequence:
    return build(
        new_segments(media, seed, keep),
        [m.grids for m in media],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        kinds=[m.kind for m in media],
        merge=merge,
    )

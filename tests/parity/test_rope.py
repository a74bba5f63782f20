"""Frequencies and rotary tables equal the reference's, with and without YaRN, at the released width too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from foveal.config import RopeConfig, preset
from foveal.model.rope import axis_of_frequency, inverse_frequencies, text_tables, vision_tables
from tests.parity.reference import transformers
from tests.tiny import CONFIGS

RELEASED = preset("8B").text.rope
ROPES = {
    "released": (RELEASED, 128),
    "yarn 2": (replace(RELEASED, rope_type="yarn", factor=2.0, original_max_position_embeddings=262144), 128),
    "yarn 3": (replace(RELEASED, rope_type="yarn", factor=3.0, original_max_position_embeddings=262144), 128),
    "yarn 4": (replace(RELEASED, rope_type="yarn", factor=4.0, original_max_position_embeddings=262144), 128),
    "yarn 1": (replace(RELEASED, rope_type="yarn", factor=1.0, original_max_position_embeddings=262144), 128),
    "yarn with its own numbers": (
        RopeConfig(
            theta=1e4, mrope_section=(12, 10, 10), rope_type="yarn", factor=8.0, original_max_position_embeddings=2048,
            beta_fast=20.0, beta_slow=2.0, attention_factor=1.25,
        ),
        64,
    ),
    "yarn, every frequency stretched": (
        RopeConfig(theta=1e4, mrope_section=(6, 3, 3), rope_type="yarn", factor=2.0, original_max_position_embeddings=4), 24
    ),
    "tiny": (CONFIGS["dense-tied"].text.rope, 24),
}  # fmt: skip


def _reference(rope: RopeConfig, head_dim: int) -> torch.nn.Module:
    hf = transformers()
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    config = preset("8B")
    text = replace(config.text, rope=rope, head_dim=head_dim)
    raw = replace(config, text=text).to_dict("5")["text_config"]
    return Qwen3VLTextRotaryEmbedding(hf.Qwen3VLTextConfig(**raw))


@pytest.mark.parametrize("name", list(ROPES))
def test_inverse_frequencies(name: str) -> None:
    rope, head_dim = ROPES[name]
    ours, scale = inverse_frequencies(rope, head_dim)
    theirs = _reference(rope, head_dim)
    assert float(((ours - theirs.inv_freq) / theirs.inv_freq).abs().max()) < 1e-6
    assert scale == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("name", list(ROPES))
def test_text_tables(name: str) -> None:
    """Compare cos and sin at far positions; the reference holds every half twice."""
    rope, head_dim = ROPES[name]
    positions = torch.from_numpy(np.random.default_rng(0).integers(0, 200_000, (3, 50)))
    inv_freq, scale = inverse_frequencies(rope, head_dim)
    axes = axis_of_frequency(rope.mrope_section, rope.interleaved)
    reference = _reference(rope, head_dim)
    # A rounding of the frequency grows with the position, so both sides turn by the same frequencies here.
    assert torch.allclose(inv_freq, reference.inv_freq, rtol=1e-6, atol=0)
    ours = text_tables(positions, reference.inv_freq, axes, scale)
    theirs = reference(torch.zeros(1), positions[:, None])
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(other[0, :, : head_dim // 2], other[0, :, head_dim // 2 :])
        assert float((own - other[0, :, : head_dim // 2]).abs().max()) < 1e-6


@pytest.mark.parametrize("name", [*CONFIGS, "8B"])
def test_vision_tables(name: str) -> None:
    hf = transformers()
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding

    config = preset(name) if name == "8B" else CONFIGS[name]
    raw = config.to_dict("5")["vision_config"]
    raw["model_type"] = "qwen3_vl_vision"
    places = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 2)))
    ours = vision_tables(places, config.vision.head_dim, config.vision.rope_theta)
    theirs = Qwen3VLVisionRotaryEmbedding(hf.Qwen3VLVisionConfig(**raw))(torch.zeros(1), places)
    half = config.vision.head_dim // 2
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(other[:, :half], other[:, half:])
        assert float((own - other[:, :half]).abs().max()) < 1e-5

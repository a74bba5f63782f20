"""The released sizes: exact parameter counts on the meta device, bytes, and the overview geometry scaled down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foveal.batch import Batch
from foveal.config import PRESETS, RopeConfig, preset
from foveal.model import Qwen3VL
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

PARAMETERS = {
    "2B": 2_127_532_032, "4B": 4_437_815_808, "8B": 8_767_123_696, "32B": 33_357_390_064, "30B-A3B": 31_070_754_032,
    "235B-A22B": 235_670_022_896,
}  # fmt: skip


@pytest.mark.parametrize("name", list(PRESETS))
def test_parameters(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = Qwen3VL(config)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == config.num_parameters
    assert counted == PARAMETERS.get(name, counted)
    assert sum(p.numel() for p in model.visual.parameters()) == config.vision.num_parameters
    assert sum(p.numel() for p in model.language_model.parameters()) == config.text.num_parameters
    assert config.weight_bytes() == 2 * counted
    assert config.weight_bytes("float32") == 4 * counted


@pytest.mark.parametrize("name", list(CONFIGS))
def test_parameters_of_tiny_models(name: str) -> None:
    """Among them attention biases, and sparse layers in turn with dense ones."""
    model = Qwen3VL(CONFIGS[name])
    assert sum(p.numel() for p in model.parameters()) == CONFIGS[name].num_parameters


@pytest.mark.parametrize("name", ["moe", "moe-mixed"])
def test_active_parameters(name: str) -> None:
    """Of the experts a token passes K of E; of the rest everything, a tied head included."""
    config, model = CONFIGS[name], Qwen3VL(CONFIGS[name])
    assert config.text.moe is not None
    unused = 1 - config.text.moe.num_experts_per_tok / config.text.moe.num_experts
    active = config.text.vocab_size * config.text.hidden_size
    for key, parameter in model.language_model.named_parameters():
        if "embed_tokens" not in key:
            active += round(parameter.numel() * (1 - unused if ".experts." in key else 1))
    assert config.num_active_parameters == active


def test_active_parameters_of_released_sizes() -> None:
    """What the names promise: about 3 and 22 billion."""
    assert preset("30B-A3B").num_active_parameters == pytest.approx(3e9, rel=0.1)
    assert preset("235B-A22B").num_active_parameters == pytest.approx(22e9, rel=0.05)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_cache_bytes(name: str) -> None:
    config = CONFIGS[name]
    cache = Qwen3VL(config).new_cache(capacity=100)
    assert cache.num_bytes == 100 * config.text.kv_bytes_per_token("float32")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("2B", 114_688), ("4B", 147_456), ("8B", 147_456), ("32B", 262_144), ("30B-A3B", 98_304), ("235B-A22B", 192_512)],
)
def test_cache_bytes_of_released_sizes(name: str, expected: int) -> None:
    """2 (keys, values) x layers x key heads x 128 x 2 bytes: 8 key heads in the dense sizes, 4 in the sparse ones."""
    assert preset(name).text.kv_bytes_per_token() == expected


@torch.no_grad()
def test_the_overview_geometry_runs() -> None:
    """Its four taps, at ViT blocks 6, 12, 18, 24 and decoder layers 0, 8, 16, 24, on narrow layers."""
    config = preset("overview")
    assert (config.vision.taps, config.vision.tap_layers) == ((6, 12, 18, 24), (0, 8, 16, 24))
    assert config.timestamps == "tokens"
    vision = replace(
        config.vision, hidden_size=32, num_heads=2, intermediate_size=48, patch_size=4, num_position_embeddings=16,
        out_hidden_size=24,
    )  # fmt: skip
    text = replace(
        config.text, vocab_size=211, hidden_size=24, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, rope=RopeConfig(theta=5e6, mrope_section=(4, 2, 2)),
    )  # fmt: skip
    config = replace(
        config, vision=vision, text=text, image_token_id=200, video_token_id=201, vision_start_token_id=202,
        vision_end_token_id=203,
    )  # fmt: skip
    assert (config.vision.depth, config.text.num_hidden_layers) == (25, 36)
    model = new_model(config)
    media = new_media(config.vision, SCENES["mixed"])
    sequence, tokens = new_sequence(media, 2), model.encode(media)
    assert tokens.taps.shape == (4, len(tokens), 24)
    logits = model(Batch.pack([sequence], [tokens]))
    assert torch.isfinite(logits).all()
    for tap in range(4):
        changed = replace(tokens, taps=tokens.taps.clone())
        changed.taps[tap] += 1
        assert float((model(Batch.pack([sequence], [changed])) - logits).abs().max()) > 1e-4


def test_init_weights_fills_every_parameter() -> None:
    model = Qwen3VL(CONFIGS["moe-mixed"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights(seed=3)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert 0.01 < parameter.std().item() < 0.03, name
    again = Qwen3VL(CONFIGS["moe-mixed"])
    again.init_weights(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))

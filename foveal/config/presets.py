"""The shapes of the released sizes, and the one that circulates in overviews."""

from __future__ import annotations

from dataclasses import replace

from foveal.config.shape import ModelConfig, MoeConfig, RopeConfig, TextConfig, VisionConfig
from foveal.errors import ConfigError


def _released(
    layers: int,
    hidden: int,
    heads: tuple[int, int],
    intermediate: int,
    *,
    tied: bool,
    small_vision: bool,
    moe: MoeConfig | None = None,
) -> ModelConfig:
    """Build a released size from facts/qwen3-vl.md section 1."""
    depth, width, inner = (24, 1024, 4096) if small_vision else (27, 1152, 4304)
    taps = (5, 11, 17) if small_vision else (8, 16, 24)
    vision = VisionConfig(
        depth=depth, hidden_size=width, num_heads=16, intermediate_size=inner, patch_size=16, temporal_patch_size=2,
        spatial_merge_size=2, in_channels=3, num_position_embeddings=2304, out_hidden_size=hidden, taps=taps,
        tap_layers=(0, 1, 2),
    )  # fmt: skip
    text = TextConfig(
        vocab_size=151936, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=128, max_position_embeddings=262144,
        rope=RopeConfig(theta=5e6, mrope_section=(24, 20, 20)), moe=moe,
    )  # fmt: skip
    return ModelConfig(
        vision=vision, text=text, image_token_id=151655, video_token_id=151656, vision_start_token_id=151652,
        vision_end_token_id=151653, tie_word_embeddings=tied,
    )  # fmt: skip


def _overview() -> ModelConfig:
    """The geometry that circulates in overviews: four taps spread over both stacks, timestamps as learnable tokens."""
    base = _released(36, 4096, (32, 8), 12288, tied=False, small_vision=False)
    vision = replace(base.vision, depth=25, taps=(6, 12, 18, 24), tap_layers=(0, 8, 16, 24))
    return replace(base, vision=vision, timestamps="tokens")


PRESETS: dict[str, ModelConfig] = {
    "2B": _released(28, 2048, (16, 8), 6144, tied=True, small_vision=True),
    "4B": _released(36, 2560, (32, 8), 9728, tied=True, small_vision=True),
    "8B": _released(36, 4096, (32, 8), 12288, tied=False, small_vision=False),
    "32B": _released(64, 5120, (64, 8), 25600, tied=False, small_vision=False),
    "30B-A3B": _released(48, 2048, (32, 4), 6144, tied=False, small_vision=False, moe=MoeConfig(128, 8, 768)),
    "235B-A22B": _released(94, 4096, (64, 4), 12288, tied=False, small_vision=False, moe=MoeConfig(128, 8, 1536)),
    "overview": _overview(),
}


def preset(name: str) -> ModelConfig:
    """Return the configuration of a released size, case-insensitively. Raise ConfigError with the names that exist."""
    for key, config in PRESETS.items():
        if key.lower() == name.lower():
            return config
    raise ConfigError(f"there is no preset {name!r}; presets are {', '.join(PRESETS)}")

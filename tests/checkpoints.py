"""Whole tiny checkpoints on disk: random weights and the stand-in tokenizer, whose text tokens are single bytes."""

from __future__ import annotations

from dataclasses import replace

from foveal.config import ModelConfig
from tests.tiny import CONFIGS


def with_room(name: str = "dense-tied") -> ModelConfig:
    """Give a tiny configuration a vocabulary that holds the stand-in tokenizer, at the distances of the released ids."""
    config = CONFIGS[name]
    return replace(
        config, text=replace(config.text, vocab_size=320), image_token_id=292, video_token_id=293,
        vision_start_token_id=289, vision_end_token_id=290,
    )  # fmt: skip

"""Complete tiny checkpoints: weights, a trained tokenizer, template and preprocessor files, as a released folder has them."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import tokenizers

from foveal.bpe import save_tokenizer, train_bpe
from foveal.config import ModelConfig
from foveal.model.load import save_model
from foveal.patches import Budget
from foveal.prompt import builtin_template
from foveal.standin import write_companions
from foveal.tokenizer import Tokenizer
from tests.tiny import CONFIGS, new_model

BUDGET = Budget(image=(2, 24), clip=(2, 40))
CONTEXT = 400


@functools.cache
def tiny_bpe() -> tokenizers.Tokenizer:
    """Train the bytes, a few merges, and all special tokens of the released models."""
    return train_bpe(["system user assistant the colour of the circle is red <0.5 seconds>"] * 3, 320)


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(json.loads(tiny_bpe().to_str()))


def tiny_config(*, moe: bool = False, tied: bool = True, context: int = CONTEXT) -> ModelConfig:
    """Give a tiny model the ids of the tiny tokenizer."""
    base = CONFIGS["moe" if moe else "dense-tied"]
    ids = tiny_bpe().token_to_id
    text = replace(base.text, vocab_size=tiny_bpe().get_vocab_size(), max_position_embeddings=context)
    return replace(
        base, text=text, tie_word_embeddings=tied, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip


def tiny_checkpoint(
    directory: Path, *, moe: bool = False, thinking: bool = False, tied: bool = True, context: int = CONTEXT
) -> Path:
    """Write a random model of a few thousand weights; return its folder."""
    config = tiny_config(moe=moe, tied=tied, context=context)
    save_tokenizer(tiny_bpe(), directory, model_max_length=context)
    save_model(new_model(config), directory)
    write_companions(config, directory, BUDGET, tokenizer=False)
    if thinking:
        (directory / "chat_template.jinja").write_text(builtin_template("thinking"), encoding="utf-8")
    return directory

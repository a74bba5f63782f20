"""Checkpoints of models that were not released: random weights, and what stands beside weights (preprocessor files,
generation defaults, the chat template, a byte-level tokenizer with the released ids of the special tokens)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.bpe import MARKUP_TOKENS, SPECIAL_TOKENS, save_tokenizer
from foveal.config import ModelConfig
from foveal.errors import ConfigError
from foveal.hub import check_new
from foveal.model.checkpoint import disk_name, plain, skeleton, to_dtype
from foveal.model.save import SHARD_BYTES, rows, staged, total_bytes, write_json, write_weights
from foveal.patches import Budget
from foveal.prompt import builtin_template


def new_checkpoint(
    config: ModelConfig, directory: str | Path, *, seed: int = 0, dtype: str | None = None, overwrite: bool = False
) -> None:
    """Write random weights for timing, with a stand-in tokenizer and all files a checkpoint has.

    Normal of 0.02, norms one, biases zero; the same for the same seed. dtype: by default the configuration's. Some 50 MB
    are in memory at a time. Raise CheckpointError for a folder in use or a disk too full.
    """
    directory = Path(directory)
    if not (overwrite and directory.is_dir()):
        check_new(directory)
    wanted = to_dtype(dtype or config.dtype)
    config = replace(config, dtype=plain(wanted))
    shapes = {disk_name(name): tuple(p.shape) for name, p in skeleton(config).named_parameters()}
    number = {name: i for i, name in enumerate(shapes)}

    def pieces(name: str) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed * len(number) + number[name])
        for first, stop in rows(shapes[name]):
            piece = torch.empty((stop - first, *shapes[name][1:]))
            if name.endswith("bias"):
                piece.zero_()
            elif "norm" in name:
                piece.fill_(1.0)
            else:
                piece.normal_(0.0, 0.02, generator=generator)
            yield piece.to(wanted)

    tensors = {name: (wanted, shape) for name, shape in shapes.items()}
    with staged(directory, total_bytes(tensors)) as stage:
        write_companions(config, stage)
        write_weights(stage, tensors, pieces, SHARD_BYTES, {"format": "pt", "origin": f"random weights, seed {seed}"})
        write_json(stage / "config.json", config.to_dict())


def write_companions(config: ModelConfig, directory: Path, budget: Budget | None = None, *, tokenizer: bool = True) -> None:
    """Write the JSON files and the template beside the weights; `tokenizer=False` keeps one that is there."""
    vision, budget = config.vision, budget or Budget()
    area = vision.factor**2
    common = {
        "patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size, "image_mean": list(vision.image_mean), "image_std": list(vision.image_std),
    }  # fmt: skip
    pictures = {"shortest_edge": budget.image[0] * area, "longest_edge": budget.image[1] * area}
    volume = area * vision.temporal_patch_size
    clips = {"shortest_edge": budget.clip[0] * volume, "longest_edge": budget.clip[1] * volume}
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config.json": {
            "size": pictures, **common, "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
        },
        "video_preprocessor_config.json": {
            "size": clips, **common, "video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor",
        },
    }  # fmt: skip
    if tokenizer:
        end, pad = _write_tokenizer(config, directory)
    else:
        added = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        ids = {token["content"]: token["id"] for token in added}
        end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    files["generation_config.json"] = {"pad_token_id": pad, "eos_token_id": [end, pad], "do_sample": False}
    for name, value in files.items():
        write_json(directory / name, value)
    (directory / "chat_template.jinja").write_text(builtin_template("instruct"), encoding="utf-8")


def _write_tokenizer(config: ModelConfig, directory: Path) -> tuple[int, int]:
    """Write a byte-level tokenizer that fills the vocabulary; return the ids of <|im_end|> and <|endoftext|>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # The placeholder for pictures stands at a fixed place among the special tokens, which gives the first of them.
    first = config.image_token_id - SPECIAL_TOKENS.index("<|image_pad|>")
    _require_released_order(config, first)
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {f"filler{i}": i for i in range(len(vocabulary), first)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP_TOKENS])
    save_tokenizer(tokenizer, directory)
    ids = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
    return ids["<|im_end|>"], ids["<|endoftext|>"]


def _require_released_order(config: ModelConfig, first: int) -> None:
    """Refuse token ids that a byte-level vocabulary with the special tokens in the released order cannot have."""
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = (config.vision_start_token_id, config.vision_end_token_id, config.image_token_id, config.video_token_id)
    expected = [first + SPECIAL_TOKENS.index(name) for name in names]
    end = first + len(SPECIAL_TOKENS) + len(MARKUP_TOKENS)
    if list(ids) != expected or first < 256 or end > config.text.vocab_size:
        raise ConfigError(
            f"the stand-in tokenizer has 256 bytes and then all special tokens in the released order: for {names[2]} at "
            f"{ids[2]} that puts {', '.join(names)} at {expected} and needs ids {first} (256 or more) to {end - 1} of "
            f"{config.text.vocab_size}; the configuration has {list(ids)}"
        )

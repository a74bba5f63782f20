"""Checkpoints of models that were not released: random weights, and what stands beside weights (preprocessor files,
generation defaults, the chat template, a byte-level tokenizer with the released ids of the special tokens)."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.bpe import MARKUP_TOKENS, SPECIAL_TOKENS, save_tokenizer
from foveal.config import ModelConfig
from foveal.errors import CheckpointError
from foveal.model.load import PIECE_ROWS_BYTES, SHARD_BYTES, skeleton, write_checkpoint
from foveal.patches import Budget
from foveal.prompt import builtin_template


def new_checkpoint(
    config: ModelConfig, directory: str | Path, *, seed: int = 0, dtype: str | None = None, overwrite: bool = False
) -> None:
    """Write random weights for timing, with a stand-in tokenizer and all files a checkpoint has.

    One tensor's piece is in memory at a time. Raise CheckpointError for a folder in use or a disk too full.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or (any(directory.iterdir()) and not overwrite)):
        raise CheckpointError(f"{directory} exists and is not an empty folder; name another one")
    config = replace(config, dtype=dtype or config.dtype)
    wanted = getattr(torch, config.dtype)
    parent = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    free, need = shutil.disk_usage(parent).free, config.weight_bytes() + 64 * 2**20
    if free < need:
        raise CheckpointError(f"{directory} needs {need:,} bytes and the disk has {free:,} free")
    shapes = {name: tuple(p.shape) for name, p in skeleton(config).named_parameters()}

    def pieces(name: str) -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        rows = shapes[name][0]
        width = math.prod(shapes[name][1:])
        step = max(1, PIECE_ROWS_BYTES // max(1, 4 * width))
        for first in range(0, rows, step):
            shape = (min(step, rows - first), *shapes[name][1:])
            if name.endswith("bias"):
                yield torch.zeros(shape, dtype=wanted)
            elif "norm" in name:
                yield torch.ones(shape, dtype=wanted)
            else:
                yield torch.empty(shape).normal_(0.0, 0.02, generator=generator).to(wanted)

    write_checkpoint(directory, config, shapes, wanted, pieces, SHARD_BYTES)
    write_companions(config, directory)


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
        (directory / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(builtin_template("instruct"), encoding="utf-8")


def _write_tokenizer(config: ModelConfig, directory: Path) -> tuple[int, int]:
    """Write a byte-level tokenizer that fills the vocabulary; return the ids of <|im_end|> and <|endoftext|>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # The placeholder for pictures stands at a fixed place among the special tokens, which gives the first of them.
    first = config.image_token_id - SPECIAL_TOKENS.index("<|image_pad|>")
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

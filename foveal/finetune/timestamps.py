"""Learnable timestamp tokens put into a checkpoint: <t_0m0s>, <t_0m1s>, ... beside or instead of the text they stand for.

A new token begins as the mean of the embeddings of its text, <0.0 seconds>, which the model knows; so does its row of a head
that is not tied. docs/timestamps.md says who writes them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.config import read_json
from foveal.errors import ConfigError
from foveal.hub import check_new
from foveal.model import Qwen3VL
from foveal.model.load import load_model
from foveal.model.quantize import is_packed
from foveal.model.save import copy_companions, save_model, write_json
from foveal.prompt import timestamp_text, timestamp_token
from foveal.tokenizer import Tokenizer

MULTIPLE = 64  # rows of a table that grows, as products like them
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def add_timestamps(source: Path, output: Path, seconds: int) -> int:
    """Write the checkpoint `source` with a token for every second from 0 to `seconds`; return how many are new.

    Raise ConfigError for a folder that is packed, CheckpointError for one that is not empty or whose tokens are odd.
    """
    if seconds < 0:
        raise ConfigError(f"{seconds} seconds; a clip begins at 0, and tokens are made up to its last second")
    check_new(output)
    if is_packed(read_json(source / "config.json")):
        raise ConfigError(f"{source} is packed, and packed weights do not learn; add tokens to the original")
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    wanted = {timestamp_token(second): tokenizer.encode_text(timestamp_text(second)) for second in range(seconds + 1)}
    texts = {token: ids for token, ids in wanted.items() if token not in tokenizer.added}
    model = load_model(source)
    first = tokenizer.vocab_size
    grow(model, first, list(texts.values()))
    with tempfile.TemporaryDirectory() as scratch:
        companions = Path(scratch)
        copy_companions(source, companions)
        new = {token: first + i for i, token in enumerate(texts)}
        _declare(companions / "tokenizer.json", companions / "tokenizer_config.json", new)
        save_model(model, output, dtype=model.dtype, copy_from=companions)
    return len(texts)


@torch.no_grad()
def grow(model: Qwen3VL, first: int, texts: Sequence[Sequence[int]]) -> None:
    """Give a model a row from `first` on for each of `texts`, the mean of their tokens' rows, and let it write timestamps so.

    Tables grow where they have no room: released ones end in rows that no token uses.
    """
    rows, needed = model.config.text.vocab_size, first + len(texts)
    if needed > rows:
        rows = -(-needed // MULTIPLE) * MULTIPLE
    for table in (model.language_model.embed_tokens, model.lm_head):
        if isinstance(table, nn.Embedding | nn.Linear):
            table.weight = nn.Parameter(_grown(table.weight, rows, first, texts), requires_grad=False)
    text = replace(model.config.text, vocab_size=rows)
    model.config = replace(model.config, text=text, timestamps="tokens")


def _grown(table: Tensor, rows: int, first: int, texts: Sequence[Sequence[int]]) -> Tensor:
    """Copy a table (R, D) into one of `rows`; rows of no token are zero."""
    out = table.new_zeros(rows, table.shape[1])
    out[: len(table)] = table
    for i, ids in enumerate(texts):
        out[first + i] = table[list(ids)].float().mean(0)
    return out


def _declare(tokenizer: Path, config: Path, tokens: Mapping[str, int]) -> None:
    """Add tokens to tokenizer.json, and to tokenizer_config.json where that repeats them."""
    spec = read_json(tokenizer)
    spec["added_tokens"] = [*(spec.get("added_tokens") or []), *({"id": i, "content": t, **_PLAIN} for t, i in tokens.items())]
    tokenizer.write_text(json.dumps(spec, ensure_ascii=False, indent=2), encoding="utf-8")
    if config.is_file():
        said: dict[str, Any] = read_json(config)
        if isinstance(said.get("added_tokens_decoder"), dict):
            said["added_tokens_decoder"] |= {str(i): {"content": t, **_PLAIN} for t, i in tokens.items()}
            write_json(config, said)

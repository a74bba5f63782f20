"""Timestamp tokens: ids behind all others, rows that are means of the text, files that load strictly, rows that learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch

from foveal.config import read_json
from foveal.errors import CheckpointError, ConfigError
from foveal.finetune.run import new_tuner
from foveal.finetune.settings import TuneSettings
from foveal.finetune.timestamps import add_timestamps, grow
from foveal.model.load import load_model
from foveal.processor import Processor
from foveal.tokenizer import Tokenizer
from tests.command import Run, run_foveal
from tests.finetune.conftest import Write
from tests.tiny import CONFIGS, new_model
from tests.tiny_checkpoint import tiny_checkpoint

__all__ = ["run_foveal"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_grows(tied: bool, tmp_path: Path) -> None:
    source, output = tiny_checkpoint(tmp_path / "source", tied=tied), tmp_path / "stamps"
    assert add_timestamps(source, output, 70) == 71
    before, after = load_model(source), load_model(output)
    old, new = Tokenizer.from_file(source / "tokenizer.json"), Tokenizer.from_file(output / "tokenizer.json")
    first, rows = old.vocab_size, after.config.text.vocab_size
    assert (new.vocab_size, rows % 64, after.config.timestamps) == (first + 71, 0, "tokens")
    assert new.encode_template("<t_1m7s>") == [first + 67] and new.encode_text("<t_1m7s>") != [first + 67]
    tables = ["language_model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"])
    for name, weight in before.named_parameters():
        grown = after.get_parameter(name)
        if name not in tables:
            assert torch.equal(grown, weight)
            continue
        assert len(grown) == rows and torch.equal(grown[: len(weight)], weight) and not grown[first + 71 :].any()
        torch.testing.assert_close(grown[first + 67], weight[old.encode_text("<67.0 seconds>")].mean(0))
    said = read_json(output / "tokenizer_config.json")["added_tokens_decoder"]
    assert said[str(first + 67)]["content"] == "<t_1m7s>"
    theirs = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    assert theirs.encode("<t_0m0s>").ids == [first] and theirs.get_vocab_size() == first + 71
    with pytest.raises(CheckpointError, match="exists and is not an empty folder"):
        add_timestamps(source, output, 70)
    with pytest.raises(ConfigError, match="-1 seconds"):
        add_timestamps(source, tmp_path / "other", -1)
    assert add_timestamps(output, tmp_path / "more", 80) == 10  # only what is new


def test_rows_that_no_token_uses_are_used_first() -> None:
    """Released tables end in such rows."""
    model = new_model(CONFIGS["dense-tied"])
    before = model.language_model.embed_tokens.weight.clone()
    grow(model, 205, [[1, 2], [3]])
    after = model.language_model.embed_tokens.weight
    assert after.shape == before.shape and torch.equal(after[206], before[3])
    assert torch.equal(after[:205], before[:205]) and torch.equal(after[207:], before[207:])


def test_the_tokens_learn(run_foveal: Run, write: Write, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    done = run_foveal("timestamps", tmp_path / "stamps", "-m", source, "--seconds", "3")
    assert done.code == 0 and "4 new tokens" in done.err and done.out == ""
    turns = [{"from": "human", "value": "<video>when?"}, {"from": "gpt", "value": "now"}]
    file = write([{"videos": [["a.png", "b.png"] * 3], "conversations": turns}])
    settings = TuneSettings(
        output=tmp_path / "run", data=(str(file),), model=str(tmp_path / "stamps"), steps=1, language=1e-3, warmup=0.0,
        plot=False,
    )  # fmt: skip
    tuner = new_tuner(settings)
    sample = tuner.reader(tuner.sources[0], 0)
    tokenizer = Processor.from_checkpoint(tmp_path / "stamps").tokenizer
    stamps = [tokenizer.token_id(f"<t_0m{second}s>") for second in range(4)]
    seen = sorted(set(stamps) & set(sample.request.sequence.token_ids.tolist()))
    table = tuner.model.language_model.embed_tokens.weight
    before = table.detach().clone()
    tuner.run()
    moved = (table - before).abs().amax(1) > 0
    assert len(seen) == 3 and all(moved[index] for index in seen)
    assert json.loads((tmp_path / "stamps" / "config.json").read_text())["timestamp_format"] == "tokens"


@pytest.mark.parametrize("lora", [True, False])
def test_it_is_said_that_adapters_do_not_reach_the_tokens(lora: bool, run_foveal: Run, write: Write, tmp_path: Path) -> None:
    add_timestamps(tiny_checkpoint(tmp_path / "source"), tmp_path / "stamps", 3)
    turns = [{"from": "human", "value": "<video>when?"}, {"from": "gpt", "value": "now"}]
    file = write([{"videos": [["a.png", "b.png"] * 3], "conversations": turns}])
    adapters = ["--set", "lora.rank=2", "--set", "lora.target=.*q_proj"] if lora else []
    words = ["--steps", "1", "--set", "plot=false", *adapters]
    done = run_foveal("train", "-m", tmp_path / "stamps", "--data", file, "--output", tmp_path / "run", *words)
    assert done.code == 0 and ("the timestamp tokens do not learn" in done.err) == lora

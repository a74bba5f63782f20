"""The same config.json means the same model to foveal and to transformers, in both directions and both spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from foveal.config import PRESETS, ModelConfig
from tests.parity.reference import transformers
from tests.tiny import CONFIGS

ALL = {**CONFIGS, **{name: config for name, config in PRESETS.items() if name != "overview"}}


@pytest.mark.parametrize("spelling", ["4.57", "5"])
@pytest.mark.parametrize("name", list(ALL))
def test_a_config_goes_through_transformers_and_back(name: str, spelling: Literal["4.57", "5"], tmp_path: Path) -> None:
    hf = transformers()
    ours = ALL[name]
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict(spelling)))
    theirs = hf.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == ("Qwen3VLConfig" if ours.text.moe is None else "Qwen3VLMoeConfig")
    theirs.save_pretrained(tmp_path / "again")
    assert ModelConfig.from_file(tmp_path / "again") == ours


@pytest.mark.parametrize("name", list(ALL))
def test_transformers_reads_what_we_mean(name: str, tmp_path: Path) -> None:
    hf = transformers()
    ours = ALL[name]
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    theirs = hf.AutoConfig.from_pretrained(tmp_path)
    text, rope = theirs.text_config, theirs.text_config.rope_parameters
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                  "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias"):  # fmt: skip
        assert getattr(text, field) == getattr(ours.text, field), field
    assert rope["rope_theta"] == ours.text.rope.theta
    assert rope["rope_type"] == ours.text.rope.rope_type
    assert tuple(rope["mrope_section"]) == ours.text.rope.mrope_section
    assert tuple(theirs.vision_config.deepstack_visual_indexes) == ours.vision.taps
    assert theirs.vision_config.depth == ours.vision.depth
    assert theirs.tie_word_embeddings == ours.tie_word_embeddings
    if ours.text.moe is not None:
        for field in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"):
            assert getattr(text, field) == getattr(ours.text.moe, field), field
        assert tuple(text.mlp_only_layers) == ours.text.moe.mlp_only_layers

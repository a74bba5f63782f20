"""A tiny model of the embedded model's kind, with its own tokenizer, for tests of training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foveal.bpe import train_bpe
from foveal.config import ModelConfig
from foveal.prompt import ChatTemplate
from foveal.tokenizer import Tokenizer
from foveal.train import mini
from foveal.train.data import ExampleMaker


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, ExampleMaker]:
    trained = train_bpe(mini.tokenizer_texts(items=40), 400)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained.save(str(file))
    config = mini.config(trained)
    vision = replace(config.vision, depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=48, taps=(0,),
                     tap_layers=(0,))  # fmt: skip
    text = replace(config.text, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2)  # fmt: skip
    config = replace(config, vision=vision, text=text)
    tokenizer = Tokenizer.from_file(file)
    # Smaller pictures than the embedded model's are not enlarged: tests compute with tokens 32 pixels wide.
    budget = replace(mini.BUDGET, image=(9, 100))
    return config, ExampleMaker(config, tokenizer, ChatTemplate.builtin("instruct", tokenizer), budget)

"""Random checkpoints: the stand-in tokenizer is exact, other tools accept the folder, and the weights follow the seed alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.bpe import MARKUP_TOKENS, SPECIAL_TOKENS
from foveal.config import ModelConfig, preset
from foveal.errors import CheckpointError, ConfigError
from foveal.model.checkpoint import SINGLE
from foveal.model.load import load_model
from foveal.model.tensorfile import TensorFile
from foveal.standin import new_checkpoint, write_companions
from foveal.tokenizer import Tokenizer
from tests.checkpoints import with_room
from tests.parity.reference import transformers

# Composed throughout: transformers' Qwen2Tokenizer normalises text whatever the file says.
TEXT = "Héllo, 世界! \t\r\n  🙂 \x00 <|im_end|> <think>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("standin") / "tiny"
    new_checkpoint(with_room("dense-tied"), directory, seed=3)
    return directory


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(folder / "tokenizer.json")


@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode()) and all(index < 256 for index in ids)


def test_special_tokens_stand_where_the_configuration_says(folder: Path, tokenizer: Tokenizer) -> None:
    config = ModelConfig.from_file(folder)
    assert list(tokenizer.added) == [*SPECIAL_TOKENS, *MARKUP_TOKENS]
    assert tokenizer.added["<|image_pad|>"] == config.image_token_id
    assert tokenizer.added["<|vision_end|>"] == config.vision_end_token_id
    assert tokenizer.encode_template("<|im_end|>a") == [tokenizer.added["<|im_end|>"], *tokenizer.encode_text("a")]


def test_the_released_ids(tmp_path: Path) -> None:
    write_companions(preset("2B"), tmp_path)
    added = Tokenizer.from_file(tmp_path / "tokenizer.json").added
    expected = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652}
    expected |= {"<|image_pad|>": 151655, "<|video_pad|>": 151656, "<tool_call>": 151657, "</think>": 151668}
    assert {name: added[name] for name in expected} == expected


def test_transformers_takes_the_folder(folder: Path, tokenizer: Tokenizer) -> None:
    hf = transformers()
    config = hf.AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "Qwen3VLConfig" and config.vision_config.patch_size == 4
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    ids = theirs(TEXT)["input_ids"]
    assert ids == tokenizer.encode_template(TEXT)
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == TEXT
    processor = hf.AutoProcessor.from_pretrained(folder)
    chat = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}])
    assert chat == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hi<|im_end|>\n"
    assert (
        hf.GenerationConfig.from_pretrained(folder).eos_token_id
        == json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    )


def test_weights_are_random_norms_one_and_biases_zero(folder: Path) -> None:
    for name, parameter in load_model(folder).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        else:
            assert abs(float(parameter.float().std()) / 0.02 - 1) < 0.1, name
    file = TensorFile(folder / SINGLE)
    assert file.metadata == {"format": "pt", "origin": "random weights, seed 3"}
    file.close()


def test_a_folder_in_use_is_left_alone_unless_told(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder; name another one"):
        new_checkpoint(with_room(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    new_checkpoint(with_room(), tmp_path, overwrite=True)
    new_checkpoint(with_room(), tmp_path, overwrite=True, dtype="float16")
    assert (tmp_path / "mine.txt").read_text() == "mine" and load_model(tmp_path).dtype == torch.float16
    assert not list(tmp_path.glob(".saving-*"))


def test_a_dtype_weights_are_not_kept_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is int8"):
        new_checkpoint(with_room(), tmp_path / "new", dtype="int8")


@pytest.mark.parametrize("change", [{"vision_start_token_id": 288}, {"video_token_id": 294}])
def test_ids_in_another_order_are_refused(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="all special tokens in the released order"):
        new_checkpoint(replace(with_room(), **change), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_vocabulary_too_small_is_refused(tmp_path: Path) -> None:
    config = with_room()
    with pytest.raises(ConfigError, match=r"needs ids 280 \(256 or more\) to 305 of 300"):
        new_checkpoint(replace(config, text=replace(config.text, vocab_size=300)), tmp_path / "new")


PEAK = """
import sys
from pathlib import Path
from dataclasses import replace
from foveal.standin import new_checkpoint
from tests.checkpoints import with_room
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))
base = with_room()
new_checkpoint(base, Path(sys.argv[1]) / "small")  # whatever is imported and cached once
before = status("VmRSS")
config = replace(
    base, text=replace(base.text, hidden_size=1024, intermediate_size=4096, num_hidden_layers=16),
    vision=replace(base.vision, out_hidden_size=1024), dtype="bfloat16",
)
new_checkpoint(config, Path(sys.argv[1]) / "large")
print(config.weight_bytes(), status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_more_than_pieces_are_in_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights, peak = map(int, done.stdout.split())
    assert weights > 400e6 and peak < 100e6, peak

"""Fixtures: a tiny checkpoint, two tiny files, and the command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli import main
from foveal.config import ModelConfig, RopeConfig, preset
from foveal.standin import new_checkpoint
from tests.media_files import clip


def tiny_config() -> ModelConfig:
    """A released layout with all ids and taps, and next to no weights."""
    base = preset("2B")
    vision = replace(
        base.vision, depth=4, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=32, taps=(0, 2),
        tap_layers=(0, 2), num_position_embeddings=64,
    )  # fmt: skip
    text = replace(
        base.text, vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        rope=RopeConfig(theta=1e4, mrope_section=(4, 2, 2)),
    )  # fmt: skip
    return replace(
        base, vision=vision, text=text, image_token_id=400, video_token_id=401, vision_start_token_id=397,
        vision_end_token_id=398, dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("cli") / "tiny"
    new_checkpoint(tiny_config(), directory, seed=3)
    return str(directory)


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("files") / "photo [1].png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 330, 3), np.uint8)).save(file)
    return str(file)


@pytest.fixture(scope="session")
def movie(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("files") / "movie.mp4"
    file.write_bytes(clip(75, fps=30, size=(64, 160)))
    return str(file)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run_foveal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `foveal` with these words; return its exit code and both streams."""
    monkeypatch.delenv("FOVEAL_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str | Path) -> Done:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call

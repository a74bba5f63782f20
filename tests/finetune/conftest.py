"""A tiny checkpoint with a tokenizer and template of its own, and files of training data for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.finetune.samples import SampleReader
from foveal.processor import Processor
from tests.tiny_checkpoint import tiny_checkpoint

Write = Callable[[Sequence[Any]], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("finetune") / "tiny", tied=False)


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("finetune") / "thinking", thinking=True)


@pytest.fixture
def reader(checkpoint: Path) -> SampleReader:
    return SampleReader(Processor.from_checkpoint(checkpoint))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records as lines beside two pictures, a.png and b.png."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(tmp_path / f"{name}.png")

    def lines(records: Sequence[Any]) -> Path:
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return file

    return lines


def chat(question: str, answer: str, **record: Any) -> dict[str, Any]:
    """Make a record of one question in the released format."""
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **record}


def mixed(count: int) -> list[dict[str, Any]]:
    """Make records of different lengths, every second one with a picture."""
    return [
        chat(f"{'<image>' if i % 2 else ''}what is the colour {'of the circle ' * (i % 3)}?", f"red {i} " * (1 + i % 4),
             **({"image": "ab"[i // 2 % 2] + ".png"} if i % 2 else {}))
        for i in range(count)
    ]  # fmt: skip

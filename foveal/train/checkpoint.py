"""Training checkpoints: float32 tensors in one safetensors file with the state as JSON in its header, replaced atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveal.errors import CheckpointError

FILE = "training.safetensors"


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], file: str = FILE) -> None:
    """Write a checkpoint; a kill in the middle leaves the previous one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file}.part"
    save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"state": json.dumps(state)})
    with part.open("rb") as f:
        os.fsync(f.fileno())
    part.replace(folder / file)


def load(folder: Path, file: str = FILE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote. Raise CheckpointError if there is none."""
    path = folder / file
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; there is nothing to resume from")
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, json.loads(f.metadata()["state"])  # noqa: SIM118

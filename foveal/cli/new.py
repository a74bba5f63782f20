"""`foveal new`: a checkpoint of a released size with random weights."""

from __future__ import annotations

from pathlib import Path

from foveal.cli import session, show
from foveal.cli.options import check_dtype
from foveal.config import preset
from foveal.errors import ConfigError


def run(directory: Path, name: str, random: bool, seed: int, dtype: str | None) -> None:
    check_dtype(dtype)
    config = preset(name)
    if not random:
        raise ConfigError("foveal new writes random weights; say so with --random")
    with session.progress() as line:
        line(f"writing {config.num_parameters:,} random weights, {show.num_bytes(config.weight_bytes(dtype))}")
        from foveal.standin import new_checkpoint

        new_checkpoint(config, directory, seed=seed, dtype=dtype)
    session.note(f"wrote {directory}: {config.num_parameters:,} random weights and a stand-in tokenizer; it answers nonsense")

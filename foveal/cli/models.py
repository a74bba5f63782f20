"""From what stands behind -m to a checkpoint folder or a preset, without importing torch for either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foveal.config import PRESETS, ModelConfig, preset
from foveal.errors import CheckpointError, ConfigError
from foveal.hub import EMBEDDED, hub_name, resolve


@dataclass(frozen=True)
class Target:
    """A model to describe: its configuration, and its folder unless it is a preset."""

    label: str
    config: ModelConfig
    directory: Path | None


def describe(name: str | None) -> Target:
    """Find a model by folder, preset or hub name; None is the embedded one.

    A preset comes before the short hub name it also is (8B). From the hub come only the files that describe a model.
    """
    if name is None:
        return Target("embedded", ModelConfig.from_file(embedded()), EMBEDDED)
    path = Path(name).expanduser()
    if path.is_dir() or path.name == "config.json":
        directory = path if path.is_dir() else path.parent
        return Target(name, ModelConfig.from_file(directory), directory)
    if name.lower() in {key.lower() for key in PRESETS}:
        return Target(name, preset(name), None)
    if hub_name(name) is None:
        raise CheckpointError(
            f"{name} is not a folder; presets are {', '.join(PRESETS)}, hub names look like Qwen/Qwen3-VL-2B-Instruct"
        )
    directory = resolve(name, weights=False)
    return Target(name, ModelConfig.from_file(directory), directory)


def check_runnable(name: str | None) -> None:
    """Refuse, before torch is imported, what has no weights or cannot be one of folder and hub name."""
    if name is None:
        embedded()
    elif not Path(name).expanduser().is_dir() and hub_name(name) is None:
        if name.lower() in {key.lower() for key in PRESETS}:
            raise ConfigError(
                f"{name} is a preset without weights: foveal plan and foveal info take it as it is, and "
                f"foveal new --preset {name} --random DIR writes random ones"
            )
        raise CheckpointError(f"{name} is neither a folder nor a hub name such as Qwen/Qwen3-VL-2B-Instruct")


def embedded() -> Path:
    """Return the folder of the embedded model."""
    if not (EMBEDDED / "config.json").is_file():
        raise CheckpointError("this copy of foveal holds no embedded model; name one with -m (a folder or a hub name)")
    return EMBEDDED

"""From what stands behind -m to a checkpoint folder or a preset, without importing torch for either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foveal.config import PRESETS, ModelConfig, preset
from foveal.errors import CheckpointError, ConfigError, HubError
from foveal.hub import EMBEDDED, hub_name, resolve


@dataclass(frozen=True)
class Target:
    """A model to describe: its configuration, its folder unless it is a preset, and what to say about that."""

    label: str
    config: ModelConfig
    directory: Path | None
    note: str | None = None


def describe(name: str | None) -> Target:
    """Find a model by folder, preset or hub name; None is the embedded one.

    A bare size (8B) is the model it is for `foveal ask`, described by its preset: nothing is downloaded, and `note` says so.
    Of any other hub name come only the files that describe a model. Raise CheckpointError with the way out.
    """
    if name is None:
        return Target("embedded", ModelConfig.from_file(embedded()), EMBEDDED)
    path = Path(name).expanduser()
    if path.is_dir() or path.name == "config.json":
        directory = path if path.is_dir() else path.parent
        return Target(name, ModelConfig.from_file(directory), directory)
    if name.lower() in {key.lower() for key in PRESETS}:
        return Target(name, preset(name), None, _preset_note(name))
    if hub_name(name) is None:
        raise CheckpointError(
            f"{name} is not a folder; presets are {', '.join(PRESETS)}, hub names look like Qwen/Qwen3-VL-2B-Instruct"
        )
    try:
        directory = resolve(name, weights=False)
    except HubError as e:
        if (key := _preset_of(name)) is None:
            raise
        raise HubError(f"{e}; {key} alone is foveal's preset of that shape and needs no files") from e
    return Target(name, ModelConfig.from_file(directory), directory)


def _preset_note(name: str) -> str:
    repo = hub_name(name)
    if repo is None:
        return f"{name} is a preset: a shape without released weights"
    return f"{name} is described by its preset, without a download; {repo} is the same with the released files and tokenizer"


def _preset_of(name: str) -> str | None:
    """Return the preset with the shape of a released model, by its hub name or alias."""
    repo = hub_name(name) or ""
    return next((key for key in PRESETS if repo.startswith(f"Qwen/Qwen3-VL-{key}-")), None)


def without_weights(name: str | None) -> str:
    """Say what can be done with a released model whose files cannot be had; empty for any other."""
    key = None if name is None else _preset_of(name)
    if key is None:
        return ""
    return (
        f"; without them, foveal plan -m {key} says what it would cost, and foveal new --preset {key} --random DIR writes its "
        "shape with random weights"
    )


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

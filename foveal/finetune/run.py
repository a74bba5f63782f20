"""A run from its settings: load the model, train, write what was learned as an adapter or a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foveal.config import ModelConfig
from foveal.errors import CheckpointError, ConfigError
from foveal.finetune.loop import Tuner
from foveal.finetune.lora import adapters, load_adapter, merge_adapters, save_adapter
from foveal.finetune.prepare import part_of
from foveal.finetune.samples import reader_of
from foveal.finetune.settings import TuneSettings
from foveal.hub import EMBEDDED, resolve
from foveal.model.load import load_model, save_model
from foveal.processor import Processor


def new_tuner(
    settings: TuneSettings, *, progress: Callable[[float, dict[str, Any]], None] = lambda share, metrics: None,
    notify: Callable[[str], None] = lambda reason: None,
) -> Tuner:  # fmt: skip
    """Load the model that the settings name and make its Tuner; float32 on CPUs, the checkpoint's own elsewhere."""
    directory = model_folder(settings.model)
    if settings.output.resolve() == directory.resolve():
        raise ConfigError(f"output is {settings.output}, the checkpoint itself; name another folder")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype = settings.dtype or ("float32" if settings.device == "cpu" else None)
    reader = reader_of(Processor.from_checkpoint(directory), settings)
    model = load_model(directory, dtype=dtype, device=settings.device)
    return Tuner(model, reader, settings, progress=progress, notify=notify)


def write_result(tuner: Tuner) -> list[Path]:
    """Write what a finished run has learned; return the folders.

    adapter/: PEFT's files, when all of it is adapters. model/: a whole checkpoint in the precision of the one it came from,
    when not, or when `merge` asks for it; adapters are then merged into the model in place.
    """
    settings, model = tuner.settings, tuner.model
    directory = model_folder(settings.model)
    written = []
    adapted = {part_of(name) for name in adapters(model)}
    whole = settings.lora is None or adapted != set(tuner.learning)
    if settings.lora is not None and not whole:
        written.append(settings.output / "adapter")
        save_adapter(model, written[-1], settings.lora, settings.model)
    if whole or settings.merge:
        written.append(settings.output / "model")
        merge_adapters(model)
        _undo_recomputing(model)
        save_model(model, written[-1], dtype=ModelConfig.from_file(directory).dtype, copy_from=directory)
    return written


def merge_into(adapter: Path, output: Path, name: str | None) -> int:
    """Write the checkpoint `name` with an adapter merged into its weights; return how many Linears it changed."""
    directory = model_folder(name)
    if output.exists() and any(output.iterdir()):
        raise CheckpointError(f"{output} exists and is not empty; name another folder")
    config = ModelConfig.from_file(directory)
    model = load_model(directory)
    load_adapter(model, adapter)
    merged = merge_adapters(model)
    save_model(model, output, dtype=config.dtype, copy_from=directory)
    return merged


def model_folder(name: str | None) -> Path:
    """Return a model's folder; None is the embedded one."""
    return EMBEDDED if name is None else resolve(name)


def _undo_recomputing(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), functools.partial):
            del module.__dict__["forward"]

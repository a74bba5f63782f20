"""A run from its settings: load the model, train, write what was learned as an adapter or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foveal.config import ModelConfig
from foveal.errors import ConfigError
from foveal.finetune.loop import Tuner
from foveal.finetune.lora import base_of, is_adapter, load_adapter, merge_adapters, put_on, save_adapter
from foveal.finetune.samples import reader_of
from foveal.finetune.settings import TuneSettings
from foveal.finetune.team import Team
from foveal.hub import EMBEDDED, check_new, resolve
from foveal.model.checkpoint import disk_name
from foveal.model.load import load_model, save_model
from foveal.processor import Processor


def new_tuner(
    settings: TuneSettings, *, progress: Callable[[float, dict[str, Any]], None] = lambda share, metrics: None,
    notify: Callable[[str], None] = lambda reason: None,
) -> Tuner:  # fmt: skip
    """Load the model that the settings name and make its Tuner; float32 on CPUs, the checkpoint's own elsewhere.

    Under torchrun the processes it started meet first.
    """
    _require_device(settings.device)
    directory = model_folder(settings.model)
    if settings.output.resolve() == directory.resolve():
        raise ConfigError(f"output is {settings.output}, the checkpoint itself; name another folder")
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # now, not after the first hundred steps
        raise ConfigError(f"output {settings.output} cannot be made a folder: {error.strerror}; name another") from None
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    # What will be kept in 8 bits is mapped as it is until then.
    dtype = settings.compute_dtype if settings.bits is None else None
    reader = reader_of(Processor.from_checkpoint(directory), settings)
    team = Team.join(settings.device, settings.tensor_parallel)
    model = load_model(directory, dtype=dtype, device=settings.device if team.mesh is None else "cpu")
    return Tuner(model, reader, settings, team=team, base=directory, progress=progress, notify=notify)


def _require_device(name: str) -> None:
    """Refuse a device that torch does not know, and a GPU that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}; use cpu, cuda, cuda:1, ...") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device is {name!r}, but torch {torch.__version__} finds {count or 'no'} GPUs; use cpu")


def write_result(tuner: Tuner) -> list[Path]:
    """Write what a finished run has learned; return the folders. All processes take part, and the first of them writes.

    adapter/: PEFT's files, when all of it is adapters. model/: a whole checkpoint in the precision of the one it came from,
    when not, or when `merge` asks for it: the model is loaded anew, and what was learned is put in.
    """
    learned = tuner.learned()
    if not tuner.team.leads:
        return []
    settings = tuner.settings
    written = []
    adapter = {name: value for name, value in learned.items() if is_adapter(name)}
    if settings.lora is not None and len(adapter) == len(learned):
        written.append(settings.output / "adapter")
        save_adapter(adapter, written[-1], settings.lora, settings.base)
    if len(adapter) < len(learned) or settings.merge:
        written.append(settings.output / "model")
        directory = model_folder(settings.model)
        model = load_model(directory)
        if settings.lora is not None:
            scale = settings.lora.scale
            tensors = {disk_name(name): value for name, value in adapter.items()}
            put_on(model, tensors, lambda name, rank: scale, settings.lora.parameters)
            merge_adapters(model)
        with torch.no_grad():
            for name in learned.keys() - adapter.keys():
                model.get_parameter(name).copy_(learned[name])
        save_model(model, written[-1], dtype=ModelConfig.from_file(directory).dtype, copy_from=directory)
    return written


def merge_into(adapter: Path, output: Path, name: str | None) -> int:
    """Write a checkpoint with an adapter merged into its weights; return how many Linears it changed.

    name: the checkpoint; None is the one the adapter says it was trained on, or the embedded one if it names none.
    """
    check_new(output)  # before a model is fetched
    directory = model_folder(base_of(adapter) if name is None else name)
    config = ModelConfig.from_file(directory)
    model = load_model(directory)
    load_adapter(model, adapter)
    merged = merge_adapters(model)
    save_model(model, output, dtype=config.dtype, copy_from=directory)
    return merged


def model_folder(name: str | None) -> Path:
    """Return a model's folder; None is the embedded one."""
    return EMBEDDED if name is None else resolve(name)

"""Write checkpoints of the released layout: a model's weights, or any that are given piece by piece.

Everything goes to a hidden folder inside the target first and is moved into place when all of it is on the disk, so that a
full disk or a kill leaves the checkpoint that was there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.config import ModelConfig, VisionConfig
from foveal.errors import CheckpointError, ConfigError
from foveal.model import Qwen3VL
from foveal.model.checkpoint import INDEX, PIECE_BYTES, SINGLE, disk_name, listed, plain, skeleton, to_dtype
from foveal.model.linear import PackedEmbedding, PackedExperts, PackedLinear
from foveal.model.tensorfile import write_tensors
from foveal.preprocessor import has_preprocessors, read_preprocessors

SHARD_BYTES = 5_000_000_000
MARGIN_BYTES = 32 << 20  # JSON, tokenizer and headers beside the weights
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")

# (dtype, shape) of every tensor by its released name, and a function that gives its values in pieces.
Tensors = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
Pieces = Callable[[str], Iterable[Tensor]]


def save_model(
    model: Qwen3VL,
    directory: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: float = SHARD_BYTES,
    copy_from: str | Path | None = None,
) -> None:
    """Write config.json and the weights, each in its own dtype unless `dtype` is given, in the released layout.

    `copy_from` is a checkpoint folder whose other files (tokenizer, template, preprocessors, generation defaults) come
    along. Raise CheckpointError if the disk is too full or the module does not have its configuration's tensors; a packed
    model has not, `save_packed` writes one.
    """
    if any(isinstance(module, (PackedLinear, PackedEmbedding, PackedExperts)) for module in model.modules()):
        raise CheckpointError(
            "the model's weights are packed to 8 or 4 bits, and save_model writes plain ones: write it with save_packed, "
            "pack the original with foveal pack, or save the model that was loaded without bits"
        )
    directory, source = Path(directory), None if copy_from is None else Path(copy_from)
    wanted = None if dtype is None else to_dtype(dtype)
    parameters = {disk_name(name): p.detach() for name, p in model.named_parameters()}
    _require_own_tensors(model.config, parameters)
    tensors = {name: (wanted or p.dtype, tuple(p.shape)) for name, p in parameters.items()}

    def pieces(name: str) -> Iterator[Tensor]:
        value = parameters[name]
        for first, stop in rows(tuple(value.shape)):
            yield value[first:stop].to("cpu", tensors[name][0])

    config = replace(model.config, dtype=plain(wanted or model.dtype))
    with staged(directory, total_bytes(tensors)) as stage:
        if source is not None and source.resolve() != directory.resolve():
            copy_companions(source, stage)
        _require_pixel_statistics(config, stage, directory)
        write_weights(stage, tensors, pieces, max_shard_bytes, {"format": "pt"})
        write_json(stage / "config.json", config.to_dict())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as released checkpoints have it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def rows(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cut the first axis into pieces of about PIECE_BYTES of float32."""
    step = max(1, PIECE_BYTES // max(1, 4 * math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])


def total_bytes(tensors: Tensors) -> int:
    """Count the bytes of all values."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in tensors.values())


def _require_own_tensors(config: ModelConfig, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a module with parts added, replaced or never filled: no loader would take its file."""
    shapes = {disk_name(name): p.shape for name, p in skeleton(config).named_parameters()}
    wrong = {name for name, shape in shapes.items() if name not in parameters or parameters[name].shape != shape}
    wrong |= parameters.keys() - shapes.keys()
    if wrong:
        raise CheckpointError(
            f"these tensors of the model are not those of its configuration: {listed(sorted(wrong))}; merge or remove what "
            "was added before saving"
        )
    if unfilled := [name for name, value in parameters.items() if value.is_meta]:
        raise CheckpointError(f"these tensors of the model hold no values yet: {listed(unfilled)}")


def copy_companions(source: Path, stage: Path) -> None:
    """Copy what a checkpoint folder holds beside its weights: tokenizer, template, preprocessors, generation defaults."""
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; copy_from takes a checkpoint folder")
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".jinja", ".txt") and file.name not in ("config.json", INDEX) and file.is_file():
            shutil.copyfile(file, stage / file.name)


def _require_pixel_statistics(config: ModelConfig, stage: Path, directory: Path) -> None:
    """Refuse to part weights from the normalisation they were made for: it lies in a file beside them."""
    place = stage if has_preprocessors(stage) else directory
    default = replace(config.vision, image_mean=VisionConfig.image_mean, image_std=VisionConfig.image_std)
    vision, _ = read_preprocessors(place, default)
    mine, said = ((list(v.image_mean), list(v.image_std)) for v in (config.vision, vision))
    if mine != said:
        raise CheckpointError(
            f"{directory} would say that pixels have mean {said[0]} and deviation {said[1]}, but the model was made for "
            f"{mine[0]} and {mine[1]}; let copy_from name a folder with its preprocessor files"
        )


def write_weights(stage: Path, tensors: Tensors, pieces: Pieces, max_shard_bytes: float, metadata: Mapping[str, str]) -> None:
    """Write one file, or shards of at most `max_shard_bytes` (a larger tensor has one of its own) and their index."""
    if not max_shard_bytes > 0:
        raise ConfigError(f"max_shard_bytes is {max_shard_bytes}; it must be greater than 0")
    shards: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = []
    room = 0.0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * dtype.itemsize
        if not shards or nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = (dtype, shape)
        room -= nbytes
    if len(shards) == 1:
        write_tensors(stage / SINGLE, shards[0], pieces, metadata)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_tensors(stage / file, shard, pieces, metadata)
        weight_map |= dict.fromkeys(shard, file)
    total = {"total_size": total_bytes(tensors), "total_parameters": sum(math.prod(shape) for _, shape in tensors.values())}
    write_json(stage / INDEX, {"metadata": total, "weight_map": weight_map})


@contextlib.contextmanager
def staged(directory: Path, nbytes: int) -> Iterator[Path]:
    """Give a folder to write into; afterwards move its files into `directory` and remove weights they do not replace."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free, need = shutil.disk_usage(existing).free, nbytes + MARGIN_BYTES
    if free < need:
        raise CheckpointError(
            f"{directory} needs {need:,} bytes and the disk has {free:,} free; free some, or name a folder on another disk"
        )
    created, stage = not directory.exists(), None
    kept = "what was there before is unchanged"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
        yield stage
        _flush(stage)
        kept = "some of its files may be new, save again"
        _move_into_place(stage, directory)
    except OSError as e:
        why = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror or type(e).__name__
        raise CheckpointError(f"{directory} could not be written: {why}; {kept}") from e
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if created:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only if nothing came of it


def _flush(stage: Path) -> None:
    for path in stage.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _move_into_place(stage: Path, directory: Path) -> None:
    """Weights first, config.json last: a reader between two moves finds files that do not match, never half a file."""
    names = sorted((p.name for p in stage.iterdir()), key=lambda n: (n == "config.json", not _WEIGHTS.fullmatch(n), n))
    for name in names:
        os.replace(stage / name, directory / name)
    for path in directory.iterdir():
        if _WEIGHTS.fullmatch(path.name) and path.name not in names:
            path.unlink()

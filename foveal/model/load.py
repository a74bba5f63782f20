"""Checkpoints of the released layout: strict both ways, memory-mapped, tensor by tensor.

Names on disk are the module's own with `model.` before the two towers. Loading builds the module on the meta device and
fills it: a tensor that lies right and has the wanted dtype stays mapped, any other is converted in pieces, so the peak is
the final weights and one piece. FP8 checkpoints are dequantised on the way.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foveal.config import ModelConfig, read_json
from foveal.errors import CheckpointError
from foveal.hub import resolve
from foveal.model import Qwen3VL
from foveal.model.fp8 import SUFFIX, Blocks
from foveal.model.tensorfile import TensorFile, write_tensors
from foveal.preprocessor import read_preprocessors

__all__ = ["load_model", "resolve", "save_model", "write_checkpoint"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PIECE_ROWS_BYTES = 64 * 2**20  # a conversion holds so much of a tensor at a time
LISTED = 12  # names an error lists
SHARD_BYTES = 5 * 10**9


def disk_name(name: str) -> str:
    """Return a parameter's name in a checkpoint."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def skeleton(config: ModelConfig) -> Qwen3VL:
    """Build a model of shapes alone, on the meta device."""
    with torch.device("meta"), _Uninitialised():
        return Qwen3VL(config)


class _Uninitialised(TorchFunctionMode):
    """Leave out what `torch.nn` fills new parameters with. On the meta device that does nothing, but torch 2.13 imports its
    compiler for it, which is more than half of the time it takes to start."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


def load_model(directory: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Qwen3VL:
    """Load a checkpoint folder; dtype None is the checkpoint's own.

    Raise CheckpointError that lists what is missing, unexpected or misshapen.
    """
    directory = Path(directory)
    raw = read_json(directory / "config.json")
    config = ModelConfig.from_dict(raw, where=str(directory / "config.json"))
    vision, _ = read_preprocessors(directory, config.vision)
    config = replace(config, vision=vision)
    blocks = Blocks.from_config(raw.get("quantization_config"), str(directory / "config.json"))
    model = skeleton(config)
    model.language_model.reset_tables()
    files = _open_files(directory)
    # One piece's memory for all conversions: freed pieces would leave holes between the weights that nothing else fills.
    scratch = torch.empty(PIECE_ROWS_BYTES, dtype=torch.uint8)
    try:
        where = {name: file for file in files for name in file.entries}
        transposed = _check(model, where, blocks, config, directory)
        wanted = dtype or getattr(torch, config.dtype)
        for name, parameter in list(model.named_parameters()):
            file = where[disk_name(name)]
            value = _read(file, disk_name(name), where, blocks, wanted, name in transposed, scratch)
            _assign(model, name, nn.Parameter(value.to(device), requires_grad=False))
            del parameter
    finally:
        for file in files:
            file.close()
    if str(device) != "cpu":
        model.language_model.to(device)
    return model.eval()


def _open_files(directory: Path) -> list[TensorFile]:
    if (directory / INDEX).is_file():
        mapping = read_json(directory / INDEX).get("weight_map")
        if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
            raise CheckpointError(f"{directory / INDEX} has no weight_map from tensor names to files")
        names = sorted(set(mapping.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{directory / INDEX} names {name!r}; a shard is a .safetensors file of the same folder")
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{directory} lacks {len(missing)} of {len(names)} shards: {_some(missing)}; download it again"
            )
    else:
        names = [SINGLE]
        if not (directory / SINGLE).is_file():
            raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}; foveal reads safetensors checkpoints")
    files: list[TensorFile] = []
    try:
        for name in names:
            files.append(TensorFile(directory / name))
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


def _check(
    model: Qwen3VL, where: Mapping[str, TensorFile], blocks: Blocks | None, config: ModelConfig, directory: Path
) -> set[str]:
    """Compare names and shapes; return the parameters that lie transposed."""
    expected = {disk_name(name): tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: where[name].entries[name].shape for name in where}
    scales = {name for name in found if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in expected} if blocks else set()
    extra = set(found) - set(expected) - scales
    if config.tie_word_embeddings and "lm_head.weight" in extra:
        # Some tools write the tied head a second time; it must say the same as the embeddings.
        head = where["lm_head.weight"].read("lm_head.weight")
        name = disk_name("language_model.embed_tokens.weight")
        if name in where and not torch.equal(head, where[name].read(name)):
            raise CheckpointError(f"{directory}: lm_head.weight differs from the embeddings, but config.json ties them")
        extra.discard("lm_head.weight")
    missing = sorted(set(expected) - set(found))
    transposed, misshapen = set(), []
    for name in sorted(set(expected) & set(found)):
        shape = found[name]
        if shape == expected[name]:
            continue
        # Experts lie as (E, D, 2F), transposed to a Linear; tools that write them as (E, 2F, D) are understood.
        if ".experts." in name and shape == (expected[name][0], expected[name][2], expected[name][1]):
            transposed.add(name.removeprefix("model."))
        else:
            misshapen.append(f"{name} is {list(shape)}, expected {list(expected[name])}")
    if transposed:
        # A square one looks the same either way; it lies as the others do.
        transposed |= {n.removeprefix("model.") for n in expected if ".experts." in n and expected[n][1] == expected[n][2]}
    problems = [
        f"{len(missing)} tensors are missing: {_some(missing)}" if missing else "",
        f"{len(extra)} are unexpected: {_some(sorted(extra))}" if extra else "",
        f"{len(misshapen)} have another shape: {_some(misshapen)}" if misshapen else "",
    ]
    if any(problems):
        raise CheckpointError(f"{directory} does not match its config.json: {'; '.join(p for p in problems if p)}")
    return transposed


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _read(
    file: TensorFile,
    name: str,
    where: Mapping[str, TensorFile],
    blocks: Blocks | None,
    dtype: torch.dtype,
    transposed: bool,
    scratch: Tensor,
) -> Tensor:
    entry = file.entries[name]
    if entry.dtype.itemsize == 1 and entry.dtype.is_floating_point:
        scale = name + SUFFIX
        if blocks is None or scale not in where:
            raise CheckpointError(f"{file.path}: {name} is stored as {entry.dtype} without {scale}; it cannot be undone")
        scales = where[scale].read(scale)
        if tuple(scales.shape) != blocks.grid(entry.shape):
            raise CheckpointError(f"{scale} is {list(scales.shape)}, expected {list(blocks.grid(entry.shape))}")
        value = blocks.dequantize(file.read(name), scales).to(dtype)
        return value.transpose(-1, -2).contiguous() if transposed else value
    if entry.dtype == dtype and not transposed:
        mapped = file.mapped(name)
        if mapped is not None:
            return mapped
    out = torch.empty(entry.shape, dtype=dtype)
    if not entry.shape:
        return out.copy_(file.read(name))
    step = max(1, PIECE_ROWS_BYTES // max(1, entry.row_bytes))
    for first in range(0, entry.shape[0], step):
        stop = min(first + step, entry.shape[0])
        out[first:stop] = file.read(name, first, stop, scratch=scratch)
    return out.transpose(-1, -2).contiguous() if transposed else out


def _assign(model: nn.Module, name: str, value: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


def save_model(
    model: Qwen3VL, directory: str | Path, *, dtype: torch.dtype | None = None, max_shard_bytes: int = SHARD_BYTES
) -> None:
    """Write config.json and the weights in the released layout; each file is replaced whole, config.json last."""
    wanted = dtype or model.dtype
    config = replace(model.config, dtype=str(wanted).removeprefix("torch."))
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}

    def pieces(name: str) -> Iterable[Tensor]:
        yield parameters[name].detach().to("cpu", wanted)

    write_checkpoint(Path(directory), config, shapes, wanted, pieces, max_shard_bytes)


def write_checkpoint(
    directory: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, pieces: Any, limit: int
) -> None:
    """Write config.json and weights of `shapes`, whose values `pieces(name)` gives in order; each file is replaced whole."""
    shards: list[list[str]] = [[]]
    size = total = 0
    for name in sorted(shapes):
        nbytes = math.prod(shapes[name]) * dtype.itemsize
        if shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
        total += nbytes
    files = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    parts: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, names in zip(files, shards, strict=True):
            parts.append(directory / f".{file}.part")
            tensors = {disk_name(name): (dtype, shapes[name]) for name in names}
            own = {disk_name(name): name for name in names}
            write_tensors(parts[-1], tensors, partial(_renamed, pieces, own), {"format": "pt"})
        for part, file in zip(parts, files, strict=True):
            os.replace(part, directory / file)
        if len(files) > 1:
            weight_map = {disk_name(name): file for file, names in zip(files, shards, strict=True) for name in names}
            write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
            (directory / SINGLE).unlink(missing_ok=True)  # other readers would look at it first
        else:
            (directory / INDEX).unlink(missing_ok=True)
        write_json(directory / "config.json", config.to_dict())
    except OSError as e:
        for part in parts:
            part.unlink(missing_ok=True)
        why = "the disk is full" if e.errno == errno.ENOSPC else e.strerror or type(e).__name__
        raise CheckpointError(f"{directory} could not be written: {why}; what was there before is unchanged") from e


def _renamed(pieces: Callable[[str], Iterable[Tensor]], own: Mapping[str, str], disk: str) -> Iterable[Tensor]:
    return pieces(own[disk])


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file whole."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)

"""The tensors of a checkpoint folder: which file holds each, and whether they are those the model needs, both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foveal.config import DTYPE_BYTES, ModelConfig, read_json
from foveal.errors import CheckpointError, ConfigError
from foveal.model import Qwen3VL
from foveal.model.fp8 import SCALE_DTYPES, SUFFIX, Blocks
from foveal.model.tensorfile import TensorFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
WEIGHT_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}
PIECE_BYTES = 32 << 20  # of a tensor in memory while it is converted
LISTED = 8  # names of one kind in a message


def disk_name(name: str) -> str:
    """Return the released name of one of our parameters."""
    return name if name == HEAD else f"model.{name}"


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


def to_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Read "float32", "bfloat16" or "float16", or that torch.dtype. Raise ConfigError for any other."""
    for name, value in WEIGHT_DTYPES.items():
        if dtype in (name, value):
            return value
    raise ConfigError(f"dtype is {plain(dtype)}; weights are kept in one of {', '.join(WEIGHT_DTYPES)}")


def plain(dtype: str | torch.dtype) -> str:
    """Spell a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def listed(names: list[str]) -> str:
    """Join names for a message, the first few of many."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


class CheckpointFiles:
    """The open safetensors files of a folder, and which of them holds each tensor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: list[TensorFile] = []
        self.where: dict[str, TensorFile] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _open(self) -> None:
        index = self.directory / INDEX
        promised: dict[str, str] = {}
        if (self.directory / SINGLE).is_file():  # before an index, as in transformers
            names = [SINGLE]
        elif index.is_file():
            promised = _weight_map(index)
            names = sorted(set(promised.values()))
        else:
            raise CheckpointError(_nothing_to_load(self.directory))
        lost = [name for name in names if not (self.directory / name).is_file()]
        if lost:
            raise CheckpointError(
                f"{self.directory} lacks {len(lost)} of {len(names)} shards: {listed(lost)}; download or copy them again"
            )
        for name in names:
            file = TensorFile(self.directory / name)
            self.files.append(file)
            if twice := sorted(self.where.keys() & file.entries):
                raise CheckpointError(f"{self.where[twice[0]].path} and {file.path} both hold {listed(twice)}")
            self.where |= dict.fromkeys(file.entries, file)
        absent = [name for name, file in promised.items() if name not in self.where or self.where[name].path.name != file]
        if absent:
            raise CheckpointError(f"{index} names tensors that its files do not hold: {listed(absent)}")


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or any(not isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to files")
    for file in set(found.values()):
        # A name from a downloaded file must not lead out of the folder.
        if PurePosixPath(file).name != file or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {json.dumps(file)}; a shard is a .safetensors file of the same folder")
    return found


def _nothing_to_load(directory: Path) -> str:
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in directory.glob(pattern))
    if others:
        return (
            f"{directory} holds {listed(others)} but no {SINGLE}; foveal reads safetensors only, download or convert to those"
        )
    return f"{directory} has neither {SINGLE} nor {INDEX}; foveal reads safetensors checkpoints"


@dataclass(frozen=True)
class Source:
    """Where a parameter's values come from, and what is done to them on the way."""

    file: TensorFile
    name: str
    blocks: Blocks | None = None  # of an 8-bit weight, whose scales the file `scales` holds
    scales: TensorFile | None = None
    flipped: bool = False  # the last two axes are stored the other way round

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.file.entries[self.name].dtype

    @property
    def place(self) -> tuple[str, int]:
        """Sort key in which a disk is read forwards."""
        return self.file.path.name, self.file.entries[self.name].start

    def load(self, dtype: torch.dtype, device: torch.device, scratch: Scratch) -> Tensor:
        """Map the tensor where that serves, else read it piece by piece into one of its final dtype, shape and device."""
        entry = self.file.entries[self.name]
        if entry.dtype == dtype and device.type == "cpu" and not self.flipped:
            mapped = self.file.mapped(self.name)
            return self.file.read(self.name) if mapped is None else mapped
        *outer, rows, columns = (1, 1, *entry.shape)
        shape = (*outer, columns, rows)[2:] if self.flipped else entry.shape
        out = torch.empty(shape, dtype=dtype, device=device)
        for first, stop, piece in self.pieces(scratch):
            out[first:stop].copy_(piece.transpose(-2, -1) if self.flipped else piece)
        return out

    def pieces(self, scratch: Scratch, multiple: int = 1) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (first, stop, values) along the first axis, about PIECE_BYTES of float32 each, dequantized.

        The values are in `scratch`, until the next ones are. Pieces of a matrix begin at multiples of `multiple`.
        """
        entry = self.file.entries[self.name]
        scales = None if self.scales is None else self.scales.read(self.name + SUFFIX)
        # A piece of a matrix ends where a block ends; a piece of packed experts holds whole experts.
        block = self.blocks.rows if self.blocks is not None and len(entry.shape) == 2 else 1
        whole = math.lcm(block, multiple)
        step = whole * max(1, PIECE_BYTES // max(1, 4 * math.prod(entry.shape[1:]) * whole))
        for first in range(0, entry.shape[0], step):
            stop = min(first + step, entry.shape[0])
            shape = (stop - first, *entry.shape[1:])
            piece = self.file.read(self.name, first, stop, into=scratch.take(shape, entry.dtype))
            if self.blocks is not None and scales is not None:
                wide = scratch.take(shape, torch.float32).copy_(piece)
                piece = self.blocks.dequantize(wide, scales[first // block : -(-stop // block)])
            yield first, stop, piece


class Scratch:
    """Memory that all pieces of a load share, one place a dtype.

    Pieces allocated anew left holes between the weights: in every other run of 500 MB converted to float32, 220 MB of them.
    """

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give a tensor of any values; what this dtype was given before is lost."""
        count = math.prod(shape)
        if dtype not in self._memory or len(self._memory[dtype]) < count:
            self._memory[dtype] = torch.empty(max(count, PIECE_BYTES // 4), dtype=dtype)
        return self._memory[dtype][:count].view(shape)


def match_tensors(files: CheckpointFiles, shapes: Mapping[str, tuple[int, ...]], blocks: Blocks | None) -> dict[str, Source]:
    """Find every tensor of `shapes` (by released name) in the files.

    Raise CheckpointError unless all are there, as expected, and nothing else is. Packed experts may lie as released,
    (E, D, 2F) and (E, F, D), or the other way round. A tied checkpoint may repeat its embeddings as lm_head.weight.
    """
    held = dict(files.where)
    problems = _Problems(files.directory)
    flips = _flipped_experts(held, shapes)
    sources: dict[str, Source] = {}
    for name, shape in shapes.items():
        file = held.pop(name, None)
        if file is None:
            problems.missing.append(f"{name} {list(shape)}")
            continue
        entry, stored = file.entries[name], shape if name not in flips else (shape[0], shape[2], shape[1])
        scales = None
        if entry.shape != stored:
            problems.misshapen.append(f"{name} is {list(entry.shape)}, expected {list(stored)}")
        if entry.dtype == torch.float8_e4m3fn:
            scales = held.pop(name + SUFFIX, None)
            problems.check_scales(name, entry.shape, scales, blocks)
        elif entry.dtype not in WEIGHT_DTYPES.values():
            problems.misshapen.append(f"{name} is in {plain(entry.dtype)}, expected {' or '.join(WEIGHT_DTYPES)}")
        sources[name] = Source(file, name, blocks if scales else None, scales, name in flips)
    head = held.pop(HEAD, None) if HEAD not in shapes else None
    problems.unexpected = [f"{name} {list(file.entries[name].shape)}" for name, file in sorted(held.items())]
    problems.complain()
    if head is not None and not _equal(Source(head, HEAD), sources[EMBEDDINGS]):
        raise CheckpointError(
            f"{files.directory}: {HEAD} differs from the embeddings, but config.json ties them; set tie_word_embeddings to "
            "false there to use that head, or remove the tensor"
        )
    return sources


def _flipped_experts(held: Mapping[str, TensorFile], shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """List the packed experts that are stored (E, out, in).

    A layer's two tensors are judged together: one alone is ambiguous where D = 2F or D = F, both at once never are.
    """
    flipped: set[str] = set()
    for gate_up in (name for name in shapes if name.endswith(".experts.gate_up_proj")):
        pair = (gate_up, gate_up.replace("gate_up_proj", "down_proj"))
        if all(name in held for name in pair):
            stored = [held[name].entries[name].shape for name in pair]
            straight = [shapes[name] for name in pair]
            if stored != straight and stored == [(e, b, a) for e, a, b in straight]:
                flipped.update(pair)
    return flipped


def _equal(a: Source, b: Source) -> bool:
    one, other = (source.file.entries[source.name] for source in (a, b))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    pairs = zip(a.pieces(Scratch()), b.pieces(Scratch()), strict=True)
    return all(torch.equal(x, y) for (_, _, x), (_, _, y) in pairs)


class _Problems:
    """What does not match, gathered so that one message names all of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.misshapen: list[str] = []

    def check_scales(self, name: str, shape: tuple[int, ...], scales: TensorFile | None, blocks: Blocks | None) -> None:
        """Expect the scales of an 8-bit weight of `shape`."""
        if blocks is None:
            self.misshapen.append(f"{name} is in float8_e4m3fn, but config.json has no quantization_config with its block size")
        elif len(shape) < 2 or name in (EMBEDDINGS, HEAD):
            self.misshapen.append(f"{name} is in float8_e4m3fn, expected {' or '.join(WEIGHT_DTYPES)}")
        elif scales is None:
            self.missing.append(f"{name}{SUFFIX} {list(blocks.grid(shape))}")
        else:
            entry = scales.entries[name + SUFFIX]
            if entry.shape != blocks.grid(shape):
                self.misshapen.append(f"{name}{SUFFIX} is {list(entry.shape)}, expected {list(blocks.grid(shape))}")
            if entry.dtype not in SCALE_DTYPES:
                self.misshapen.append(
                    f"{name}{SUFFIX} is in {plain(entry.dtype)}, expected {' or '.join(map(plain, SCALE_DTYPES))}"
                )

    def complain(self) -> None:
        """Raise CheckpointError if there is anything to say."""
        kinds = (
            (self.missing, "tensors are missing"),
            (self.unexpected, "are unexpected"),
            (self.misshapen, "have another shape or type"),
        )
        said = [f"{len(names)} {what}: {listed(names)}" for names, what in kinds if names]
        if not said:
            return
        hint = "use the config.json that belongs to these weights"
        if len(self.missing) == 1 and self.missing[0].startswith(HEAD):
            hint = "if the embeddings are the head, set tie_word_embeddings to true in config.json"
        raise CheckpointError(f"{self.directory} does not match its config.json: {'; '.join(said)}; {hint}")

"""Read a checkpoint folder into a Qwen3VL: strictly both ways, and with little more memory than the weights take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch
from torch import Tensor, nn

from foveal.config import DTYPE_BYTES, ModelConfig, VisionConfig, read_json
from foveal.errors import CheckpointError, ConfigError
from foveal.model import Qwen3VL
from foveal.model.fp8 import SCALE_DTYPES, SUFFIX, Blocks
from foveal.model.tensorfile import TensorFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
WEIGHT_DTYPES = {name: getattr(torch, name) for name in DTYPE_BYTES}
PIECE_BYTES = 32 << 20  # converted at once
LISTED = 8  # names of one kind in a message


def stored_name(name: str) -> str:
    """Return the released name of one of our parameters."""
    return name if name == HEAD else f"model.{name}"


def to_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Read "float32", "bfloat16" or "float16", or that torch.dtype. Raise ConfigError for any other."""
    for name, value in WEIGHT_DTYPES.items():
        if dtype in (name, value):
            return value
    raise ConfigError(f"dtype is {str(dtype)!r}; weights are kept in one of {', '.join(WEIGHT_DTYPES)}")


def load_model(directory: str | Path, *, dtype: str | torch.dtype | None = None, device: torch.device | str = "cpu") -> Qwen3VL:
    """Load a checkpoint folder in the released layout, for inference or further training.

    dtype: what all weights become, by default what the checkpoint's own embeddings are; 8-bit weights are dequantized to
    it. On the CPU a tensor that needs no conversion stays mapped to its file (until it is written to, its pages are the
    file's own), so replace the file rather than writing into it. Raise CheckpointError, with the names, if tensors are
    missing, left over or misshapen.
    """
    directory = Path(directory)
    raw = read_json(directory / "config.json")
    config = ModelConfig.from_dict(raw, where=str(directory / "config.json"))
    config = replace(config, vision=with_pixel_statistics(config.vision, directory))
    blocks = Blocks.from_config(raw.get("quantization_config"), str(directory / "config.json"))
    with torch.device("meta"):
        model = Qwen3VL(config)
    with CheckpointFiles(directory) as files:
        shapes = {stored_name(name): tuple(p.shape) for name, p in model.named_parameters()}
        sources = match_tensors(files, shapes, blocks)
        # The embeddings are never quantized; their dtype is what the checkpoint is in, whatever its config.json says.
        own = sources[EMBEDDINGS].stored_dtype
        target = own if dtype is None else to_dtype(dtype)
        for name in sorted((n for n, _ in model.named_parameters()), key=lambda n: sources[stored_name(n)].place):
            path, _, leaf = name.rpartition(".")
            value = sources[stored_name(name)].load(target, torch.device(device))
            setattr(model.get_submodule(path), leaf, nn.Parameter(value))
    model.config = replace(config, dtype=str(target).removeprefix("torch."))
    model.language_model.reset_tables()
    return model.eval()


def with_pixel_statistics(vision: VisionConfig, directory: Path) -> VisionConfig:
    """Take image_mean and image_std from the checkpoint's preprocessor files; without one, keep what the config has."""
    picture, clip = read_preprocessors(directory)
    if picture is None:
        return vision
    mean, std = _pixel_statistics(picture, vision.in_channels, directory)
    if clip is not None and "image_mean" in clip and _pixel_statistics(clip, vision.in_channels, directory) != (mean, std):
        raise CheckpointError(
            f"{directory}: pictures are normalised by {picture['image_mean']} and {picture['image_std']}, clips by "
            f"{clip['image_mean']} and {clip.get('image_std')}; one patch embedding serves both, so they must be equal"
        )
    return replace(vision, image_mean=mean, image_std=std)


def read_preprocessors(directory: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Read what a checkpoint says about pictures and about clips: in a file each, or together in processor_config.json."""
    found: list[dict[str, Any] | None] = []
    for file, key in (("preprocessor_config.json", "image_processor"), ("video_preprocessor_config.json", "video_processor")):
        section = None
        if (directory / file).is_file():
            section = read_json(directory / file)
        elif (directory / "processor_config.json").is_file():
            section = read_json(directory / "processor_config.json").get(key)
        found.append(section if isinstance(section, dict) else None)
    return found[0], found[1]


def _pixel_statistics(raw: dict[str, Any], channels: int, directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    where = f"the preprocessor file of {directory}"
    if raw.get("do_rescale") is False or abs(raw.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise CheckpointError(f"{where} does not divide pixels by 255, as every Qwen3-VL does")
    if raw.get("do_normalize") is False:
        return (0.0,) * channels, (1.0,) * channels
    values = []
    for key in ("image_mean", "image_std"):
        value = raw.get(key)
        if not isinstance(value, list) or len(value) != channels or any(type(n) not in (int, float) for n in value):
            raise CheckpointError(f"{where} has {key} {value!r}; {channels} numbers were expected")
        values.append(tuple(float(n) for n in value))
    if min(values[1]) <= 0:
        raise CheckpointError(f"{where} has image_std {list(values[1])}; every value must be greater than 0")
    return values[0], values[1]


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
        if (self.directory / SINGLE).is_file():  # transformers prefers it too
            names, promised = [SINGLE], {}
        elif index.is_file():
            promised = _weight_map(index)
            names = sorted(set(promised.values()))
        else:
            raise CheckpointError(_nothing_to_load(self.directory))
        lost = [name for name in names if not (self.directory / name).is_file()]
        if lost:
            raise CheckpointError(f"{index} names files that are not there: {listed(lost)}; download or copy them again")
        for name in names:
            file = TensorFile(self.directory / name)
            self.files.append(file)
            twice = sorted(self.where.keys() & file.entries)
            if twice:
                raise CheckpointError(f"{self.where[twice[0]].path} and {file.path} both hold {listed(twice)}")
            self.where |= dict.fromkeys(file.entries, file)
        absent = [name for name, file in promised.items() if name not in self.where or self.where[name].path.name != file]
        if absent:
            raise CheckpointError(f"{index} names tensors that its files do not hold: {listed(absent)}")


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or any(not isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"{index} needs a weight_map from tensor names to file names")
    for file in set(found.values()):
        # A name from a downloaded file must not lead out of the folder.
        if PurePosixPath(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {json.dumps(file)}; a .safetensors file beside it was expected")
    return found


def _nothing_to_load(directory: Path) -> str:
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in directory.glob(pattern))
    if others:
        return (
            f"{directory} holds {listed(others)} but no {SINGLE}; foveal reads safetensors only, so convert the weights or "
            "download the safetensors files"
        )
    return f"{directory} holds neither {SINGLE} nor {INDEX}; a checkpoint folder needs one of them"


@dataclass(frozen=True)
class Source:
    """Where a parameter's values come from, and what is done to them on the way."""

    file: TensorFile
    name: str
    blocks: Blocks | None = None  # set for 8-bit weights
    scales: TensorFile | None = None
    flipped: bool = False  # the last two axes are stored the other way round

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.file.entries[self.name].dtype

    @property
    def place(self) -> tuple[str, int]:
        """Sort key in which a disk is read forwards."""
        return self.file.path.name, self.file.entries[self.name].start

    def load(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Map the tensor where that serves, else read it piece by piece into one of its final dtype, shape and device."""
        entry = self.file.entries[self.name]
        plain = entry.dtype == dtype and device.type == "cpu" and not self.flipped
        if plain:
            mapped = self.file.mapped(self.name)
            return self.file.read(self.name) if mapped is None else mapped
        shape = entry.shape if not self.flipped else (*entry.shape[:-2], entry.shape[-1], entry.shape[-2])
        out = torch.empty(shape, dtype=dtype, device=device)
        if not shape:
            return out.copy_(self.file.read(self.name))
        for first, stop, piece in self.pieces():
            out[first:stop].copy_(piece.transpose(-2, -1) if self.flipped else piece)
        return out

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (first, stop, values) along the first axis, about PIECE_BYTES of float32 each, dequantized."""
        entry = self.file.entries[self.name]
        scales = None if self.scales is None else self.scales.read(self.name + SUFFIX)
        # A piece of a matrix ends where a block ends; a piece of packed experts holds whole experts.
        block = self.blocks.rows if self.blocks is not None and len(entry.shape) == 2 else 1
        step = block * max(1, PIECE_BYTES // max(1, 4 * math.prod(entry.shape[1:]) * block))
        for first in range(0, entry.shape[0], step):
            stop = min(first + step, entry.shape[0])
            piece = self.file.read(self.name, first, stop)
            if self.blocks is not None and scales is not None:
                piece = self.blocks.dequantize(piece, scales[first // block : -(-stop // block)])
            yield first, stop, piece


def match_tensors(files: CheckpointFiles, shapes: Mapping[str, tuple[int, ...]], blocks: Blocks | None) -> dict[str, Source]:
    """Find every tensor of `shapes` (by released name) in the files. Raise CheckpointError unless all match and none is over.

    Packed experts may lie as released, (E, D, 2F) and (E, F, D), or the other way round. A tied checkpoint may repeat its
    embeddings as lm_head.weight.
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
        entry = file.entries[name]
        if name in flips:
            shape = (shape[0], shape[2], shape[1])
        if entry.shape != shape:
            problems.misshapen.append(f"{name} is {list(entry.shape)}, expected {list(shape)}")
        elif entry.dtype == torch.float8_e4m3fn:
            scales = held.pop(name + SUFFIX, None)
            problems.check_scales(name, shape, scales, blocks)
            sources[name] = Source(file, name, blocks, scales, name in flips)
            continue
        elif entry.dtype not in WEIGHT_DTYPES.values():
            problems.misshapen.append(f"{name} is in {_plain(entry.dtype)}, expected {' or '.join(WEIGHT_DTYPES)}")
        sources[name] = Source(file, name, flipped=name in flips)
    head = held.pop(HEAD, None) if HEAD not in shapes else None
    problems.unexpected = [f"{name} {list(file.entries[name].shape)}" for name, file in held.items()]
    problems.complain()
    if sources[EMBEDDINGS].blocks is not None:
        raise CheckpointError(
            f"{files.directory}: the embeddings are in 8 bits; foveal reads them in {', '.join(WEIGHT_DTYPES)}"
        )
    if head is not None and not _equal(Source(head, HEAD), sources[EMBEDDINGS]):
        raise CheckpointError(
            f"{files.directory}: tie_word_embeddings is true in config.json, but {HEAD} differs from {EMBEDDINGS}; "
            "set it to false to use that head, or remove the tensor"
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
    return (
        a.file.entries[a.name].shape == b.file.entries[b.name].shape
        and a.stored_dtype == b.stored_dtype
        and all(torch.equal(x, y) for (_, _, x), (_, _, y) in zip(a.pieces(), b.pieces(), strict=True))
    )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def listed(names: list[str]) -> str:
    """Join names for a message, the first few of many."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


class _Problems:
    """What does not match, gathered so that one message names all of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.missing: list[str] = []
        self.misshapen: list[str] = []
        self.unexpected: list[str] = []

    def check_scales(self, name: str, shape: tuple[int, ...], scales: TensorFile | None, blocks: Blocks | None) -> None:
        """Expect the scales of an 8-bit weight."""
        if blocks is None:
            self.misshapen.append(f"{name} is in float8_e4m3fn, but config.json has no quantization_config with its block size")
        elif len(shape) < 2:
            self.misshapen.append(f"{name} is in float8_e4m3fn, but only matrices have scales by block")
        elif scales is None:
            self.missing.append(f"{name}{SUFFIX} {list(blocks.grid(shape))}")
        else:
            entry = scales.entries[name + SUFFIX]
            if entry.shape != blocks.grid(shape):
                self.misshapen.append(f"{name}{SUFFIX} is {list(entry.shape)}, expected {list(blocks.grid(shape))}")
            elif entry.dtype not in SCALE_DTYPES:
                self.misshapen.append(
                    f"{name}{SUFFIX} is in {_plain(entry.dtype)}, expected {', '.join(map(_plain, SCALE_DTYPES))}"
                )

    def complain(self) -> None:
        """Raise CheckpointError if there is anything to say."""
        parts = []
        text: Callable[[list[str], str], str] = lambda names, what: f"{len(names)} {what}: {listed(names)}"  # noqa: E731
        if self.missing:
            parts.append(text(self.missing, "missing (with the shape expected)"))
        if self.unexpected:
            parts.append(text(self.unexpected, "unexpected"))
        if self.misshapen:
            parts.append(text(self.misshapen, "of another shape or type"))
        if not parts:
            return
        hint = "use the config.json that belongs to these weights"
        if len(self.missing) == 1 and self.missing[0].startswith(HEAD):
            hint = "if the head is the embeddings, set tie_word_embeddings to true in config.json"
        raise CheckpointError(
            f"the tensors in {self.directory} are not those its config.json describes; " + "; ".join(parts) + f"; {hint}"
        )

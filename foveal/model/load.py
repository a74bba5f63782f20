"""Read a checkpoint folder of the released layout into a Qwen3VL; save.py writes one.

The module is built on the meta device and filled tensor by tensor: one that lies right and has the wanted dtype stays
mapped, any other is read or converted in pieces, so the peak is the final weights and one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from foveal.config import ModelConfig, read_json
from foveal.errors import ConfigError
from foveal.model import Qwen3VL
from foveal.model.checkpoint import (
    EMBEDDINGS,
    INDEX,
    SINGLE,
    CheckpointFiles,
    Scratch,
    disk_name,
    match_tensors,
    plain,
    skeleton,
    to_dtype,
)
from foveal.model.feedback import Moments
from foveal.model.fp8 import Blocks
from foveal.model.quantize import check_bits, file_bits, fill_packed, is_packed, pack_into, width
from foveal.model.save import save_model
from foveal.preprocessor import read_preprocessors

__all__ = ["INDEX", "SINGLE", "disk_name", "load_model", "save_model", "skeleton"]


def load_model(
    directory: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str = "cpu",
    bits: int | None = None,
    moments: Mapping[str, Moments] | None = None,
) -> Qwen3VL:
    """Load a checkpoint folder, sharded or not, ready to answer: parameters ask for no gradients.

    dtype: what all weights become, by default what the checkpoint's embeddings are; 8-bit weights are dequantized to it.
    On the CPU a tensor that needs no conversion stays mapped: it is read when touched, writing to it never reaches the
    file, and the file must be replaced rather than written into while the model lives. Raise CheckpointError that lists
    what is missing, unexpected or misshapen.

    bits: 8 or 4 packs the weights on the way (quantize.py); what is not packed is float32. A folder that was written
    packed stays so. Raise ConfigError where that cannot be: in another dtype, off the CPU, without the kernels. moments: what
    `feedback.gather` found on some prompts; with it packing makes up for its errors in the decoder's linears.
    """
    directory = Path(directory)
    where = str(directory / "config.json")
    raw = read_json(directory / "config.json")
    config = ModelConfig.from_dict(raw, where=where)
    config = replace(config, vision=read_preprocessors(directory, config.vision)[0])
    model = skeleton(config)
    if is_packed(raw):
        held = file_bits(raw, where)
        if bits not in (None, held):
            raise ConfigError(f"{directory} was packed to {held} bits; load it so, or pack the original to {bits}")
        _check_packable(held, device, dtype)
        fill_packed(model, held, directory / SINGLE)
        model.config = replace(config, dtype="float32")
        model.language_model.reset_tables()
        return model.eval()
    if bits is not None:
        _check_packable(bits, device, dtype)
        dtype = torch.float32
    blocks = Blocks.from_config(raw.get("quantization_config"), where)
    shapes = {disk_name(name): tuple(p.shape) for name, p in model.named_parameters()}
    with CheckpointFiles(directory) as files:
        sources = match_tensors(files, shapes, blocks)
        # The embeddings are never quantized: they have the checkpoint's own dtype, whatever its config.json says or omits.
        target = sources[EMBEDDINGS].stored_dtype if dtype is None else to_dtype(dtype)
        scratch = Scratch()
        names = [name for name, _ in model.named_parameters() if bits is None or width(name, bits, config) is None]
        for name in sorted(names, key=lambda n: sources[disk_name(n)].place):
            module, _, leaf = name.rpartition(".")
            value = sources[disk_name(name)].load(target, torch.device(device), scratch)
            setattr(model.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))
        if bits is not None:
            pack_into(model, sources, bits, moments)
    model.config = replace(config, dtype=plain(target))
    model.language_model.reset_tables()
    return model.eval()


def _check_packable(bits: int, device: torch.device | str, dtype: str | torch.dtype | None) -> None:
    check_bits(bits)
    if torch.device(device).type != "cpu":
        raise ConfigError(f"weights packed to {bits} bits run on the CPU, not on {device}; load the plain checkpoint there")
    if dtype is not None and to_dtype(dtype) != torch.float32:
        raise ConfigError(f"dtype is {plain(dtype)}, but beside weights packed to {bits} bits all is float32; leave it out")

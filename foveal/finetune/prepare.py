"""A loaded model made ready to learn: which parts, whole or by adapters, with activations kept or computed again."""

from __future__ import annotations

import functools
from typing import Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

from foveal.errors import ConfigError
from foveal.finetune.int8 import keep_in_8_bits
from foveal.finetune.lora import adapt, is_adapter
from foveal.finetune.settings import TuneSettings
from foveal.model import Qwen3VL
from foveal.model.checkpoint import to_dtype

Part = Literal["vision", "merger", "language"]
PARTS: tuple[Part, ...] = ("vision", "merger", "language")


def part_of(name: str) -> Part:
    """Say which part a parameter or module belongs to. The mergers of the DeepStack taps go with the main one.

    They all translate from the encoder to the decoder; to leave the taps' behind is a mistake others have made.
    """
    if name.startswith(("visual.merger", "visual.deepstack_merger_list")):
        return "merger"
    return "vision" if name.startswith("visual") else "language"


def prepare(model: Qwen3VL, settings: TuneSettings) -> dict[Part, dict[str, nn.Parameter]]:
    """Freeze the model, then put adapters on and let parts learn as the settings say. Return what learns, by part and name.

    A part in which adapters were put learns by those alone; `bits` then quantises what stays frozen. Raise ConfigError if a
    part has nothing to learn with.
    """
    rates = {part: getattr(settings, part) for part in PARTS}
    model.requires_grad_(False)
    adapted: set[Part] = set()
    if settings.lora is not None:
        names = adapt(model, settings.lora, lambda name: rates[part_of(name)] > 0, settings.seed)
        adapted = {part_of(name) for name in names}
    learning: dict[Part, dict[str, nn.Parameter]] = {part: {} for part in PARTS}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if rates[part] > 0 and (part not in adapted or is_adapter(name)):
            parameter.requires_grad_(True)
            learning[part][name] = parameter
    for part, parameters in learning.items():
        if rates[part] > 0 and not parameters:
            raise ConfigError(f"the model has no {part} that could learn; set {part} = 0")
    if settings.bits is not None:
        keep_in_8_bits(model, to_dtype(settings.compute_dtype or model.dtype))
    if settings.checkpointing:
        recompute_activations(model)
    return {part: parameters for part, parameters in learning.items() if parameters}


def recompute_activations(model: Qwen3VL) -> None:
    """Keep only what enters each block and layer, and compute the rest again in the backward pass: a third more work."""
    for block in (*model.visual.blocks, *model.language_model.layers):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]

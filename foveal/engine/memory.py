"""How much of everything fits: planned once, before anything runs, from a budget of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foveal.errors import ConfigError
from foveal.generate import Pipeline
from foveal.model.quantize import num_bytes

if TYPE_CHECKING:
    from foveal.engine.settings import Settings

MARGIN = 0.1  # of what is free, left to others
VISION_SHARE = 0.15  # of what remains for caches


@dataclass(frozen=True)
class Memory:
    """A plan in bytes: what the weights take, what a step may need, and what is left for the two caches."""

    weight_bytes: int
    step_bytes: int
    vision_bytes: int
    block_bytes: int
    num_blocks: int


def plan_memory(pipeline: Pipeline, settings: Settings) -> Memory:
    """Plan an engine's memory. Raise ConfigError, with the numbers, where not one block fits."""
    model, config = pipeline.model, pipeline.processor.config
    text, size = config.text, settings.block_size
    cache = model.new_cache(size)
    block = cache.num_bytes
    weights = num_bytes(model)
    rows = settings.step_tokens + settings.max_running
    widest = 3 * text.intermediate_size + 4 * text.hidden_size + 3 * text.num_attention_heads * text.head_dim
    step = 4 * (rows * widest + 2 * settings.max_running * text.vocab_size)
    if settings.num_blocks is not None:
        vision = 2**28 if settings.vision_bytes is None else settings.vision_bytes
        return Memory(weights, step, vision, block, settings.num_blocks)
    if settings.memory_bytes is None:
        left = int(free_bytes(model.device) * (1 - MARGIN)) - step
        total = left + step
    else:
        total = settings.memory_bytes
        left = total - weights - step
    vision = int(VISION_SHARE * max(left, 0)) if settings.vision_bytes is None else settings.vision_bytes
    # More than every place filled to the end of the context could never be used, twice that for what is kept for later.
    most = 2 * settings.max_running * -(-text.max_position_embeddings // size)
    blocks = min((left - vision) // block, most)
    if blocks < 1:
        raise ConfigError(
            f"{total:,} bytes of memory leave {left - vision:,} for keys and values, after {weights:,} of weights, {step:,} of "
            f"a step and {vision:,} of vision tokens; one block of {size} tokens takes {block:,}: give more, or run fewer"
        )
    return Memory(weights, step, vision, block, int(blocks))


def free_bytes(device: torch.device) -> int:
    """Return the memory that can be had without swapping; on a GPU its own."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 4 * 2**30  # not Linux: a size that most machines have
    return available

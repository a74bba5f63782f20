"""Half precision stays close to float32, for every tiny configuration, through encoder, prefill and decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveal.batch import Batch
from foveal.model import Qwen3VL
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

# Mean difference as a share of the largest logit; measured worst 0.015 and 0.0042. Single logits may be far off: a rounded
# router sometimes picks another expert. tests/parity/test_half_precision.py holds both up against the reference's.
BOUND = {torch.bfloat16: 0.03, torch.float16: 0.01}


@torch.no_grad()
def _logits(model: Qwen3VL) -> Tensor:
    media = new_media(model.config.vision, SCENES["mixed"])
    sequence = new_sequence(media, model.config.vision.spatial_merge_size)
    cache = model.new_cache()
    rows = model(Batch.pack([sequence], [model.encode(media)]), [cache])
    step = model(Batch.step([3], [sequence.next_position]), [cache])
    assert rows.dtype == step.dtype == model.dtype
    return torch.cat([rows, step]).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_half_precision_is_close(name: str, dtype: torch.dtype) -> None:
    half = new_model(CONFIGS[name], dtype=dtype)
    # The same rounded weights in float32, so that only the arithmetic differs.
    full = new_model(CONFIGS[name], dtype=dtype).float()
    exact, rounded = _logits(full), _logits(half)
    assert torch.isfinite(rounded).all()
    assert float((rounded - exact).abs().mean() / exact.abs().max()) < BOUND[dtype]

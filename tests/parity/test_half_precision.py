"""In bfloat16 and float16, foveal strays from float32 no further than transformers does in the same dtype.

Half precision cannot be compared row by row: both sides round, in different places, and a rounded router may choose another
expert. What can be compared is how far each is, on the mean, from the float32 result of the same (rounded) weights.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from foveal.batch import Batch, PatchBatch
from foveal.model import Qwen3VL
from tests.parity.reference import model_inputs, new_reference, pixel_values
from tests.parity.runs import request
from tests.tiny import CONFIGS, new_media, new_model

HALVES = [torch.bfloat16, torch.float16]
SEEDS = range(4)


def _error(rounded: Tensor, exact: Tensor) -> float:
    return float((rounded.float() - exact).abs().mean() / exact.abs().max())


@torch.no_grad()
def _logits(model: Qwen3VL) -> Tensor:
    media, sequence = request(model.config, "mixed")
    return model(Batch.pack([sequence], [model.encode(media)]))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_logits(name: str, dtype: torch.dtype) -> None:
    ours, theirs = [], []
    for seed in SEEDS:
        half = new_model(CONFIGS[name], seed, dtype)
        full = copy.deepcopy(half).float()
        exact = _logits(full)
        reference = new_reference(full, dtype)
        media, sequence = request(full.config, "mixed")
        inputs = model_inputs(sequence, media, full.config)
        ours.append(_error(_logits(half), exact))
        theirs.append(_error(reference(**inputs).logits[0], exact))
    assert np.mean(ours) <= 1.3 * np.mean(theirs), (ours, theirs)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shade", [(0, 256), (118, 138), (245, 256), (0, 8)], ids=["noise", "grey", "white", "black"])
@torch.no_grad()
def test_patch_embedding(shade: tuple[int, int], dtype: torch.dtype) -> None:
    """Grey pictures are the hard case for normalisation that is folded into the weights."""
    model = new_model(CONFIGS["dense-tied"], dtype=dtype)
    vision = model.config.vision
    media = new_media(vision, (("image", 1, 6, 5),))
    media[0].pixels[:] = np.random.default_rng(0).integers(*shade, media[0].pixels.shape)
    full = copy.deepcopy(model).float()
    exact = full.visual.patch_embed(PatchBatch.pack(media, vision))
    reference = new_reference(full, dtype).get_submodule("model.visual.patch_embed")
    ours = _error(model.visual.patch_embed(PatchBatch.pack(media, vision)), exact)
    assert ours <= 1.1 * _error(reference(pixel_values(media[0], vision)), exact)

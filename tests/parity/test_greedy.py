"""32 greedy tokens equal transformers' own `generate`, whose decoding has caches and position deltas of its own."""

from __future__ import annotations

import pytest
import torch

from foveal.batch import Batch
from foveal.model import Qwen3VL
from foveal.patches import Patches
from foveal.sequence import Sequence
from tests.parity.reference import model_inputs
from tests.parity.runs import pair, request
from tests.tiny import CONFIGS, SCENES

TOKENS = 32


@torch.no_grad()
def greedy(model: Qwen3VL, media: list[Patches], sequence: Sequence, tokens: int) -> list[int]:
    """Decode with a cache, one token a step: all there is to generation but sampling."""
    cache = model.new_cache(capacity=8)  # small, so that it has to grow
    vision = model.encode(media) if media else None
    logits = model(Batch.pack([sequence], [vision], output="last"), [cache])
    chosen = [int(logits[0].argmax())]
    while len(chosen) < tokens:
        step = Batch.step([chosen[-1]], [sequence.next_position + len(chosen) - 1])
        chosen.append(int(model(step, [cache])[0].argmax()))
    return chosen


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("scene", list(SCENES))
def test_greedy_tokens_are_identical(name: str, scene: str) -> None:
    both = pair(name)
    media, sequence = request(both.config, scene)
    ours = greedy(both.ours, media, sequence, TOKENS)
    out = both.theirs.generate(
        **model_inputs(sequence, media, both.config),
        max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert ours == out[0, len(sequence) :].tolist()
    assert len(set(ours)) >= 8, f"these weights only ever say {set(ours)}; the comparison would prove little"

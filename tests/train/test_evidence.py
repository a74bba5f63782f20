"""Evidence: the tokens that show what a question is about, the attention they get, and what is learned from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from foveal.batch import Batch
from foveal.config import ModelConfig
from foveal.model import Qwen3VL
from foveal.train.data import POINTING, ExampleMaker
from foveal.train.evidence import Evidence, log_attention
from foveal.train.loop import answer_shares
from foveal.world import Difficulty, clip_item, picture_item

Tiny = tuple[ModelConfig, ExampleMaker]


@pytest.mark.parametrize("seed", range(8))
def test_evidence_lies_where_the_things_are(tiny: Tiny, seed: int) -> None:
    _, maker = tiny
    item = picture_item(seed, Difficulty(size=(128, 160)))  # no resizing: a token is 32 pixels wide
    example = maker(item)
    wanted = [(turn, box) for turn, q in enumerate(item.questions) if q.kind in POINTING for box in q.boxes]
    assert [turn for turn, _ in example.evidence] == [turn for turn, _ in wanted]
    at = example.patches.coords[::4, 1:] // 2
    for (_, tokens), (_, (x1, y1, x2, y2)) in zip(example.evidence, wanted, strict=True):
        assert len(tokens)
        for row, column in at[tokens]:
            assert 32 * row < y2 and 32 * (row + 1) > y1 and 32 * column < x2 and 32 * (column + 1) > x1


def test_clips_have_none(tiny: Tiny) -> None:
    _, maker = tiny
    assert maker(clip_item(1, Difficulty())).evidence == ()


def test_attention_is_what_the_model_computes(tiny: Tiny) -> None:
    config, maker = tiny
    model = Qwen3VL(config)
    model.init_weights(0)
    evidence, example = Evidence(model.language_model), maker(picture_item(2, Difficulty(size=(96, 128))))
    attention = model.language_model.layers[evidence.answer].get_submodule("self_attn")
    outputs: list[torch.Tensor] = []
    attention.register_forward_hook(lambda _m, _x, out: outputs.append(out))
    evidence.listener.on = True
    hidden_in: list[torch.Tensor] = []
    attention.register_forward_pre_hook(lambda _m, inputs: hidden_in.append(inputs[0]))
    model(Batch.pack([example.sequence], model.encode([example.patches])))
    module, (x, tables, *_) = evidence.attention[evidence.answer], evidence.listener.take()[evidence.answer][0]
    shares = log_attention(module, x, tables, slice(0, len(example.labels))).exp()
    assert torch.allclose(shares.sum(-1), torch.ones(()))
    values = attention.v_proj(hidden_in[0]).view(len(example.labels), -1, config.text.head_dim)
    values = values.repeat_interleave(shares.shape[0] // values.shape[1], dim=1)
    mixed = torch.einsum("hqk,khd->qhd", shares, values).flatten(1)
    assert torch.allclose(attention.o_proj(mixed), outputs[0], atol=1e-6)


def test_it_is_learned(tiny: Tiny) -> None:
    config, maker = tiny
    model = Qwen3VL(config)
    model.init_weights(0)
    evidence = Evidence(model.language_model)
    examples = [maker(picture_item(seed, Difficulty(size=(96, 128)))) for seed in range(4)]
    evidence.listener.on = True
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        vision = model.encode([e.patches for e in examples])
        model(Batch.pack([e.sequence for e in examples], vision))
        loss = evidence.loss(examples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_answers_weigh_by_the_root_of_their_length() -> None:
    shares = answer_shares(np.array([-1, 0, 0, 0, 0, -1, 1]))
    assert shares.tolist() == pytest.approx([0, 0.5, 0.5, 0.5, 0.5, 0, 1])
    assert math.isclose(shares[:5].sum(), 2.0)

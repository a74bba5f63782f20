"""A step of fine-tuning is the reference's: loss and gradients of packed, labelled rows, and the routers' balance loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.finetune.balance import Balance
from foveal.finetune.labels import IGNORE
from foveal.finetune.loss import AnswerLoss
from foveal.finetune.prepare import recompute_activations
from tests.parity.reference import model_inputs, new_reference
from tests.parity.runs import compare_gradients
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence


@pytest.mark.parametrize("name", ["dense-tied", "moe"])
def test_a_packed_step(name: str) -> None:
    ours = new_model(CONFIGS[name])
    theirs = new_reference(ours)
    samples: list[Any] = []
    reference = torch.zeros(())
    for seed, scene in enumerate(("mixed", "text", "picture")):
        media = new_media(ours.config.vision, SCENES[scene], seed)
        sequence = new_sequence(media, ours.config.vision.spatial_merge_size, seed)
        labels = np.full(len(sequence), IGNORE)
        labels[-6:-1] = sequence.token_ids[-5:]
        request = SimpleNamespace(sequence=sequence, patches=tuple(media))
        samples.append(SimpleNamespace(request=request, labels=labels, learned=5))
        logits = theirs(**model_inputs(sequence, media, ours.config)).logits[0]
        reference = reference + F.cross_entropy(logits, torch.from_numpy(labels), ignore_index=IGNORE, reduction="sum")
    reference.backward()
    recompute_activations(ours)
    loss = AnswerLoss(ours, 4)(samples, "token")
    loss.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    compare_gradients("9 gradients of a fine-tuning step", ours, theirs)


def test_balance() -> None:
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

    ours = new_model(CONFIGS["moe"])
    balance = Balance(ours)
    logits: list[torch.Tensor] = []
    for layer in ours.language_model.layers:
        gate = layer.mlp.gate
        gate.register_forward_hook(lambda gate, inputs, _: logits.append(F.linear(inputs[0], gate.weight)))
    media = new_media(ours.config.vision, SCENES["picture"])
    sequence = new_sequence(media, ours.config.vision.spatial_merge_size)
    labels = np.full(len(sequence), IGNORE)
    labels[-2] = 3
    sample: Any = SimpleNamespace(request=SimpleNamespace(sequence=sequence, patches=tuple(media)), labels=labels, learned=1)
    AnswerLoss(ours, 4)([sample], "token")
    found = balance.take()
    moe = ours.config.text.moe
    assert moe is not None
    expected = load_balancing_loss_func(tuple(logits), moe.num_experts, moe.num_experts_per_tok)
    torch.testing.assert_close(found, expected)
    expected.backward()
    grads = [layer.mlp.gate.weight.grad.clone() for layer in ours.language_model.layers]
    ours.zero_grad()
    recompute_activations(ours)
    loss = AnswerLoss(ours, 4)([sample], "token")
    total = balance.take() + 0 * loss
    total.backward()
    for layer, grad in zip(ours.language_model.layers, grads, strict=True):
        torch.testing.assert_close(layer.mlp.gate.weight.grad, grad)

"""The chunked loss is the plain loss, packing changes nothing, and three norms weigh rows as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.batch import Batch
from foveal.finetune.labels import IGNORE
from foveal.finetune.loss import AnswerLoss, chunked_cross_entropy, row_weights
from foveal.finetune.samples import Sample, SampleReader
from foveal.finetune.sources import open_source
from foveal.model import Qwen3VL
from foveal.model.load import load_model
from tests.finetune.conftest import Write, mixed


@pytest.fixture
def model(checkpoint: Path) -> Qwen3VL:
    return load_model(checkpoint, dtype="float32").requires_grad_(True)


@pytest.fixture
def samples(reader: SampleReader, write: Write) -> list[Sample]:
    source = open_source(str(write(mixed(6))))
    return [reader(source, i) for i in range(6)]


def _gradients(model: Qwen3VL, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _plain(model: Qwen3VL, sample: Sample) -> torch.Tensor:
    vision = [model.encode(sample.request.patches)] if sample.request.patches else None
    logits = model(Batch.pack([sample.request.sequence], vision))
    return F.cross_entropy(logits, torch.from_numpy(sample.labels), ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunked_and_packed_is_plain_and_alone(model: Qwen3VL, samples: list[Sample], chunk: int) -> None:
    plain = sum((_plain(model, sample) for sample in samples), torch.zeros(()))
    expected = _gradients(model, plain)
    loss = AnswerLoss(model, chunk)(samples, "token")
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    found = _gradients(model, loss)
    assert found.keys() == expected.keys() == {name for name, _ in model.named_parameters()}
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-7, name


def test_never_more_than_a_chunk_of_logits(model: Qwen3VL, samples: list[Sample]) -> None:
    seen: list[int] = []

    def score(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return model.logits(hidden)

    hidden = torch.randn(50, model.config.text.hidden_size, requires_grad=True)
    labels, weights = torch.randint(0, 100, (50,)), torch.rand(50)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(len(tensor) if tensor.shape[-1:] == (model.config.text.vocab_size,) else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = chunked_cross_entropy(score, hidden, labels, weights, 16)
    assert max(kept, default=0) == 0  # no logits wait for the backward pass
    loss.backward()
    assert seen == [16, 16, 16, 2, 2, 16, 16, 16]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plain = (F.cross_entropy(model.logits(hidden), labels, reduction="none") * weights).sum()
    assert max(kept) == 50
    torch.testing.assert_close(loss, plain)


def test_text_alone_runs_no_encoder(model: Qwen3VL, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    text = [sample for sample in samples if not sample.request.patches]
    assert text and len(text) < len(samples)
    monkeypatch.setattr(model.visual, "forward", lambda *_: pytest.fail("there is nothing to see"))
    grads = _gradients(model, AnswerLoss(model, 64)(text, "token"))
    assert not any(name.startswith("visual") for name in grads) and grads


def test_a_frozen_encoder_keeps_no_graph(model: Qwen3VL, samples: list[Sample]) -> None:
    model.visual.requires_grad_(False)
    asked: list[bool] = []
    model.visual.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    grads = _gradients(model, AnswerLoss(model, 64)(samples, "token"))
    assert asked == [False] and not any(name.startswith("visual") for name in grads)


def test_norms(samples: list[Sample]) -> None:
    counts = np.array([sample.learned for sample in samples])
    assert len(set(counts)) > 1
    sums = {}
    for norm in ("token", "sample", "sqrt"):
        weights = row_weights(samples, norm)  # type: ignore[arg-type]
        sums[norm] = np.add.reduceat(weights, np.concatenate([[0], np.cumsum(counts)[:-1]]))
    np.testing.assert_allclose(sums["token"], counts)
    np.testing.assert_allclose(sums["sample"], 1, rtol=1e-6)
    np.testing.assert_allclose(sums["sqrt"], np.sqrt(counts), rtol=1e-6)

"""The loss on answers, with logits of a few rows in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.batch import Batch, PatchBatch, VisionTokens
from foveal.finetune.labels import IGNORE
from foveal.finetune.samples import Sample
from foveal.finetune.settings import Norm
from foveal.model import Qwen3VL

_POWER: dict[Norm, float] = {"token": 0.0, "sqrt": 0.5, "sample": 1.0}


def row_weights(samples: Sequence[Sample], norm: Norm) -> np.ndarray:
    """Weigh the learned rows of packed samples: by 1 ("token"), by one over how many their sample has, or over its root.

    By token a long answer counts as much as many short ones; by sample each of its tokens hardly counts. Return (O,) float32.
    """
    counts = np.array([sample.learned for sample in samples])
    return np.repeat(np.maximum(counts, 1) ** -_POWER[norm], counts).astype(np.float32)


class AnswerLoss(nn.Module):
    """A model with its loss: one forward pass from samples to a number. chunk: rows of logits in memory at once."""

    def __init__(self, model: Qwen3VL, chunk: int) -> None:
        super().__init__()
        self.model, self.chunk = model, chunk

    def forward(self, samples: Sequence[Sample], norm: Norm, *, others_see: bool = False) -> Tensor:
        """Return the weighted sum of the losses of all learned rows; divide it by the sum of `row_weights`.

        The samples are packed: none sees another. A batch of text alone runs no vision encoder; one that learns nothing is
        run without a graph. others_see: a process that this one gathers weights with has pictures in this pass.
        """
        model = self.model
        media = [patches for sample in samples for patches in sample.request.patches]
        learning = [parameter for parameter in model.visual.parameters() if parameter.requires_grad]
        vision = None
        if media:
            with torch.set_grad_enabled(torch.is_grad_enabled() and bool(learning)):
                vision = model.encode(PatchBatch.pack(media, model.config.vision, model.device))
        labels = np.concatenate([sample.labels for sample in samples])
        rows = np.flatnonzero(labels != IGNORE)
        batch = Batch.pack([sample.request.sequence for sample in samples], vision, device=model.device)
        if others_see and learning and not media:
            batch = replace(batch, vision=_nothing_seen(model, learning))
        hidden = model.hidden(batch.with_output(torch.from_numpy(rows).to(model.device)))
        wanted, weights = (torch.from_numpy(x).to(model.device) for x in (labels[rows], row_weights(samples, norm)))
        return chunked_cross_entropy(model.logits, hidden, wanted, weights, self.chunk)


def _nothing_seen(model: Qwen3VL, learning: Sequence[Tensor]) -> VisionTokens:
    """Make vision tokens of no rows that hang on the encoder's weights: the gradients are zeros, but they are there.

    Processes that gather weights together must all run backward through the same layers, and sum up the same gradients.
    """
    root = torch.stack([parameter.flatten()[0].float() for parameter in learning]).sum().to(model.dtype)
    width, taps = model.config.text.hidden_size, len(model.config.vision.taps)
    coords = torch.empty(0, 3, dtype=torch.int32, device=root.device)
    return VisionTokens(root.expand(0, width), root.expand(taps, 0, width), coords)


def chunked_cross_entropy(
    score: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, weights: Tensor, chunk: int
) -> Tensor:
    """Return sum(weights * cross entropy) in float32, scoring `chunk` rows at a time, again in the backward pass.

    hidden: (O, D); labels, weights: (O,). With 151,936 words a thousand rows of float32 logits are 0.6 GB, and their gradient
    as much: never holding all of them costs one more product with the head.
    """

    def part(hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return (F.cross_entropy(score(hidden).float(), labels, reduction="none") * weights).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for first in range(0, len(hidden), chunk):
        rows = slice(first, first + chunk)
        arguments = hidden[rows], labels[rows], weights[rows]
        total = total + (checkpoint(part, *arguments, use_reentrant=False) if torch.is_grad_enabled() else part(*arguments))
    return total

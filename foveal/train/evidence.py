"""Teach attention where to look: a question's words, and the place of its answer, attend to what the question is about.

"What colour is the star?" can be answered with any colour of the picture, right every third time, and a decoder settles for
that: to do better it must find the star first, and nothing rewards half of that. The generator knows where the star is. So
some head must look there: in an early layer from some word of the question, in a later one from the row that answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from foveal.model.rope import rotate
from foveal.model.text import Attention, TextModel
from foveal.train.data import Example

Tables = tuple[Tensor, Tensor]


class Evidence:
    """Reads the attention of two layers, one for a question's words and one for its answer, and says how much is amiss."""

    def __init__(self, text: TextModel) -> None:
        depth = text.config.num_hidden_layers
        self.words, self.answer = depth // 6, depth // 2
        self.listening = False
        self._heard: dict[int, tuple[Attention, Tensor, Tables]] = {}
        for i in {self.words, self.answer}:
            attention = text.layers[i].get_submodule("self_attn")
            attention.register_forward_pre_hook(partial(self._hear, i))

    def _hear(self, layer: int, module: nn.Module, inputs: tuple[Tensor, Tables, object, object]) -> None:
        if self.listening:
            assert isinstance(module, Attention)
            self._heard[layer] = module, inputs[0], inputs[1]

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Return the mean over all evidence of -log of the share of attention that the best head and row give it, twice."""
        losses, start = [], 0
        for example in examples:
            rows = slice(start, start + len(example.labels))
            start = rows.stop
            if example.evidence:
                words, answer = (self._log_attention(layer, rows) for layer in (self.words, self.answer))
                slots = np.flatnonzero(example.sequence.vision_rows >= 0)
                for turn, tokens in example.evidence:
                    first, last = _question_rows(example, turn)
                    seen = torch.from_numpy(slots[tokens])
                    losses.append(-words[:, first : last + 1][:, :, seen].logsumexp(-1).max())
                    losses.append(-answer[:, last][:, seen].logsumexp(-1).max())
        self._heard.clear()
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def _log_attention(self, layer: int, rows: slice) -> Tensor:
        """Compute the log of what every head of a layer gives to each row, (heads, L, L), inside one sequence."""
        module, x, (cos, sin) = self._heard[layer]
        x, tables = x[rows], (cos[rows], sin[rows])
        heads = (len(x), -1, module.head_dim)
        q = rotate(module.q_norm(module.q_proj(x).view(heads)), *tables).float()
        k = rotate(module.k_norm(module.k_proj(x).view(heads)), *tables).float()
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(module.head_dim)
        later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -math.inf).log_softmax(-1)


def _question_rows(example: Example, turn: int) -> tuple[int, int]:
    """Find the rows of a question's words: behind the picture and the answer before, up to the row that answers."""
    last = int(np.flatnonzero(example.turns == turn)[0])
    before = np.flatnonzero(example.turns[:last] >= 0)
    vision = np.flatnonzero(example.sequence.vision_rows[:last] >= 0)
    return max(int(rows[-1]) + 1 if len(rows) else 0 for rows in (before, vision)), last

"""Teach attention where to look: a question's words, and the place of its answer, attend to what the question is about.

"What colour is the star?" can be answered with any colour of the picture, right half of the time, and a decoder settles for
that: to do better it must find the star first, and nothing rewards half of that. The generator knows where the star is. So
some head must look there: in an early layer from some word of the question, in a later one from the row that answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foveal.model.rope import rotate
from foveal.model.text import Attention, TextModel
from foveal.train.data import Example
from foveal.train.listen import Listener

Tables = tuple[Tensor, Tensor]


class Evidence:
    """Reads the attention of two layers, one for a question's words and one for its answer, and says how much is amiss."""

    def __init__(self, text: TextModel) -> None:
        depth = text.config.num_hidden_layers
        self.words, self.answer = depth // 6, depth // 2
        self.attention: dict[int, Attention] = {}
        for i in (self.words, self.answer):
            attention = text.layers[i].get_submodule("self_attn")
            assert isinstance(attention, Attention)
            self.attention[i] = attention
        self.listener = Listener(self.attention)

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Return a () float32 loss for the batch that was just decoded while the listener was on.

        The mean, over all evidence and both layers, of -log of the share of attention that the best head and row give it.
        """
        heard = self.listener.take()
        losses, start = [], 0
        for example in examples:
            rows = slice(start, start + len(example.labels))
            start = rows.stop
            if example.evidence:
                words, answer = (
                    log_attention(self.attention[layer], heard[layer][0][0], heard[layer][0][1], rows)
                    for layer in (self.words, self.answer)
                )
                slots = np.flatnonzero(example.sequence.vision_rows >= 0)
                for turn, tokens in example.evidence:
                    first, last = _question_rows(example, turn)
                    seen = torch.from_numpy(slots[tokens])
                    losses.append(-words[:, first : last + 1][:, :, seen].logsumexp(-1).max())
                    losses.append(-answer[:, last][:, seen].logsumexp(-1).max())
        return torch.stack(losses).mean() if losses else torch.zeros(())


def log_attention(module: Attention, x: Tensor, tables: Tables, rows: slice) -> Tensor:
    """Compute the log of what every head gives to each row of one sequence, (heads, L, L) float32.

    The fused attention keeps no probabilities, so queries and keys are made once more, for these rows of x (T, D) alone.
    """
    x, cos, sin = x[rows], tables[0][rows], tables[1][rows]
    heads = (len(x), -1, module.head_dim)
    q = rotate(module.q_norm(module.q_proj(x).view(heads)), cos, sin).float()
    k = rotate(module.k_norm(module.k_proj(x).view(heads)), cos, sin).float()
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

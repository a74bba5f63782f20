"""Teach attention where to look: a question's words, and the rows that answer, attend to what the question is about.

"What colour is the star?" can be answered with any colour of the picture, right half of the time, and a decoder settles for
that: to do better it must find the star first, and nothing rewards half of that. The generator knows where the star is, so
rows are told where to look (train/looks.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.model.rope import rotate
from foveal.model.text import Attention, TextModel
from foveal.train.data import Example
from foveal.train.listen import Listener
from foveal.train.looks import ANSWER, WORDS

Tables = tuple[Tensor, Tensor]


class Evidence:
    """Reads the attention of two layers, one for a question's words and one for its answer, and says how much is amiss."""

    def __init__(self, text: TextModel) -> None:
        depth = text.config.num_hidden_layers
        self.layers = {WORDS: depth // 6, ANSWER: depth // 2}
        self.attention: dict[int, Attention] = {}
        for i in self.layers.values():
            attention = text.layers[i].get_submodule("self_attn")
            assert isinstance(attention, Attention)
            self.attention[i] = attention
        self.listener = Listener(self.attention)

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Return a () float32 loss for the batch that was just decoded while the listener was on.

        The weighted mean over looks of the cross-entropy between equal shares of attention for all parts and what they
        get, less that of equal shares: 0 where the attention is just so. Zero, too, if there are no looks.
        """
        heard = self.listener.take()
        losses, weights, start = [], [], 0
        for example in examples:
            stretch = slice(start, start + len(example.labels))
            start = stretch.stop
            for which, layer in self.layers.items():
                looks = [look for look in example.looks if look.layer == which]
                if looks:
                    x, tables, *_ = heard[layer][0]
                    rows, heads = [look.row for look in looks], [look.head for look in looks]
                    logs = log_attention(self.attention[layer], x, tables, stretch, rows, heads)
                    for given, look in zip(logs, looks, strict=True):
                        shares = [given[torch.from_numpy(part)].logsumexp(0) for part in look.parts]
                        losses.append(-torch.stack(shares).mean() - math.log(len(shares)))
                        weights.append(look.weight)
        return torch.stack(losses) @ torch.tensor(weights) / sum(weights) if losses else torch.zeros(())


def log_attention(
    module: Attention, x: Tensor, tables: Tables, stretch: slice, rows: Sequence[int], heads: Sequence[int]
) -> Tensor:
    """Compute the log of what heads give to the rows of one sequence, (n, L) float32: for n rows, one head of each.

    The fused attention keeps no probabilities, so queries and keys are made once more, for this stretch of x (T, D) alone.
    """
    x, cos, sin = x[stretch], tables[0][stretch], tables[1][stretch]
    width, asking, which = module.head_dim, torch.tensor(rows), torch.tensor(heads)
    q = rotate(module.q_norm(module.q_proj(x[asking]).view(len(rows), -1, width)), cos[asking], sin[asking]).float()
    k = rotate(module.k_norm(module.k_proj(x).view(len(x), -1, width)), cos, sin).float()
    per = q.shape[1] // k.shape[1]
    scores = torch.einsum("nd,nld->nl", q[torch.arange(len(rows)), which], k.transpose(0, 1)[which // per]) / math.sqrt(width)
    later = torch.arange(len(x)) > asking[:, None]
    return scores.masked_fill(later, -math.inf).log_softmax(-1)

"""Teach attention where to look: a question's words, and the rows that answer, attend to what the question is about.

"What colour is the star?" can be answered with any colour of the picture, right half of the time, and a decoder settles for
that: to do better it must find the star first, and nothing rewards half of that. The generator knows where the star is, so
rows are told where to look (train/looks.py), and what they took from there must say where it was: a linear map of what the
attention adds to a row reads the place off. Without that, "above or below" was learned, from the order of rows in the sequence,
and "left or right" was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.model.rope import rotate
from foveal.model.text import Attention, TextModel
from foveal.train.data import Example
from foveal.train.listen import Heard, Listener
from foveal.train.looks import AGAIN, ANSWER, WORDS, Look

Tables = tuple[Tensor, Tensor]
PLACES = 4.0  # weight of the places, in shares of a picture's side, beside the looks
NUMBERS = 2.0  # weight of the numbers, in logarithms


class Evidence(nn.Module):
    """Reads the attention of three layers, one for a question's words and two for its answer, and says how much is amiss."""

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        depth = text.config.num_hidden_layers
        self.layers = {WORDS: depth // 6, ANSWER: depth // 2, AGAIN: depth * 2 // 3}
        self.places = nn.ModuleList(nn.Linear(text.config.hidden_size, 4) for _ in (WORDS, ANSWER))  # x, y of two heads
        self.attention: dict[int, Attention] = {}  # a plain dict: they are the model's, not this module's
        for i in self.layers.values():
            attention = text.layers[i].get_submodule("self_attn")
            assert isinstance(attention, Attention)
            self.attention[i] = attention
        self.listener = Listener(self.attention)

    def loss(self, examples: Sequence[Example]) -> tuple[Tensor, dict[str, float]]:
        """Return a () float32 loss for the batch that was just decoded while the listener was on, and how far off it is.

        The weighted mean over looks of the cross-entropy between equal shares of attention for all parts and what they
        get, less that of equal shares: 0 where the attention is just so. Zero, too, if there are no looks.
        To it, PLACES times the distance between the places that are read off and those that were looked at, and NUMBERS times
        the mean distance, in logarithms, between numbers and what shares say of them: the cross-entropy hardly minds three
        things that get as much as four, and the answer is then wrong.
        """
        heard = self.listener.take()
        losses, weights, numbers, start = [], [], [], 0
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
                        if look.counts:
                            numbers.append(number_off(shares[0], len(shares) - 1))
        if not losses:
            return torch.zeros(()), {}
        off = self._off(examples, heard)
        loss = torch.stack(losses) @ torch.tensor(weights) / sum(weights) + PLACES * off
        said = {"place": off.item()}
        if numbers:
            number = torch.stack(numbers).mean()
            loss, said["number"] = loss + NUMBERS * number, number.item()
        return loss, said

    def _off(self, examples: Sequence[Example], heard: dict[int, Heard]) -> Tensor:
        """Read places off what both layers' attention adds; return the weighted mean distance, () float32."""
        total, share, start = torch.zeros(()), 0.0, 0
        rows: dict[int, list[tuple[int, Look]]] = {which: [] for which in self.layers}
        for example in examples:
            for look in example.looks:
                if look.place is not None:
                    rows[look.layer].append((start + look.row, look))
            start += len(example.labels)
        for which, reader in enumerate(self.places):
            if found := rows[which]:
                added = heard[self.layers[which]][1].index_select(0, torch.tensor([row for row, _ in found])).float()
                said = reader(F.rms_norm(added, added.shape[-1:])).view(len(found), 2, 2)
                said = said[torch.arange(len(found)), torch.tensor([look.head for _, look in found])]
                weight = torch.tensor([look.weight for _, look in found])
                wanted = torch.tensor([look.place for _, look in found])
                total = total + (said - wanted).abs().mean(-1) @ weight
                share += weight.sum().item()
        return total / max(share, 1e-9)


def number_off(reference: Tensor, number: int) -> Tensor:
    """Measure how far from `number`, in logarithms, the rest of the attention is as a multiple of the reference's log share."""
    reference = reference.clamp(max=-1e-6)  # all of it would leave nothing to take a logarithm of
    return (torch.log(-torch.expm1(reference)) - reference - math.log(number)).abs()


def log_attention(
    module: Attention, x: Tensor, tables: Tables, stretch: slice, rows: Sequence[int], heads: Sequence[int]
) -> Tensor:
    """Compute the log of what heads give to the rows of one sequence, (n, L) float32: for n rows, one head of each.

    The fused attention keeps no probabilities, so queries and keys are made once more, for this stretch of x (T, D) alone.
    Rows are taken by `index_select`: with two threads, the backward pass of plain indexing adds up in any order.
    """
    x, cos, sin = x[stretch], tables[0][stretch], tables[1][stretch]
    width, asking, which = module.head_dim, torch.tensor(rows), torch.tensor(heads)
    asked = x.index_select(0, asking)
    q = rotate(module.q_norm(module.q_proj(asked).view(len(rows), -1, width)), cos[asking], sin[asking]).float()
    k = rotate(module.k_norm(module.k_proj(x).view(len(x), -1, width)), cos, sin).float()
    per = q.shape[1] // k.shape[1]
    keys = k.transpose(0, 1).index_select(0, which // per)
    scores = torch.einsum("nd,nld->nl", q[torch.arange(len(rows)), which], keys) / math.sqrt(width)
    later = torch.arange(len(x)) > asking[:, None]
    return scores.masked_fill(later, -math.inf).log_softmax(-1)

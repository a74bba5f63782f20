"""The one thing a mixture of experts changes: a router and packed experts in place of a layer's MLP.

Expert weights keep the orientation of released checkpoints, transposed relative to a Linear: x @ W without a copy at load.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.config import MoeConfig

Product = Callable[[str, Tensor, Tensor], Tensor]  # as Experts.product


class Router(nn.Module):
    """Choose K of E experts a token."""

    def __init__(self, config: MoeConfig, hidden_size: int) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and indices, (T, K). Softmax in float32 over all experts, then renormalised (reference router)."""
        probabilities = F.softmax(F.linear(x, self.weight), dim=-1, dtype=torch.float32)
        weights, index = probabilities.topk(self.top_k, dim=-1)
        return (weights / weights.sum(dim=-1, keepdim=True)).to(x.dtype), index


class Experts(nn.Module):
    """E SwiGLU MLPs: gate_up_proj (E, D, 2F), gate first; down_proj (E, F, D)."""

    def __init__(self, config: MoeConfig, hidden_size: int) -> None:
        super().__init__()
        e, f = config.num_experts, config.moe_intermediate_size
        self.num_experts = e
        self.gate_up_proj = nn.Parameter(torch.empty(e, hidden_size, 2 * f))
        self.down_proj = nn.Parameter(torch.empty(e, f, hidden_size))

    def forward(self, x: Tensor, weights: Tensor, index: Tensor, product: Product | None = None) -> Tensor:
        """Sum each token's K experts: sort (token, expert) pairs by expert, one grouped product a matrix, unsort.

        x: (T, D); weights, index: (T, K); product: instead of this module's own, of one that wraps it. Nothing leaves the
        device: group ends are a cumulative histogram.
        """
        product = product or self.product
        tokens, k = index.shape
        order = index.flatten().argsort(stable=True)
        counts = torch.zeros(self.num_experts, dtype=torch.int32, device=x.device)
        counts.scatter_add_(0, index.flatten(), torch.ones_like(index.flatten(), dtype=torch.int32))
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up = product("gate_up_proj", x[order // k], ends).chunk(2, dim=-1)
        rows = product("down_proj", F.silu(gate) * up, ends) * weights.flatten()[order, None]
        unsorted = torch.empty_like(rows).index_copy(0, order, rows)
        return unsorted.view(tokens, k, -1).sum(dim=1)

    def product(self, leaf: str, x: Tensor, ends: Tensor) -> Tensor:
        """Multiply rows, sorted by expert and ending at `ends`, by the weight of this name."""
        return F.grouped_mm(x, self.get_parameter(leaf), offs=ends)

    def forward_loop(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """Compute the same by every expert over every token: the plain oracle, E/K times the work."""
        out = torch.zeros_like(x)
        for e in range(len(self.down_proj)):
            gate, up = (x @ self.gate_up_proj[e]).chunk(2, dim=-1)
            share = (weights * (index == e)).sum(dim=1, keepdim=True)
            out = out + ((F.silu(gate) * up) @ self.down_proj[e]) * share
        return out


class SparseMLP(nn.Module):
    """Router and experts, under the checkpoint's names."""

    def __init__(self, config: MoeConfig, hidden_size: int) -> None:
        super().__init__()
        self.gate = Router(config, hidden_size)
        self.experts = Experts(config, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, *self.gate(x))

"""Muon: momentum whose matrices are turned into their nearest orthogonal ones before they are applied.

As torch.optim.Muon with adjust_lr_fn="match_rms_adamw", with two differences that matter on a CPU: the iteration runs in
the dtype given (torch's is bfloat16 always, several times slower on processors without it), and matrices of one shape are
turned together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Steps matrices in place. lr: the size of an update, read as AdamW's would be; dtype: of the iteration's products."""

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, weight_decay: float, dtype: torch.dtype = torch.float32
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients of all matrices that have one."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(tuple(p.shape), []).append(p)
            for (rows, columns), matrices in alike.items():
                grads = torch.stack([p.grad for p in matrices if p.grad is not None])
                for p, grad in zip(matrices, grads, strict=True):
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    buffer = self.state[p]["momentum_buffer"]
                    buffer.lerp_(grad, 1 - MOMENTUM)
                    grad.lerp_(buffer, MOMENTUM)  # Nesterov's
                updates = orthogonal(grads.to(self.dtype)).to(grads.dtype)
                size = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
                for p, update in zip(matrices, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)


def orthogonal(matrices: Tensor) -> Tensor:
    """Turn matrices (n, rows, columns) into nearly orthogonal ones: singular values come out between 0.5 and 1.5."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x

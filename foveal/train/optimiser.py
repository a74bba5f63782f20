"""Muon and AdamW on float32 master weights, whatever the model computes in, and the schedule of their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from foveal.train.masters import Masters
from foveal.train.muon import Muon


def schedule(step: int, steps: int, warmup: int, rest: float = 0.4, floor: float = 0.02) -> float:
    """Scale of the learning rate at `step` of `steps`: up to 1 over `warmup`, 1, and over the last `rest` down to `floor`.

    Flat until late, so that a run can be given more or fewer steps on the way.
    """
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1.0, rest * steps)
    return floor + (1 - floor) * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


class MasterOptimiser(Masters):
    """Keeps float32 copies of the parameters, steps them, and writes them back in the model's dtype.

    Muon steps the matrices of blocks and layers, AdamW the rest: tables, mergers, heads, norms, biases. Matrices decay; norms,
    biases and tables do not. Gradients are clipped to `clip` by their global norm.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float, muon_lr: float, weight_decay: float,
        betas: tuple[float, float], clip: float,
    ) -> None:  # fmt: skip
        self.named = dict(named)
        self.clip = clip
        self.masters = {name: p.detach().float().clone() for name, p in self.named.items()}
        turned: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for sees in (True, False):
            matrices, decay, rest = [], [], []
            for name, master in self.masters.items():
                if name.startswith("visual.") != sees:
                    continue
                if master.ndim == 2 and ("blocks." in name or "layers." in name):
                    matrices.append(master)
                elif master.ndim >= 2 and "embed" not in name:
                    decay.append(master)
                else:
                    rest.append(master)
            turned.append({"params": matrices, "sees": sees})
            others.append({"params": decay, "weight_decay": weight_decay, "sees": sees})
            others.append({"params": rest, "weight_decay": 0.0, "sees": sees})
        self.rates = (lr, muon_lr)
        self.muon = Muon(turned, lr=muon_lr, weight_decay=weight_decay)
        self.optimisers = (torch.optim.AdamW(others, lr=lr, betas=betas, fused=True), self.muon)

    @torch.no_grad()
    def step(self, scale: float, vision: float = 1.0) -> float:
        """Apply the gradients that backward left on the parameters. Return their norm before clipping.

        scale: of all learning rates; vision: of the vision encoder's once more.
        """
        grads = []
        for name, parameter in self.named.items():
            master = self.masters[name]
            master.grad = None if parameter.grad is None else parameter.grad.float()
            if master.grad is not None:
                grads.append(master.grad)
            parameter.grad = None
        norm = torch.nn.utils.get_total_norm(grads).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm}")
        if norm > self.clip:
            torch._foreach_mul_(grads, self.clip / norm)
        # In what the model computes in by now: it may have been cast after the masters were taken, which is more exact.
        self.muon.dtype = next(iter(self.named.values())).dtype
        for optimiser, lr in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = lr * scale * (vision if group["sees"] else 1.0)
            optimiser.step()
        for name, parameter in self.named.items():
            parameter.copy_(self.masters[name])
        return norm

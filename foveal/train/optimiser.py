"""AdamW on float32 master weights, whatever the model computes in; cosine schedule with a linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Scale of the learning rate at `step` of `steps`: up to 1 over `warmup`, then down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


class MasterAdamW:
    """Keeps float32 copies of the parameters, steps them, and writes them back in the model's dtype.

    Matrices decay; norms, biases and tables do not. Gradients are clipped to `clip` by their global norm.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float, betas: tuple[float, float],
        clip: float,
    ) -> None:  # fmt: skip
        self.named = dict(named)
        self.lr, self.clip = lr, clip
        self.masters = {name: p.detach().float().clone() for name, p in self.named.items()}
        decay = [m for name, m in self.masters.items() if self.named[name].ndim >= 2 and "embed" not in name]
        rest = [m for name, m in self.masters.items() if not (self.named[name].ndim >= 2 and "embed" not in name)]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, scale: float) -> float:
        """Apply the gradients that backward left on the parameters. Return their norm before clipping."""
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
        for group in self.adam.param_groups:
            group["lr"] = self.lr * scale
        self.adam.step()
        for name, parameter in self.named.items():
            parameter.copy_(self.masters[name])
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Name everything a resume needs: master weights and both moments."""
        out = {f"master.{name}": m for name, m in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.adam.state.get(master, {}).items():
                out[f"{key}.{name}"] = value
        return out

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` named."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"master.{name}"])
            self.named[name].copy_(master)
            moments = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors}
            if moments:
                self.adam.state[master] = moments

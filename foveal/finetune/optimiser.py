"""AdamW on float32 masters, one learning rate a part, and the schedule of all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveal.finetune.prepare import Part
from foveal.finetune.team import layout, whole
from foveal.train.masters import Masters


def schedule(progress: float, warmup: float, floor: float) -> float:
    """Scale the learning rates at a share `progress` of the run: a straight line up to 1, then half a cosine to `floor`."""
    if progress < warmup:
        return progress / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


class Optimiser(Masters):
    """Steps parameters by AdamW. One that is not float32 has a master that is; gradients are summed there.

    learning: parameters by part and name; rates: the learning rate of each part. Matrices decay, everything else does not.
    """

    def __init__(
        self, learning: Mapping[Part, Mapping[str, nn.Parameter]], rates: Mapping[Part, float], *, weight_decay: float,
        betas: tuple[float, float], clip: float,
    ) -> None:  # fmt: skip
        self.named = {name: parameter for parameters in learning.values() for name, parameter in parameters.items()}
        self.masters = {
            name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for name, p in self.named.items()
        }
        self.clip = clip
        groups: list[dict[str, Any]] = []
        for part, parameters in learning.items():
            for decays in (True, False):
                chosen = [self.masters[name] for name in parameters if (parameters[name].ndim >= 2) == decays]
                for alike in _alike(chosen):
                    groups.append({"params": alike, "rate": rates[part], "weight_decay": weight_decay if decays else 0.0})
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
        self.optimisers = (self.adam,)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients that backward left on low-precision parameters to their masters'."""
        for name, parameter in self.named.items():
            master = self.masters[name]
            if master is not parameter and parameter.grad is not None:
                grad = parameter.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                parameter.grad = None

    @torch.no_grad()
    def step(self, scale: float) -> float:
        """Clip the collected gradients, step, and forget them. Return their norm before clipping.

        Nothing is stepped when that is not finite.
        """
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        alike = _alike(grads)
        norm = math.hypot(*(float(whole(torch.nn.utils.get_total_norm(part))) for part in alike))
        if math.isfinite(norm):
            if norm > self.clip:
                for part in alike:
                    torch._foreach_mul_(part, self.clip / norm)
            for group in self.adam.param_groups:
                group["lr"] = group["rate"] * scale
            self.adam.step()
            for name, parameter in self.named.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
        self.adam.zero_grad()
        return norm

    @torch.no_grad()
    def damaged(self) -> list[str]:
        """Name the weights that are no longer finite: a step whose gradient was finite can still have thrown them there."""
        return [name for name, master in self.masters.items() if not bool(torch.isfinite(whole(master.sum())).item())]

    def room(self, names: Collection[str]) -> dict[str, Tensor]:
        """Make tensors of any values for those of `names` that a resume of this optimiser needs, divided as its weights are."""
        out: dict[str, Tensor] = {}
        for key, _, name in (name.partition(".") for name in names):
            if name in self.masters:
                out[f"{key}.{name}"] = torch.zeros(()) if key == "step" else torch.zeros_like(self.masters[name])
        return out


def _alike(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Part tensors by how they are divided among processes: one call can step or scale those of one kind."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(layout(tensor), []).append(tensor)
    return list(kinds.values())

"""AdamW on float32 masters, one learning rate a part, and the schedule of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveal.finetune.prepare import Part

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def schedule(progress: float, warmup: float, floor: float) -> float:
    """Scale the learning rates at a share `progress` of the run: a straight line up to 1, then half a cosine to `floor`."""
    if progress < warmup:
        return progress / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


class Optimiser:
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
                if chosen:
                    groups.append({"params": chosen, "rate": rates[part], "weight_decay": weight_decay if decays else 0.0})
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

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
        norm = float(torch.nn.utils.get_total_norm(grads))
        if math.isfinite(norm):
            if norm > self.clip:
                torch._foreach_mul_(grads, self.clip / norm)
            for group in self.adam.param_groups:
                group["lr"] = group["rate"] * scale
            self.adam.step()
            for name, parameter in self.named.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
        self.adam.zero_grad()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Name everything a resume needs: masters and moments."""
        out = {f"master.{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            out |= {f"{key}.{name}": value for key, value in self.adam.state.get(master, {}).items()}
        return out

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` named."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"master.{name}"])
            self.named[name].copy_(master)
            moments = {key: f"{key}.{name}" for key in MOMENTS}
            held = {key: tensors[place].to(master.device) for key, place in moments.items() if place in tensors}
            if held:
                self.adam.state[master] = held

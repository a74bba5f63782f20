"""What optimisers on float32 master weights share: naming everything a resume needs, and taking it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # AdamW's three, and Muon's


class Masters:
    """Parameters by name, the master of each (itself where that is enough), and the optimisers that step the masters."""

    named: Mapping[str, nn.Parameter]
    masters: Mapping[str, Tensor]
    optimisers: Sequence[torch.optim.Optimizer]

    def tensors(self) -> dict[str, Tensor]:
        """Name everything a resume needs: masters and moments."""
        out = {f"master.{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for optimiser in self.optimisers:
                out |= {f"{key}.{name}": value for key, value in optimiser.state.get(master, {}).items()}
        return out

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` named."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"master.{name}"])
            self.named[name].copy_(master)
        names = {id(master): name for name, master in self.masters.items()}
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                for master in group["params"]:
                    places = {key: f"{key}.{names[id(master)]}" for key in MOMENTS}
                    held = {key: tensors[place].to(master.device) for key, place in places.items() if place in tensors}
                    if held:
                        optimiser.state[master] = held

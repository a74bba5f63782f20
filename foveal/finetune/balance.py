"""The routers' balance loss: experts that are chosen more often are made less likely, so that none starves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.errors import ConfigError
from foveal.model import Qwen3VL
from foveal.model.moe import Router


class Balance:
    """Listens to all routers of a model. The loss is the reference's (load_balancing_loss_func): over all layers together."""

    def __init__(self, model: Qwen3VL) -> None:
        routers = [module for module in model.modules() if isinstance(module, Router)]
        if not routers:
            raise ConfigError("balance is given, but the model has no experts to balance; leave it out")
        for router in routers:
            router.register_forward_hook(self._hear)
        self._heard: list[tuple[Tensor, Tensor]] = []

    def take(self) -> Tensor:
        """Return the loss of the forward pass that just ended, 1 where all experts are chosen alike times K, and forget it.

        E * sum over experts of (choices a token) * (mean probability). To be taken before the backward pass, which may run
        routers again.
        """
        choices, probabilities = (torch.stack(part).mean(0) for part in zip(*self._heard, strict=True))
        self.forget()
        return len(choices) * (choices * probabilities).sum()

    def forget(self) -> None:
        """Drop what was heard since."""
        self._heard.clear()

    def _hear(self, router: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        assert isinstance(router, Router)
        (x,), (_, index) = inputs, output
        probabilities = F.softmax(F.linear(x, router.weight), dim=-1, dtype=torch.float32).mean(0)
        choices = F.one_hot(index, len(router.weight)).sum(1).float().mean(0)
        self._heard.append((choices, probabilities))

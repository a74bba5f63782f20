"""Hear what chosen modules are given and say, without a change to the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

Heard = tuple[tuple[Any, ...], Tensor]  # positional inputs, output


class Listener:
    """Keeps inputs and output of named modules' last call, with their graph, while `on`; `take` hands them over."""

    def __init__(self, modules: Mapping[int, nn.Module]) -> None:
        self.on = False
        self._heard: dict[int, Heard] = {}
        for name, module in modules.items():
            module.register_forward_hook(partial(self._hear, name))

    def _hear(self, name: int, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.on:
            self._heard[name] = inputs, output

    def take(self) -> dict[int, Heard]:
        """Return what was heard since the last time and forget it."""
        heard, self._heard = self._heard, {}
        return heard

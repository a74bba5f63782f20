"""What a caller may choose about how an engine works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foveal.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """How an engine works. None of it changes what is said.

    memory_bytes: of the whole process; None is what is free, less a margin. num_blocks: decides instead, for tests.
    vision_bytes: of vision tokens kept for later; None is a share of the memory. block_size: tokens a block.
    max_running: replies in a batch. max_waiting: requests that may wait; more are refused. step_tokens: rows of prompts a step
    reads at most. slowdown: how many times longer than undisturbed a decoding step may take; None does not look at the clock.
    speculation: "auto" guesses while it pays, "always" whether or not. workers: threads that read media.
    """

    memory_bytes: int | None = None
    num_blocks: int | None = None
    vision_bytes: int | None = None
    block_size: int = 16
    max_running: int = 16
    max_waiting: int = 256
    step_tokens: int = 1024
    slowdown: float | None = 3.0
    speculation: Literal["auto", "always", "never"] = "auto"
    prefix_caching: bool = True
    workers: int = 2

    def __post_init__(self) -> None:
        """Raise ConfigError for what no engine could work with."""
        for name in ("block_size", "max_running", "max_waiting", "step_tokens", "workers"):
            self._require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("memory_bytes", "num_blocks"):
            self._require(getattr(self, name) is None or getattr(self, name) >= 1, name, "1 or more, or None")
        self._require(self.vision_bytes is None or self.vision_bytes >= 0, "vision_bytes", "0 or more, or None")
        self._require(self.slowdown is None or self.slowdown >= 1, "slowdown", "1 or more, or None")
        self._require(self.speculation in ("auto", "always", "never"), "speculation", "auto, always or never")

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise ConfigError(f"the engine's {name} is {getattr(self, name)!r}; expected {expected}")

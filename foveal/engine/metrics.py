"""What the engine counts and times: plain numbers, cheap enough to keep for every step."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Metrics:
    """Counts since the start, and the latest few thousand times.

    tokens: prompt, cached, prefilled, decoded, drafted, accepted, encoded. requests: submitted, refused, failed, cancelled,
    finished. first_token_s: from submit; between_tokens_s: of one reply.
    """

    tokens: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    preemptions: int = 0
    first_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=4096))
    between_tokens_s: deque[float] = field(default_factory=lambda: deque(maxlen=4096))

    @property
    def acceptance(self) -> float:
        """The share of guessed tokens that came true."""
        return self.tokens["accepted"] / max(self.tokens["drafted"], 1)

    def snapshot(self) -> dict[str, float]:
        """Return all of it flat: counts, the acceptance, and medians and 95th percentiles of the times."""
        out: dict[str, float] = {"steps": self.steps, "preemptions": self.preemptions, "acceptance": self.acceptance}
        # Copied in one go: the engine's thread counts on meanwhile.
        out |= {f"tokens_{name}": count for name, count in self.tokens.copy().items()}
        out |= {f"requests_{name}": count for name, count in self.requests.copy().items()}
        for name, times in (("first_token", self.first_token_s), ("between_tokens", self.between_tokens_s)):
            if times:
                middle, high = np.percentile(list(times), (50, 95))
                out |= {f"{name}_p50_s": float(middle), f"{name}_p95_s": float(high)}
        return out

"""Logits to the next token: penalties, temperature, top-k, top-p, min-p, in the reference's order.

The order is that of transformers' logits processors and warpers: repetition (over prompt and answer), then presence and
frequency (over the answer, as in the OpenAI API), then temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from foveal.errors import PromptError

# Nucleus sampling looks among so many likeliest tokens first; only a flatter distribution needs the whole vocabulary sorted.
_NUCLEUS_FIRST_LOOK = 1024


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen and when it ends. `temperature` 0 takes the likeliest token every time.

    top_k: 0 keeps all. thinking_tokens: longest reasoning of a thinking model; then its thought is closed and it answers.
    stop: texts that end the answer (not part of it). stop_token_ids: besides the checkpoint's own end tokens.
    loop_guard: end an answer that repeats itself, with finish_reason "loop".
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int = 1024
    thinking_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    loop_guard: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, math.inf), ("top_k", 0, math.inf), ("top_p", 1e-9, 1.0), ("min_p", 0.0, 1.0),
            ("repetition_penalty", 1e-9, math.inf), ("presence_penalty", -2.0, 2.0), ("frequency_penalty", -2.0, 2.0),
            ("max_tokens", 1, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and low <= value <= high):
                raise PromptError(f"{name} is {value!r}; expected a number from {low:g} to {high:g}")
        if self.thinking_tokens is not None and self.thinking_tokens < 0:
            raise PromptError(f"thinking_tokens is {self.thinking_tokens}; expected 0 or more")
        if any(not text for text in self.stop):
            raise PromptError("a stop text is empty; it would end every answer at once")

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any]) -> Sampling:
        """Take a checkpoint's own defaults; keys about other ways of decoding are left alone."""
        known = {f.name for f in fields(cls)} & {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
        values = {name: raw[name] for name in known if raw.get(name) is not None}
        if not raw.get("do_sample", False):
            values["temperature"] = 0.0
        return cls(**values)


class Sampler:
    """Chooses the tokens of one answer; its generator and counts belong to the request."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.sampling = sampling
        self._device = device
        self._counts: Counter[int] = Counter()
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else set()
        self._generator = torch.Generator(device="cpu")
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """Choose the next token from a row of logits (R,), and remember it."""
        row = self.penalised(logits.detach().float().cpu())
        if self.sampling.temperature == 0:
            token = int(row.argmax())
        else:
            index, probabilities = self.distribution(row)
            token = int(index[torch.multinomial(probabilities, 1, generator=self._generator)])
        if not math.isfinite(float(row[token])):
            raise FloatingPointError("the model's logits are not finite; its weights or the precision are at fault")
        self.note(token)
        return token

    def note(self, token: int) -> None:
        """Remember a token of the answer, chosen here or put there by the caller."""
        self._counts[token] += 1
        if self.sampling.repetition_penalty != 1.0:
            self._seen.add(token)

    def penalised(self, row: Tensor) -> Tensor:
        """Apply the penalties to a float32 row (R,)."""
        s = self.sampling
        if s.repetition_penalty != 1.0 and self._seen:
            index = torch.tensor(sorted(self._seen))
            values = row[index]
            row = row.index_copy(0, index, torch.where(values < 0, values * s.repetition_penalty, values / s.repetition_penalty))
        if (s.presence_penalty or s.frequency_penalty) and self._counts:
            index = torch.tensor(list(self._counts))
            minus = s.presence_penalty + s.frequency_penalty * torch.tensor(list(self._counts.values()), dtype=torch.float32)
            row = row.index_add(0, index, -minus)
        return row

    def distribution(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidate ids and their probabilities after temperature and filters, likeliest first when filtered."""
        s = self.sampling
        row = row / s.temperature
        index = torch.arange(len(row))
        if s.top_k and s.top_k < len(row):
            row, index = row.topk(s.top_k)
        probabilities = row.softmax(-1)
        if s.top_p < 1.0:
            keep = min(len(row), _NUCLEUS_FIRST_LOOK)
            top, order = probabilities.topk(keep)
            if keep < len(row) and float(top.sum()) < s.top_p:
                top, order = probabilities.sort(descending=True)
            # The token that crosses top_p stays, as in the reference.
            inside = top.cumsum(-1) - top < s.top_p
            index, probabilities = index[order[inside]], top[inside] / top[inside].sum()
        if s.min_p > 0:
            inside = probabilities >= s.min_p * probabilities.max()
            index, probabilities = index[inside], probabilities[inside]
        return index, probabilities / probabilities.sum()

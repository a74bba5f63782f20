"""Logits to the next token: penalties, temperature, top-k, top-p, min-p, in the reference's order.

The order is that of transformers' `_get_logits_processor`: repetition (over prompt and reply), then temperature, top-k, top-p,
min-p. Presence and frequency, which it lacks, come after repetition and look at the reply alone, as in the OpenAI API and vLLM.

Host side and numpy only: one row of logits in, one id out, the same id for the same seed whatever computed the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal.errors import CheckpointError, PromptError

# Nucleus sampling looks among so many likeliest tokens first; only a flatter distribution needs more of them sorted.
NUCLEUS_FIRST_LOOK = 1024
MAX_PERIOD = 65_536  # of a loop: so many numbers are kept, and compared with every token
_BLOCKS = 64  # runs of the vocabulary whose largest members are compared before single logits are


@dataclass(frozen=True)
class LoopGuard:
    """When a reply counts as looping: its last ids are one block of at most `max_period` tokens, over and over.

    The repetition must cover `min_tokens` tokens and `min_repeats` whole blocks. The defaults let pass what is meant to repeat,
    such as the rule of a table, a few dozen empty cells or rows of zeros; a real loop goes on until it is caught anyway.
    """

    max_period: int = 128
    min_repeats: int = 4
    min_tokens: int = 192

    def __post_init__(self) -> None:
        for field, least in (("max_period", 1), ("min_repeats", 2), ("min_tokens", 2)):
            _check_integer(f"loop_guard.{field}", getattr(self, field), least)
        if self.max_period > MAX_PERIOD:
            raise PromptError(f"loop_guard.max_period is {self.max_period}; expected at most {MAX_PERIOD}")


@dataclass(frozen=True)
class Sampling:
    """How a reply is chosen and when it ends. `temperature` 0 takes the likeliest token every time.

    top_k: 0 keeps all. min_p: share of the likeliest token's probability below which tokens are dropped.
    seed: makes a sampled reply repeatable; None draws a new one. max_tokens: of the whole reply, reasoning included; None is
    whatever the context has left. thinking_tokens: longest reasoning of a thinking model; then its thought is closed and it
    answers. stop: texts that end the answer and are not part of it; what a model thinks does not end it.
    stop_token_ids: besides the checkpoint's own end tokens; `ignore_end` generates past those, for timing.
    loop_guard: end a reply that repeats itself, with finish_reason "loop"; None or False never does.
    Raise PromptError for values that make no sense.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 1024
    thinking_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    loop_guard: LoopGuard | bool | None = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, math.inf),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            _check_number(name, getattr(self, name), low, high, open_below=name in ("top_p", "repetition_penalty"))
        _check_integer("top_k", self.top_k, 0)
        for name, least in (("max_tokens", 1), ("thinking_tokens", 0), ("seed", 0)):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), least)
        # A caller may write a bare string or a list; both would otherwise fail far from here, or not at all.
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(isinstance(text, str) and text for text in stop):
            raise PromptError(
                f"stop is {list(stop)!r}; expected texts of at least one character: an empty one ends every answer"
            )
        ids = tuple(self.stop_token_ids or ())
        for index in ids:
            _check_integer("a stop token id", index, 0)
        guard = LoopGuard() if self.loop_guard is True else self.loop_guard or None
        if guard is not None and not isinstance(guard, LoopGuard):
            raise PromptError(f"loop_guard is {guard!r}; expected a LoopGuard, True or None")
        for name, value in (("stop", stop), ("stop_token_ids", ids), ("loop_guard", guard)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any]) -> Sampling:
        """Take a checkpoint's own defaults; keys about other ways of decoding are left alone.

        A key that is missing is off: transformers' class default (top_k 50, for one) never stands in for it.
        """
        known = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
        values = {f.name: raw[f.name] for f in fields(cls) if f.name in known and raw.get(f.name) is not None}
        if raw.get("max_new_tokens") is not None:
            values["max_tokens"] = raw["max_new_tokens"]
        if not raw.get("do_sample", False):
            values["temperature"] = 0.0
        else:
            values.setdefault("temperature", 1.0)
        return cls(**values)


class Sampler:
    """Choose the tokens of one reply. Its generator and its counts belong to the request.

    `prompt_ids` matter for the repetition penalty only.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = ()) -> None:
        self.sampling = sampling
        self._generator = np.random.Generator(np.random.PCG64(sampling.seed))
        self._prompt = np.array(sorted(set(prompt_ids)) if sampling.repetition_penalty != 1.0 else [], dtype=np.int64)
        self._counts: dict[int, int] = {}

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose the next token from a row of logits (R,), and remember it.

        Raise CheckpointError for logits from which nothing can be chosen (NaN, infinity).
        """
        row = self.penalised(np.asarray(logits, dtype=np.float32))
        best = int(row.argmax())  # a NaN counts as the largest
        if not math.isfinite(row[best]):
            raise CheckpointError(_broken(row))
        token = best
        if np.float32(self.sampling.temperature) > 0:  # 1e-46 is none there, and a division by it nonsense
            ids, probabilities = self.distribution(row)
            place = np.searchsorted(probabilities.cumsum(), self._generator.random(), side="right")
            # The sum of all may fall short of one by rounding.
            token = int(ids[min(int(place), len(ids) - 1)])
        self.note(token)
        return token

    def note(self, token: int) -> None:
        """Remember a token of the reply that was put there rather than chosen."""
        self._counts[token] = self._counts.get(token, 0) + 1

    def penalised(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Apply the penalties to a float32 row (R,); the row itself stays as it is."""
        s = self.sampling
        repeats = s.repetition_penalty != 1.0
        if not (repeats or ((s.presence_penalty or s.frequency_penalty) and self._counts)):
            return row
        row = row.copy()
        said = np.fromiter(self._counts, dtype=np.int64, count=len(self._counts))
        if repeats:
            seen = np.union1d(self._prompt, said)
            seen = seen[seen < len(row)]
            values, penalty = row[seen], np.float32(s.repetition_penalty)
            row[seen] = np.where(values < 0, values * penalty, values / penalty)
        if s.presence_penalty or s.frequency_penalty:
            times = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
            row[said] -= np.float32(s.presence_penalty) + np.float32(s.frequency_penalty) * times
        return row

    def distribution(self, row: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the ids that may be chosen from a penalised row, and their float64 probabilities, summing to one.

        Needs a temperature above 0. Ties at the edge of top-k all stay, as in the reference.
        """
        s = self.sampling
        # The likeliest token is moved to 0 first: dividing by a tiny temperature cannot overflow then.
        scores = (row - row.max()) / np.float32(s.temperature)
        if 0 < s.top_k < len(row):
            ids = largest(scores, s.top_k)
            weights = np.exp(scores[ids])
            return self._filtered(ids, weights, weights.sum(dtype=np.float64))
        weights = np.exp(scores)
        total = weights.sum(dtype=np.float64)
        look = NUCLEUS_FIRST_LOOK
        while s.top_p < 1.0 and look < len(row):
            ids = largest(scores, look)
            if weights[ids].sum(dtype=np.float64) >= s.top_p * total:
                return self._filtered(ids, weights[ids], total)
            look *= 8
        return self._filtered(np.arange(len(row)), weights, total)

    def _filtered(
        self, ids: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], total: np.float64
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Apply top-p and min-p to candidates whose weights are shares of `total`."""
        s = self.sampling
        if s.top_p < 1.0:
            order = np.argsort(-weights)
            falling = weights[order]
            # The token that crosses top_p stays, as in the reference.
            inside = falling.cumsum(dtype=np.float64) - falling < s.top_p * total
            # Drawn from in the order of ids, not of weights: where two weigh the same but for the last bit, as in a batch of
            # another size, they would change places, and the same random number would choose the other.
            kept = np.sort(order[inside])
            ids, weights = ids[kept], weights[kept]
        if s.min_p > 0:
            inside = weights >= s.min_p * weights.max()
            ids, weights = ids[inside], weights[inside]
        return ids, weights / weights.sum(dtype=np.float64)


def largest(row: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return the ids of the `count` largest values of a row (R,) and of all that equal the smallest of them, ascending.

    The largest values lie in the `count` columns with the largest maxima, so that only those are partitioned.
    """
    width = len(row) // _BLOCKS
    if count >= len(row):
        return np.arange(len(row))
    candidates = row
    if count < width // 2:
        table = row[: width * _BLOCKS].reshape(_BLOCKS, width)
        columns = np.argpartition(table.max(axis=0), width - count)[width - count :]
        candidates = np.concatenate([table[:, columns].reshape(-1), row[width * _BLOCKS :]])
    edge = np.partition(candidates, len(candidates) - count)[len(candidates) - count]
    return np.flatnonzero(row >= edge)


def _broken(row: npt.NDArray[np.float32]) -> str:
    nan, infinite = int(np.isnan(row).sum()), int(np.isposinf(row).sum())
    found = f"{nan} NaN and {infinite} infinite values" if nan or infinite else "no finite value"
    return (
        f"the model's logits hold {found} among {len(row)}, so no token can be chosen; its weights are damaged, or too large "
        "for the precision: load it with dtype float32"
    )


def _check_number(name: str, value: Any, low: float, high: float, *, open_below: bool) -> None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not right or not low <= value <= high or (open_below and value == low):
        least = f"above {low:g}" if open_below else f"from {low:g}"
        raise PromptError(f"{name} is {value!r}; expected a number {least}" + (f" to {high:g}" if high < math.inf else ""))


def _check_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise PromptError(f"{name} is {value!r}; expected a whole number of at least {least}")

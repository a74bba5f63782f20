"""Speculation by looking up: what followed the last few tokens where they stood before is a guess at what follows now.

A guess is checked by reading it in the step that would read the last token anyway, and asking the sampler at every row, with
the same random numbers as without. What it says is the reply; the guess only decides how many rows of one step count. So
texts are the same, greedy or sampled, and a guess is right as often as the best test of a fixed guess could accept it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST, SHORTEST = 4, 2  # tokens that must have stood before
PROBE_EVERY = 48  # tokens after which guessing is tried again where it did not pay
PROBE = 2  # tokens guessed then


def look_up(tokens: np.ndarray, count: int, *, longest: int = LONGEST, shortest: int = SHORTEST) -> tuple[int, ...]:
    """Guess up to `count` tokens after tokens (T,): what followed the latest earlier place that ends alike, longest first."""
    if count < 1:
        return ()
    for n in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        ends = tokens[n - 1 : -1] == tokens[-1]
        for back in range(1, n):
            ends &= tokens[n - 1 - back : -1 - back] == tokens[-1 - back]
        found = np.flatnonzero(ends)
        if len(found):
            start = int(found[-1]) + n
            return tuple(tokens[start : start + count].tolist())
    return ()


class Pace:
    """How long steps take by their rows, as measured: what a guess, or a prompt's chunk, would cost beside decoding."""

    def __init__(self, memory: float = 0.1) -> None:
        self._memory = memory
        self._decode: dict[int, float] = {}  # seconds of a step by its rows, decoded and guessed ones
        self._prefill: float | None = None  # seconds a row of a prompt adds to a step

    def note(self, rows: int, prefill: int, seconds: float) -> None:
        """Learn from a step of `rows` decoded and guessed rows and `prefill` of prompts."""
        if prefill:
            if prefill >= 8 or self._prefill is None:
                extra = max(seconds - (self.decode_s(rows) or 0.0), 0.0) / prefill
                self._prefill = extra if self._prefill is None else self._mixed(self._prefill, extra)
            return
        old = self._decode.get(rows)
        self._decode[rows] = seconds if old is None else self._mixed(old, seconds)

    def decode_s(self, rows: int) -> float | None:
        """Expect the seconds of a step with so many decoded rows; None before anything like it was seen.

        Between two counts that were seen the line through both counts, beyond them the nearest.
        """
        if rows in self._decode or not self._decode or rows < 1:
            return self._decode.get(rows)
        below = max((n for n in self._decode if n < rows), default=None)
        above = min((n for n in self._decode if n > rows), default=None)
        if below is None:
            return None if above is None else self._decode[above]
        if above is None:
            return self._decode[below]
        share = (rows - below) / (above - below)
        return self._decode[below] * (1 - share) + self._decode[above] * share

    def prefill_rows(self, seconds: float) -> int | None:
        """Say how many rows of prompts fit into so many seconds; None before any were measured."""
        if self._prefill is None:
            return None
        return int(max(seconds, 0.0) / max(self._prefill, 1e-9))

    def _mixed(self, old: float, new: float) -> float:
        # One slow step (another program took the core) must not count for much.
        return old + self._memory * (min(new, 3 * old) - old)


class Speculation:
    """Decide how many tokens to guess for one reply, from how many of its guesses came true and what a row costs.

    longest: tokens guessed at most; 0 never guesses. always: guess as many every time, whether or not it pays.
    """

    def __init__(self, longest: int = 8, *, always: bool = False) -> None:
        self.longest, self.always = longest, always
        self._right, self._tried = 1.5, 2.0  # a little better than even, and worth little: a few guesses change it
        self._since = 0

    @property
    def acceptance(self) -> float:
        """Estimate the chance that a guessed token comes true after those before it did."""
        return self._right / self._tried

    def draft(self, tokens: np.ndarray, most: int, rows: int, pace: Pace) -> tuple[int, ...]:
        """Guess up to `most` tokens after all known ones, of a reply that decodes beside `rows` - 1 other rows."""
        most = min(most, self.longest)
        if most < 1:
            return ()
        count = most if self.always else self._count(most, rows, pace)
        if not count:
            self._since += 1
            if self._since < PROBE_EVERY:
                return ()
            count = min(PROBE, most)
        guess = look_up(tokens, count)
        if guess:
            self._since = 0
        return guess

    def note(self, guessed: int, right: int) -> None:
        """Learn how many of a guess's tokens came true; those after the first wrong one were not tested."""
        tested = min(right + 1, guessed)
        keep = 0.98**tested
        self._right, self._tried = keep * self._right + right, keep * self._tried + tested

    def _count(self, most: int, rows: int, pace: Pace) -> int:
        """Choose the count with the most expected tokens a second, 0 where no guess beats decoding plainly by 5 %."""
        plain = pace.decode_s(rows)
        if plain is None:
            return 0
        best, count, expected = 1.05 / plain, 0, 1.0
        for n in range(1, most + 1):
            expected += self.acceptance**n
            seconds = pace.decode_s(rows + n)
            if seconds is not None and expected / max(seconds, plain) > best:
                best, count = expected / max(seconds, plain), n
        return count


def useful(guess: Sequence[int], forbidden: frozenset[int]) -> tuple[int, ...]:
    """Cut a guess before an id that no reply should be asked about: placeholders of pictures and clips."""
    cut = next((i for i, token in enumerate(guess) if token in forbidden), len(guess))
    return tuple(guess[:cut])

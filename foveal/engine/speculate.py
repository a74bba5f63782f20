"""Speculation by looking up: what followed the last few tokens where they stood before is a guess at what follows now.

A guess is checked by reading it in the step that would read the last token anyway, and asking the sampler at every row, with
the same random numbers as without. What it says is the reply; the guess only decides how many rows of one step count. So
texts are the same, greedy or sampled, and a guess is right as often as the best test of a fixed guess could accept it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveal.engine.pace import Pace

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

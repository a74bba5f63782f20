"""How long steps take by their rows, and the encoder's pieces by theirs, as measured; what comes next is cut by it.

One slow measurement (another program took the core) must not count for much, so each counts as at most three times the last
estimate.
"""

from __future__ import annotations

from foveal.model.pieces import Piece

OUTLIER = 3.0  # times the estimate that a measurement counts as at most
LEAST_ROWS = 4  # rows of a chunk or a piece, however slow: whoever comes must get on


def mixed(old: float, new: float, memory: float) -> float:
    """Move an estimate towards a measurement."""
    return old + memory * (min(new, OUTLIER * old) - old)


class Pace:
    """How long steps take by their rows: what a guess, or a prompt's chunk, would cost beside decoding.

    A chunk of r rows adds fixed + each * r seconds to a step. Both are fitted to what was measured, old steps fading.
    """

    def __init__(self, memory: float = 0.1) -> None:
        self._memory = memory
        self._decode: dict[int, float] = {}  # seconds of a step by its rows, decoded and guessed ones
        self._line: tuple[float, float] | None = None  # what a chunk adds to a step: fixed, and each row
        self._sums = [0.0] * 5  # weights, rows, seconds, rows * rows, rows * seconds of chunks; relative, see `note`

    def note(self, rows: int, prefill: int, seconds: float) -> None:
        """Learn from a step of `rows` decoded and guessed rows and `prefill` of prompts."""
        if prefill:
            alone = self.decode_s(rows) or 0.0
            if self._line is not None:
                fixed, each = self._line
                seconds = min(seconds, OUTLIER * (alone + fixed + each * prefill))
            self._chunk(prefill, max(seconds - alone, 0.0))
            return
        old = self._decode.get(rows)
        self._decode[rows] = seconds if old is None else mixed(old, seconds, self._memory)

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
        """Say how many rows of prompts fit into so many seconds; None before any were measured.

        Half of the time goes to rows even where a chunk's fixed part leaves less: the step is somewhat too long then, but a
        prompt gets on.
        """
        if self._line is None:
            return None
        fixed, each = self._line
        return int(max(seconds - fixed, seconds / 2, 0.0) / max(each, 1e-9))

    def _chunk(self, rows: int, seconds: float) -> None:
        """Fit the line to one more chunk. Errors count by the row, so that large chunks do not outweigh small ones."""
        weight = 1 / rows**2
        values = (weight, weight * rows, weight * seconds, weight * rows * rows, weight * rows * seconds)
        self._sums = [(1 - self._memory) * old + new for old, new in zip(self._sums, values, strict=True)]
        one, x, y, xx, xy = self._sums
        spread = one * xx - x * x
        each = (one * xy - x * y) / spread if spread > 1e-6 * one * xx else 0.0
        most = y / x  # with nothing fixed
        each = min(each, most) if each > 0 else most
        self._line = max((y - each * x) / one, 0.0), each


class Rhythm:
    """How long a row of each kind of the encoder's pieces takes, and so how large the next piece may be."""

    def __init__(self, memory: float = 0.3) -> None:
        self._memory = memory
        self._row_s: dict[str, float] = {}  # of weight 1
        self._done: dict[str, int] = {}  # rows of the last piece

    def rows(self, piece: Piece, seconds: float) -> int:
        """Say how many of a piece's rows fit into so many seconds. An unknown kind starts small; none grows at once."""
        row_s = self._row_s.get(piece.kind)
        if row_s is None:
            return min(LEAST_ROWS, piece.rows)
        fitting = int(max(seconds, 0.0) / (row_s * piece.weight))
        return min(fitting, 2 * self._done[piece.kind], piece.rows)

    def note(self, piece: Piece, rows: int, seconds: float) -> None:
        """Learn from a piece of which so many rows were done."""
        row_s, old = max(seconds, 1e-7) / (rows * piece.weight), self._row_s.get(piece.kind)
        self._row_s[piece.kind] = row_s if old is None else mixed(old, row_s, self._memory)
        self._done[piece.kind] = max(rows, LEAST_ROWS)

"""How long steps take by their rows, and the encoder's pieces by theirs, as measured; what comes next is cut by it.

One slow measurement (another program took the core) must not count for much, so each counts as at most three times the last
estimate.
"""

from __future__ import annotations

from foveal.model.pieces import Piece

OUTLIER = 3.0  # times the estimate that a measurement counts as at most
TOO_LONG = 1.5  # times what is planned for a chunk that it may take where its fixed part leaves it few rows
MOST_EXCESS = 2.0  # by which newcomers' share is divided at most: they must get on where the machine itself is uneven
FIRST_CHUNK = 64  # rows of a prompt that a step reads at most the first time it does so beside replies
LEAST_ROWS = 4  # rows of a chunk or a piece, however slow: whoever comes must get on


def mixed(old: float, new: float, memory: float) -> float:
    """Move an estimate towards a measurement."""
    return old + memory * (min(new, OUTLIER * old) - old)


class Line:
    """Seconds of work by its rows, fixed + each * rows, fitted to what was measured; old measurements fade."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self.fixed = self.each = 0.0
        self.known = False
        self._sums = [0.0] * 5  # weights, rows, seconds, rows * rows, rows * seconds; relative, see `note`

    def note(self, rows: int, seconds: float) -> None:
        """Fit to one more measurement. Errors count by the row, so that large ones do not outweigh small ones."""
        weight = 1 / rows**2
        values = (weight, weight * rows, weight * seconds, weight * rows * rows, weight * rows * seconds)
        self._sums = [(1 - self._memory) * old + new for old, new in zip(self._sums, values, strict=True)]
        one, x, y, xx, xy = self._sums
        spread = one * xx - x * x
        each = (one * xy - x * y) / spread if spread > 1e-6 * one * xx else 0.0
        most = y / x  # with nothing fixed
        self.each = min(each, most) if each > 0 else most
        self.fixed, self.known = max((y - self.each * x) / one, 0.0), True

    def seconds(self, rows: int) -> float:
        return self.fixed + self.each * rows

    def rows(self, seconds: float) -> int:
        """Say how many rows fit into so many seconds."""
        return int(max(seconds - self.fixed, 0.0) / max(self.each, 1e-12))


class Pace:
    """How long steps take by their rows: what a guess, or a prompt's chunk, would cost beside decoding.

    A chunk of r rows adds fixed + each * r seconds to a step. Both are fitted to what was measured, old steps fading.
    """

    def __init__(self, memory: float = 0.1) -> None:
        self._memory = memory
        self._decode: dict[int, float] = {}  # seconds of a step by its rows, decoded and guessed ones
        self._chunk = Line(memory)  # what a chunk adds to a step
        self._beside = FIRST_CHUNK // 2  # rows of the last chunk beside decoding
        self.excess = 1.0  # by how much newcomers took longer than was planned for them, on the whole

    def note(self, rows: int, prefill: int, seconds: float) -> None:
        """Learn from a step of `rows` decoded and guessed rows and `prefill` of prompts."""
        if prefill:
            alone = self.decode_s(rows) or 0.0
            least = 0.0
            if self._chunk.known:
                expected = self._chunk.seconds(prefill)
                least, seconds = expected / OUTLIER, min(seconds, OUTLIER * (alone + expected))
            self._chunk.note(prefill, max(seconds - alone, least))
            if rows:
                self._beside = prefill
            return
        old = self._decode.get(rows)
        self._decode[rows] = seconds if old is None else mixed(old, seconds, self._memory)

    def note_beside(self, rows: int, planned_s: float, seconds: float) -> None:
        """Learn from a step of so many decoded rows, of which newcomers' share was so many seconds.

        What they take is measured piece by piece; what they do to others is not: weights that were in a cache of the processor
        are read again, and threads that cut a picture take turns with the step's.
        """
        alone = self.decode_s(rows)
        if alone is not None and planned_s > 0:
            excess = mixed(self.excess, (seconds - alone) / planned_s, self._memory)
            self.excess = min(max(excess, 1.0), MOST_EXCESS)

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
        """Say how many rows of prompts fit into so many seconds beside decoding; None before any were measured.

        No more than twice those of the last chunk: where decoding was slow for a moment, rows seem to take no time at all.

        Half of the time goes to rows even where a chunk's fixed part leaves less, as long as the whole takes no more than half
        as much again: the step is somewhat longer than planned then, but a prompt gets on.
        """
        if not self._chunk.known:
            return None
        half = int(seconds / 2 / max(self._chunk.each, 1e-12))
        rows = max(self._chunk.rows(seconds), min(half, self._chunk.rows(TOO_LONG * seconds)))
        return min(rows, 2 * max(self._beside, LEAST_ROWS))


class Rhythm:
    """How long rows of each kind of the encoder's pieces take, and so how large the next piece may be.

    All keys of a frame, or a layer's weights, are read for one row as for many: a piece has a fixed part, too.
    """

    def __init__(self, memory: float = 0.2) -> None:
        self._memory = memory
        self._lines: dict[str, Line] = {}  # of weight 1
        self._most: dict[str, int] = {}  # rows of the largest piece so far

    def rows(self, piece: Piece, seconds: float) -> int:
        """Say how many of a piece's rows fit into so many seconds. An unknown kind starts small; none grows at once."""
        line = self._lines.get(piece.kind)
        if line is None:
            return min(LEAST_ROWS, piece.rows)
        return min(line.rows(seconds / piece.weight), 2 * self._most[piece.kind], piece.rows)

    def note(self, piece: Piece, rows: int, seconds: float) -> None:
        """Learn from a piece of which so many rows were done."""
        line, seconds = self._lines.setdefault(piece.kind, Line(self._memory)), max(seconds, 1e-7) / piece.weight
        line.note(rows, min(seconds, OUTLIER * line.seconds(rows)) if line.known else seconds)
        self._most[piece.kind] = max(rows, LEAST_ROWS, self._most.get(piece.kind, 0))

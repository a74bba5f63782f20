"""In which order samples are learned, and which share a batch: a function of a seed and a cursor, to be taken up anywhere.

An epoch is a shuffle of what every source contributes. Of that order a window is read ahead, sorted by length and cut into
batches, which are shuffled again: samples of like length are attended to together, and a packed batch is nearly full.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from foveal.errors import ConfigError, DataError
from foveal.finetune.samples import Sample, SampleReader
from foveal.finetune.sources import Source, draws

_Record = tuple[int, int]  # a source and an index in it
_Asked = tuple[_Record, Future[Sample]]


@dataclass(frozen=True)
class Cursor:
    """A place between two batches: how many of window `window` of epoch `epoch` are done."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


@dataclass(frozen=True, eq=False)
class Packed:
    """Samples that share a forward pass, the cursor behind them, and how many records of the run are then done."""

    samples: list[Sample]
    after: Cursor
    done: float


def epoch_order(sources: Sequence[Source], seed: int, epoch: int) -> np.ndarray:
    """Shuffle what an epoch takes of all sources: (N, 2) int64, source and index.

    A source that gives only a part gives another one every epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    parts = []
    for number, (source, count) in enumerate(zip(sources, draws(sources), strict=True)):
        whole, part = divmod(count, len(source))
        chosen = np.concatenate([np.tile(np.arange(len(source)), whole), rng.permutation(len(source))[:part]])
        parts.append(np.stack([np.full(len(chosen), number), chosen], axis=1))
    records = np.concatenate(parts)
    return records[rng.permutation(len(records))]


def batches(lengths: Sequence[int], batch_size: int, batch_tokens: int | None, rng: np.random.Generator) -> list[list[int]]:
    """Cut samples of these lengths into batches, by number or packed to `batch_tokens`, in a shuffled order.

    Packing puts each sample, the longest first, into the first batch with room. Raise ConfigError for one that fits in none.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if batch_tokens is None:
        groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    else:
        groups, room = [], np.empty(0, np.int64)
        for i in order:
            if lengths[i] > batch_tokens:
                raise ConfigError(f"a sample has {lengths[i]} tokens, and batch_tokens is {batch_tokens}")
            fits = np.flatnonzero(room >= lengths[i])
            if len(fits):
                groups[fits[0]].append(i)
                room[fits[0]] -= lengths[i]
            else:
                groups.append([i])
                room = np.append(room, batch_tokens - lengths[i])
    return [groups[i] for i in rng.permutation(len(groups))]


class Stream:
    """Batches from a cursor on. One window is learned from while threads read the next.

    epochs: the end, None for none. skipped: told the reason of a bad record, once however many epochs meet it, which is then
    left out; without it a bad record raises DataError.
    """

    def __init__(
        self, sources: Sequence[Source], reader: SampleReader, *, seed: int, window: int, batch_size: int = 1,
        batch_tokens: int | None = None, epochs: float | None = None, workers: int = 1,
        skipped: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.sources, self.reader, self.seed, self.skipped, self.workers = sources, reader, seed, skipped, workers
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.window = -(-window // batch_size) * batch_size  # no batch is cut short by a window's end but the last
        self.size = sum(draws(sources))
        self.total = None if epochs is None else max(1, round(epochs * self.size))
        self._told: set[_Record] = set()
        self._order: tuple[int, np.ndarray] | None = None  # of the epoch that was asked for last

    def start(self, cursor: Cursor) -> Generator[Packed, None, None]:
        """Yield what comes after a cursor. Raise DataError when a whole epoch holds nothing that can be learned from."""
        nothing = cursor.window == 0  # in the epoch so far, if it was seen from its beginning
        with ThreadPoolExecutor(self.workers, "read") as pool:
            ahead: tuple[Cursor, list[_Asked]] | None = self._ask(pool, Cursor(cursor.epoch, cursor.window))
            try:
                while ahead is not None:
                    at, asked = ahead
                    samples = self._collect(asked)
                    nothing = nothing and not samples
                    following = self._next(at, len(asked))
                    if nothing and following.epoch > at.epoch:
                        raise DataError(f"all {self.size} records of an epoch were skipped; foveal data check says why")
                    nothing = nothing or following.epoch > at.epoch
                    ahead = self._ask(pool, following)
                    yield from self._packed(samples, at, len(asked), cursor.batch)
                    cursor = Cursor()
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, pool: ThreadPoolExecutor, at: Cursor) -> tuple[Cursor, list[_Asked]] | None:
        if self._order is None or self._order[0] != at.epoch:  # of millions it takes a second: once an epoch
            self._order = at.epoch, epoch_order(self.sources, self.seed, at.epoch)
        records = self._order[1][at.window * self.window :][: self.window]
        if self.total is not None:
            records = records[: max(0, self.total - at.epoch * self.size - at.window * self.window)]
        if not len(records):
            return None
        return at, [
            ((source, index), pool.submit(self.reader, self.sources[source], index)) for source, index in records.tolist()
        ]

    def _next(self, at: Cursor, count: int) -> Cursor:
        ended = at.window * self.window + count >= self.size
        return Cursor(at.epoch + 1) if ended else Cursor(at.epoch, at.window + 1)

    def _collect(self, asked: Sequence[_Asked]) -> list[Sample]:
        samples = []
        for record, future in asked:
            try:
                samples.append(future.result())
            except DataError as error:
                if self.skipped is None:
                    raise
                if record not in self._told:
                    self._told.add(record)
                    self.skipped(str(error))
        return samples

    def _packed(self, samples: list[Sample], at: Cursor, drawn: int, first: int) -> Iterator[Packed]:
        rng = np.random.default_rng([self.seed, at.epoch, at.window])
        groups = batches([len(sample) for sample in samples], self.batch_size, self.batch_tokens, rng)
        begun = at.epoch * self.size + at.window * self.window
        for i, group in enumerate(groups):
            if i >= first:
                last = i + 1 == len(groups)
                after = self._next(at, drawn) if last else Cursor(at.epoch, at.window, i + 1)
                yield Packed([samples[j] for j in group], after, begun + drawn * (i + 1) / len(groups))

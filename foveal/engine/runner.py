"""One forward pass for chunks of prompts and for replies' next tokens together."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from foveal.batch import Batch, VisionTokens
from foveal.engine.request import Job, Sample
from foveal.model import Qwen3VL
from foveal.model.paged import PagedCaches
from foveal.sequence import Window

ALONE = 2**24  # multiply-adds of a product below which one thread is done before others are awake
READ = 16  # multiply-adds that reading a weight takes as long as


@dataclass(eq=False)
class Work:
    """Tokens start..stop of a sample, and guesses behind them. `outputs`: how many of the last rows need logits."""

    sample: Sample
    start: int
    stop: int
    draft: tuple[int, ...] = ()
    outputs: int = 0

    @property
    def rows(self) -> int:
        return self.stop - self.start + len(self.draft)


class Runner:
    """Run work on a model. `tokens_of` gives the vision tokens of a digest that is encoded."""

    def __init__(self, model: Qwen3VL, tokens_of: Callable[[bytes], VisionTokens]) -> None:
        self._model, self._tokens_of = model, tokens_of
        text = model.config.text
        self._weights = text.hidden_size * text.intermediate_size  # of the largest product

    def run(self, work: SequenceOf[Work]) -> list[np.ndarray | Exception]:
        """Return each work's logits, (outputs, R) float32. Where all together fail, each is tried alone, and may fail alone."""
        try:
            return list(self._run(work))
        except Exception as error:
            for one in work:
                one.sample.cache.length = one.start
            if len(work) == 1:
                return [error]
        return [self.run([one])[0] for one in work]

    def _run(self, work: SequenceOf[Work]) -> list[np.ndarray]:
        model = self._model
        lengths = [one.rows for one in work]
        caches = PagedCaches([one.sample.cache for one in work], lengths)
        batch = self._batch(work, lengths)
        wanted = np.concatenate(
            [np.arange(end - one.outputs, end) for one, end in zip(work, np.cumsum(lengths), strict=True)]
        )  # fmt: skip
        if len(wanted) != sum(lengths):
            batch = batch.with_output(torch.from_numpy(wanted).to(model.device))
        with threads_for(self._weights * max(sum(lengths), READ)):
            hidden = model.hidden(batch, caches)
            if not len(wanted):
                return [np.empty((0, 0), np.float32) for _ in work]
            logits = model.logits(hidden).float().cpu().numpy()
        stops = itertools.accumulate(one.outputs for one in work)
        return [logits[stop - one.outputs : stop] for one, stop in zip(work, stops, strict=True)]

    def _batch(self, work: SequenceOf[Work], lengths: list[int]) -> Batch:
        if all(n == 1 and one.sample.decodes for n, one in zip(lengths, work, strict=True)):
            ids = [one.sample.reply.token_ids[-1] for one in work]
            return Batch.step(ids, [one.sample.next_position for one in work], self._model.device)
        windows, vision = [], []
        for one in work:
            window, tokens = self._seen(one.sample.job, one.sample.window(one.start, one.stop, one.draft))
            windows.append(window)
            vision.append(tokens)
        return Batch.pack(windows, vision, device=self._model.device)

    def _seen(self, job: Job, window: Window) -> tuple[Window, VisionTokens | None]:
        """Find the vision tokens a window names, and number its rows among those."""
        rows = window.vision_rows
        named = rows[rows >= 0]
        if not len(named):
            return window, None
        low, high = int(named.min()), int(named.max()) + 1
        parts = []
        for medium, (first, stop) in enumerate(zip(job.first_rows[:-1], job.first_rows[1:], strict=True)):
            if first < high and stop > low:
                part = slice(max(low, first) - first, min(high, stop) - first)
                parts.append(self._tokens_of(job.digests[medium]).take(part))
        shifted = np.where(rows >= 0, rows - low, -1)
        tokens = parts[0] if len(parts) == 1 else VisionTokens.cat(parts)
        return Window(window.start, window.token_ids, window.position_ids, shifted), tokens


@contextlib.contextmanager
def threads_for(multiply_adds: int) -> Iterator[None]:
    """Let torch use one thread in this thread of ours where its products are so small, and as many as before afterwards.

    Waking another takes longer than such a product, and every one of a step's hundreds would wait for it.
    """
    before = torch.get_num_threads()
    if before == 1 or multiply_adds >= ALONE:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

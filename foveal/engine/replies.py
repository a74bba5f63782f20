"""What comes of a step: logits to tokens, tokens to text, text to whoever reads it."""

from __future__ import annotations

import time

import numpy as np

from foveal.engine.jobs import Jobs
from foveal.engine.metrics import Metrics
from foveal.engine.request import Delta, Sample, TokenLogprob
from foveal.engine.runner import Work
from foveal.engine.scheduler import Scheduler
from foveal.reply import FinishReason, Piece


class Replies:
    """Take the results of steps into samples and pass on what these say."""

    def __init__(self, jobs: Jobs, scheduler: Scheduler, metrics: Metrics) -> None:
        self._jobs, self._scheduler, self._metrics = jobs, scheduler, metrics

    def take(self, work: Work, result: np.ndarray | Exception) -> None:
        """Take a work's result into its sample. What fails here fails this request alone."""
        sample, job = work.sample, work.sample.job
        if job.done:
            return
        if isinstance(result, Exception):
            self._jobs.end(job, result)
            return
        try:
            if not work.draft:
                self._metrics.tokens["prefilled" if work.rows > 1 else "decoded"] += work.rows
                self._scheduler.keep(sample)
            if work.outputs:
                if job.first_token_s == 0.0:
                    self._first(sample, result[0])
                else:
                    self._say(sample, result, work.draft)
                    if not work.sample.cache.blocks:
                        return
                if work.draft:  # what was read of guesses that did not come true is not kept
                    sample.cache.truncate(min(sample.cache.length, sample.known - 1))
                    self._scheduler.keep(sample)
        except Exception as error:
            self._jobs.end(job, error)

    def _first(self, sample: Sample, row: np.ndarray) -> None:
        """The prompt is read: let all replies say their first token, and go on from here."""
        job = sample.job
        job.first_token_s = time.perf_counter()
        self._metrics.first_token_s.append(job.first_token_s - job.submitted_s)
        for index in range(1, job.request.n):
            child = self._jobs.sample(job, index)
            if not self._scheduler.fork(sample, child):
                self._scheduler.add(child)
        for one in list(job.samples):
            self._say(one, row[None], ())
        self._jobs.unpin(job)

    def _say(self, sample: Sample, rows: np.ndarray, draft: tuple[int, ...]) -> None:
        """Choose tokens from logits (1 + guesses, R) for as long as the guesses come true, and pass them on."""
        ids: list[int] = []
        pieces: list[Piece] = []
        logprobs: list[TokenLogprob] = []
        for at, row in enumerate(rows):
            token = sample.reply.next_forced()
            if token is None:
                token = sample.sampler(row)
            else:
                sample.sampler.note(token)
            ids.append(token)
            if sample.job.request.logprobs is not None:
                logprobs.append(TokenLogprob.of(row, token, sample.job.request.logprobs))
            pieces += sample.reply.push(token)
            if sample.reply.finish_reason is not None or at == len(draft) or token != draft[at]:
                break
        job = sample.job
        self._metrics.tokens["generated"] += len(ids)
        if draft:
            self._metrics.tokens["drafted"] += len(draft)
            self._metrics.tokens["accepted"] += len(ids) - 1
            sample.speculation.note(len(draft), len(ids) - 1)
        now = time.perf_counter()
        if sample.last_token_s:
            self._metrics.between_tokens_s.append((now - sample.last_token_s) / len(ids))
        sample.last_token_s = now
        reason: FinishReason | None = sample.reply.finish_reason
        if reason is not None:
            pieces += sample.reply.flush()
            reason = sample.reply.finish_reason
        job.outbox.put(Delta(sample.index, tuple(ids), tuple(pieces), tuple(logprobs), reason))
        if reason is not None:
            sample.cache.truncate(min(sample.cache.length, sample.known - 1))
            self._scheduler.keep(sample)
            self._scheduler.remove(sample)
            self._metrics.requests[f"finished_{reason}"] += 1
            if all(one.reply.finish_reason is not None for one in job.samples):
                self._jobs.end(job)

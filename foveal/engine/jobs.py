"""A request from the moment it is prepared to its end: its samples, what it holds of others' vision tokens, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from foveal.engine.metrics import Metrics
from foveal.engine.request import Delta, Job, Sample
from foveal.engine.scheduler import Scheduler
from foveal.engine.settings import Settings
from foveal.engine.vision import VisionCache, VisionStage
from foveal.generate import Pipeline
from foveal.reply import ReplyStream
from foveal.sampler import Sampler


class Jobs:
    """All requests that have not ended, by number. Ending one gives back whatever it holds, wherever it is."""

    def __init__(
        self, pipeline: Pipeline, settings: Settings, scheduler: Scheduler, cache: VisionCache, metrics: Metrics
    ) -> None:  # fmt: skip
        self.vision = VisionStage(pipeline.model, cache, self._encoding_took)
        self._processor, self._settings = pipeline.processor, settings
        self._scheduler, self._cache, self._metrics = scheduler, cache, metrics
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        """Iterate over those there are now, whatever happens to them meanwhile."""
        return iter(list(self._jobs.values()))

    def add(self, job: Job) -> None:
        self._jobs[job.number] = job

    def sample(self, job: Job, index: int) -> Sample:
        """Make the sample for a reply of a prepared job."""
        assert job.prompt is not None and job.keys is not None
        sampling = job.request.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        reply = ReplyStream(
            self._processor.tokenizer, sampling, end_ids=self._processor.end_ids, opens_thinking=job.prompt.opens_thinking,
            room=job.room,
        )  # fmt: skip
        sampler = Sampler(sampling, job.prompt.sequence.token_ids.tolist())
        keys = job.keys if job.request.n == 1 else job.keys.copy()
        sample = Sample(job, index, sampler, reply, self._scheduler.store, keys)
        sample.speculation.always = self._settings.speculation == "always"
        job.samples.append(sample)
        return sample

    def encoded(self, job: Job, medium: int) -> bool:
        """Tell whether a medium's vision tokens are there, and hold them for the job; ask for them where not."""
        key = job.digests[medium]
        if key in job.pins:
            return True
        if key in self._cache:
            self._cache.pin(key)
            self._cache.hits += key not in job.asked
            job.pins.add(key)
            return True
        if key not in job.asked:
            assert job.prompt is not None
            job.asked.add(key)

            def done(error: BaseException | None) -> None:
                if error is not None:
                    self.end(job, error)
                elif not job.done and key not in job.pins:
                    self._cache.pin(key)
                    job.pins.add(key)

            self.vision.want(key, job.prompt.patches[medium], job.number, done)
        return False

    def unpin(self, job: Job) -> None:
        """Let go of a job's vision tokens: its prompt is read, or will not be."""
        for key in job.pins:
            self._cache.unpin(key)
        job.pins.clear()
        job.asked.clear()

    def cancel(self, number: int) -> None:
        """End a job early; what its replies said so far remains."""
        job = self._jobs.get(number)
        if job is None or job.done:
            return
        self._metrics.requests["cancelled"] += 1
        for index in range(len(job.samples), job.request.n):  # cancelled before it was known how the prompt looks
            job.outbox.put(Delta(index, (), (), (), "cancelled"))
        for sample in job.samples:
            if sample.reply.finish_reason is None:
                pieces = tuple(sample.reply.flush())
                sample.reply.finish_reason = "cancelled"
                job.outbox.put(Delta(sample.index, (), pieces, (), "cancelled"))
        self.end(job)

    def end(self, job: Job, error: BaseException | None = None) -> None:
        """Give back all a job holds, and tell its reader."""
        if job.done:
            return
        if error is not None:
            self._metrics.requests["failed"] += 1
        for sample in job.samples:
            self._scheduler.remove(sample)
        self.vision.drop(job.number)
        self.unpin(job)
        self._jobs.pop(job.number, None)
        if job.request.gone is not None:
            job.request.gone.set()
        if job.preparing is not None:
            job.preparing.cancel()  # if it has not begun
        job.outbox.close(error)
        job.release()

    def _encoding_took(self, number: int, seconds: float) -> None:
        if (job := self._jobs.get(number)) is not None:
            job.encode_s += seconds

"""Many requests at once, nothing computed twice: `Engine.submit` takes a request and gives a stream of its replies.

Each `step` reads one batch: the next token of every reply that runs, beside chunks of prompts that arrived. Everything a
reply depends on belongs to its request, so who else is in the batch changes when it comes, not what it says.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from foveal.engine.blocks import BlockPool
from foveal.engine.jobs import Jobs
from foveal.engine.memory import Memory, plan_memory
from foveal.engine.metrics import Metrics
from foveal.engine.prepare import Preparation, step_back, warm_up
from foveal.engine.process import begin_serving, end_serving
from foveal.engine.replies import Replies
from foveal.engine.request import Delta, Job, Request, Stream, TokenLogprob
from foveal.engine.runner import Runner
from foveal.engine.scheduler import Scheduler
from foveal.engine.settings import Settings
from foveal.engine.vision import VisionCache
from foveal.errors import BusyError, CapacityError, EngineError
from foveal.generate import Pipeline
from foveal.media import Limits
from foveal.model.paged import KVPool
from foveal.processor import Request as Prompt
from foveal.sampler import Sampling

__all__ = [
    "BusyError", "CapacityError", "Delta", "Engine", "EngineError", "Memory", "Request", "Settings", "Stream", "TokenLogprob",
]  # fmt: skip

GATHER_S = 0.25  # that encoding waits at most for media that are being read
IDLE_S = 1.0  # that a thread with nothing to do sleeps at most: whose stream nobody holds is noticed then


class Engine:
    """Serve a pipeline's model. With `background` a thread of its own steps; without, whoever iterates over a stream does."""

    def __init__(self, pipeline: Pipeline, settings: Settings | None = None, *, background: bool = True) -> None:
        self.pipeline, self.settings, self.background = pipeline, settings or Settings(), background
        s, model, text = self.settings, pipeline.model, pipeline.processor.config.text
        self.memory = plan_memory(pipeline, s)
        self.pool = BlockPool(self.memory.num_blocks, s.block_size)
        self.store = KVPool(
            text.num_hidden_layers, text.num_key_value_heads, text.head_dim, num_blocks=self.memory.num_blocks,
            block_size=s.block_size, dtype=model.cache_dtype, device=model.device,
        )  # fmt: skip
        self.metrics = Metrics()
        self.vision_cache = VisionCache(self.memory.vision_bytes)
        config = pipeline.processor.config
        self.scheduler = Scheduler(
            self.pool, self.store, self.metrics, max_running=s.max_running, step_tokens=s.step_tokens, slowdown=s.slowdown,
            speculate=s.speculation != "never", prefix_caching=s.prefix_caching,
            forbidden=frozenset((config.image_token_id, config.video_token_id)),
        )  # fmt: skip
        self._runner = Runner(model, lambda key: self.vision_cache.peek(key))
        self._preparation = Preparation(pipeline, self.pool, str(self.store.store.dtype))
        self._jobs = Jobs(pipeline, s, self.scheduler, self.vision_cache, self.metrics)
        self._replies = Replies(self._jobs, self.scheduler, self.metrics)
        self.vision = self._jobs.vision
        self._number = 0
        self._inbox: deque[Callable[[], None]] = deque()  # what other threads want done between steps
        self._mutex, self._stepping = threading.Lock(), threading.RLock()
        self._wake = threading.Event()
        self._workers = ThreadPoolExecutor(s.workers, thread_name_prefix="foveal-media", initializer=step_back)
        self._typist = ThreadPoolExecutor(1, thread_name_prefix="foveal-text")  # prepares what has no media
        self._workers.submit(warm_up, pipeline.processor)
        self._closed = False
        self._gathering, self._gather_until_s = False, 0.0  # encoding waits for media that are being read, and until when
        self._thread: threading.Thread | None = None

    # --- for callers, from any thread -----------------------------------------------------------------------------

    def submit(self, request: Request) -> Stream:
        """Take a request and return its stream.

        Raise BusyError when the queue is full; ContextError or CapacityError, with the numbers, for a prepared prompt that can
        never fit. Whatever goes wrong later is raised by the stream.
        """
        with self._mutex:
            if self._closed:
                raise EngineError("the engine is closed")
            waiting = sum(1 for job in self._jobs if not job.admitted)
            if waiting >= self.settings.max_waiting:
                self.metrics.requests["refused"] += 1
                raise BusyError(f"{waiting} requests wait already, the limit is {self.settings.max_waiting}; try again later")
            job = Job(self._number, request)
            self._number += 1
            if not callable(request.prompt):
                self._check(job, request.prompt)
            self.metrics.requests["submitted"] += 1
            self._jobs.add(job)
            if self.background and self._thread is None:
                begin_serving()
                self._thread = threading.Thread(target=self._loop, name="foveal-engine", daemon=True)
                self._thread.start()
        stream = Stream(job, self)
        weakref.finalize(stream, _forgotten, weakref.ref(self), job.number).atexit = False
        if callable(request.prompt):
            try:
                job.preparing = (self._workers if request.reads else self._typist).submit(self._prepare, job)
            except RuntimeError:  # closed meanwhile, perhaps before it could end this job with the others
                self._jobs.end(job)
                raise EngineError("the engine is closed") from None
        else:
            self._prepare(job)
        return stream

    def ask(self, question: str, *files: Any, sampling: Sampling | None = None, n: int = 1, logprobs: int | None = None,
            salt: str = "", **options: Any) -> Stream:  # fmt: skip
        """Submit a question about files, which worker threads read; options as of `Processor.ask`."""
        options, gone = _until_gone(options)
        prompt = partial(self.pipeline.processor.ask, question, files, **options)
        return self.submit(
            Request(prompt, sampling or self.pipeline.sampling(), n, logprobs, salt, reads=bool(files), gone=gone)
        )

    def chat(self, messages: SequenceOf[Mapping[str, Any]], *, sampling: Sampling | None = None, n: int = 1,
             logprobs: int | None = None, salt: str = "", **options: Any) -> Stream:  # fmt: skip
        """Submit a conversation in the form of the OpenAI API; options as of `Processor`."""
        options, gone = _until_gone(options)
        prompt = partial(self.pipeline.processor, messages, **options)
        # What is not plainly text counts as media, which costs a wait and no more; the stream tells what is wrong with it.
        reads = not isinstance(messages, list | tuple) or not all(
            isinstance(message, Mapping) and isinstance(message.get("content"), str) for message in messages
        )
        return self.submit(Request(prompt, sampling or self.pipeline.sampling(), n, logprobs, salt, reads=reads, gone=gone))

    def cancel(self, number: int) -> None:
        """End a request; see `Stream.cancel`."""
        self._post(lambda: self._jobs.cancel(number))
        if not self.background and self._stepping.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._stepping.release()

    def close(self) -> None:
        """End everything; streams that were not done raise EngineError."""
        with self._mutex:
            self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._stepping:
            self._drain()
            for job in self._jobs:
                self._jobs.end(job, EngineError("the engine was closed before the reply ended"))
        for workers in (self._workers, self._typist):
            workers.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def usage(self) -> dict[str, float]:
        """Return the metrics, and what is in use right now."""
        pool, cache = self.pool, self.vision_cache
        return self.metrics.snapshot() | {
            "queue": len(self.scheduler.waiting), "running": len(self.scheduler.running), "blocks": pool.num_blocks,
            "blocks_held": pool.num_held, "blocks_cached": pool.num_cached, "blocks_evicted": pool.evicted,
            "vision_bytes": cache.num_bytes, "vision_hits": cache.hits, "vision_misses": cache.misses,
            "tokens_encoded": self.vision.encoded_tokens,
        }  # fmt: skip

    # --- the step ---------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do one step: media that became ready, some encoding, one forward pass. Return False where there was nothing to do."""
        with self._stepping, torch.inference_mode():
            began = time.perf_counter()
            moved = self._drain()
            plan = self.scheduler.plan(self._jobs.encoded, len(self.vision) > 0)
            self._gathering = plan.encode_s is None and self._gathers()
            took = self.vision.work(plan.encode_s) if len(self.vision) and not self._gathering else 0.0
            work = [one for one in plan.work if not one.sample.job.done]
            if work:
                results = self._runner.run(work)
                decoded = sum(one.rows for one in work if one.outputs and one.rows == one.outputs)
                rows = sum(one.rows for one in work)
                for one, result in zip(work, results, strict=True):
                    self._replies.take(one, result)
                whole, pace = time.perf_counter() - began, self.scheduler.pace
                # Decoding is slower beside the encoder; the promise is about what it would take without.
                if not took or rows > decoded or pace.decode_s(decoded) is None:
                    pace.note(decoded, rows - decoded, whole - took)
                if decoded and (took or rows > decoded):
                    pace.note_beside(decoded, plan.spare_s, whole)
                self.metrics.steps += 1
            return bool(work) or took > 0 or moved

    def _gathers(self) -> bool:
        """Tell whether to wait with encoding: nobody decodes, and the media of others are being read just now.

        Pictures that come together are then encoded in one pack and start to decode together, instead of the first alone and
        the rest in pieces beside its reply. No longer than encoding those that wait would take, and never long.
        """
        if not len(self.vision) or self.vision.under_way or all(job.samples for job in self._jobs):
            self._gather_until_s = 0.0
            return False
        now = time.perf_counter()
        self._gather_until_s = self._gather_until_s or now + min(self.vision.expected_s(), GATHER_S)
        return now < self._gather_until_s

    # --- requests come -------------------------------------------------------------------------------------------------

    def _check(self, job: Job, prompt: Prompt) -> None:
        try:
            self._preparation.check(job, prompt)
        except CapacityError:
            self.metrics.requests["refused"] += 1
            raise

    def _prepare(self, job: Job) -> None:
        """Read a job's media and work out its keys; in a worker thread where there is something to read."""
        if job.done:
            return
        try:
            prompt = job.request.prompt() if callable(job.request.prompt) else job.request.prompt
            if job.done:
                return
            self._check(job, prompt)
            self._preparation.fill(job, prompt)
        except Exception as error:
            problem = error
            self._post(lambda: self._jobs.end(job, problem))
        else:
            self._post(lambda: self._ready(job))

    def _ready(self, job: Job) -> None:
        if job.done:
            job.release()
            return
        try:
            assert job.prompt is not None
            self.metrics.tokens["prompt"] += len(job.prompt.sequence)
            self.scheduler.add(self._jobs.sample(job, 0))
        except Exception as error:  # its request's alone
            self._jobs.end(job, error)

    # --- threads ----------------------------------------------------------------------------------------------------

    def _post(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        self._wake.set()

    def _drain(self) -> bool:
        """Do what other threads asked for since the last step."""
        moved = False
        while self._inbox:
            self._inbox.popleft()()
            moved = True
        return moved

    def _loop(self) -> None:
        try:
            self._serve()
        finally:
            end_serving()

    def _serve(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                if not self.step():
                    self._wake.wait(GATHER_S / 10 if self._gathering else IDLE_S)
            except Exception as error:  # a bug of ours must not leave readers waiting
                with self._stepping:
                    for job in self._jobs:
                        failure = EngineError(f"a step of the engine failed: {error!r}")
                        failure.__cause__ = error
                        self._jobs.end(job, failure)
                self._wake.wait(IDLE_S)  # nothing is left to do


def _forgotten(engine: weakref.ref[Engine], number: int) -> None:
    """Nobody can read a stream any more: end its request.

    The garbage collector may call this anywhere, in the middle of `Event.set` too, so it may take no lock and wakes nobody. An
    engine that does something drains its inbox in a moment; one that sleeps does nothing for that request.
    """
    if (alive := engine()) is not None:
        alive._inbox.append(partial(alive._jobs.cancel, number))


def _until_gone(options: Mapping[str, Any]) -> tuple[dict[str, Any], threading.Event]:
    """Let reading media end once the returned event is set, which takes the place of the limits' own; others stay."""
    gone = threading.Event()
    return {**options, "limits": replace(options.get("limits") or Limits(), gone=gone)}, gone

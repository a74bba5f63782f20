"""What is worked out of a request before it can wait for its turn: its prompt, its room, and the keys of all it may share."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import sys
import threading
import time

import numpy as np

from foveal.engine.blocks import BlockPool, PrefixKeys
from foveal.engine.request import Job
from foveal.engine.vision import digest
from foveal.errors import CapacityError, FovealError
from foveal.generate import Pipeline
from foveal.processor import Processor
from foveal.processor import Request as Prompt

NICE = 10  # of threads that read media


class Preparation:
    """Prepare jobs for a pipeline and a pool; from any thread."""

    def __init__(self, pipeline: Pipeline, pool: BlockPool, cache_dtype: str) -> None:
        self._processor, self._pool = pipeline.processor, pool
        identity = json.dumps([pipeline.name, pipeline.processor.config.to_dict(), cache_dtype], sort_keys=True)
        self._root = hashlib.sha256(identity.encode()).digest()

    def check(self, job: Job, prompt: Prompt) -> None:
        """Work out a request's room; raise ContextError or CapacityError where there is none."""
        length, request = len(prompt.sequence), job.request
        room = self._processor.room(prompt)
        kept = self._pool.num_blocks * self._pool.block_size
        most = kept + 1 - length  # the last token is never read
        wanted = request.sampling.max_tokens
        if most < 1 or (wanted is not None and min(wanted, room) > most):
            reply = min(wanted or 1, room)
            raise CapacityError(
                f"a prompt of {length} tokens and a reply of {reply} need {length + reply} places, but the engine's memory "
                f"holds {kept} tokens ({self._pool.num_blocks} blocks of {self._pool.block_size}); shorten one of them or "
                "give the engine more memory"
            )
        job.room = min(room, most)

    def fill(self, job: Job, prompt: Prompt) -> None:
        """Work out what a job's steps need to know of its prompt."""
        job.digests = tuple(digest(patches, job.request.salt) for patches in prompt.patches)
        job.tokens_by_kind = prompt.tokens_by_kind()
        counts = [patches.num_tokens for patches in prompt.patches]
        ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()
        rows = prompt.sequence.vision_rows
        spans = []
        for first, stop in itertools.pairwise(ends):
            at = np.flatnonzero((rows >= first) & (rows < stop))
            spans.append((int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0))
        job.first_rows, job.spans = tuple(ends), tuple(spans)
        root = self._root + hashlib.sha256(job.request.salt.encode()).digest()
        job.keys = PrefixKeys(root, prompt.sequence, job.digests, counts, self._pool.block_size)
        job.prompt = prompt
        job.ready_s = time.perf_counter()


def warm_up(processor: Processor) -> None:
    """Prepare a prompt with a small picture: what that imports and compiles holds the interpreter's lock for 8 ms at a time,
    which the first picture to come would otherwise take from a reply that runs.
    """
    from PIL import Image

    encoded = io.BytesIO()
    Image.new("RGB", (64, 64)).save(encoded, "JPEG")
    with contextlib.suppress(FovealError):  # a checkpoint may refuse pictures; whoever brings one will be told
        processor.ask("?", [encoded.getvalue()])


def step_back() -> None:
    """Let the calling thread, and threads it starts, run after those that take steps, where threads have priorities.

    Cutting a large picture takes a core for many steps' time; whoever waits for the next token should not notice.
    """
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it: then it is as it was
            os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))

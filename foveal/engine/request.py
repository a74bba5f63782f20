"""What goes into the engine and what comes out: Request, Delta, Stream; and what it knows of each meanwhile: Job, Sample."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from foveal.engine.blocks import PrefixKeys
from foveal.engine.speculate import Speculation
from foveal.errors import PromptError
from foveal.generate import Answer, Stats, peak_memory_bytes
from foveal.model.paged import KVPool, PagedCache
from foveal.processor import Request as Prompt
from foveal.reply import FinishReason, Piece, ReplyStream
from foveal.sampler import Sampler, Sampling
from foveal.sequence import Window

MOST_SAMPLES, MOST_ALTERNATIVES = 64, 20


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt and how to answer it.

    prompt: prepared, or a function that prepares it in a worker thread. n: how many replies; the i-th draws from seed + i.
    logprobs: how many alternatives to report beside the log-probability of each token; None reports none. salt: requests of
    unlike salts share nothing, neither prefixes nor vision tokens. reads: whether the function reads media; what does not
    need not wait for those that do. gone: set when the request has ended, for a function that can stop then
    (`Limits.gone`). Raise PromptError for counts out of range.
    """

    prompt: Prompt | Callable[[], Prompt]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    logprobs: int | None = None
    salt: str = ""
    speculate: bool = True
    reads: bool = True
    gone: threading.Event | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or not 1 <= self.n <= MOST_SAMPLES:
            raise PromptError(f"n is {self.n}; expected 1 to {MOST_SAMPLES} replies")
        if self.logprobs is not None and not (isinstance(self.logprobs, int) and 0 <= self.logprobs <= MOST_ALTERNATIVES):
            raise PromptError(f"logprobs is {self.logprobs}; expected 0 to {MOST_ALTERNATIVES} alternatives, or None")
        if not isinstance(self.salt, str):
            raise PromptError(f"salt is a {type(self.salt).__name__}; a text is needed, empty for none")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probabilities of a token and of the likeliest ones, under the model's own distribution at temperature 1."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, row: np.ndarray, token: int, alternatives: int) -> TokenLogprob:
        """Take them from logits (R,)."""
        scores = row.astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        best = np.argsort(-scores, kind="stable")[:alternatives]
        return cls(token, float(scores[token]), tuple((int(i), float(scores[i])) for i in best))


@dataclass(frozen=True)
class Delta:
    """What one step added to reply number `index`. finish_reason is None until its last delta."""

    index: int
    token_ids: tuple[int, ...]
    pieces: tuple[Piece, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The answer's text, reasoning left out."""
        return "".join(piece.text for piece in self.pieces if piece.channel == "answer")


class Outbox:
    """Deltas on their way from the engine's thread to whoever reads them."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._items: deque[Delta] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, delta: Delta) -> None:
        with self._ready:
            self._items.append(delta)
            self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more will come; the reader is told the error, if there is one, after what came before it."""
        with self._ready:
            if not self._closed:
                self._closed, self._error = True, error
            self._wake()

    def pop(self) -> Delta | None:
        """Return the next delta, None where there is none yet. Raise StopIteration at the end, or the error."""
        with self._ready:
            if self._items:
                return self._items.popleft()
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopIteration
            return None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until there is something to pop."""
        with self._ready:
            self._ready.wait_for(lambda: self._items or self._closed, timeout_s)

    async def wait_async(self) -> None:
        """Wait until there is something to pop, in an event loop."""
        event = asyncio.Event()
        with self._ready:
            if self._items or self._closed:
                return
            self._waiters.append((asyncio.get_running_loop(), event))
        await event.wait()

    def _wake(self) -> None:
        self._ready.notify_all()
        for loop, event in self._waiters:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
        self._waiters.clear()


class Driver(Protocol):
    """What a stream needs of the engine."""

    background: bool

    def step(self) -> bool: ...
    def cancel(self, number: int) -> None: ...


class Stream:
    """The replies to one request: iterate over it, with `for` or `async for`, for its deltas; then read `answers`.

    A request that failed raises its error here, after the deltas that came before. Without a background thread, iterating
    drives the engine, for all requests at once.
    """

    def __init__(self, job: Job, engine: Driver) -> None:
        self._job, self._engine = job, engine

    def __iter__(self) -> Iterator[Delta]:
        while True:
            try:
                delta = self._job.outbox.pop()
            except StopIteration:
                return
            if delta is not None:
                yield delta
            elif self._engine.background:
                self._job.outbox.wait()
            elif not self._engine.step():
                self._job.outbox.wait(0.05)  # its media are being read

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            try:
                delta = self._job.outbox.pop()
            except StopIteration:
                return
            if delta is not None:
                yield delta
            elif self._engine.background:
                await self._job.outbox.wait_async()
            elif not await asyncio.to_thread(self._engine.step):
                await asyncio.sleep(0.005)

    def cancel(self) -> None:
        """End all replies; what was said so far remains. Nothing happens to replies that ended."""
        self._engine.cancel(self._job.number)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were there already."""
        return self._job.cached_tokens

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Return all replies, reading what is left of them. Raise the request's error."""
        for _ in self:
            pass
        # A request may be cancelled before it is known how its prompt looks: its replies are empty then.
        unsaid = Answer("", None, "cancelled", (), Stats(0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0))
        said = [sample.answer() for sample in self._job.samples]
        return (*said, *[unsaid] * (self._job.request.n - len(said)))

    @property
    def answer(self) -> Answer:
        """Return the first reply, as `answers` does."""
        return self.answers[0]


@dataclass(eq=False)
class Job:
    """A request inside the engine. number: in order of arrival; ready once `prompt` and what belongs to it are there.

    admitted: one of its replies has had blocks; until then it waits. preparing: the worker's, where there is one.
    """

    number: int
    request: Request
    outbox: Outbox = field(default_factory=Outbox)
    prompt: Prompt | None = None
    preparing: Future[None] | None = None
    admitted: bool = False
    tokens_by_kind: Mapping[str, int] = field(default_factory=dict)
    room: int = 0
    digests: tuple[bytes, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()  # first and last + 1 token of each medium
    first_rows: tuple[int, ...] = ()  # of each medium, and the end of the last
    keys: PrefixKeys | None = None
    samples: list[Sample] = field(default_factory=list)
    pins: set[bytes] = field(default_factory=set)
    asked: set[bytes] = field(default_factory=set)  # digests the vision stage was asked for
    cached_tokens: int = 0
    submitted_s: float = field(default_factory=time.perf_counter)
    ready_s: float = 0.0
    encode_s: float = 0.0  # a duration, unlike its neighbours: spent on its own media, a part of a pack by patches
    first_token_s: float = 0.0

    @property
    def done(self) -> bool:
        return self.outbox.closed

    def release(self) -> None:
        """Let go of the pictures, which a reader who keeps the stream for its answers would keep, too."""
        self.prompt = self.keys = None


class Sample:
    """One reply of a job: what it said, what it holds of the pool, and how much of it the cache has."""

    def __init__(self, job: Job, index: int, sampler: Sampler, reply: ReplyStream, pool: KVPool, keys: PrefixKeys) -> None:
        assert job.prompt is not None
        self.job, self.index, self.sampler, self.reply, self.keys = job, index, sampler, reply, keys
        self.cache = PagedCache(pool)
        self.speculation = Speculation()
        self.registered = 0  # full blocks the pool knows the keys of
        self.reached = 0  # tokens that were read for it, whether or not they still are
        self.last_token_s = 0.0
        self.tried = 0  # its blocks when they were last to be laid in a row
        self._prompt_tokens = len(job.prompt.sequence)
        self._tokens = np.concatenate([job.prompt.sequence.token_ids, np.zeros(64, np.int64)])
        self._copied = 0

    @property
    def order(self) -> tuple[int, int]:
        return self.job.number, self.index

    @property
    def known(self) -> int:
        """Tokens of prompt and reply so far."""
        return self._prompt_tokens + len(self.reply.token_ids)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not in the cache."""
        return self.known - self.cache.length

    @property
    def next_position(self) -> int:
        """The position of the last token of the reply."""
        assert self.job.prompt is not None
        return self.job.prompt.sequence.next_position + len(self.reply.token_ids) - 1

    @property
    def room(self) -> int:
        """Tokens the reply may still take."""
        most = self.job.request.sampling.max_tokens
        return (self.job.room if most is None else min(most, self.job.room)) - len(self.reply.token_ids)

    def tokens(self) -> np.ndarray:
        """Return all known ids (T,)."""
        prompt, said = self._prompt_tokens, self.reply.token_ids
        if len(self._tokens) < self.known:
            self._tokens = np.concatenate([self._tokens, np.zeros(len(self._tokens), np.int64)])
        at = self._copied
        self._tokens[prompt + at : self.known] = said[at:]
        self._copied = len(said)
        return self._tokens[: self.known]

    @property
    def decodes(self) -> bool:
        """Tell whether all but the last token of its reply was read."""
        said = len(self.reply.token_ids)
        return said > 0 and self._prompt_tokens + said - self.cache.length == 1

    def window(self, start: int, stop: int, draft: tuple[int, ...] = ()) -> Window:
        """Return tokens start..stop of prompt and reply, and guesses behind them."""
        assert self.job.prompt is not None
        prompt = self.job.prompt.sequence
        cut = len(prompt)
        if stop <= cut and not draft:
            return prompt.window(start, stop)
        head = prompt.window(min(start, cut), min(stop, cut))
        first = max(start, cut)
        ids = [*self.reply.token_ids[first - cut : stop - cut], *draft]
        later = np.arange(first - cut, first - cut + len(ids)) + prompt.next_position
        return Window(
            start,
            np.concatenate([head.token_ids, np.asarray(ids, dtype=np.int64)]),
            np.concatenate([head.position_ids, np.broadcast_to(later, (3, len(ids)))], axis=1),
            np.concatenate([head.vision_rows, np.full(len(ids), -1, dtype=np.int64)]),
        )

    def answer(self) -> Answer:
        """Return what was said so far as an answer."""
        reasoning, text = self.reply.texts()
        return Answer(text, reasoning, self.reply.finish_reason or "cancelled", tuple(self.reply.token_ids), self._stats())

    def _stats(self) -> Stats:
        job, kinds = self.job, self.job.tokens_by_kind
        first = max(job.first_token_s - job.submitted_s, 0.0)
        prepare = job.ready_s - job.submitted_s
        prefill = max(first - prepare - job.encode_s, 0.0)
        return Stats(
            kinds["text"], kinds["image"], kinds["video"], len(self.reply.token_ids), self.reply.reasoning_tokens,
            prepare, job.encode_s, prefill, max(self.last_token_s - job.first_token_s, 0.0), first,
            peak_memory_bytes(self.cache.pool.store.device),
        )  # fmt: skip

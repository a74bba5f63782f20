"""Who is examined: an arm is a model with its settings, and answers many items at once."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from foveal.engine import Engine, Settings
from foveal.errors import CapacityError, ContextError, FovealError
from foveal.evaluate.items import Item, Messages, with_system
from foveal.generate import Pipeline
from foveal.sampler import Sampling

VISION_BYTES = 2**28  # kept of vision tokens: items are seldom about the same picture


@dataclass(frozen=True)
class Said:
    """An answer. error: why there is none, where the item was refused; it counts as wrong. seconds: from question to end."""

    text: str
    finish_reason: str
    reasoning: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None


class Answerer(Protocol):
    """Answers items, in `parallel` threads at once. `close` ends what is still being answered."""

    parallel: int

    def __call__(self, item: Item) -> Said: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Arm:
    """A name, the settings as they were given, and how to load what answers."""

    name: str
    settings: Mapping[str, Any]
    open: Callable[[], Answerer]


@dataclass
class Local:
    """A model that foveal loaded, behind the engine. options: as of `Processor` (budget, clip_sampling)."""

    pipeline: Pipeline
    sampling: Sampling
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    parallel: int = 16

    def __post_init__(self) -> None:
        # Nobody waits for a first token here, so no step is kept short.
        settings = Settings(max_running=self.parallel, vision_bytes=VISION_BYTES, slowdown=None)
        self._engine = Engine(self.pipeline, settings)

    def __call__(self, item: Item) -> Said:
        return self.ask(item.messages, item_sampling(self.sampling, item))

    def ask(self, messages: Messages, sampling: Sampling) -> Said:
        """Answer a conversation; refused is one that is too long. Raise the errors of its media."""
        began = time.perf_counter()
        messages = with_system(messages, self.system)
        try:
            answer = self._engine.chat(messages, sampling=sampling, **self.options).answer
        except (ContextError, CapacityError) as error:  # too long for this arm, which says something about it
            return Said("", "refused", error=str(error), seconds=time.perf_counter() - began)
        stats = answer.stats
        return Said(
            answer.text, answer.finish_reason, answer.reasoning, stats.prompt_tokens, stats.generated_tokens,
            time.perf_counter() - began,
        )  # fmt: skip

    def close(self) -> None:
        self._engine.close()


def item_sampling(sampling: Sampling, item: Item) -> Sampling:
    """Give a sampled answer a seed of its own, the same for every arm and every time."""
    if sampling.temperature == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed or 0) + zlib.crc32(item.id.encode()) % 2**31)


def answered(answerer: Answerer, items: Iterable[Item]) -> Generator[tuple[Item, Said], None, None]:
    """Yield items with their answers as these arrive; close the answerer in the end, however that comes.

    Raise the error of an item, with its name.
    """
    waiting: dict[Future[Said], Item] = {}
    with ThreadPoolExecutor(answerer.parallel, thread_name_prefix="foveal-exam") as pool:
        try:
            for item in items:
                waiting[pool.submit(answerer, item)] = item
                if len(waiting) >= 2 * answerer.parallel:
                    yield from _ready(waiting)
            while waiting:
                yield from _ready(waiting)
        finally:
            for future in waiting:
                future.cancel()
            answerer.close()  # before the pool waits for its threads


def _ready(waiting: dict[Future[Said], Item]) -> Iterator[tuple[Item, Said]]:
    """Wait for at least one answer, and take all that are there."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=list(waiting).index):
        item = waiting.pop(future)
        try:
            said = future.result()
        except FovealError as error:
            raise FovealError(f"{item.id}: {error}") from error
        yield item, said

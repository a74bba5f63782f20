"""Hundreds of requests of every kind while media, encoder, forward pass, sampler and blocks fail: nothing is lost or left.

What fails for one request must end that one, with its own error; what fails for several at once, or for the moment, must not be
seen at all: each is tried again, alone or later. Every reply that was not ended says what the plain generator says.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from foveal.engine import BusyError, CapacityError, Engine, Request, Stream
from foveal.errors import MediaError
from foveal.sampler import Sampler, Sampling
from tests.engine.tools import GREEDY, SCENES, assert_no_trace, check, engine, media, oracle, pipeline, settle
from tests.laws.test_engine import PENALISED, SAMPLED

LONGEST, MOST, SEED = 12, 3, 7  # tokens a reply, replies a request, the seed of the first of them
BROKEN, FAULTY = 251, 10_000  # the grey of a picture that breaks the encoder; seeds from which on the sampler fails
WAYS = tuple(replace(sampling, seed=SEED, max_tokens=LONGEST) for sampling in (GREEDY, SAMPLED, PENALISED))
ENDS: dict[str, tuple[type[Exception], str]] = {
    "media": (MediaError, "no picture"), "encode": (RuntimeError, "encoder broke"), "sampler": (ValueError, "no token"),
    "capacity": (CapacityError, "memory holds"),
}  # fmt: skip


@functools.cache
def asked() -> list[Any]:
    """Prompts with common beginnings: the same pictures under questions of several lengths, and second turns."""
    processor, out = pipeline().processor, []
    for seed, scene in enumerate(SCENES):
        kinds = {"picture": "image", "clip": "video"}
        content = [{"type": kinds[k], kinds[k]: media(k, 10 * seed + i)} for i, k in enumerate(scene)]
        for length in (1, 9):
            turns = [{"role": "user", "content": [*content, {"type": "text", "text": "What is the colour? " * length}]}]
            out.append(processor(turns))
        turns += [{"role": "assistant", "content": "red"}, {"role": "user", "content": "Why?"}]
        out.append(processor(turns))
    return out


@functools.cache
def expected() -> dict[tuple[int, Sampling], tuple[int, ...]]:
    """Let the plain generator answer every prompt in every way that is used, before anything is made to fail."""
    ways = [way if not way.temperature else replace(way, seed=SEED + i) for way in WAYS for i in range(MOST)]
    return {(index, way): oracle(prompt, way) for index, prompt in enumerate(asked()) for way in dict.fromkeys(ways)}


class Faulty(Sampler):
    """A sampler that fails in its own time where its seed says so."""

    def __call__(self, logits: np.ndarray) -> int:
        seed = self.sampling.seed or 0
        if seed >= FAULTY and sum(self._counts.values()) >= seed % 5:
            raise ValueError("no token")
        return super().__call__(logits)


@dataclass
class Asked:
    """A request under way: how it must end ("" well, or by ENDS), and what its replies may say at most."""

    stream: Stream
    end: str
    said: list[tuple[int, ...]]
    cancelled: bool = False


class Chaos:
    """Make what an engine leans on fail for the moment: packs of several, steps of several, blocks."""

    def __init__(self, one: Engine, patch: pytest.MonkeyPatch, seed: int) -> None:
        self.rng, self.happened = np.random.default_rng(seed), Counter[str]()
        model = one.pipeline.model
        encode, pieces, hidden, take = model.encode, model.encode_in_pieces, model.hidden, one.pool.take

        def seen(patches: Any) -> None:
            if any((p.pixels == BROKEN).all() for p in patches) or self._fails("encode", 0.3 * (len(patches) > 1)):
                raise RuntimeError("encoder broke")

        patch.setattr(model, "encode", lambda patches: (seen(patches), encode(patches))[1])
        patch.setattr(model, "encode_in_pieces", lambda patches: (seen(patches), pieces(patches))[1])

        def broken(batch: Any, caches: Any) -> Any:
            out = hidden(batch, caches)
            if self._fails("forward", 0.1 * (len(batch.lengths) > 1)):
                raise MemoryError("no memory for so many")
            return out

        patch.setattr(model, "hidden", broken)
        patch.setattr(one.pool, "take", lambda *given, **named: None if self._fails("blocks", 0.1) else take(*given, **named))

    def _fails(self, what: str, chance: float) -> bool:
        happens = bool(self.rng.random() < chance)
        self.happened[what] += happens
        return happens


def submit(one: Engine, rng: np.random.Generator, again: Callable[[], object]) -> Asked:
    """Send one request of a random kind; while the queue is full, do `again` and try once more."""
    index = int(rng.integers(len(asked())))
    prompt, way, n = asked()[index], WAYS[rng.integers(len(WAYS))], int(rng.integers(1, MOST + 1))
    sampling = replace(way, max_tokens=int(rng.integers(1, LONGEST + 1)))
    end = str(rng.choice(["", "media", "encode", "sampler", "capacity"], p=[0.8, 0.05, 0.05, 0.05, 0.05]))
    source: Any = prompt
    if end == "sampler":
        sampling = replace(sampling, max_tokens=LONGEST, seed=FAULTY + int(rng.integers(5)))
    elif end == "capacity":
        sampling = replace(sampling, max_tokens=300)
    elif end == "encode":
        grey = np.full((24, 40, 3), BROKEN, np.uint8)
        prompt = source = pipeline().processor.ask("What?", [grey, media("picture", 3)])
    if end == "media":

        def source() -> Any:
            raise MediaError("photo.png: no picture")
    elif end == "capacity" or rng.random() < 0.3:
        source = functools.partial(lambda value: value, prompt)  # prepared by a worker
    said = []
    if not end:
        ways = [replace(way, seed=SEED + i * bool(way.temperature)) for i in range(n)]
        said = [expected()[index, one_way][: sampling.max_tokens] for one_way in ways]
    while True:
        try:
            return Asked(one.submit(Request(source, sampling, n, logprobs=2 if rng.random() < 0.1 else None)), end, said)
        except BusyError:
            again()


def finish(request: Asked) -> str:
    """Read a request to its end, check what it said, and say how it ended."""
    if request.end and not request.cancelled:
        kind, message = ENDS[request.end]
        with pytest.raises(kind, match=message):
            _ = request.stream.answers
        return "failed"
    try:
        answers = request.stream.answers
    except tuple(kind for kind, _ in ENDS.values()):
        assert request.end, "a request failed that had no reason to"
        return "failed"
    for answer, most in zip(answers, request.said, strict=False):
        assert answer.token_ids == (most[: len(answer.token_ids)] if answer.finish_reason == "cancelled" else most)
    if request.cancelled:
        return "cancelled or done"
    assert len(answers) == len(request.said)
    return "done"


def assert_all_ended(one: Engine, ends: Counter[str]) -> None:
    """Assert that every request ended once, and that nothing is left of any."""
    counts = one.metrics.requests
    assert counts["submitted"] == sum(ends.values())
    assert counts["failed"] == ends["failed"] and counts["cancelled"] <= ends["cancelled or done"]
    assert_no_trace(one)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    expected()
    monkeypatch.setattr("foveal.engine.jobs.Sampler", Faulty)
    return monkeypatch


@pytest.mark.parametrize("seed", range(6))
def test_a_storm(faulty: pytest.MonkeyPatch, seed: int) -> None:
    """Forty requests, steps between them, a few cancelled or forgotten, in a pool that holds a few of them at once."""
    rng = np.random.default_rng(seed)
    one = engine(
        num_blocks=int(rng.integers(30, 41)), step_tokens=int(rng.integers(5, 80)), max_running=int(rng.integers(2, 9)),
        max_waiting=8, speculation=("never", "always", "auto")[seed % 3], vision_bytes=int(rng.integers(0, 60_000)),
        slowdown=(None, 2.0)[seed % 2], prefix_caching=seed != 4,
    )  # fmt: skip
    chaos = Chaos(one, faulty, seed)
    ends, under_way = Counter[str](), list[Asked]()
    for _ in range(40):
        under_way.append(submit(one, rng, one.step))
        for _ in range(int(rng.integers(0, 5))):
            one.step()
            check(one)
        if rng.random() < 0.2:
            chosen = under_way[int(rng.integers(len(under_way)))]
            chosen.cancelled = True
            chosen.stream.cancel()
        at = int(rng.integers(len(under_way)))
        if rng.random() < 0.05 and not under_way[at].end:  # nobody reads it any more
            del under_way[at]
            gc.collect()
            ends["cancelled or done"] += 1
    ends.update(finish(request) for request in under_way)
    while one.step():
        check(one)
    faulty.undo()
    assert_all_ended(one, ends)
    assert one.metrics.preemptions and chaos.happened["blocks"] and chaos.happened["forward"]
    one.close()


def test_a_storm_from_several_threads(faulty: pytest.MonkeyPatch) -> None:
    """The same against the engine's own thread: clients read, cancel and leave whenever they like."""
    with engine(background=True, num_blocks=40, step_tokens=40, max_waiting=6, vision_bytes=40_000) as one:
        Chaos(one, faulty, 0)
        ends, failures = list[str](), list[BaseException]()

        def client(number: int) -> None:
            rng = np.random.default_rng(100 + number)
            try:
                for _ in range(20):
                    request = submit(one, rng, lambda: threading.Event().wait(0.005))
                    if rng.random() < 0.2:
                        request.cancelled = True
                        request.stream.cancel()
                    ends.append(finish(request))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        settle(one)
        assert_all_ended(one, Counter(ends))


@pytest.mark.parametrize("seed", range(3))
def test_blocks_refused_at_any_moment(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A sample that comes back must not take the blocks of a younger one whose rows are in the same step already."""
    one, rng = engine(num_blocks=40, step_tokens=24, max_running=5), np.random.default_rng(seed)
    take = one.pool.take
    monkeypatch.setattr(one.pool, "take", lambda *given, **named: None if rng.random() < 0.3 else take(*given, **named))
    way, chosen = WAYS[1], [int(i) for i in rng.integers(len(asked()), size=16)]
    streams = [one.submit(Request(asked()[index], way, n=MOST)) for index in chosen]
    while one.step():
        check(one)
    ways = [replace(way, seed=SEED + i) for i in range(MOST)]
    for stream, index in zip(streams, chosen, strict=True):
        assert [answer.token_ids for answer in stream.answers] == [expected()[index, one_way] for one_way in ways]
    assert_no_trace(one)
    one.close()

"""Around the laws: streams, threads, async, failures that stay alone, refusals with numbers, log-probabilities."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from foveal.batch import Batch, VisionTokens
from foveal.engine import BusyError, CapacityError, Engine, EngineError, Request, Settings
from foveal.engine.process import SWITCH_S
from foveal.errors import ConfigError, ContextError, MediaError, PromptError
from foveal.processor import Processor
from foveal.processor import Request as Prompt
from foveal.sampler import Sampling
from tests.engine.tools import GREEDY, assert_no_trace, check, engine, media, oracle, pipeline, prompt, prompts, settle


@pytest.fixture
def one() -> Iterator[Engine]:
    made = engine()
    yield made
    made.close()


def test_deltas_are_the_answer(one: Engine) -> None:
    stream = one.submit(Request(prompt(("picture",)), replace(GREEDY, stop=())))
    deltas = list(stream)
    assert tuple(i for d in deltas for i in d.token_ids) == stream.answer.token_ids == oracle(prompt(("picture",)))
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1) and deltas[-1].finish_reason == "length"
    said = "".join(d.text for d in deltas)
    assert said == stream.answer.text or "</think>" in said
    stats = stream.answer.stats
    assert stats.generated_tokens == 24 and stats.first_token_s > 0 and stats.decode_s > 0


def test_stats_hold_what_each_stage_took(one: Engine) -> None:
    """The stages add up to the first token; a picture costs its owner's time once, and nothing when it is known."""
    asked = Request(prompt(("picture", "clip"), 3), GREEDY)
    first, text, again = one.submit(asked).answer.stats, one.submit(Request(prompt(), GREEDY)).answer.stats, one.submit(asked)
    assert first.encode_s > 0 and first.prefill_s > 0 and first.peak_memory_bytes > 2**24
    assert first.prepare_s + first.encode_s + first.prefill_s == pytest.approx(first.first_token_s)
    assert first.encode_s == pytest.approx(one.vision.seconds)
    assert text.encode_s == 0 == again.answer.stats.encode_s


def test_a_pack_s_time_is_shared_by_patches(one: Engine) -> None:
    streams = [one.submit(Request(prompt((kind,), 4), GREEDY)) for kind in ("picture", "clip")]
    took = [stream.answer.stats.encode_s for stream in streams]
    assert sum(took) == pytest.approx(one.vision.seconds)
    patches = [len(prompt((kind,), 4).patches[0].pixels) for kind in ("picture", "clip")]
    assert took[0] / took[1] == pytest.approx(patches[0] / patches[1])


def test_log_probabilities_are_the_model_s(one: Engine) -> None:
    asked = prompt(("clip",), 2)
    deltas = list(one.submit(Request(asked, replace(GREEDY, max_tokens=3), logprobs=2)))
    model, sequence = pipeline().model, asked.sequence
    with torch.inference_mode():
        logits = model(Batch.pack([sequence], [model.encode(asked.patches)], output="last"))[0]
    expected = logits.log_softmax(-1)
    (first,) = deltas[0].logprobs
    assert first.token_id == int(expected.argmax()) == first.top[0][0]
    assert first.logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert first.top[1][1] == pytest.approx(float(expected.topk(2).values[1]), abs=1e-4)
    assert sum(len(d.logprobs) for d in deltas) == 3


def test_media_that_cannot_be_read_fail_alone(one: Engine) -> None:
    def broken() -> Any:
        raise MediaError("photo.png: no picture")

    bad, good = one.submit(Request(broken, GREEDY)), one.submit(Request(prompt(), GREEDY))
    assert good.answer.token_ids == oracle(prompt())
    with pytest.raises(MediaError, match="no picture"):
        list(bad)
    with pytest.raises(MediaError):
        _ = bad.answers
    assert one.metrics.requests["failed"] == 1
    assert_no_trace(one)


def test_a_picture_that_cannot_be_encoded_fails_alone(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures that wait are encoded in one pack; of a pack that fails each is tried alone."""
    asked = [prompt(("picture",), seed) for seed in range(3)]
    wrong, plain = asked[1].patches[0], pipeline().model.encode

    def encode(patches: Any) -> VisionTokens:
        if any(p is wrong for p in patches):
            raise RuntimeError("encoder broke")
        return plain(patches)

    monkeypatch.setattr(one.vision._model, "encode", encode)
    streams = [one.submit(Request(p, GREEDY)) for p in asked]
    with pytest.raises(RuntimeError, match="encoder broke"):
        _ = streams[1].answer
    assert [streams[i].answer.token_ids for i in (0, 2)] == [oracle(asked[i]) for i in (0, 2)]
    assert_no_trace(one)


def test_a_forward_pass_that_fails_for_one_fails_for_one(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = one.pipeline.model
    plain, wrong = model.hidden, model.config.video_token_id  # only the second has a clip

    def hidden(batch: Batch, caches: Any) -> torch.Tensor:
        if bool((batch.token_ids == wrong).any()):
            raise RuntimeError("no memory")
        return plain(batch, caches)

    monkeypatch.setattr(model, "hidden", hidden)
    asked = [prompts()[i] for i in (0, 2, 4)]
    streams = [one.submit(Request(p, GREEDY)) for p in asked]
    with pytest.raises(RuntimeError, match="no memory"):
        _ = streams[1].answer
    monkeypatch.undo()
    assert [streams[i].answer.token_ids for i in (0, 2)] == [oracle(asked[i]) for i in (0, 2)]
    assert_no_trace(one)


def test_a_sampler_that_fails_fails_alone(one: Engine) -> None:
    bad, good = (one.submit(Request(prompt((), seed), GREEDY)) for seed in (1, 2))
    for _ in range(3):
        one.step()
    sample = one.scheduler.running[0]

    def fails(row: Any) -> int:
        raise ValueError("no token")

    sample.sampler = fails  # type: ignore[assignment]
    with pytest.raises(ValueError, match="no token"):
        _ = bad.answer
    assert good.answer.token_ids == oracle(prompt((), 2))
    assert_no_trace(one)


def test_what_can_never_fit_is_refused_with_the_numbers(one: Engine) -> None:
    small = engine(num_blocks=4)
    length = len(prompt().sequence)
    with pytest.raises(CapacityError, match=rf"{length} tokens and a reply of 24 need {length + 24} .* holds 32 tokens"):
        small.submit(Request(prompt(), GREEDY))
    small.close()
    with pytest.raises(ContextError):
        one.submit(Request(prompt((), 0, "0" * 500), GREEDY))
    with pytest.raises(ContextError):  # prepared in a worker: told by the stream
        _ = one.ask("0" * 500, sampling=GREEDY).answer
    for wrong in ({"n": 0}, {"n": 65}, {"logprobs": 21}):
        with pytest.raises(PromptError):
            Request(prompt(), GREEDY, **wrong)
    assert_no_trace(one)


def test_a_full_queue_refuses_with_the_numbers() -> None:
    small = engine(max_waiting=2)
    streams = [small.submit(Request(prompt((), seed), GREEDY)) for seed in range(2)]
    with pytest.raises(BusyError, match="2 requests wait already, the limit is 2"):
        small.submit(Request(prompt(), GREEDY))
    assert [s.answer.token_ids for s in streams] == [oracle(prompt((), seed)) for seed in range(2)]
    small.submit(Request(prompt(), GREEDY)).cancel()
    small.close()


def test_the_prepared_wait_too_until_they_are_admitted() -> None:
    small = engine(max_running=1, max_waiting=2)
    first = small.submit(Request(prompt(), GREEDY))
    small.step()
    rest = [small.submit(Request(prompt((), seed), GREEDY)) for seed in (1, 2)]
    small.step()
    with pytest.raises(BusyError, match="2 requests wait already"):
        small.submit(Request(prompt(), GREEDY))
    assert first.answer.token_ids == oracle(prompt())
    small.step()
    rest.append(small.submit(Request(prompt((), 3), GREEDY)))
    assert [s.answer.token_ids for s in rest] == [oracle(prompt((), seed)) for seed in (1, 2, 3)]
    small.close()


def test_salts_keep_prefixes_and_vision_tokens_apart(one: Engine) -> None:
    for salt, shared in (("a", False), ("b", False), ("a", True)):
        encoded = one.vision.encoded_tokens
        stream = one.submit(Request(prompt(("picture",)), GREEDY, salt=salt))
        assert stream.answer.token_ids == oracle(prompt(("picture",)))
        assert (stream.cached_tokens > 0) == shared
        assert (one.vision.encoded_tokens == encoded) == shared


def test_a_stream_can_be_forgotten_in_the_middle_of_anything() -> None:
    """The collector may run while this very thread holds the lock of the engine's alarm; its callback must not want it."""
    shared = engine(background=True)
    streams = [shared.submit(Request(prompt(), replace(GREEDY, max_tokens=400)))]
    next(iter(streams[0]))

    def forget() -> None:
        with shared._wake._cond:  # type: ignore[attr-defined]
            streams.clear()
            gc.collect()

    thread = threading.Thread(target=forget, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "a stream that is forgotten blocks whoever forgets it"
    settle(shared)
    shared.close()


def test_who_left_is_not_prepared_and_holds_nobody_up() -> None:
    """With one worker: what is cancelled in its queue is skipped, what reads nothing goes past, what reads is told to stop."""
    begun, go_on, gone = threading.Event(), threading.Event(), threading.Event()
    prepared: list[int] = []

    def reads() -> Prompt:
        begun.set()
        assert go_on.wait(20)
        return prompt()

    def never() -> Prompt:
        prepared.append(1)
        return prompt()

    with engine(background=True, workers=1) as shared:
        reading = shared.submit(Request(reads, GREEDY, gone=gone))
        assert begun.wait(20)
        for _ in range(3):
            shared.submit(Request(never, GREEDY)).cancel()
        assert shared.ask("What is the colour?", sampling=GREEDY).answer.token_ids == oracle(prompt())
        assert shared.chat([{"role": "user", "content": "What is the colour?"}], sampling=GREEDY).answer.text
        assert not gone.is_set()
        reading.cancel()
        assert gone.wait(20)
        go_on.set()
        settle(shared)
    assert not prepared


@pytest.mark.parametrize("messages", [None, "hi", [3], []])
def test_messages_that_are_none_are_told_by_the_stream(one: Engine, messages: Any) -> None:
    stream = one.chat(messages, sampling=GREEDY)
    with pytest.raises(PromptError, match="messages"):
        _ = stream.answer


def test_an_engine_that_closes_waits_for_no_download(tmp_path: Any) -> None:
    """A server that drips bytes is dropped when the request is cancelled, not when its time is up."""
    with socket.create_server(("127.0.0.1", 0)) as server, engine(background=True, workers=1) as shared:
        dripping = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while True:
                    connection.sendall(b"x")
                    dripping.set()
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        stream = shared.ask("What?", f"http://127.0.0.1:{server.getsockname()[1]}/a.png", sampling=GREEDY)
        assert dripping.wait(20)
        began = time.monotonic()
        stream.cancel()
        shared.close()
        assert time.monotonic() - began < 5


def test_a_reply_that_cannot_be_begun_fails_alone(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    good = one.submit(Request(prompt((), 2), GREEDY))
    one.step()
    monkeypatch.setattr("foveal.engine.jobs.ReplyStream", mock.Mock(side_effect=MemoryError("no room")))
    bad = one.submit(Request(prompt((), 1), GREEDY))
    with pytest.raises(MemoryError, match="no room"):
        _ = bad.answer
    assert good.answer.token_ids == oracle(prompt((), 2))
    assert_no_trace(one)


def test_what_ended_keeps_no_pictures(one: Engine) -> None:
    stream = one.submit(Request(partial(prompt, ("picture",)), GREEDY))
    stats = stream.answer.stats
    assert stream._job.prompt is None and stream._job.keys is None
    assert stream.answer.stats == replace(stats, peak_memory_bytes=stream.answer.stats.peak_memory_bytes)
    assert stats.image_tokens == prompt(("picture",)).tokens_by_kind()["image"]


def test_each_reply_has_times_of_its_own(one: Engine) -> None:
    """Of one request's replies the first to end decodes no longer than until then, and a gap is one of its own."""
    chosen = replace(GREEDY, temperature=1.0, seed=3, max_tokens=12)
    stream = one.submit(Request(prompt(), chosen, n=3))
    answers = stream.answers
    assert len(one.metrics.between_tokens_s) == 3 * 11
    mean = sum(one.metrics.between_tokens_s) / 33
    assert sum(answer.stats.decode_s for answer in answers) == pytest.approx(33 * mean, rel=0.2)


def test_what_was_read_for_it_once_is_not_cached_for_it() -> None:
    small = engine(step_tokens=16)
    stream = small.submit(Request(prompt((), 0, "Why? " * 12 + "What?"), GREEDY))
    for _ in range(3):
        small.step()
    (sample,) = small.scheduler.running
    assert 0 < sample.cache.length < len(prompt((), 0, "Why? " * 12 + "What?").sequence)
    small.scheduler.preempt(sample)
    assert stream.answer.token_ids == oracle(prompt((), 0, "Why? " * 12 + "What?"))
    assert stream.cached_tokens == 0 and small.metrics.tokens["cached"] > 0
    small.close()


def test_a_second_turn_finds_the_first(one: Engine) -> None:
    processor, picture = pipeline().processor, media("picture", 5)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    first = processor(messages)
    answer = one.submit(Request(first, GREEDY)).answer
    second = processor([*messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "Why?"}])
    stream = one.submit(Request(second, GREEDY))
    assert stream.answer.token_ids == oracle(second)
    assert stream.cached_tokens >= len(first.sequence) // 8 * 8
    assert one.metrics.snapshot()["tokens_cached"] == stream.cached_tokens and one.usage()["blocks_held"] == 0


def test_a_background_engine_serves_threads_at_once() -> None:
    asked = prompts()
    expected = [oracle(p) for p in asked]
    with engine(background=True, num_blocks=60, step_tokens=24) as shared:
        said: dict[tuple[int, int], tuple[int, ...]] = {}

        def serve(thread: int) -> None:
            for turn, p in enumerate(asked):
                stream = shared.submit(Request(p, GREEDY))
                if (thread + turn) % 4 == 3:
                    next(iter(stream))
                    stream.cancel()
                else:
                    said[thread, turn] = stream.answer.token_ids

        threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(said) == 15 and all(ids == expected[turn] for (_, turn), ids in said.items())
        settle(shared)
        assert_no_trace(shared)


def test_async_streams_run_side_by_side() -> None:
    async def read(stream: Any) -> tuple[int, ...]:
        return tuple([i async for delta in stream for i in delta.token_ids])

    async def both(shared: Engine) -> list[tuple[int, ...]]:
        return list(await asyncio.gather(*(read(shared.submit(Request(p, GREEDY))) for p in prompts()[:3])))

    for background in (True, False):
        with engine(background=background) as shared:
            assert asyncio.run(both(shared)) == [oracle(p) for p in prompts()[:3]]
            assert_no_trace(shared)


def test_a_stream_nobody_holds_is_cancelled(one: Engine) -> None:
    stream = one.submit(Request(prompt(), GREEDY))
    one.step()
    del stream
    gc.collect()
    one.step()
    assert one.metrics.requests["cancelled"] == 1
    assert_no_trace(one)


@pytest.mark.parametrize("background", [False, True])
def test_a_request_cancelled_before_its_prompt_is_ready_has_empty_replies(background: bool) -> None:
    wait = threading.Event()

    def slow() -> Prompt:
        wait.wait(10)
        return prompt()

    with engine(background=background) as made:
        stream = made.submit(Request(slow, GREEDY, n=3))
        stream.cancel()
        wait.set()
        deltas = list(stream)
        assert [(delta.index, delta.finish_reason) for delta in deltas] == [(i, "cancelled") for i in range(3)]
        assert [(answer.text, answer.finish_reason) for answer in stream.answers] == [("", "cancelled")] * 3
        settle(made)
        assert_no_trace(made)


def test_settings_and_requests_that_cannot_work_are_refused() -> None:
    for name in ("block_size", "max_running", "max_waiting", "step_tokens", "workers", "memory_bytes", "num_blocks"):
        with pytest.raises(ConfigError, match=f"the engine's {name} is 0; expected 1 or more"):
            Settings(**{name: 0})
    for options in ({"slowdown": 0.5}, {"vision_bytes": -1}, {"speculation": "sometimes"}):
        with pytest.raises(ConfigError, match=f"the engine's {next(iter(options))} is "):
            Settings(**options)  # type: ignore[arg-type]
    for options, says in (
        ({"n": 1.5}, "n is 1.5"),
        ({"logprobs": 2.0}, "logprobs is 2.0"),
        ({"salt": None}, "salt is a NoneType"),
    ):
        with pytest.raises(PromptError, match=says):
            Request(prompt(), GREEDY, **options)  # type: ignore[arg-type]


def test_submitting_while_it_closes_says_that_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of the workers may be shut between the question whether the engine is closed and the work."""
    made = engine()
    submit = made._workers.submit
    monkeypatch.setattr(made._workers, "submit", lambda *work: (made.close(), submit(*work))[1])
    with pytest.raises(EngineError, match="the engine is closed"):
        made.submit(Request(prompt, GREEDY))
    assert_no_trace(made)


def test_a_picture_is_prepared_before_the_first_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it imports and compiles would hold up a reply; what goes wrong then is the first picture's to say."""
    asked = list[tuple[str, int]]()

    def refuses(self: Processor, question: str, files: list[bytes]) -> Prompt:
        asked.append((question, len(files)))
        raise MediaError("this checkpoint takes no pictures")

    plain = prompt()
    expected = oracle(plain)
    monkeypatch.setattr(Processor, "ask", refuses)
    made = engine()
    assert made.submit(Request(plain, GREEDY)).answer.token_ids == expected
    made.close()
    assert asked == [("?", 1)]


def test_closing_ends_what_runs(one: Engine) -> None:
    shared = engine(background=True)
    stream = shared.submit(Request(prompt(), replace(GREEDY, max_tokens=300)))
    next(iter(stream))
    shared.close()
    with pytest.raises(EngineError, match="closed"):
        _ = stream.answer
    with pytest.raises(EngineError, match="closed"):
        shared.submit(Request(prompt(), GREEDY))
    assert_no_trace(shared)


def test_a_broken_step_tells_its_readers_and_the_next_request_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(background=True) as shared:
        plain, broken = shared.scheduler.plan, [True]
        monkeypatch.setattr(shared.scheduler, "plan", lambda *given: 1 / 0 if broken and broken.pop() else plain(*given))
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            _ = shared.submit(Request(prompt(), GREEDY)).answer
        assert shared.submit(Request(prompt(), GREEDY)).answer.token_ids == oracle(prompt())


def test_encoding_in_pieces_beside_a_reply_changes_nothing() -> None:
    made = engine(slowdown=1.5, step_tokens=16)
    runs = made.submit(Request(prompt(), GREEDY))
    for _ in range(4):
        made.step()
    arrives = made.submit(Request(prompt(("picture", "clip"), 6), GREEDY))
    assert arrives.answer.token_ids == oracle(prompt(("picture", "clip"), 6))
    assert runs.answer.token_ids == oracle(prompt())
    assert_no_trace(made)
    made.close()


def test_pictures_that_come_together_are_encoded_together(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody decodes, encoding waits for media that are being read, but not for long."""
    asked = [prompt(("picture",), seed) for seed in (11, 12, 13)]
    expected = [oracle(p) for p in asked]
    packs, read, pack = list[int](), threading.Event(), one.pipeline.model.encode

    def counted(media: Any) -> VisionTokens:
        packs.append(len(media))
        return pack(media)

    def slow() -> Prompt:
        assert read.wait(10)
        return asked[1]

    monkeypatch.setattr(one.pipeline.model, "encode", counted)
    _ = one.submit(Request(asked[0], GREEDY)).answer
    monkeypatch.setattr(one.vision, "expected_s", lambda: 60.0)
    monkeypatch.setattr("foveal.engine.GATHER_S", 60.0)
    streams = [one.submit(Request(slow, GREEDY)), one.submit(Request(asked[2], GREEDY))]
    one.step()
    assert packs == [1] and not one.step()
    read.set()
    assert [stream.answer.token_ids for stream in streams] == expected[1:]
    assert packs == [1, 2]


def test_encoding_waits_no_longer_than_it_takes(one: Engine) -> None:
    """Nobody knows yet how long that is: it does not wait at all."""
    read, asked = threading.Event(), prompt(("picture",), 14)

    def slow() -> Prompt:
        assert read.wait(10)
        return asked

    streams = [one.submit(Request(slow, GREEDY)), one.submit(Request(prompt(("picture",), 15), GREEDY))]
    assert streams[1].answer.token_ids == oracle(prompt(("picture",), 15))
    read.set()
    assert streams[0].answer.token_ids == oracle(asked)


def test_the_process_is_as_it_was_once_nobody_serves() -> None:
    """Short turns for threads, and no long collections, from the first request to the end of the last engine."""
    before, frozen = sys.getswitchinterval(), gc.get_freeze_count()
    with engine(background=True) as one, engine(background=True) as other:
        for each in (one, other):
            _ = each.submit(Request(prompt(), GREEDY)).answer
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S) and gc.get_freeze_count() > frozen
        one.close()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S) != before
    assert sys.getswitchinterval() == pytest.approx(before) and gc.get_freeze_count() == 0


def test_random_arrivals_and_cancels_in_small_pools() -> None:
    """Books agree after every step, everybody who is not cancelled says what the oracle says, and nothing is left."""
    rng = np.random.default_rng(0)
    asked = prompts()
    short = replace(GREEDY, max_tokens=6)
    longest = max(len(p.sequence) for p in asked) + 6
    for trial in range(3):
        blocks = -(-longest // 8) + int(rng.integers(1, 12))
        made = engine(num_blocks=blocks, step_tokens=int(rng.integers(4, 60)), max_running=int(rng.integers(2, 6)),
                      speculation=("never", "always")[trial % 2], vision_bytes=int(rng.integers(0, 40_000)))  # fmt: skip
        open_: list[tuple[Any, int, int, Sampling]] = []
        for arrival in range(25):
            which, n = int(rng.integers(len(asked))), int(rng.integers(1, 4))
            sampling = replace(short, temperature=float(rng.integers(2)), seed=arrival % 3)
            open_.append((made.submit(Request(asked[which], sampling, n=n)), which, n, sampling))
            for _ in range(int(rng.integers(0, 6))):
                made.step()
                check(made)
            if rng.random() < 0.25:
                open_.pop(int(rng.integers(len(open_))))[0].cancel()
                check(made)
        steps = 0
        while made.step():
            check(made)
            steps += 1
            assert steps < 3000, "somebody starves"
        for stream, which, n, sampling in open_:
            seeds = [replace(sampling, seed=(sampling.seed or 0) + i) for i in range(n)]
            assert [a.token_ids for a in stream.answers] == [oracle(asked[which], s) for s in seeds]
        assert_no_trace(made)
        made.close()

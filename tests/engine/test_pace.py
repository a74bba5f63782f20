"""What newcomers cost those who run: estimates from measurements, and steps cut by them, on a clock that only work moves."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from foveal.batch import VisionTokens
from foveal.engine import Engine, Request, Stream
from foveal.engine.pace import FIRST_CHUNK, LEAST_ROWS, Pace, Rhythm
from foveal.engine.prepare import NICE
from foveal.engine.runner import ALONE, threads_for
from foveal.model.pieces import Piece
from tests.engine.tools import GREEDY, assert_no_trace, engine, oracle, prompt


def test_a_chunk_s_fixed_part_is_told_from_its_rows() -> None:
    pace = Pace()
    assert pace.prefill_rows(1.0) is None
    pace.note(1, 0, 0.001)
    for rows in (4, 8, 30, 6, 12, 64):
        pace.note(1, rows, 0.001 + 0.002 + 0.0001 * rows)
    assert pace.prefill_rows(0.006) in (39, 40)
    assert pace.prefill_rows(0.0021) in (10, 11)  # the fixed part leaves one row: half of the time for rows all the same
    assert pace.prefill_rows(0.0016) in (3, 4)  # but the whole no longer than half as much again
    assert pace.prefill_rows(0.001) == 0
    before = pace.prefill_rows(0.01)
    pace.note(1, 64, 1.0)  # another program took the core
    assert before is not None and (pace.prefill_rows(0.01) or 0) > before / 3


def test_chunks_grow_slowly_whatever_was_measured() -> None:
    """Where a step with a chunk is as fast as one without, its rows seem to take no time."""
    pace = Pace()
    pace.note(1, 0, 0.001)
    pace.note(0, 500, 0.1)
    assert pace.prefill_rows(1.0) == FIRST_CHUNK
    for rows in (4, 8, 16):
        pace.note(1, rows, 0.0005)
        assert pace.prefill_rows(1.0) == 2 * rows
    assert pace.prefill_rows(0.001) is not None and pace._chunk.each > 0


def test_pieces_grow_slowly_and_shrink_at_once() -> None:
    rhythm, piece = Rhythm(), Piece("attend", 1000, 500.0)
    assert rhythm.rows(piece, 10.0) == LEAST_ROWS
    rhythm.note(piece, LEAST_ROWS, 0.002)
    assert rhythm.rows(piece, 10.0) == 2 * LEAST_ROWS
    rhythm.note(piece, 2 * LEAST_ROWS, 0.004)
    assert rhythm.rows(piece, 10.0) == 4 * LEAST_ROWS and rhythm.rows(piece, 0.0021) == 4
    assert rhythm.rows(Piece("attend", 1000, 2000.0), 0.0081) == 4  # a larger frame: fewer rows
    assert rhythm.rows(Piece("attend", 3, 500.0), 10.0) == 3
    assert rhythm.rows(piece, 0.0) == rhythm.rows(piece, -1.0) == 0


def test_newcomers_that_take_more_than_planned_get_less() -> None:
    pace = Pace()
    pace.note_beside(1, 0.001, 0.004)
    assert pace.excess == 1.0  # nothing is known of a step without them
    pace.note(1, 0, 0.001)
    for _ in range(40):
        pace.note_beside(1, 0.001, 0.003)
    assert pace.excess == pytest.approx(2.0, rel=0.05)
    pace.note_beside(1, 0.0, 1.0)  # nothing was planned
    assert pace.excess == pytest.approx(2.0, rel=0.05)
    for _ in range(80):
        pace.note_beside(1, 0.001, 0.0015)
    assert pace.excess == 1.0  # but never more than was promised


class Clock:
    """A clock that only work moves: so many seconds a step and a row of it, a piece of encoding and a row of it."""

    STEP, ROW, PIECE, PATCH = 1e-3, 2e-4, 1e-4, 5e-5

    def __init__(self, one: Engine, patch: pytest.MonkeyPatch) -> None:
        self.now, self.pieces, self.chunks = 1.0, list[int](), list[int]()
        model = one.pipeline.model
        hidden, pieces = model.hidden, model.encode_in_pieces

        def slow_hidden(batch: Any, caches: Any) -> torch.Tensor:
            extra = sum(batch.lengths) - len(batch.lengths)
            self.chunks += [extra] * (extra > 0)
            self.now += self.STEP + self.ROW * extra
            return hidden(batch, caches)

        def slow_pieces(media: Any) -> Generator[Piece, int, VisionTokens]:
            under_way = pieces(media)
            piece = next(under_way)
            while True:
                rows = yield piece
                self.pieces.append(rows)
                self.now += self.PIECE + self.PATCH * rows
                try:
                    piece = under_way.send(rows)
                except StopIteration as ended:
                    return ended.value

        patch.setattr(model, "hidden", slow_hidden)
        patch.setattr(model, "encode_in_pieces", slow_pieces)
        patch.setattr(time, "perf_counter", lambda: self.now)


def test_whoever_decodes_waits_no_longer_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture, a clip and a long question arrive beside a reply: no step takes three times what it took, but the first."""
    long = "Why is it so? " * 6
    asked = [prompt(("picture", "clip"), 6), prompt((), 3, long)]
    expected = [oracle(p) for p in asked]
    talking = replace(GREEDY, max_tokens=200)
    talked = oracle(prompt(), talking)
    with engine(slowdown=3.0, step_tokens=512, num_blocks=400) as one:
        clock = Clock(one, monkeypatch)
        talks = one.submit(Request(prompt(), talking))
        for _ in range(6):
            one.step()
        times, streams = [clock.now], list[Stream]()
        for p in asked:
            streams.append(one.submit(Request(p, GREEDY)))
            while streams[-1]._job.first_token_s == 0.0:
                one.step()
                times.append(clock.now)
        gaps = [b - a for a, b in pairwise(times)]
        first_chunk = clock.STEP + clock.ROW * max(clock.chunks)
        assert sum(gap > 3 * clock.STEP for gap in gaps) <= 1 and max(gaps) <= first_chunk + clock.STEP
        assert len(clock.pieces) > 20 and min(clock.pieces) >= 1
        assert sum(gaps) < 5 * len(gaps) * clock.STEP  # and they did get on
        assert [stream.answer.token_ids for stream in streams] == expected
        assert talks.answer.token_ids == talked
        assert_no_trace(one)


def test_encoding_gets_on_where_there_is_no_time_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise of no slowdown at all: pieces of the smallest size, one a step, and the picture's reply comes."""
    asked = prompt(("picture",), 6)
    expected, talking = oracle(asked), replace(GREEDY, max_tokens=400)
    with engine(slowdown=1.0, num_blocks=400) as one:
        clock = Clock(one, monkeypatch)
        one.submit(Request(prompt(), talking))
        talks = one.submit(Request(prompt(), talking))
        for _ in range(4):
            one.step()
        assert one.submit(Request(asked, GREEDY)).answer.token_ids == expected
        assert max(clock.pieces) == LEAST_ROWS
        talks.cancel()


def test_two_with_the_same_picture_read_it_once_in_the_smallest_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk may end inside a block; whoever needs the same block waits for it."""
    asked = [prompt(("picture", "picture"), 6, question) for question in ("What?", "Why is it so?")]
    with engine(slowdown=1.0, num_blocks=400) as one:
        Clock(one, monkeypatch)
        talks = one.submit(Request(prompt(), replace(GREEDY, max_tokens=300)))
        for _ in range(4):
            one.step()
        streams = [one.submit(Request(p, GREEDY)) for p in asked]
        assert [stream.answer.token_ids for stream in streams] == [oracle(p) for p in asked]
        assert streams[1].cached_tokens >= 16
        talks.cancel()


def test_small_products_run_in_one_thread_and_nothing_else_does() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threads_for(ALONE - 1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError), threads_for(ALONE - 1):
            raise RuntimeError
        assert torch.get_num_threads() == 2
        with threads_for(ALONE):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_read_media_step_back() -> None:
    """By priority, where threads have their own; the caller's stays."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    with engine() as one:
        theirs = one._workers.submit(os.getpriority, os.PRIO_PROCESS, 0).result()
    assert theirs == (max(mine, NICE) if sys.platform == "linux" else mine)
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine

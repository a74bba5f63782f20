"""Blocks in a row: where they are taken from, and what goes for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foveal.engine.blocks import BlockPool
from foveal.engine.request import Request
from tests.engine.tools import GREEDY, check, engine, oracle, prompt


def pool(held: list[int], cached: list[int], count: int = 12) -> BlockPool:
    """A pool in which some blocks are held, some cached (the first named are the least recently used), the rest free."""
    made = BlockPool(count, 8)
    made.take(count)
    for block in cached:
        made.register(block, bytes([block]))
        made.give_back([block])
    made.give_back([block for block in range(count) if block not in {*held, *cached}])
    return made


@pytest.mark.parametrize(
    ("held", "cached", "count", "taken"),
    [
        ([0, 6], [], 5, [1, 2, 3, 4, 5]),  # free ones first
        ([0, 6], [3], 5, [7, 8, 9, 10, 11]),  # a run that is free needs nobody to go
        ([0, 6, 9], [3, 5], 5, [1, 2, 3, 4, 5]),  # else the run with the fewest cached ones
        ([2, 5], [0, 1, 3, 4, 6, 7, 8], 4, [8, 9, 10, 11]),
        ([2, 5, 8], [], 4, None),
        ([], [], 13, None),
    ],
)
def test_a_run_is_taken_where_the_fewest_cached_ones_go(
    held: list[int], cached: list[int], count: int, taken: list[int] | None
) -> None:
    made = pool(held, cached)
    assert made.take_run(count) == taken
    gone = set(taken or []) & set(cached)
    assert made.evicted == len(gone)
    assert all((made.lookup(bytes([block])) is None) == (block in gone) for block in cached)
    made.check([held, taken or []])


def test_books_agree_whatever_is_taken_and_given_back() -> None:
    rng, made, lists = np.random.default_rng(0), BlockPool(40, 8), list[list[int]]()
    for turn in range(400):
        if lists and rng.random() < 0.5:
            blocks = lists.pop(int(rng.integers(len(lists))))
            if rng.random() < 0.6:
                for block in blocks:
                    made.register(block, turn.to_bytes(2, "big") + bytes([block]))
            made.give_back(blocks)
        else:
            take = made.take_run if rng.random() < 0.5 else made.take
            if blocks := take(int(rng.integers(1, 9))) or []:
                lists.append(blocks)
        made.check(lists)


def test_a_reply_on_shared_blocks_is_laid_in_a_row_in_a_pool_full_of_cached_ones() -> None:
    """Otherwise every step would be the slow one as soon as a server has been used for a while."""
    asked = [prompt(("picture",), 0, q) for q in ("What?", "Why is it so?", "What is the colour of it?")]
    one = engine(num_blocks=110)
    for seed in range(1, 22):  # until nothing is free
        _ = one.submit(Request(prompt(("picture", "picture"), seed), replace(GREEDY, max_tokens=1))).answer
    assert one.pool.num_free < 8
    streams = [one.submit(Request(p, GREEDY)) for p in asked]
    scattered = 0
    while one.step():
        check(one)
        scattered += sum(s.decodes and len(s.reply.token_ids) > 1 and not s.cache.in_a_row for s in one.scheduler.running)
    assert [stream.answer.token_ids for stream in streams] == [oracle(p) for p in asked]
    assert all(stream.cached_tokens for stream in streams[1:])
    assert scattered == 0
    one.close()

"""However requests are batched, chunked, cached, preempted, guessed at and cancelled, each says what it says alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from foveal.engine import Engine, Request
from foveal.sampler import Sampling
from tests.engine.tools import GREEDY, assert_no_trace, check, engine, oracle, prompt, prompts

both = pytest.mark.parametrize("moe", [False, True])
SAMPLED = Sampling(temperature=1.0, top_p=0.9, seed=7, max_tokens=20, ignore_end=True, loop_guard=None)
PENALISED = replace(SAMPLED, temperature=0.5, repetition_penalty=1.02, frequency_penalty=0.02)


def ids(one: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    streams = [one.submit(request) for request in requests]
    while one.step():
        check(one)
    said = [answer.token_ids for stream in streams for answer in stream.answers]
    assert_no_trace(one)
    return said


@pytest.fixture
def made() -> Iterator[list[Engine]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    engines: list[Engine] = []
    yield engines
    for one in engines:
        one.close()
    torch.set_num_threads(before)


@both
def test_batched_is_alone(made: list[Engine], moe: bool) -> None:
    made.append(one := engine(moe=moe))
    assert ids(one, [Request(p, GREEDY) for p in prompts()]) == [oracle(p, moe=moe) for p in prompts()]


@both
@pytest.mark.parametrize("step_tokens", [3, 8, 21])
def test_chunked_is_whole(made: list[Engine], moe: bool, step_tokens: int) -> None:
    """Chunks end inside pictures, and run beside replies."""
    made.append(one := engine(moe=moe, step_tokens=step_tokens))
    assert ids(one, [Request(p, GREEDY) for p in prompts()]) == [oracle(p, moe=moe) for p in prompts()]


@both
def test_cached_is_fresh(made: list[Engine], moe: bool) -> None:
    made.append(one := engine(moe=moe))
    for turn in range(3):
        asked = [prompt(("picture", "clip"), 1, q) for q in ("What?", "What is red?", "What?")]
        assert ids(one, [Request(p, GREEDY) for p in asked]) == [oracle(p, moe=moe) for p in asked]
        # All but the last, unfilled block of each; in the first turn the other two share what the first reads.
        assert one.metrics.tokens["cached"] > 100 * turn
    assert one.vision.encoded_tokens == sum(p.num_tokens for p in asked[0].patches)  # once each


@both
def test_preempted_is_undisturbed(made: list[Engine], moe: bool) -> None:
    most = max(len(p.sequence) for p in prompts()) + GREEDY.max_tokens  # type: ignore[operator]
    for prefix_caching in (True, False):
        made.append(one := engine(moe=moe, num_blocks=-(-most // 8) + 2, prefix_caching=prefix_caching))
        asked = [*prompts(), *prompts()]
        assert ids(one, [Request(p, GREEDY) for p in asked]) == [oracle(p, moe=moe) for p in asked]
        assert one.metrics.preemptions > 0


@both
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED])
def test_speculated_is_plain(made: list[Engine], moe: bool, sampling: Sampling) -> None:
    """Guesses change how many rows a step has, not what is said: greedy, sampled, and with penalties."""
    made.append(one := engine(moe=moe, speculation="always"))
    sampling = replace(sampling, max_tokens=60)
    assert ids(one, [Request(p, sampling) for p in prompts()]) == [oracle(p, sampling, moe=moe) for p in prompts()]
    assert one.metrics.tokens["drafted"] > 0
    if sampling.temperature == 0:
        assert one.metrics.tokens["accepted"] > 0


@both
def test_samples_share_one_prefill(made: list[Engine], moe: bool) -> None:
    made.append(one := engine(moe=moe))
    asked = prompt(("picture",), 3)
    said = ids(one, [Request(asked, SAMPLED, n=4), Request(prompt((), 4), SAMPLED, n=2)])
    seeds = [replace(SAMPLED, seed=7 + i) for i in range(4)]
    assert said[:4] == [oracle(asked, s, moe=moe) for s in seeds]
    assert len(set(said[:4])) > 1
    assert one.metrics.tokens["prefilled"] == len(asked.sequence) + len(prompt((), 4).sequence)


def test_samples_survive_a_pool_too_small_for_all(made: list[Engine]) -> None:
    asked = prompt(("picture",), 3)
    made.append(one := engine(num_blocks=-(-(len(asked.sequence) + 20) // 8) + 2))
    said = ids(one, [Request(asked, SAMPLED, n=6)])
    assert said == [oracle(asked, replace(SAMPLED, seed=7 + i)) for i in range(6)]


def test_cancelled_leaves_no_trace(made: list[Engine]) -> None:
    """Cancelled after every number of steps, beside one that goes on undisturbed."""
    for after in range(0, 14, 2):
        made.append(one := engine(step_tokens=16))
        stays = one.submit(Request(prompts()[3], GREEDY))
        goes = one.submit(Request(prompts()[1], SAMPLED, n=3))
        for _ in range(after):
            one.step()
        goes.cancel()
        check(one)
        assert {answer.finish_reason for answer in goes.answers} <= {"cancelled"}
        assert stays.answer.token_ids == oracle(prompts()[3])
        assert_no_trace(one)

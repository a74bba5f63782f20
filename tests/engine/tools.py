"""Tiny pipelines, requests about random media, and the plain generator as the oracle of what they must say."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from foveal.engine import Engine, Request, Settings
from foveal.generate import Answer, Pipeline
from foveal.processor import Processor
from foveal.processor import Request as Prompt
from foveal.prompt import ChatTemplate
from foveal.sampler import Sampling
from tests.tiny import new_model
from tests.tiny_checkpoint import BUDGET, tiny_config, tiny_tokenizer

GREEDY = Sampling(max_tokens=24, ignore_end=True, loop_guard=None)
SCENES: tuple[tuple[str, ...], ...] = ((), ("picture",), ("clip",), ("picture", "clip"), ("picture", "picture"))


@functools.cache
def pipeline(moe: bool = False) -> Pipeline:
    config = tiny_config(moe=moe)
    processor = Processor(config, tiny_tokenizer(), ChatTemplate.builtin("instruct", tiny_tokenizer()), BUDGET)
    return Pipeline(new_model(config), processor, "tiny")


def media(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (24, 40, 3) if kind == "picture" else (4, 16, 24, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def prompt(scene: tuple[str, ...] = (), seed: int = 0, question: str = "What is the colour?") -> Prompt:
    return pipeline().processor.ask(question, [media(kind, 10 * seed + i) for i, kind in enumerate(scene)])


def prompts() -> list[Prompt]:
    return [prompt(scene, seed, "Why? " * seed + "What?") for seed, scene in enumerate(SCENES)]


@functools.cache
def _said(model: Pipeline, asked: Prompt, sampling: Sampling) -> Answer:
    return model.run(asked, sampling).answer


def oracle(asked: Prompt, sampling: Sampling = GREEDY, *, moe: bool = False) -> tuple[int, ...]:
    """Return what the plain generator says."""
    return _said(pipeline(moe), asked, sampling).token_ids


def engine(*, moe: bool = False, background: bool = False, **settings: Any) -> Engine:
    chosen = {"num_blocks": 200, "block_size": 8, "slowdown": None, "speculation": "never", **settings}
    return Engine(pipeline(moe), Settings(**chosen), background=background)


def check(one: Engine) -> None:
    """Assert that the books of an engine agree with what its samples hold."""
    samples = [*one.scheduler.running, *one.scheduler.waiting]
    one.pool.check([sample.cache.blocks for sample in samples])
    for sample in samples:
        assert sample.cache.length <= sample.cache.capacity


def assert_no_trace(one: Engine) -> None:
    """Assert that nothing is left of any request but what is kept for later."""
    check(one)
    assert not one.scheduler.running and not one.scheduler.waiting and not one._jobs
    assert one.pool.num_held == 0 and one.vision_cache.pinned == 0 and len(one.vision) == 0
    assert one.vision_cache.num_bytes <= one.vision_cache.limit_bytes


def settle(engine: Engine) -> None:
    """Wait until a background engine has nothing left of any request."""
    for _ in range(2000):
        with engine._stepping:
            if not engine._jobs and not engine._inbox:
                return
        threading.Event().wait(0.005)
    raise AssertionError("requests are left")


__all__ = [
    "GREEDY", "Request", "assert_no_trace", "check", "engine", "media", "oracle", "pipeline", "prompt", "prompts", "settle",
]  # fmt: skip

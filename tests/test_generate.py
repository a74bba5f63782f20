"""One request through model and sampler: equal to transformers, streamed, bounded, interruptible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import foveal
import foveal.generate as generate
from foveal import kernels
from foveal.config import ModelConfig
from foveal.errors import CheckpointError, ConfigError, ContextError
from foveal.generate import Pipeline, Reply
from foveal.patches import Budget, Patches
from foveal.processor import Processor, Request
from foveal.prompt import ChatTemplate
from foveal.sampler import Sampling
from foveal.sequence import Sequence as Ids
from foveal.thinking import split_thinking
from tests.parity.reference import model_inputs
from tests.parity.runs import pair, request
from tests.tiny import SCENES
from tests.tiny_checkpoint import BUDGET, CONTEXT, tiny_checkpoint, tiny_config, tiny_tokenizer

TOKENS = 32


def processor_for(config: ModelConfig, template: Any = "instruct") -> Processor:
    tokenizer = tiny_tokenizer()
    return Processor(config, tokenizer, ChatTemplate.builtin(template, tokenizer), BUDGET)


def bare_request(media: Sequence[Patches], sequence: Ids, *, opens_thinking: bool = False) -> Request:
    return Request(sequence, tuple(media), (), "", tuple("media" for _ in media), opens_thinking)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(tiny_checkpoint(tmp_path_factory.mktemp("instruct")))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- equal to transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scene", "window"),
    [("dense-tied", scene, 5) for scene in SCENES] + [("dense-tied", "mixed", 1024), ("moe", "mixed", 7)],
)
def test_greedy_tokens_equal_transformers(name: str, scene: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in short windows, so that pictures are cut across them."""
    monkeypatch.setattr(generate, "PREFILL_WINDOW", window)
    both = pair(name)
    media, sequence = request(both.config, scene)
    model = Pipeline(both.ours, processor_for(both.config), name)
    ours = model.run(bare_request(media, sequence), Sampling(max_tokens=TOKENS, ignore_end=True, loop_guard=None)).answer
    theirs = both.theirs.generate(
        **model_inputs(sequence, media, both.config),
        max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert list(ours.token_ids) == theirs[0, len(sequence) :].tolist()
    assert ours.finish_reason == "length"


def test_a_repetition_penalty_equals_transformers() -> None:
    both = pair("dense-tied")
    media, sequence = request(both.config, "mixed")
    model = Pipeline(both.ours, processor_for(both.config), "tiny")
    sampling = Sampling(max_tokens=TOKENS, ignore_end=True, repetition_penalty=1.4)
    ours = model.run(bare_request(media, sequence), sampling).answer.token_ids
    theirs = both.theirs.generate(
        **model_inputs(sequence, media, both.config),
        max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0, repetition_penalty=1.4,
    )  # fmt: skip
    assert list(ours) == theirs[0, len(sequence) :].tolist()
    plain = model.run(bare_request(media, sequence), replace(sampling, repetition_penalty=1.0)).answer.token_ids
    assert ours != plain


# --- a checkpoint, from files to text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_about_pictures_and_clips(tmp_path: Path, moe: bool, tied: bool) -> None:
    model = Pipeline.load(tiny_checkpoint(tmp_path, moe=moe, tied=tied))
    clip = np.stack([picture(24, 40, i) for i in range(5)])
    reply = model.ask("What?", picture(30, 50), clip, system="Be brief.", sampling=Sampling(max_tokens=20))
    text = "".join(reply)
    answer = reply.answer
    assert text == model.processor.tokenizer.decode(answer.token_ids)
    # Random weights may even say </think>.
    assert (answer.reasoning, answer.text) == (split_thinking(text) if "</think>" in text else (None, text))
    assert answer.finish_reason in ("length", "stop")
    stats, counts = answer.stats, reply.request.tokens_by_kind()
    assert (stats.text_tokens, stats.image_tokens, stats.video_tokens) == tuple(counts.values())
    assert stats.image_tokens == 24 and stats.video_tokens == 3 * 3 * 5
    assert stats.prompt_tokens == len(reply.request.sequence) and stats.generated_tokens == len(answer.token_ids)
    assert min(stats.prepare_s, stats.encode_s, stats.prefill_s, stats.decode_s, stats.tokens_per_s) > 0
    assert stats.first_token_s == pytest.approx(stats.prepare_s + stats.encode_s + stats.prefill_s)
    assert stats.peak_memory_bytes > 2**24
    assert f"{stats.prompt_tokens} prompt tokens" in stats.line() and "45 video" in stats.line()


def test_text_alone_needs_no_encoder(pipeline: Pipeline) -> None:
    answer = pipeline.ask("What?", sampling=Sampling(max_tokens=5)).answer
    assert answer.stats.image_tokens == answer.stats.video_tokens == 0 and len(answer.token_ids) > 0


def test_an_encoder_rests_once_it_has_seen(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[bool] = []
    monkeypatch.setattr(pipeline.model, "rest_encoder", lambda: rests.append(True))
    for files, rested in (((), 0), ((picture(40, 60), picture(30, 30)), 1)):
        assert pipeline.ask("What?", *files, sampling=Sampling(max_tokens=3)).answer.token_ids
        assert len(rests) == rested


def test_chat_takes_the_form_of_the_openai_api(pipeline: Pipeline) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": picture(30, 50)}, {"type": "text", "text": "What?"}]}]
    chat = pipeline.chat(messages, sampling=Sampling(max_tokens=12)).answer
    asked = pipeline.ask("What?", picture(30, 50), sampling=Sampling(max_tokens=12)).answer
    assert chat.token_ids == asked.token_ids


def test_what_is_seen_changes_what_is_said(pipeline: Pipeline) -> None:
    said = {
        pipeline.ask("What?", picture(30, 50, seed), sampling=Sampling(max_tokens=12)).answer.token_ids for seed in range(4)
    }
    assert len(said) > 1


def test_a_seed_repeats_a_sampled_answer(pipeline: Pipeline) -> None:
    def answer(seed: int | None) -> tuple[int, ...]:
        sampling = Sampling(temperature=1.0, seed=seed, max_tokens=30, ignore_end=True)
        return pipeline.ask("What?", sampling=sampling).answer.token_ids

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)
    assert answer(None) != answer(None)


def test_the_checkpoint_s_own_sampling_is_the_default(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path)
    (directory / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "max_new_tokens": 3, "eos_token_id": 5}'
    )
    model = Pipeline.load(directory)
    assert model.sampling() == Sampling(temperature=0.7, top_k=20, top_p=0.8, max_tokens=3)
    assert model.sampling(temperature=0, seed=4) == Sampling(top_k=20, top_p=0.8, max_tokens=3, seed=4)
    assert model.processor.end_ids == (5,)
    assert len(model.ask("What?").answer.token_ids) <= 3


def test_one_reply_leaves_nothing_for_the_next(pipeline: Pipeline) -> None:
    sampling = Sampling(max_tokens=12)
    first = pipeline.ask("What?", picture(30, 50), sampling=sampling).answer.token_ids
    one, two = pipeline.ask("Why?", sampling=sampling), pipeline.ask("What?", picture(30, 50), sampling=sampling)
    parts: tuple[list[str], list[str]] = [], []
    for pair_ in zip(one, two, strict=False):  # two replies in turn
        for part, text in zip(parts, pair_, strict=True):
            part.append(text)
    assert two.answer.token_ids == first


def test_inference_mode_ends_between_pieces(pipeline: Pipeline) -> None:
    reply = pipeline.ask("What?", sampling=Sampling(max_tokens=8))
    next(reply.pieces())
    assert not torch.is_inference_mode_enabled()
    reply.close()
    assert not torch.is_inference_mode_enabled()


# --- limits -----------------------------------------------------------------------------------------------------------


def _prompt_of(pipeline: Pipeline, tokens: int) -> str:
    """Write a question whose prompt has so many tokens."""
    empty = len(pipeline.processor.ask("").sequence)
    return "0" * (tokens - empty)


def test_a_reply_ends_where_the_context_does(pipeline: Pipeline) -> None:
    question = _prompt_of(pipeline, CONTEXT - 7)
    answer = pipeline.ask(question, sampling=Sampling(max_tokens=None, ignore_end=True)).answer
    assert len(answer.token_ids) == 7 and answer.finish_reason == "context"
    answer = pipeline.ask(_prompt_of(pipeline, CONTEXT - 1), sampling=Sampling(ignore_end=True)).answer
    assert len(answer.token_ids) == 1 and answer.finish_reason == "context"


def test_a_prompt_without_room_for_a_token_is_refused_with_counts_and_ways_out(pipeline: Pipeline) -> None:
    with pytest.raises(ContextError) as error:
        pipeline.ask(_prompt_of(pipeline, CONTEXT))
    assert f"{CONTEXT} tokens ({CONTEXT} text)" in str(error.value) and str(error.value).endswith("give shorter text")
    clip = np.stack([picture(16, 16, i) for i in range(4)])
    with pytest.raises(ContextError, match=r"fewer vision tokens .* or fewer frames .* or shorter text"):
        pipeline.ask(_prompt_of(pipeline, CONTEXT), picture(30, 50), clip)


def test_positions_that_run_ahead_of_the_tokens_count_too(pipeline: Pipeline) -> None:
    """A wide picture of which one token was kept: the clock advances by all of it."""
    asked = pipeline.processor.ask("?")
    late = replace(asked, sequence=replace(asked.sequence, next_position=CONTEXT - 2))
    assert pipeline.processor.room(late) == 2
    with pytest.raises(ContextError, match=f"on {CONTEXT} positions"):
        pipeline.processor.room(replace(asked, sequence=replace(asked.sequence, next_position=CONTEXT)))


# --- a model that says what it is told --------------------------------------------------------------------------------


class Scripted:
    """Stands in for a model: the likeliest token is always the next of a script. Keeps what it was given to read."""

    def __init__(self, config: ModelConfig, script: Sequence[int]) -> None:
        self.config, self.script = config, list(script)
        self.device = torch.device("cpu")
        self.read: list[tuple[int, int]] = []
        self.fails_after: int | None = None
        self.value = 1.0

    def new_cache(self, capacity: int) -> SimpleNamespace:
        return SimpleNamespace(length=0)

    def hidden(self, batch: Any, caches: Any) -> torch.Tensor:
        self.read += zip(batch.token_ids.tolist(), batch.position_ids[0].tolist(), strict=True)
        return torch.zeros(1, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                raise KeyboardInterrupt
        row = torch.zeros(1, self.config.text.vocab_size)
        row[0, self.script.pop(0)] = self.value
        return row

    def __call__(self, batch: Any, caches: Any) -> torch.Tensor:
        return self.logits(self.hidden(batch, caches))


def scripted(text: str, template: str = "instruct") -> tuple[Pipeline, Scripted]:
    config = tiny_config()
    processor = processor_for(config, template)
    model = Scripted(config, [*processor.tokenizer.encode_template(text), *processor.end_ids])
    return Pipeline(model, processor, "script"), model  # type: ignore[arg-type]


def test_every_token_is_read_at_its_position() -> None:
    model, script = scripted("A red circle.")
    reply = model.ask("What?")
    assert "".join(reply) == "A red circle."
    start = reply.request.sequence.next_position
    # The end mark is the last to be chosen and need not be read.
    assert script.read[len(reply.request.sequence) :] == [
        (token, start + i) for i, token in enumerate(reply.answer.token_ids[:-1])
    ]


def test_a_thinking_model() -> None:
    model, _ = scripted("Round, so a circle.\n</think>\n\nA circle.", "thinking")
    reply = model.ask("What?")
    assert [str(p) for p in reply.pieces() if p.channel == "reasoning"]
    answer = reply.answer
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("Round, so a circle.", "A circle.", "stop")
    assert answer.stats.reasoning_tokens > 0
    model, _ = scripted("A circle.", "thinking")
    answer = model.ask("What?", thinking=False).answer
    assert (answer.reasoning, answer.text) == (None, "A circle.")
    assert "".join(scripted("Round.\n</think>\n\nA circle.", "thinking")[0].ask("What?")) == "A circle."


def test_a_capped_thought_is_closed_for_the_model_to_read() -> None:
    model, script = scripted("on and on. A circle.", "thinking")
    close = model.processor.tokenizer.encode_template("\n</think>\n\n")
    # While the close is forced the model is asked as well; what it would say then is not used.
    script.script[3:3] = [0] * len(close)
    reply = model.ask("What?", sampling=Sampling(thinking_tokens=3))
    ids = reply.answer.token_ids
    assert list(ids[3 : 3 + len(close)]) == close
    assert reply.answer.reasoning is not None and reply.answer.text.endswith("A circle.")
    assert [token for token, _ in script.read[len(reply.request.sequence) :]] == list(ids[:-1])


def test_stop_texts_and_limits_reach_the_answer() -> None:
    model, _ = scripted("one two three four")
    answer = model.ask("?", sampling=Sampling(stop=("three",))).answer
    assert (answer.text, answer.finish_reason) == ("one two ", "stop_text")
    answer = scripted("x" * 600)[0].ask("?", sampling=Sampling()).answer
    assert answer.finish_reason == "loop" and len(answer.token_ids) < 250
    answer = scripted("one two three")[0].ask("?", sampling=Sampling(max_tokens=2)).answer
    assert answer.finish_reason == "length" and len(answer.token_ids) == 2


@pytest.mark.parametrize("after", [0, 1, 4])
def test_ctrl_c_keeps_what_was_said(after: int) -> None:
    model, script = scripted("12345678")
    script.fails_after = after
    reply = model.ask("?")
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        said.extend(iter(reply))
    assert reply.answer.finish_reason == "cancelled"
    assert reply.answer.text == "12345678"[:after] and len(reply.answer.token_ids) == after
    assert list(reply) == []


def test_close_ends_a_reply_and_a_second_time_does_nothing() -> None:
    model, script = scripted("12345678")
    reply = model.ask("?")
    pieces: Iterator[Any] = reply.pieces()
    assert [str(next(pieces)) for _ in range(3)] == ["1", "2", "3"]
    reply.close()
    reply.close()
    assert (reply.answer.text, reply.answer.finish_reason) == ("123", "cancelled")
    assert len(script.script) == 6
    unread = scripted("123")[0].ask("?")
    unread.close()
    assert (unread.answer.text, unread.answer.token_ids, unread.answer.finish_reason) == ("", (), "cancelled")


def test_nothing_runs_before_a_piece_is_asked_for() -> None:
    model, script = scripted("123")
    reply = model.ask("?")
    assert isinstance(reply, Reply) and script.read == []


def test_logits_that_are_no_numbers_say_so() -> None:
    model, script = scripted("123")
    script.value = float("nan")
    reply = model.ask("?")
    for _ in range(2):  # and no empty answer when it is asked for again
        with pytest.raises(CheckpointError, match="1 NaN"):
            _ = reply.answer


# --- loading ----------------------------------------------------------------------------------------------------------


def test_loading_is_refused_in_one_line(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="dtype is 'int8'; expected one of float32, bfloat16, float16"):
        Pipeline.load(directory, dtype="int8")
    with pytest.raises(ConfigError, match="kv_cache is 'int4'; expected one of float32, bfloat16, int8"):
        Pipeline.load(directory, kv_cache="int4")
    with pytest.raises(ConfigError, match="there is no device 'gpu'"):
        Pipeline.load(directory, device="gpu")
    with pytest.raises(CheckpointError, match="neither a folder nor a hub name"):
        Pipeline.load(tmp_path / "nothing here")


@pytest.mark.parametrize("kv_cache", [None, "float32", "bfloat16", "int8"])
def test_what_a_cache_holds(tmp_path: Path, kv_cache: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind answers, with the kernels and without; the model keeps its own dtype."""
    model = foveal.load(str(tiny_checkpoint(tmp_path)), kv_cache=kv_cache)
    assert model.model.dtype == torch.float32
    assert model.model.new_cache().dtype == getattr(torch, kv_cache or "float32")
    said = [model.ask("?", picture(30, 50), budget=Budget(image=(1, 8)), sampling=Sampling(max_tokens=5)).answer.token_ids]
    monkeypatch.setattr(kernels, "available", lambda: False)
    said.append(model.ask("?", picture(30, 50), budget=Budget(image=(1, 8)), sampling=Sampling(max_tokens=5)).answer.token_ids)
    assert said[0] and said[0] == said[1]


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_precision(tmp_path: Path, dtype: str | None) -> None:
    model = Pipeline.load(tiny_checkpoint(tmp_path), dtype=dtype)
    assert model.model.dtype == getattr(torch, dtype or "float32")
    assert model.ask("?", picture(30, 50), budget=Budget(image=(1, 8)), sampling=Sampling(max_tokens=3)).answer.token_ids

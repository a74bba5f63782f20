"""Evidence: the tokens that show what a question is about, the attention they get, and what is learned from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from foveal.batch import Batch
from foveal.config import ModelConfig
from foveal.model import Qwen3VL
from foveal.train.data import Example, ExampleMaker
from foveal.train.evidence import Evidence, log_attention, number_off
from foveal.train.looks import AGAIN, ANSWER, SINK, WORDS, Look
from foveal.train.loop import answer_shares
from foveal.world import Difficulty, clip_item, picture_item

Tiny = tuple[ModelConfig, ExampleMaker]


def asked(example: Example, turn: int) -> list[Look]:
    """The looks of one question: those of rows that answer it, and of rows between the answer before and this one."""
    first, last = (np.flatnonzero(example.turns == turn)[i] for i in (0, -1))
    before = np.flatnonzero((example.turns >= 0) & (example.turns < turn))
    start = before[-1] if len(before) else -1
    return [look for look in example.looks if start < look.row <= (first if look.layer == WORDS else last)]


@pytest.mark.parametrize("seed", range(12))
def test_looks_go_to_the_things(tiny: Tiny, seed: int) -> None:
    _, maker = tiny
    item = picture_item(seed, Difficulty(size=(128, 160), max_questions=9))  # no resizing: a token is 32 pixels wide
    example = maker(item)
    at = dict(zip(np.flatnonzero(example.sequence.vision_rows >= 0), example.patches.coords[::4, 1:] // 2, strict=True))

    def inside(row: int, box: tuple[int, int, int, int]) -> bool:
        (y, x), (x1, y1, x2, y2) = at[row], box
        return bool(32 * y < y2 and 32 * (y + 1) > y1 and 32 * x < x2 and 32 * (x + 1) > x1)

    for turn, question in enumerate(item.questions):
        found = asked(example, turn)
        words = [look for look in found if look.layer == WORDS]
        answers = [look for look in found if look.layer == ANSWER]
        counted = question.kind == "count"
        counting = {(look.layer, look.head, look.row) for look in found if look.counts}
        for look, name, box in zip(words, question.names, question.boxes, strict=False):
            said = b"".join(maker.tokenizer.token_bytes(int(i)) for i in example.sequence.token_ids[: look.row + 1]).decode()
            assert said.endswith(name)
            if not counted:
                assert len(look.parts) == 1 and len(look.parts[0]) and all(inside(row, box) for row in look.parts[0])
        assert len(words) == len(question.names) * (2 if counted else 1) and bool(counting) == counted
        if counted:
            # The word counts with two heads, and so does the answer, in two layers; it looks at the word as well.
            (word,), (answer,) = {look.row for look in words}, {look.row for look in answers}
            counted_by = ((WORDS, word), (ANSWER, answer), (AGAIN, answer))
            assert counting == {(layer, head, row) for layer, row in counted_by for head in (0, 2)}
            (asked_word,) = [look for look in answers if not look.counts]
            assert asked_word.head == 1 and [part.tolist() for part in asked_word.parts] == [[word]]
            for look in (look for look in found if look.counts):
                assert len(look.parts) == 1 + int(question.answer) and look.parts[0].tolist() == [SINK]
                for part, box in zip(look.parts[1:], question.boxes, strict=True):
                    assert len(part) == 1 and inside(int(part[0]), box)
        elif question.kind == "relation":
            assert {look.head for look in answers} == {0, 1}
            for look in answers:
                assert all(inside(row, question.boxes[look.head]) for row in look.parts[0])
        elif question.kind == "read_number":
            assert len(answers) == len(question.answer)
            columns = [np.mean([at[row][1] for row in look.parts[0]]) for look in answers]
            assert columns == sorted(columns)
        elif question.kind == "box":
            ids = example.sequence.token_ids
            said = b"".join(maker.tokenizer.token_bytes(int(ids[look.row + 1])) for look in answers).decode()
            ends = question.answer[question.answer.index(" [") + 2 : question.answer.index("]")]
            assert said.replace(" ", "") == ends.replace(",", "").replace(" ", "")
            (box,) = question.boxes
            columns = {int(at[row][1]) for look in answers for row in look.parts[0]}
            assert min(columns) == box[0] // 32 and max(columns) == (box[2] - 1) // 32
        else:
            assert all(any(inside(row, box) for box in question.boxes) for look in answers for row in look.parts[0])


@pytest.mark.parametrize("seed", range(6))
def test_clips_are_looked_at_when_it_happens(tiny: Tiny, seed: int) -> None:
    _, maker = tiny
    item = clip_item(seed, Difficulty(max_questions=7))
    example = maker(item)
    frame_of = dict(zip(np.flatnonzero(example.sequence.vision_rows >= 0), example.patches.coords[::4, 0], strict=True))
    for turn, question in enumerate(item.questions):
        stamps: list[str] = []
        for look in asked(example, turn):
            if question.kind.endswith("_time") and look.head == 1:
                (rows,) = look.parts
                said = b"".join(maker.tokenizer.token_bytes(int(i)) for i in example.sequence.token_ids[rows]).decode()
                stamp = f"<{example.patches.times_s[question.frames[0] // 2]:.1f} seconds>"
                if len(rows) > 1:  # the answer has another number of digits
                    assert said == stamp and len(stamp) != len(question.answer) + 2
                else:
                    stamps.append(said)
                continue
            frame = question.frames[look.head]
            assert {int(frame_of[row]) for row in look.parts[0]} == {frame // 2}
        if stamps:  # digit by digit
            stamp = f"{example.patches.times_s[question.frames[0] // 2]:.1f}"
            assert "".join(stamps) == stamp and len(stamp) == len(question.answer.partition(" ")[0])
        if question.kind in ("clip_count", "timeline"):
            assert not asked(example, turn)


def test_attention_is_what_the_model_computes(tiny: Tiny) -> None:
    config, maker = tiny
    model = Qwen3VL(config)
    model.init_weights(0)
    evidence, example = Evidence(model.language_model), maker(picture_item(2, Difficulty(size=(96, 128))))
    layer = evidence.layers[ANSWER]
    attention = model.language_model.layers[layer].get_submodule("self_attn")
    outputs: list[torch.Tensor] = []
    attention.register_forward_hook(lambda _m, _x, out: outputs.append(out))
    evidence.listener.on = True
    hidden_in: list[torch.Tensor] = []
    attention.register_forward_pre_hook(lambda _m, inputs: hidden_in.append(inputs[0]))
    model(Batch.pack([example.sequence], model.encode([example.patches])))
    module, (x, tables, *_) = evidence.attention[layer], evidence.listener.take()[layer][0]
    length, heads = len(example.labels), config.text.num_attention_heads
    every = [(row, head) for head in range(heads) for row in range(length)]
    shares = log_attention(module, x, tables, slice(0, length), *map(list, zip(*every, strict=True))).exp()
    shares = shares.view(heads, length, length)
    assert torch.allclose(shares.sum(-1), torch.ones(()))
    values = attention.v_proj(hidden_in[0]).view(len(example.labels), -1, config.text.head_dim)
    values = values.repeat_interleave(shares.shape[0] // values.shape[1], dim=1)
    mixed = torch.einsum("hqk,khd->qhd", shares, values).flatten(1)
    assert torch.allclose(attention.o_proj(mixed), outputs[0], atol=1e-6)


def test_it_is_learned(tiny: Tiny) -> None:
    config, maker = tiny
    model = Qwen3VL(config)
    model.init_weights(0)
    evidence = Evidence(model.language_model)
    examples = [maker(picture_item(seed, Difficulty(size=(96, 128)))) for seed in range(4)]
    evidence.listener.on = True
    optimiser = torch.optim.Adam([*model.parameters(), *evidence.parameters()], 3e-3)
    losses, said = [], []
    for _ in range(30):
        vision = model.encode([e.patches for e in examples])
        model(Batch.pack([e.sequence for e in examples], vision))
        loss, off = evidence.loss(examples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        said.append(off)
    assert losses[-1] < 0.5 * losses[0]
    assert said[-1]["place"] < 0.6 * said[0]["place"]
    assert said[-1]["number"] < 0.5 * said[0]["number"]


@pytest.mark.parametrize(("share", "number", "off"), [(1 / 4, 3, 0.0), (1 / 4, 6, math.log(2)), (1 / 7, 3, math.log(2))])
def test_a_share_says_a_number(share: float, number: int, off: float) -> None:
    reference = torch.tensor(math.log(share))
    assert number_off(reference, number).item() == pytest.approx(off, abs=1e-6)
    assert number_off(torch.tensor(0.0), 1).isfinite()


def test_answers_weigh_by_the_root_of_their_length() -> None:
    shares = answer_shares(np.array([-1, 0, 0, 0, 0, -1, 1]))
    assert shares.tolist() == pytest.approx([0, 0.5, 0.5, 0.5, 0.5, 0, 1])
    assert math.isclose(shares[:5].sum(), 2.0)

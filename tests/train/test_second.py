"""The second edition as training examples: several pictures, turns, thoughts, and what the generator knows of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from foveal.config import ModelConfig
from foveal.media import Frames
from foveal.processor import Processor
from foveal.reply import ReplyStream
from foveal.sampler import Sampling
from foveal.thinking import CLOSE, OPEN
from foveal.train import mini
from foveal.train.cells import NO_BOX
from foveal.train.data import ASKED, IGNORE, Example, ExampleMaker, Feed, Mix, make_subject
from foveal.train.looks import AGAIN, ANSWER, WORDS
from foveal.train.told import WRITTEN, letters
from foveal.train.view import View
from foveal.world import (
    CASE_KINDS,
    CASE_QUESTIONS,
    CHAR_CLASSES,
    CLIP_CASES,
    EASY,
    QUESTION_KINDS,
    Case,
    Difficulty,
    full_name,
    make,
    picture_item,
)

Tiny = tuple[ModelConfig, ExampleMaker]
WEIGHTS = dict.fromkeys((*QUESTION_KINDS, *CASE_KINDS), 1.0)


def in_order(case: Case) -> list[int]:
    """The numbers of a case's questions as an example asks them: those with their reasoning last."""
    return sorted(range(len(case.questions)), key=lambda i: bool(case.questions[i].thinking))


def said(maker: ExampleMaker, example: Example, turn: int) -> str:
    return maker.tokenizer.decode(example.labels[example.turns == turn], skip_special=False)


@pytest.mark.parametrize("kind", CASE_KINDS)
def test_labels_are_thoughts_and_answers(tiny: Tiny, kind: str) -> None:
    _, maker = tiny
    for seed in range(4):
        case = make(kind, seed)
        example = maker(case)
        for turn, number in enumerate(in_order(case)):
            question = case.questions[number]
            thought = f"{OPEN}\n{question.thinking}\n{CLOSE}\n\n" if question.thinking else ""
            assert said(maker, example, turn) == f"{thought}{question.answer}<|im_end|>"
            assert ASKED[example.kinds[turn]] == full_name(kind, question.kind) in CASE_QUESTIONS[kind]
        rows = np.flatnonzero(example.labels != IGNORE)
        assert np.array_equal(example.labels[rows], example.sequence.token_ids[rows + 1])
        assert len(example.media) == len(case.items)
        tokens = sum(patches.num_tokens for patches in example.media)
        assert example.sequence.num_vision_tokens == tokens == len(example.cells.classes) == len(example.cells.marks)


@pytest.mark.parametrize("kind", ["pictures", "glimpse", "turns", "receipt"])
def test_a_prompt_is_what_serving_makes_of_it(tiny: Tiny, kind: str) -> None:
    config, maker = tiny
    processor = Processor(config, maker.tokenizer, maker.template, maker.budget)
    case = make(kind, 5)
    media = [Frames(item.pixels, item.times_s, item.kind, item.pixels.shape[1:3], "case") for item in case.items]
    asked = processor(case.messages(media)[:-1])
    example = maker(case)
    assert np.array_equal(asked.sequence.token_ids, example.sequence.token_ids[: len(asked.sequence)])
    assert np.array_equal(asked.sequence.position_ids, example.sequence.position_ids[:, : len(asked.sequence)])
    for ours, theirs in zip(example.media, asked.patches, strict=True):
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_a_thought_that_is_closed_at_once_is_what_a_limit_of_none_forces(tiny: Tiny) -> None:
    _, maker = tiny
    for seed in range(4):
        case = make("reasoned", seed)
        example = maker(case, think=False)
        assert said(maker, example, 0) == f"{OPEN}{case.questions[0].answer}<|im_end|>"
        ids = example.sequence.token_ids
        first = int(np.flatnonzero(example.turns == 0)[0]) + 1
        stream = ReplyStream(maker.tokenizer, Sampling(thinking_tokens=0), room=99)
        stream.push(int(ids[first]))
        forced = []
        while (token := stream.next_forced()) is not None:
            stream.push(token)
            forced.append(token)
        assert forced == ids[first + 1 : first + 1 + len(forced)].tolist() and len(forced) >= 3
        assert np.all(example.labels[first : first + len(forced)] == IGNORE)
        assert example.labels[first + len(forced)] == ids[first + len(forced) + 1]


def test_dense_targets_are_of_every_picture(tiny: Tiny) -> None:
    _, maker = tiny
    case = next(case for seed in range(20) if len((case := make("pictures", seed)).items) > 2)
    example = maker(case)
    start = 0
    for item, patches in zip(case.items, example.media, strict=True):
        mine = slice(start, start + patches.num_tokens)
        start = mine.stop
        boxes = example.cells.boxes[mine]
        seen = boxes[:, 0] != NO_BOX
        height, width = item.pixels.shape[1:3]
        ends = np.array([thing.box for thing in item.things]) / (width, height, width, height)
        assert np.allclose(boxes[seen, :2].min(0), ends[:, :2].min(0), atol=0.02)
        assert np.allclose(boxes[seen, 2:].max(0), ends[:, 2:].max(0), atol=0.02)


def test_letters_lie_where_they_are_drawn() -> None:
    right = total = 0
    for kind in ("receipt", "needle", "paragraph", "screen"):
        for seed in range(6):
            (item,) = make(kind, seed).items
            for thing in (thing for thing in item.things if thing.text):
                for letter, (x1, y1, x2, y2) in zip(thing.text.lower(), letters(thing), strict=True):
                    assert x1 < x2
                    if letter in CHAR_CLASSES:
                        total += 1
                        right += bool((item.char_map[0, y1:y2, x1:x2] == CHAR_CLASSES.index(letter)).mean() > 0.5)
    assert total > 1500 and right / total > 0.98


def view_of(maker: ExampleMaker, config: ModelConfig, case: Case, example: Example) -> View:
    return View(case.items, example.media, example.sequence, maker.tokenizer, config.vision.temporal_patch_size)


def test_what_is_written_is_read_letter_by_letter(tiny: Tiny) -> None:
    """While a letter is said, the row looks at tokens that show that letter, by the map of characters."""
    config, maker = tiny
    maker = ExampleMaker(config, maker.tokenizer, maker.template, replace(maker.budget, image=(256, 256)))
    spelled = {name: 0 for name in WRITTEN}
    written = Difficulty(families=(("word", 1.0),), max_objects=3).asking(read_word=1)
    for kind in ("receipt", "form", "table", "paragraph", "screen", "needle", "far", ""):
        for seed in range(12):
            item = picture_item(seed, written)  # of the first edition, where no kind is named
            case = make(kind, seed) if kind else Case("", (item,), item.questions)
            example = maker(case if kind else item)
            view = view_of(maker, config, case, example)
            at = dict(zip(view.slots.tolist(), view.coords.tolist(), strict=True))
            for turn, number in enumerate(in_order(case)):
                question = case.questions[number]
                answering = np.flatnonzero(example.turns == turn)
                found = [k for k in example.looks if k.layer == ANSWER and answering[0] <= k.row < answering[-1]]
                if question.kind not in WRITTEN:
                    continue
                # One look a letter; tokens of several letters have several looks.
                assert len(found) == len(question.answer), question
                spelled[question.kind] += 1
                for letter, look in zip(question.answer.lower(), sorted(found, key=lambda k: k.row), strict=True):
                    if letter not in CHAR_CLASSES:
                        continue
                    shown = set()
                    height, width = case.items[0].pixels.shape[1:3]
                    rows, columns = np.array(example.media[0].grids[0]) // 2
                    for row in look.parts[0]:
                        _, r, c = at[int(row)]
                        ys, xs = (
                            slice(r * height // rows, -(-(r + 1) * height // rows)),
                            slice(c * width // columns, -(-(c + 1) * width // columns)),
                        )
                        shown |= set(np.unique(case.items[0].char_map[0, ys, xs]).tolist())
                    assert CHAR_CLASSES.index(letter) in shown
    assert all(count > 0 for name, count in spelled.items() if name != "glimpse_code"), spelled


def test_looks_stay_in_the_picture_they_are_about(tiny: Tiny) -> None:
    config, maker = tiny
    seen = set()
    for seed in range(12):
        case = make("pictures", seed)
        example = maker(case)
        view = view_of(maker, config, case, example)
        medium = dict(zip(view.slots.tolist(), view.medium.tolist(), strict=True))
        for turn, question in enumerate(case.questions):
            answering = np.flatnonzero(example.turns == turn)
            before = np.flatnonzero((example.turns >= 0) & (example.turns < turn))
            start = before[-1] if len(before) else -1
            for look in (look for look in example.looks if start < look.row <= answering[-1]):
                if look.counts:
                    where = [medium[int(part[0])] for part in look.parts[1:]]
                    assert where == list(question.pictures)
                elif look.layer == WORDS:
                    assert {medium[int(row)] for row in look.parts[0]} == {question.pictures[0]}
                elif question.kind != "pictures_count":  # there the answer looks at the word as well
                    assert {medium[int(row)] for row in look.parts[0]} == {question.pictures[look.head]}
                seen.add((question.kind, look.layer))
    assert {("pictures_which", WORDS), ("pictures_which", ANSWER), ("pictures_count", AGAIN)} <= seen
    assert {("pictures_changed", ANSWER), ("pictures_colour", WORDS)} <= seen


def test_a_thought_looks_at_each_thing_in_its_turn(tiny: Tiny) -> None:
    config, maker = tiny
    for seed in range(8):
        case = make("reasoned", seed)
        (question,) = case.questions
        example = maker(case)
        view = view_of(maker, config, case, example)
        ids = example.sequence.token_ids
        looks = [look for look in example.looks if look.layer == ANSWER and look.place is not None]
        for line, place in zip(question.thinking.split("\n")[1:-1], view.places(question), strict=True):
            rows = [k.row for k in looks if k.place == view.middle(place)]
            text = b"".join(maker.tokenizer.token_bytes(int(ids[row + 1])) for row in sorted(set(rows))).decode()
            assert line in text.split("\n"), (line, text)
        shut = maker(case, think=False)
        assert not [look for look in shut.looks if look.place is not None]
        assert {look.layer for look in shut.looks if look.counts} >= {ANSWER, AGAIN}


def test_a_mix_draws_from_both_editions() -> None:
    mix = Mix(EASY, cases=0.6, case_kinds=(("needle", 3.0), ("order", 1.0)))
    drawn = [make_subject(seed, mix, WEIGHTS) for seed in range(200)]
    kinds = [one.kind for one in drawn if isinstance(one, Case)]
    assert 100 < len(kinds) < 140 and kinds.count("needle") > 1.5 * kinds.count("order") > 0
    asked_more = [make_subject(seed, mix, WEIGHTS | {"order": 30.0}) for seed in range(200)]
    assert [one.kind for one in asked_more if isinstance(one, Case)].count("order") > kinds.count("needle")


def test_a_mix_of_pictures_has_no_clips() -> None:
    mix = Mix(EASY, 0.5, cases=0.5).of_pictures()
    drawn = [make_subject(seed, mix, WEIGHTS) for seed in range(60)]
    assert {item.kind for one in drawn for item in (one.items if isinstance(one, Case) else (one,))} == {"image"}
    assert {item.kind for kind in CLIP_CASES for item in make(kind, 0).items} == {"video"}


def test_batches_are_bounded_by_tokens_and_a_feed_goes_on_where_one_ended(tiny: Tiny) -> None:
    _, maker = tiny
    mix = Mix(EASY, 0.3, cases=0.7)

    def fed(seed: int, count: int) -> list[list[Example]]:
        feed = Feed(maker, 9, seed, mix, WEIGHTS, 1500)
        try:
            return list(islice(feed, count))
        finally:
            feed.close()

    batches = fed(200, 6)
    sizes = [[len(example.sequence) for example in batch] for batch in batches]
    assert all(len(size) == 1 or sum(size) <= 1500 for size in sizes) and max(map(len, sizes)) <= 9
    assert len({len(size) for size in sizes}) > 1 and any(sum(size) > 1000 for size in sizes)
    done = sum(len(batch) for batch in batches[:3])
    for ours, theirs in zip(batches[3:], fed(200 + done, 3), strict=True):
        assert [e.sequence.token_ids.tolist() for e in ours] == [e.sequence.token_ids.tolist() for e in theirs]
    for batch in batches:
        kinds = [example.media[0].kind for example in batch]
        assert kinds == sorted(kinds)


def test_the_recipe_asks_for_every_kind_and_its_longest_examples_fit() -> None:
    stages = mini.second_stages()
    moving = [stage for stage in stages if stage.vision]
    assert moving and all({kind for kind, _ in stage.mix.case_kinds} == set(CASE_KINDS) for stage in moving)
    assert not stages[0].vision and [stage.until for stage in stages] == sorted({stage.until for stage in stages})
    for stage in stages:
        assert 0 < stage.mix.cases < 1
        # Four pictures, or a clip, with the longest text, are the longest there is; two of them fit a batch.
        assert stage.tokens is not None and 2 * (4 * mini.BUDGET.image[1] + 350) <= stage.tokens

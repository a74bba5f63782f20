"""Clips: what happens when is read off the object maps, frame by frame, and compared with the answers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from foveal.world import Difficulty, Item, Question, clip_item, save_clip, score
from foveal.world.clips import Clip

EVERYTHING = Difficulty(max_questions=60)
ITEMS = [clip_item(seed, EVERYTHING, "test") for seed in range(120)]


def asked(kind: str) -> list[tuple[Item, Question]]:
    found = [(item, question) for item in ITEMS for question in item.questions if question.kind == kind]
    assert len(found) > 30, f"too few {kind} questions to test anything"
    return found


def clip_of(item: Item) -> Clip:
    assert isinstance(item.truth, Clip)
    return item.truth


def seen(item: Item, number: int) -> np.ndarray:
    """The frames in which the object map shows thing `number`."""
    return np.flatnonzero((item.object_map == number).any(axis=(1, 2)))


def number_of(item: Item, phrase: str) -> int:
    words = phrase.split()
    fitting = [
        number
        for number, thing in enumerate(item.things)
        if all(word in (thing.colour, thing.kind, thing.text.lower()) for word in words)
    ]
    assert len(fitting) == 1, f"{phrase!r} fits {len(fitting)} things"
    return fitting[0]


def subject(question: Question) -> str:
    found = re.search(r"(?:[Dd]oes|is) the (.+?) (?:first seen|appear|show|vanish|disappear|move)", question.question)
    assert found is not None, question.question
    return found[1]


def test_same_seed_same_clip_and_splits_differ() -> None:
    for seed in range(8):
        one, two, other = clip_item(seed, EVERYTHING), clip_item(seed, EVERYTHING), clip_item(seed, EVERYTHING, "test")
        assert np.array_equal(one.pixels, two.pixels) and one.questions == two.questions
        assert one.pixels.shape != other.pixels.shape or not np.array_equal(one.pixels, other.pixels)


def test_frames_and_times() -> None:
    for item in ITEMS:
        clip = clip_of(item)
        assert 4 <= len(item.pixels) <= 16 and len(item.pixels) == len(item.times_s) == clip.num_frames
        assert clip.fps in (1.0, 2.0, 4.0)
        assert np.array_equal(item.times_s, np.arange(clip.num_frames) / clip.fps)
        assert min(item.pixels.shape[1:3]) >= 96 and max(item.pixels.shape[1:3]) <= 192
    assert len({len(item.pixels) for item in ITEMS}) == 13


def test_actors_are_drawn_where_and_when_they_are_said_to_be() -> None:
    for item in ITEMS:
        for number, actor in enumerate(clip_of(item).actors):
            assert seen(item, number).tolist() == list(range(actor.appear, actor.vanish))
            assert actor.vanish - actor.appear >= 2
            for frame in range(actor.appear, actor.vanish):
                rows, columns = np.nonzero(item.object_map[frame] == number)
                assert actor.box(frame) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_names_are_unique_and_things_never_overlap() -> None:
    for item in ITEMS:
        names = [(thing.colour, thing.kind) for thing in item.things]
        assert len(names) == len(set(names)) >= 1
        for frame in range(len(item.pixels)):
            for number, actor in enumerate(clip_of(item).actors):
                thing = actor.at(frame)
                assert (item.object_map[frame] == number).sum() == (0 if thing is None else thing.stamp.solid.sum())


def test_appear_and_vanish_times() -> None:
    for item, question in asked("appear_time"):
        frames = seen(item, number_of(item, subject(question)))
        assert question.answer == f"{item.times_s[frames[0]]:.1f} seconds"
        assert question.span_s == (item.times_s[frames[0]], item.times_s[frames[-1]])
    for item, question in asked("vanish_time"):
        frames = seen(item, number_of(item, subject(question)))
        assert question.answer == f"{item.times_s[frames[-1] + 1]:.1f} seconds"


def test_first() -> None:
    alone, of_two = 0, 0
    for item, question in asked("first"):
        start = {f"{t.colour} {t.kind}": int(seen(item, n)[0]) for n, t in enumerate(item.things)}
        if "the" in question.question and " or the " in question.question:
            candidates = [name for name in start if f"the {name} " in f"{question.question[:-1]} "]
            assert len(candidates) == 2
            of_two += 1
        else:
            candidates = list(start)
            alone += 1
        earliest = sorted(candidates, key=lambda name: start[name])
        assert start[earliest[0]] < start[earliest[1]] and question.answer == earliest[0]
    assert alone > 10 and of_two > 10


def test_the_first_named_is_not_a_shortcut() -> None:
    named_first = [
        question.question.index(question.answer) < question.question.index(" or the ")
        for _, question in asked("first")
        if " or the " in question.question
    ]
    assert 0.4 < float(np.mean(named_first)) < 0.6


def test_moves() -> None:
    for item, question in asked("moves"):
        number = number_of(item, subject(question))
        frames = seen(item, number)
        centres = [np.argwhere(item.object_map[frame] == number).mean(axis=0) for frame in (frames[0], frames[-1])]
        down, right = centres[1] - centres[0]
        direction = ("right" if right > 0 else "left") if abs(right) > abs(down) else ("down" if down > 0 else "up")
        assert max(abs(right), abs(down)) >= 20 and min(abs(right), abs(down)) < 1e-6
        assert question.answer == direction


def test_clip_colour_count_and_timeline() -> None:
    for item, question in asked("clip_colour"):
        assert question.answer in [thing.colour for thing in item.things if thing.kind in question.question]
    for item, question in asked("clip_count"):
        assert question.answer == str(len(np.unique(item.object_map)) - 1)
    for item, question in asked("timeline"):
        wanted = []
        for number, actor in enumerate(clip_of(item).actors):
            event = f"{item.times_s[seen(item, number)[0]]:.1f} {actor.thing.name}"
            wanted.append(event + (f" moves {actor.direction}" if actor.direction else ""))
        assert sorted(question.answer.split(", ")) == sorted(wanted)
        times = [float(event.split()[0]) for event in question.answer.split(", ")]
        assert times == sorted(times)


def test_answers_are_spread_and_score() -> None:
    for kind, share in (("appear_time", 0.3), ("vanish_time", 0.3), ("moves", 0.4), ("clip_count", 0.45)):
        answers = Counter(question.answer for _, question in asked(kind))
        assert max(answers.values()) < share * answers.total(), (kind, answers.most_common(2))
    for item in ITEMS:
        for question in item.questions:
            assert score(question.kind, question.answer, question)
            assert not score(question.kind, "nothing", question)


def test_event_step() -> None:
    for seed in range(40):
        clip = clip_of(clip_item(seed, Difficulty(event_step=2)))
        for actor in clip.actors:
            assert actor.appear % 2 == 0
            assert actor.vanish % 2 == 0 or actor.vanish == clip.num_frames


def test_an_actor_has_no_box_while_away() -> None:
    actor = next(a for item in ITEMS for a in clip_of(item).actors if a.appear > 0)
    assert actor.at(actor.appear - 1) is None
    with pytest.raises(ValueError, match="not in frame"):
        actor.box(actor.appear - 1)


def test_save_clip_keeps_frames_times_and_colours(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    item = next(item for item in ITEMS if clip_of(item).fps == 2.0 and item.pixels.shape[1] % 2)  # an odd height
    save_clip(tmp_path / "clip.mp4", item.pixels, 2.0)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [float(frame.time) for frame in frames] == pytest.approx(item.times_s.tolist())
    height, width = (side // 2 * 2 for side in item.pixels.shape[1:3])
    for frame, wanted in zip(frames, item.pixels, strict=True):
        drawn = frame.to_ndarray(format="rgb24").astype(int)
        assert drawn.shape == (height, width, 3)
        assert np.abs(drawn - wanted[:height, :width]).mean() < 6

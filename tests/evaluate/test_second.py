"""The second edition examined: several pictures and turns, the names of the bars, and the page that shows what went wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from foveal.evaluate import Item, Run, examine, make_report, open_tasks
from foveal.evaluate.api import Remote, Server
from foveal.evaluate.items import prompt_json
from foveal.evaluate.page import render
from foveal.evaluate.tasks import reopen
from foveal.evaluate.world_tasks import BARS, CASES, GROUPS, KINDS, LARGE_PX, SECOND
from foveal.media import Frames
from foveal.world import CASE_KINDS, CASE_QUESTIONS, list_f1, make, score, yes_no_f1
from foveal.world.score import parse_boxes
from tests.evaluate.test_page import read
from tests.evaluate.tools import arm, new_run, truth


def test_every_kind_of_the_test_split_is_a_task_that_its_truth_answers() -> None:
    assert {name for names in CASE_QUESTIONS.values() for name in names} == {*GROUPS["second"], "screen_beside"}
    assert not set(CASES) & set(KINDS) and set(SECOND) == {"several" if kind == "pictures" else kind for kind in CASE_KINDS}
    for task in open_tasks(["second", "needle_16px"], items=2):
        items = list(task)
        assert len(items) == 2
        for item in items:
            assert item.score(item.references[0])["right"] == (1.0, 1.0), item.id
            assert item.score("I do not know")["right"] == (0.0, 1.0)
            again = task.item(item.id)
            assert prompt_json(again.messages) == prompt_json(item.messages)
            for (_, ours), (_, theirs) in zip(item.media, again.media, strict=True):
                assert isinstance(ours, Frames) and np.array_equal(ours.pixels, theirs.pixels)
        assert [i.references for i in reopen(task.facts())] == [i.references for i in items]


def test_an_item_is_the_question_of_its_case() -> None:
    for name in ("receipt_total", "pictures_count", "event_appear_time", "turns_find"):
        (task,) = open_tasks([name], items=2, first_seed=40)
        for item in task:
            seed = int(item.id.split("/")[1])
            assert seed >= 40
            kind = next(kind for kind, names in CASE_QUESTIONS.items() if name in names)
            case = make(kind, seed, "test")
            question = next(q for q in case.questions if q.question == item.question and q.answer == item.references[0])
            assert len(item.media) == len(case.items)
            for answer in (question.answer.upper() + ".", "no", "3", "[1, 2, 3, 4]"):
                assert item.score(answer)["right"][0] == score(question.kind, answer, question)


def test_only_what_needs_its_first_turn_gets_it() -> None:
    for task in open_tasks(["turns", "several", "chart"], items=2):
        for item in task:
            if task.name in ("turns_find", "turns_nearest", "turns_others"):
                case = make("turns", int(item.id.split("/")[1]), "test")
                assert item.earlier == [case.questions[0].question, case.questions[0].answer]
                assert [m["role"] for m in item.messages] == ["user", "assistant", "user"]
            else:
                assert len(item.messages) == 1 and not item.earlier
            assert all(set(message) == {"role", "content"} for message in item.messages)


def test_codes_of_a_bar_are_as_high_as_it_says() -> None:
    (all_of,), (large,) = open_tasks(["needle_code"], items=60), open_tasks(["needle_16px"], items=12)
    heights = {item.id.split("/")[1]: _height(item) for item in all_of}
    kept = {item.id.split("/")[1] for item in large}
    for seed, height in heights.items():
        if int(seed) <= max(map(int, kept)):
            assert (seed in kept) == (height >= LARGE_PX), (seed, height)
    assert kept and min(heights.values()) < LARGE_PX


def _height(item: Item) -> int:
    """Rows of the picture in which the code differs from the ground, by more than half of the most any pixel does."""
    case = make("needle", int(item.id.split("/")[1]), "test")
    (box,) = item.evidence.boxes
    (thing,) = (thing for thing in case.items[0].things if thing.box == box)
    inked = thing.stamp.alpha >= 128
    # The code is written before " = key" in the test split.
    columns = np.flatnonzero((thing.stamp.chars[0] > 0) if thing.stamp.chars is not None else inked.any(axis=0))
    gap = np.flatnonzero(np.diff(columns) > 1)[0]
    assert thing.text.startswith(item.references[0] + " = ")
    return int(inked[:, : columns[gap] + 1].any(axis=1).sum())


def test_bars_have_names() -> None:
    tasks = open_tasks(["bars"], items=1)
    assert [task.name for task in tasks] == [name for names in BARS.values() for name in names]
    for name in BARS:
        assert [task.name for task in open_tasks([name], items=1)] == list(BARS[name])
    by_name = {task.name: next(iter(task)) for task in tasks}
    assert by_name["absent_one"].scorer == "world/yesno" and by_name["needle_16px"].scorer == "world/text"
    assert "iou@0.5" in by_name["box"].score("")
    assert by_name["event_appear_time"].score("999 seconds")["right"][0] == 0.0
    assert 1 <= int(by_name["reasoned_count"].references[0]) <= 8


def test_absence_is_measured_as_the_world_does(tmp_path: Path) -> None:
    def says(item: Item) -> str:
        if item.id.startswith("absent_list"):
            return f"{item.references[0]}, star" if "star" in item.question else "none"
        return "no" if sum(map(ord, item.id)) % 3 else item.references[0]

    arms = [arm("often", says)]
    run = new_run(tmp_path / "run", ["absent"], arms, items=20)
    examine(run, arms)
    one, several = make_report(run)["tasks"]
    lines = [line for line in run.lines.values() if line["task"] == "absent_one"]
    pairs = [(line["answer"], line["references"][0]) for line in lines]
    assert one["metrics"]["f1 no"]["often"]["value"] == pytest.approx(yes_no_f1(pairs), abs=1e-5)
    for line in (line for line in run.lines.values() if line["task"] == "absent_list"):
        assert (line["scores"]["right"][0] == 1) == (list_f1(line["answer"], line["references"][0]) == 1)
    assert "f1" in several["metrics"]


def test_a_run_goes_on(tmp_path: Path) -> None:
    arms = [arm("right", truth)]
    run = new_run(tmp_path / "run", ["several", "turns_find"], arms, items=3)
    examine(run, arms)
    lines = dict(run.lines)
    file = run.folder / "answers.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[::2]))
    again = Run.open(run.folder)
    examine(again, arms)
    assert again.lines.keys() == lines.keys()
    assert all(again.lines[key]["prompt"] == lines[key]["prompt"] for key in lines)


def test_the_page_shows_all_pictures_and_evidence_in_its_own(tmp_path: Path) -> None:
    def wrong(item: Item) -> str:
        return '[{"bbox_2d": [100, 200, 400, 800]}]' if parse_boxes(item.references[0]) else "7 of them"

    arms = [arm("wrong", wrong)]
    run = new_run(tmp_path / "run", ["pictures_count", "turns_find", "glimpse_code"], arms, items=2)
    examine(run, arms)
    page = render(run, make_report(run))
    reader = read(page)
    text = " ".join(reader.text)
    assert reader.open == []
    cards = page.split('<div class="card">')[1:]
    for task in run.tasks:
        for item in task:
            assert item.question in text
            assert all(earlier in text for earlier in item.earlier)
    for card, item in zip(cards, [task.item(id) for task, id in _shown(run)], strict=True):
        figures = re.findall(r"<figure.*?</figure>", card, re.DOTALL)
        for number, figure in enumerate(figures):
            good, bad = figure.count("var(--good)"), figure.count("var(--bad)")
            if item.id.startswith("pictures_count"):
                assert f"picture {number + 1}" in figure and bad == 0
                assert good == sum(picture == number for picture in item.evidence.pictures)
            elif item.id.startswith("turns_find"):
                assert (good, bad, len(figures)) == (1, 1, 1)
        if item.id.startswith("pictures_count"):
            assert len(figures) == len(item.media) >= 2


def _shown(run: Run) -> list[tuple[object, str]]:
    from foveal.evaluate.report import worst

    return [(task, id) for task in run.tasks for id in worst(run, task.name, 6)]  # as many as the page has cards of a task


def test_a_server_gets_every_picture_and_the_turns() -> None:
    remote = Remote(Server("http://localhost:1/v1", "m"), {})
    (task,) = open_tasks(["pictures_which"], items=1)
    (item,) = task
    (message,) = remote._messages(item)
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image_url"] * len(item.media) + ["text"] and len(item.media) >= 2
    (task,) = open_tasks(["turns_others"], items=1)
    (item,) = task
    first, answer, second = remote._messages(item)
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert answer == {"role": "assistant", "content": item.earlier[1]}
    assert second["content"] == [{"type": "text", "text": item.question}]

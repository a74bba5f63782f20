"""A run in a folder: ended however, it goes on to the report of one that was not; no answer is lost, none asked twice."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from foveal.errors import ConfigError, DataError, FovealError, MediaError
from foveal.evaluate import Arm, Item, Run, Said, answered, examine, make_report, open_tasks
from foveal.evaluate.bootstrap import wilson
from foveal.evaluate.report import worst
from foveal.evaluate.run import ANSWERS, EXAM
from tests.evaluate.tools import Parrot, arm, new_run, truth

SPECS = ["colour", "box"]


def often(item: Item) -> str:
    """Answer right for about two of three items."""
    return truth(item) if sum(map(ord, item.id)) % 3 else "[0, 0, 1000, 1000]"


ARMS = [arm("right", truth), arm("often", often)]


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    return report | {"arms": [one | {"median_s": 0} for one in report["arms"]]}


def test_a_run_keeps_every_prompt_answer_and_score(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", SPECS, ARMS)
    seen: list[tuple[str, str, int, int]] = []
    examine(run, ARMS, lambda *what: seen.append(what))
    lines = [json.loads(text) for text in (run.folder / ANSWERS).read_text().splitlines()]
    assert len(lines) == 24 and seen[-1][0] == "often" and seen[-1][2:] == (12, 12)
    for line in lines:
        assert line["prompt"][0]["content"][-1]["text"].strip() and line["prompt"][0]["content"][0]["image"] == line["id"]
        assert line["references"] and line["scores"]["right"] in ([0, 1], [1, 1]) and line["evidence"]["boxes"]
        assert line["tokens"] == {"prompt": 10, "generated": 2} and line["seconds"] == 0.25
    report = make_report(run)
    assert report["tasks"][0]["metrics"]["right"]["right"]["value"] == 1.0
    right = [often(item) == truth(item) for task in run.tasks for item in task]
    values = [task["metrics"]["right"]["often"]["value"] for task in report["tasks"]]
    assert values == pytest.approx([sum(right[:6]) / 6, sum(right[6:]) / 6], abs=1e-6) and 0 < sum(right) < 12
    (difference,) = report["tasks"][1]["differences"]["right"]
    assert (difference["arm"], difference["against"]) == ("often", "right")
    assert difference["value"] == pytest.approx(values[1] - 1, abs=2e-6)
    assert difference["low"] <= difference["value"] <= difference["high"] <= 0
    assert report["mean"]["metrics"]["right"]["often"]["value"] == pytest.approx(sum(right) / 12, abs=1e-6)
    assert "iou" in report["tasks"][1]["metrics"] and json.dumps(report, allow_nan=False)


class Killed(BaseException):
    """What no code of foveal's catches."""


def test_going_on_after_a_kill_gives_the_same_report(tmp_path: Path) -> None:
    whole = new_run(tmp_path / "whole", SPECS, ARMS)
    examine(whole, ARMS)
    stopped = new_run(tmp_path / "stopped", SPECS, ARMS)

    def kill(name: str, task: str, count: int, total: int) -> None:
        if (name, count) == ("often", 5):
            raise Killed

    with pytest.raises(Killed):
        examine(stopped, ARMS, kill)
    with (stopped.folder / ANSWERS).open("ab") as file:
        file.write('{"arm": "often", "id": "half a line, in the middle of é'.encode()[:-1])
    again = Run.open(stopped.folder)
    kept = set(again.lines)
    assert len(kept) == 17
    parrots: list[Parrot] = []
    arms = [Arm(a.name, a.settings, lambda a=a: parrots.append(a.open()) or parrots[-1]) for a in ARMS]
    examine(again, arms)
    (only,) = parrots  # the arm that had finished is not loaded
    assert len(only.asked) == 7 and not {("often", id) for id in only.asked} & kept
    assert untimed(make_report(again)) == untimed(make_report(whole)) == untimed(make_report(Run.open(again.folder)))


def test_an_interrupt_keeps_what_was_answered_and_ends_the_arm(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["colour"], ARMS[:1], items=12)
    parrot = Parrot(truth)

    def interrupt(name: str, task: str, count: int, total: int) -> None:
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(run, [Arm("right", {}, lambda: parrot)], interrupt)
    assert parrot.closed.is_set()
    assert len((run.folder / ANSWERS).read_text().splitlines()) == len(run.lines) == 3


def test_an_error_names_the_item_and_ends_the_run(tmp_path: Path) -> None:
    def broken(item: Item) -> str:
        raise MediaError("the disk is gone")

    (task,) = open_tasks(["colour"], items=3)
    parrot = Parrot(broken)
    with pytest.raises(FovealError, match=r"colour/\d+: the disk is gone"):
        list(answered(parrot, task))
    assert parrot.closed.is_set()


def test_a_bug_is_not_dressed_up_as_a_mistake(tmp_path: Path) -> None:
    def bug(item: Item) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(answered(Parrot(bug), open_tasks(["colour"], items=3)[0]))


def test_a_refused_question_counts_as_wrong_and_is_counted(tmp_path: Path) -> None:
    class Refusing(Parrot):
        def __call__(self, item: Item) -> Said:
            return Said("", "refused", error="too long")

    refusing = Arm("tiny", {}, lambda: Refusing(truth))
    run = new_run(tmp_path / "run", ["colour"], [refusing])
    examine(run, [refusing])
    report = make_report(run)
    assert report["arms"][0]["refused"] == 6 and report["arms"][0]["finish_reasons"] == {"refused": 6}
    assert report["tasks"][0]["metrics"]["right"]["tiny"]["value"] == 0.0


def test_items_are_never_held_all_at_once(tmp_path: Path) -> None:
    (task,) = open_tasks(["colour"], items=30)
    made = 0

    def counted() -> Any:
        nonlocal made
        for item in task:
            made += 1
            yield item

    ahead = max(made - done for done, _ in enumerate(answered(Parrot(truth), counted()), 1))
    assert ahead <= 2 * Parrot.parallel


def test_the_worst_are_those_that_tell_arms_apart(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["box"], ARMS, items=9)
    examine(run, ARMS)
    wrong = [item.id for item in run.tasks[0] if often(item) != truth(item)]
    assert sorted(worst(run, "box", 20)) == sorted(wrong) and worst(run, "box", 1)[0] in wrong


def test_an_arm_is_compared_on_what_both_were_asked(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["colour"], ARMS)
    examine(run, ARMS)
    missing = next(key for key in run.lines if key[0] == "often")
    del run.lines[missing]
    report = make_report(run)
    assert report["tasks"][0]["metrics"]["right"]["often"]["n"] == 5 == report["tasks"][0]["differences"]["right"][0]["n"]


def test_what_says_nothing_of_a_metric_does_not_count(tmp_path: Path) -> None:
    """Items of other scorers, and answers that name no time, are no items of 0 in 0."""
    rows = [("what?", "red"), ("what?", "blue"), ("when?", "3.5"), ("when?", "4.0"), ("when?", "9.0")]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(
        json.dumps({"scorer": "time" if a == "when?" else "text", "messages": [
            {"role": "user", "content": a}, {"role": "assistant", "content": b}]}) + "\n"
        for a, b in rows))  # fmt: skip
    arms = [arm("right", truth), arm("once", lambda item: item.references[0] if item.id == "mine/2" else "never")]
    run = new_run(tmp_path / "run", [str(file)], arms, items=None)
    examine(run, arms)
    (task,) = make_report(run)["tasks"]
    exact, error = task["metrics"]["exact"], task["metrics"]["error_s"]
    assert [exact[name]["n"] for name in ("right", "once")] == [2, 2]
    low, high = wilson(2, 2)
    assert (exact["right"]["low"], exact["right"]["high"]) == (pytest.approx(low, abs=1e-6), high)
    assert [error[name]["n"] for name in ("right", "once")] == [3, 1]
    assert task["differences"]["exact"][0]["n"] == 2 and task["differences"]["error_s"][0]["n"] == 3


def test_a_runaway_number_is_written_as_json(tmp_path: Path) -> None:
    arms = [arm("runaway", lambda item: "9" * 400), arm("boxes", lambda item: "[NaN, 1, 2, Infinity]")]
    run = new_run(tmp_path / "run", ["appear_time", "box"], arms, items=2)
    examine(run, arms)
    report = make_report(run)
    assert json.dumps(report, allow_nan=False) and report["tasks"][0]["metrics"]["error_s"]["runaway"]["value"] is None
    for text in (run.folder / ANSWERS).read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: of the last line a piece fits."""
    run = new_run(tmp_path / "run", ["colour"], ARMS[:1], items=2)
    examine(run, ARMS[:1])
    file, line = run.folder / ANSWERS, next(iter(run.lines.values()))
    before, kept = resource.getrlimit(resource.RLIMIT_FSIZE), file.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 50, before[1]))
    try:
        with pytest.raises(OSError, match=r"No space left on device: '.*answers.jsonl'"):
            run.add(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_bytes() == kept and len(Run.open(run.folder).lines) == 2


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["colour"], ARMS)
    with pytest.raises(ConfigError, match="holds an examination already; --resume"):
        new_run(tmp_path / "run", ["colour"], ARMS)
    with pytest.raises(ConfigError, match="is not empty"):
        new_run(tmp_path, ["colour"], ARMS)
    with pytest.raises(ConfigError, match="holds no examination"):
        Run.open(tmp_path / "gone")
    (run.folder / ANSWERS).write_text("nonsense\n")
    with pytest.raises(DataError, match=r"answers.jsonl:1: damaged"):
        Run.open(run.folder)
    (run.folder / EXAM).write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        Run.open(run.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": 5}, {"tasks": [5]}, {"tasks": []}, {"tasks": [{}]}, {"arms": []}, {"arms": {}}, {"arms": {"right": 5}},
        {"tasks": [{"task": "colour", "difficulty": "world", "items": "6", "first_seed": 0}]},
        {"tasks": [{"task": ["colour"], "difficulty": "world", "items": 6, "first_seed": 0}]},
        {"tasks": [{"task": "vibes", "difficulty": "world", "items": 6, "first_seed": 0}]},
        {"tasks": [{"task": "colour", "difficulty": "no", "items": 6, "first_seed": 0}]},
        {"tasks": [{"task": "mine", "file": 5, "root": ".", "items": 6, "scorer": None}]},
    ],
)  # fmt: skip
def test_an_examination_that_is_damaged_says_so(tmp_path: Path, change: dict[str, Any]) -> None:
    run = new_run(tmp_path / "run", ["colour"], ARMS)
    file = run.folder / EXAM
    facts = json.loads(file.read_text())
    Run.open(run.folder)
    file.write_text(json.dumps(facts | change))
    with pytest.raises(DataError, match=r"exam.json is damaged; begin a new run"):
        Run.open(run.folder)


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("arm", "task", "id", "answer", "finish_reason")),
        *({name: None} for name in ("prompt", "references", "tokens", "scores")),
        {"error": 5}, {"seconds": "long"}, {"tokens": {"prompt": 1}}, {"scores": {}}, {"scores": {"right": 1}},
        {"scores": {"right": ["a", 1]}},
    ],
)  # fmt: skip
def test_an_answer_that_is_damaged_says_so(tmp_path: Path, change: dict[str, Any]) -> None:
    run = new_run(tmp_path / "run", ["colour"], ARMS[:1], items=2)
    examine(run, ARMS[:1])
    file = run.folder / ANSWERS
    first, second = file.read_text().splitlines()
    damaged = {**json.loads(second), **change}
    (name,) = change
    for line in (damaged, {key: value for key, value in damaged.items() if key != name}, {"arm": "x", "id": "count/0"}, [1], 5):
        file.write_text(f"{first}\n{json.dumps(line)}\n")
        with pytest.raises(DataError, match=r"answers.jsonl:2: damaged; take the line out, and --resume asks again"):
            Run.open(run.folder)
    file.write_text(f"{first}\n")
    assert len(Run.open(run.folder).lines) == 1


def test_a_question_that_changed_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["colour"], ARMS[:1])
    examine(run, ARMS[:1])
    file = run.folder / ANSWERS
    file.write_text(file.read_text().replace("What", "Which", 1) if "What" in file.read_text() else "")
    with pytest.raises(DataError, match="is not what it was when the run began"):
        examine(Run.open(run.folder), [arm("right", truth)])  # one is asked again in any case
        list(Run.open(run.folder).left("right"))

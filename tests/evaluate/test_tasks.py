"""Tasks: the world's kinds and one's own files, the same every time, and mistakes found before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.errors import ConfigError, DataError
from foveal.evaluate import open_tasks
from foveal.evaluate.file_tasks import FileTask
from foveal.evaluate.items import prompt_json, with_system
from foveal.evaluate.scorers import SCORERS
from foveal.evaluate.tasks import reopen
from foveal.evaluate.world_tasks import GROUPS, KINDS, LEVELS
from foveal.media import Frames
from foveal.train import mini
from foveal.world import CLIP_KINDS, QUESTION_KINDS, score
from tests.media_files import clip


def write(folder: Path, *records: Any) -> str:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "a.png")
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


ASK = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "red"}
NAN = {"role": "user", "content": [{"type": "image", "image": "a.png", "fps": float("nan")}]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}


def test_every_kind_has_items_that_its_truth_answers() -> None:
    assert set(QUESTION_KINDS) <= set(KINDS) and set(GROUPS["all"]) == set(QUESTION_KINDS)
    for task in open_tasks(["all", "left_right"], items=2):
        items = list(task)
        assert len(items) == len(task) == 2
        for item in items:
            kind, source = item.media[0]
            assert isinstance(source, Frames) and (kind == "video") == (task.name in CLIP_KINDS)
            assert item.score(item.references[0])["right"] == (1.0, 1.0)
            assert item.score("I do not know")["right"] == (0.0, 1.0)
            again = task.item(item.id)
            assert again.question == item.question and np.array_equal(again.media[0][1].pixels, source.pixels)


def test_the_worlds_own_rule_decides() -> None:
    """Same figures as the world's score, whatever the metrics beside it say."""
    (task,) = open_tasks(["describe"], items=1)
    (item,) = task
    made = KINDS["describe"](int(item.id.split("/")[1]), mini.world())
    assert made is not None
    for answer in (item.references[0].upper() + ".", "a red star, " + item.references[0], ""):
        assert item.score(answer)["right"][0] == score("describe", answer, made[1])


def test_seeds_begin_where_they_are_told_to() -> None:
    (first,), (later,) = open_tasks(["colour"], items=4), open_tasks(["colour"], items=2, first_seed=2)
    ids = [item.id for item in first]
    assert [item.id for item in later] == [id for id in ids if int(id.split("/")[1]) >= 2][:2]


def test_left_and_right_are_not_above_and_below() -> None:
    (task,) = open_tasks(["left_right"], items=4)
    assert {item.references[0] for item in task} <= {"left", "right"}


def test_a_kind_that_the_difficulty_has_not_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = mini.world().asking(colour=1.0)
    monkeypatch.setitem(KINDS, "colour", lambda seed, level: None)
    monkeypatch.setitem(LEVELS, "world", lambda: bare)
    with pytest.raises(ConfigError, match="1000 seeds in a row have no question of kind colour"):
        list(open_tasks(["colour"], items=1)[0])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    turns = (("user", "a"), ("assistant", "b"), ("user", "when?"), ("assistant", "3.5 s"))
    records = [
        chat("<image>what?", "red", image="a.png", answers=["crimson"], evidence={"boxes": [[1, 2, 3, 4]], "span_s": [0, 2]}),
        chat("where?", "[1, 2, 30, 40]"),
        {"messages": [{"role": role, "content": text} for role, text in turns], "scorer": "time"},
    ]
    (task,) = open_tasks([write(tmp_path, *records)])
    one, two, three = task
    assert task.name == "mine" and [item.scorer for item in (one, two, three)] == ["text", "box", "time"]
    assert one.score("Crimson")["right"] == (1.0, 1.0) and one.media == [("image", str(tmp_path / "a.png"))]
    assert one.evidence.boxes == ((1.0, 2.0, 3.0, 4.0),) and one.evidence.span_s == (0.0, 2.0)
    assert [message["role"] for message in three.messages] == ["user", "assistant", "user"] and three.question == "when?"
    assert prompt_json(one.messages)[0]["content"][0] == {"type": "image", "image": str(tmp_path / "a.png")}
    assert with_system(one.messages, "Be brief.")[0] == {"role": "system", "content": "Be brief."}
    assert task.item("mine/1").question == "where?"
    again = reopen(json.loads(json.dumps(task.facts())))
    assert [item.references for item in again] == [item.references for item in task]
    assert len(open_tasks([str(tmp_path / "mine.jsonl")], items=2)[0]) == 2


def test_a_file_that_changed_is_another(tmp_path: Path) -> None:
    (task,) = open_tasks([write(tmp_path, chat("what?", "red"))])
    facts = task.facts()
    write(tmp_path, chat("what?", "blue"))
    with pytest.raises(DataError, match="has changed since the run began"):
        reopen(facts)


def test_an_earlier_turn_may_only_call_tools(tmp_path: Path) -> None:
    turns = [ASK, CALL, {"role": "tool", "content": "seen"}, {"role": "user", "content": "and?"}]
    (task,) = open_tasks([write(tmp_path, {"messages": [*turns, {"role": "assistant", "content": "red"}]})])
    (item,) = task
    assert item.question == "and?" and item.earlier == ["hi", "", "seen"] and item.references == ("red",)
    assert prompt_json(item.messages)[1]["content"] is None


def test_names_do_not_collide(tmp_path: Path) -> None:
    (tmp_path / "count.jsonl").write_text(json.dumps(chat("how many?", "3")))
    tasks = open_tasks([str(tmp_path / "count.jsonl"), "count", "count"], items=1)
    assert [task.name for task in tasks] == ["count-2", "count"] and isinstance(tasks[0], FileTask)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "x"}, "mine.jsonl:1: the record has the keys"),
        (chat("<image>what?", "red", image="gone.png"), "mine.jsonl:1: .*/gone.png: gone.png: no such file"),
        (chat("what?", "red", scorer="vibes"), "mine.jsonl:1: the scorer is 'vibes'; expected one of text"),
        (chat("what?", "red", scorer=["text"]), r"mine.jsonl:1: the scorer is \['text'\]; expected one of text"),
        (chat("what?", "red", scorer={}), r"mine.jsonl:1: the scorer is {}; expected one of text"),
        (chat("where?", "left", scorer="box"), "mine.jsonl:1: the reference 'left' holds no box"),
        (chat("what?", "red", answers="blue"), "answers is not a list"),
        (chat("what?", "red", evidence={"boxes": [[1, 2]]}), r"evidence is .*expected boxes \[\[x1"),
        (chat("what?", "red", evidence={"boxes": [[1, 2, 3, 4]], "frames": [0, 1]}), "2 frames for 1 boxes"),
        (chat("what?", "red", tools=[{"name": "f"}]), "tools, which an examination cannot call"),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "no question before the last answer"),
        ({"messages": [ASK, CALL]}, "mine.jsonl:1: an answer to compare with is empty"),
        ({"messages": [ASK, {"role": "assistant", "content": None, "reasoning_content": "hm"}]}, "compare with is empty"),
        (chat("what?", "red", answers=[" "]), "an answer to compare with is empty"),
        (chat("<image>what?", "red", image="mine.jsonl"), "mine.jsonl:1: .*mine.jsonl: "),
        (chat("<image>what?", "red", image="file:///gone.png"), "mine.jsonl:1: file:///gone.png: gone.png: no such file"),
        (chat("<image>what?", "red", image=[["a.png"]]), r"image 0 is \['.*'\]; expected the name of a file"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", "fps": float("nan")}]}, SAID]},
            "not JSON",
        ),
        (chat("<video>what?", "red", video=[[]]), r"video 0 is \[\]; expected the name of a file"),
    ],
)
def test_a_bad_record_is_named_before_anything_is_asked(tmp_path: Path, record: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_tasks([write(tmp_path, record)])


BOX = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        ({"boxes": [BOX], "pictures": [7]}, "evidence names picture 7, and the question has 2 pictures and clips; they count"),
        ({"boxes": [BOX], "pictures": [-1]}, "evidence names picture -1"),
        ({"boxes": [BOX], "frames": [99]}, "evidence names frame 99 of picture 0, which has 1; they count from 0"),
        ({"boxes": [BOX], "frames": [12], "pictures": [1]}, "evidence names frame 12 of picture 1, which has 12"),
        ({"boxes": [BOX], "frames": [-1], "pictures": [1]}, "evidence names frame -1 of picture 1"),
        ({"boxes": [BOX], "frames": [0.5], "pictures": [1]}, "evidence is .*expected boxes"),
        ({"boxes": [BOX], "frames": [True]}, "evidence is .*expected boxes"),
        ({"boxes": [[1, 2, float("inf"), 4]]}, r"evidence has the box \[1.0, 2.0, inf, 4.0\]; expected numbers"),
        ({"boxes": [[1, 2, float("nan"), 4]]}, "evidence has the box"), ({"boxes": [[1, 2, 10**400, 4]]}, "evidence is"),
        ({"boxes": [[3, 2, 1, 4]]}, "x1 < x2 and y1 < y2"), ({"boxes": [[1, 2, 1, 4]]}, "x1 < x2 and y1 < y2"),
        ({"boxes": [[1, 2, 500, 20]]}, r"evidence has the box .* in picture 0, which is 30 x 20 pixels"),
        ({"boxes": [[-9, 2, 5, 20]]}, "which is 30 x 20 pixels"),
        ({"boxes": [[1, 2, 300, 4]], "pictures": [1]}, "in picture 1, which is 64 x 32 pixels"),
        ({"span_s": [3, 1]}, r"evidence has the span \[3.0, 1.0\]"), ({"span_s": [0, float("inf")]}, "evidence has the span"),
        ({"span_s": {"from": 1}}, "evidence is .*expected boxes"),
    ],
)  # fmt: skip
def test_evidence_is_in_the_media(tmp_path: Path, evidence: Any, says: str) -> None:
    (tmp_path / "b.mp4").write_bytes(clip(12, size=(32, 64)))
    given = {"boxes": [[0, 0, 30.5, 20], BOX], "pictures": [0, 1], "frames": [0, 11], "span_s": [0, 1]}
    both = {"image": "a.png", "video": "b.mp4"}
    open_tasks([write(tmp_path, chat("<image><video>what?", "red", **both, evidence=given))])
    good = chat("what?", "red")
    with pytest.raises(DataError, match=f"mine.jsonl:2: .*{says}"):
        open_tasks([write(tmp_path, good, chat("<image><video>what?", "red", **both, evidence=evidence))])


def test_a_list_of_evidence_has_one_for_each_answer(tmp_path: Path) -> None:
    two = [{"from": who, "value": said} for who, said in (("human", "<image>a?"), ("gpt", "b"), ("human", "c?"), ("gpt", "d"))]
    record = {"image": "a.png", "conversations": two}
    (task,) = open_tasks([write(tmp_path, record | {"evidence": [{"boxes": [BOX]}, {"boxes": [[2, 3, 4, 5]]}]})])
    (item,) = task
    assert item.evidence.boxes == ((2.0, 3.0, 4.0, 5.0),)
    with pytest.raises(DataError, match="evidence is a list of 1 for 2 answers; give one for each"):
        open_tasks([write(tmp_path, record | {"evidence": [{"boxes": [BOX]}]})])


def test_evidence_needs_media_and_a_list_of_pictures_counts_its_frames(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="evidence names boxes, and the question has 0 pictures and clips"):
        open_tasks([write(tmp_path, chat("what?", "red", evidence={"boxes": [BOX]}))])
    asked = chat("<video>what?", "red", videos=[["a.png", "a.png"]])
    open_tasks([write(tmp_path, asked | {"evidence": {"boxes": [BOX], "frames": [1]}})])
    with pytest.raises(DataError, match="evidence names frame 2 of picture 0, which has 2"):
        open_tasks([write(tmp_path, asked | {"evidence": {"boxes": [BOX], "frames": [2]}})])


@pytest.mark.parametrize(
    ("specs", "options", "says"),
    [
        ([], {}, "there is nothing to ask"), (["cuont"], {}, "there is no task 'cuont'; did you mean count"),
        (["nonsense"], {}, "known: pictures, clips, all"), (["count"], {"items": 0}, "0 items"),
        (["count"], {"first_seed": -1}, "the first seed is -1"), (["count"], {"scorer": "vibes"}, "the scorer is 'vibes'"),
        (["gone.jsonl"], {}, "gone.jsonl: no such file"), (["gone.jsonl%50"], {}, "gone.jsonl%50 is a part"),
    ],
)  # fmt: skip
def test_mistakes(specs: list[str], options: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        open_tasks(specs, **options)


def test_scorers_have_names_for_records() -> None:
    assert set(SCORERS) == {"text", "exact", "list", "box", "time", "span", "yesno"}

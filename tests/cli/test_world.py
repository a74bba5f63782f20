"""`foveal world`: a folder that `foveal data check` reads."""

from __future__ import annotations

import json
from pathlib import Path

from foveal.evaluate import open_tasks
from foveal.finetune.formats import read_record
from foveal.world import CASE_KINDS, make
from tests.command import Run


def test_a_folder_of_cases(run_foveal: Run, tmp_path: Path) -> None:
    done = run_foveal("world", tmp_path / "out", "--kinds", "pictures,order", "--count", 2, "--seed", 5)
    assert (done.code, done.out) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    assert [(record["kind"], record["seed"]) for record in records] == [("pictures", 5), ("order", 6)]
    for record in records:
        case = make(record["kind"], record["seed"])
        messages = read_record(record, tmp_path / "out").messages
        assert [m["content"] for m in messages[1::2]] == [q.answer for q in case.questions]
        media = [part[part["type"]] for part in messages[0]["content"] if part["type"] != "text"]
        assert len(media) == len(case.items) and all(Path(path).is_file() for path in media)
        assert len(record["evidence"]) == len(case.questions)


def test_an_examination_reads_every_kind(run_foveal: Run, tmp_path: Path) -> None:
    assert run_foveal("world", tmp_path / "out", "--count", len(CASE_KINDS), "--seed", 3).code == 0
    (task,) = open_tasks([str(tmp_path / "out" / "data.jsonl")])
    for number, (kind, item) in enumerate(zip(CASE_KINDS, task, strict=True)):
        last = make(kind, 3 + number).questions[-1]
        assert item.references == (last.answer,) and item.evidence.boxes == last.boxes


def test_refusals(run_foveal: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words, part in (
        ((tmp_path,), "not an empty folder"),
        ((tmp_path / "new", "--kinds", "recipe"), "kinds are receipt, form"),
        ((tmp_path / "new", "--count", 0), "ask for one case or more"),
    ):
        done = run_foveal("world", *words)
        assert (done.code, done.out) == (2, "") and part in done.err
    assert not (tmp_path / "new").exists()

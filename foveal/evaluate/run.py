"""An examination in a folder: exam.json says what is asked of whom, answers.jsonl holds a line for every answer as it comes.

A line is written whole, in one call, so that whatever ends a run leaves at most one piece of a line behind, which the next
start takes off. Going on means asking what has no line yet: everything else follows from the lines.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import foveal
from foveal.errors import ConfigError, DataError, FovealError
from foveal.evaluate.arms import Arm, Said, answered
from foveal.evaluate.items import Item, prompt_json
from foveal.evaluate.tasks import Task, reopen

EXAM, ANSWERS, REPORT, PAGE = "exam.json", "answers.jsonl", "report.json", "report.html"

Line = dict[str, Any]
"""arm, task, id, prompt, references, answer, reasoning, finish_reason, error, scorer, scores, evidence, tokens, seconds."""


class Run:
    """A folder of answers. lines: by arm and id."""

    def __init__(self, folder: Path, tasks: Sequence[Task], arms: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.tasks, self.arms = folder, list(tasks), {name: dict(given) for name, given in arms.items()}
        self.lines: dict[tuple[str, str], Line] = {}

    @classmethod
    def new(cls, folder: Path, tasks: Sequence[Task], arms: Mapping[str, Mapping[str, Any]]) -> Run:
        """Begin a run. Raise ConfigError where the folder holds something already."""
        if (folder / EXAM).exists():
            raise ConfigError(f"{folder} holds an examination already; --resume goes on with it, or name another folder")
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, tasks, arms)
        run.save()
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run, to go on with it. Raise ConfigError or DataError where it is none, or its data have changed."""
        try:
            tasks, arms = _asked(json.loads((folder / EXAM).read_text(encoding="utf-8")))
        except OSError:
            raise ConfigError(f"{folder} holds no examination ({EXAM}); leave out --resume to begin one") from None
        except FovealError:  # a ValueError, too, which knows better what is wrong
            raise
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{folder / EXAM} is damaged; begin a new run") from None
        run = cls(folder, tasks, arms)
        run._read()
        return run

    def save(self) -> None:
        """Write down what is asked of whom."""
        facts = {"foveal": foveal.__version__, "tasks": [task.facts() for task in self.tasks], "arms": self.arms}
        write_text(self.folder / EXAM, json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def add(self, line: Line) -> None:
        """Keep an answer."""
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        data = text.encode("utf-8", "surrogatepass")  # json reads those, too
        file = os.open(self.folder / ANSWERS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(file).st_size
            if os.write(file, data) < len(data):
                os.ftruncate(file, size)  # the next answer would be glued to this piece
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / ANSWERS))
        finally:
            os.close(file)
        self.lines[line["arm"], line["id"]] = json.loads(data)  # as the next start will find it

    def left(self, arm: str) -> Iterator[tuple[Task, Item]]:
        """Make what an arm has not been asked yet. Raise DataError where an item is another than it was."""
        for task in self.tasks:
            for item in task:
                line = self.lines.get((arm, item.id))
                if line is None:
                    yield task, item
                elif line["prompt"] != prompt_json(item.messages) or line["references"] != list(item.references):
                    raise DataError(f"{self.folder}: {item.id} is not what it was when the run began; begin a new run")

    def _read(self) -> None:
        """Read the answers, and take off what was left of a line that was being written."""
        file = self.folder / ANSWERS
        if not file.exists():
            return
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(file, len(whole))
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
                _check_line(line)
                self.lines[line["arm"], line["id"]] = line
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(f"{file}:{number}: damaged; take the line out, and --resume asks again") from None


def _asked(facts: Any) -> tuple[list[Task], dict[str, dict[str, Any]]]:
    """Read what an examination asks of whom. Raise KeyError, TypeError or ValueError where it is damaged."""
    tasks, arms = facts["tasks"], facts["arms"]
    if not (isinstance(tasks, list) and isinstance(arms, dict) and tasks and arms):
        raise TypeError
    if not all(isinstance(one, dict) for one in (*tasks, *arms.values())):
        raise TypeError
    return [reopen(task) for task in tasks], arms


def _check_line(line: Any) -> None:
    """Look in a line for all that going on and the report read. Raise KeyError, TypeError or ValueError where it is missing."""
    tokens, scores = line["tokens"], line["scores"]
    texts = all(isinstance(line[name], str) for name in ("arm", "task", "id", "answer", "finish_reason"))
    lists = all(isinstance(line[name], list) for name in ("prompt", "references"))
    pairs = isinstance(scores, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in scores.values())
    if not (texts and lists and pairs and "right" in scores and isinstance(line["error"], str | None)):
        raise TypeError
    numbers = (line["seconds"], tokens["prompt"], tokens["generated"], *(one for pair in scores.values() for one in pair))
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError


def examine(run: Run, arms: Sequence[Arm], seen: Callable[[str, str, int, int], None] = lambda *_: None) -> None:
    """Ask every arm what it has not been asked yet. seen: told the arm, the task, and how many of how many are answered."""
    total = sum(len(task) for task in run.tasks)
    for arm in arms:
        count = sum(name == arm.name for name, _ in run.lines)
        if count == total:
            continue
        tasks: dict[str, str] = {}

        def items(name: str = arm.name, tasks: dict[str, str] = tasks) -> Iterator[Item]:
            for task, item in run.left(name):
                tasks[item.id] = task.name
                yield item

        seen(arm.name, "loading", count, total)
        with contextlib.closing(answered(arm.open(), items())) as answers:
            for item, said in answers:
                task = tasks.pop(item.id)
                run.add(line_of(arm.name, task, item, said))
                count += 1
                seen(arm.name, task, count, total)


def line_of(arm: str, task: str, item: Item, said: Said) -> Line:
    """Score an answer and write it out."""
    return {
        "arm": arm, "task": task, "id": item.id, "prompt": prompt_json(item.messages), "references": list(item.references),
        "answer": said.text, "reasoning": said.reasoning, "finish_reason": said.finish_reason, "error": said.error,
        "scorer": item.scorer, "scores": item.score(said.text), "evidence": item.evidence.to_json(),
        "tokens": {"prompt": said.prompt_tokens, "generated": said.generated_tokens}, "seconds": round(said.seconds, 4),
    }  # fmt: skip


def write_text(file: Path, text: str) -> None:
    """Write a file beside the old one, and put it in its place at once."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)

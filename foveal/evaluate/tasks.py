"""What can be asked: kinds of the generated world, by name, and files of one's own.

A task makes its items one by one, in the same order every time, and any of them again from its id.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from foveal.errors import ConfigError, DataError
from foveal.evaluate.file_tasks import FileTask
from foveal.evaluate.items import Item
from foveal.evaluate.scorers import SCORERS
from foveal.evaluate.world_tasks import CASES, GROUPS, KINDS, LEVELS, CaseTask, WorldTask
from foveal.finetune.sources import SourceOptions, open_source, require_whole


class Task(Protocol):
    """A named list of items. `facts` identify it: a run that goes on must have the same."""

    @property
    def name(self) -> str: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Item]: ...
    def item(self, id: str) -> Item: ...
    def facts(self) -> dict[str, Any]: ...


def open_tasks(
    specs: Sequence[str], *, items: int | None = None, level: str = "world", first_seed: int = 0,
    scorer: str | None = None, root: Path | None = None,
) -> list[Task]:  # fmt: skip
    """Make tasks of kinds of both editions, groups of kinds (pictures, clips, all; second, bars and others) and files.

    items: of each; by default 100 of a kind and all of a file. scorer, root: for files. Raise ConfigError for an unknown name,
    DataError for a file that cannot be used, before anything is asked.
    """
    if items is not None and items < 1:
        raise ConfigError(f"{items} items of each task; expected at least 1")
    if first_seed < 0:
        raise ConfigError(f"the first seed is {first_seed}; expected 0 or more")
    if scorer is not None and scorer not in SCORERS:
        raise ConfigError(f"the scorer is {scorer!r}; expected one of {', '.join(SCORERS)}")
    tasks: dict[str, Task] = {}
    for spec in specs:
        if spec in KINDS or spec in CASES or spec in GROUPS:
            count = 100 if items is None else items
            for kind in GROUPS.get(spec, (spec,)):
                tasks[kind] = CaseTask(kind, count, first_seed) if kind in CASES else WorldTask(kind, count, first_seed, level)
            continue
        if "/" not in spec and "." not in spec and not Path(spec).is_file():
            raise ConfigError(_unknown(spec))
        require_whole(spec)
        source = open_source(spec)
        if root is not None:
            source = replace(source, options=SourceOptions(source.options.path, root))
        name = _free(Path(spec).stem, tasks)
        task = FileTask(name, source, len(source) if items is None else min(items, len(source)), scorer)
        task.check()
        tasks[name] = task
    if not tasks:
        raise ConfigError("there is nothing to ask; name kinds of the world, such as count or pictures, or a JSONL file")
    return list(tasks.values())


def reopen(facts: Mapping[str, Any]) -> Task:
    """Make a task again from its facts. Raise DataError where its file is another now, KeyError or TypeError for no facts."""
    numbers = [facts["items"]] + ([] if "file" in facts else [facts["first_seed"]])
    texts = [facts["task"]] + ([facts["file"], facts["root"]] if "file" in facts else [])
    if not all(isinstance(one, int) for one in numbers) or not all(isinstance(one, str) for one in texts):
        raise TypeError(f"numbers {numbers}, texts {texts}")
    if "file" not in facts and facts["task"] not in (CASES if "edition" in facts else KINDS):
        raise KeyError(facts["task"])
    if "edition" in facts:
        return CaseTask(facts["task"], facts["items"], facts["first_seed"])
    if "file" not in facts:
        if facts["difficulty"] not in LEVELS:
            raise KeyError(facts["difficulty"])
        return WorldTask(facts["task"], facts["items"], facts["first_seed"], facts["difficulty"])
    source = open_source(facts["file"])
    source = replace(source, options=SourceOptions(source.options.path, Path(facts["root"])))
    task = FileTask(facts["task"], source, facts["items"], facts["scorer"])
    if task.facts() != dict(facts):
        raise DataError(f"{facts['file']} has changed since the run began; put it back, or begin a new run")
    return task


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """Number a file's name where a kind or another file has it."""
    out, number = name, 2
    while out in taken or out in KINDS or out in CASES:
        out, number = f"{name}-{number}", number + 1
    return out


def _unknown(spec: str) -> str:
    near = difflib.get_close_matches(spec, [*KINDS, *CASES, *GROUPS], n=1)
    names = ", ".join(dict.fromkeys((*GROUPS, *KINDS)))
    known = f"did you mean {near[0]}?" if near else f"known: {names}; or name a JSON or JSONL file"
    return f"there is no task {spec!r}; {known}"

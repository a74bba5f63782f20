"""Arms without a model: what they say is decided by a test, so that examinations cost nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from foveal.evaluate import Arm, Item, Run, Said, Task, open_tasks

Speaker = Callable[[Item], str]


class Parrot:
    """Says what a function of the item gives."""

    parallel = 4

    def __init__(self, speak: Speaker) -> None:
        self.speak, self.closed = speak, threading.Event()
        self.asked: list[str] = []

    def __call__(self, item: Item) -> Said:
        self.asked.append(item.id)
        return Said(self.speak(item), "stop", None, 10, 2, 0.25)

    def close(self) -> None:
        self.closed.set()


def arm(name: str, speak: Speaker) -> Arm:
    return Arm(name, {"model": name}, lambda: Parrot(speak))


def truth(item: Item) -> str:
    return item.references[0]


def new_run(folder: Path, specs: Sequence[str], arms: Sequence[Arm], items: int | None = 6) -> Run:
    tasks: list[Task] = open_tasks(specs, items=items)
    return Run.new(folder, tasks, {one.name: one.settings for one in arms})

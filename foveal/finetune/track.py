"""A run's log in trackio or TensorBoard, for those who watch many runs: the numbers of metrics.jsonl at the same steps."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from foveal.errors import MissingDependency

Kind = Literal["trackio", "tensorboard"]


class Tracker(Protocol):
    """Where numbers go beside the log."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is still held, and end."""


class Trackio:
    """A run of trackio, named like its folder in a project named like the folder above; one that is resumed goes on."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        self._trackio = _require("trackio", "trackio")
        project = folder.absolute().parent.name or "foveal"
        self._trackio.init(project=project, name=folder.name, config=dict(settings), resume="allow" if step else "never")

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self) -> None:
        self._trackio.finish()


class TensorBoard:
    """Event files in the folder's tensorboard/. What a resumed run will log again is hidden."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        board = _require("torch.utils.tensorboard", "tensorboard")
        self._writer = board.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_KINDS: dict[Kind, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {"trackio": Trackio, "tensorboard": TensorBoard}


def open_trackers(kinds: Sequence[Kind], folder: Path, step: int, settings: Mapping[str, Any]) -> list[Tracker]:
    """Begin to track a run of `folder`, or go on behind `step`. Raise MissingDependency for one that is not installed."""
    return [_KINDS[kind](folder, step, settings) for kind in kinds]


def _require(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependency(package, package, f'track = ["{package}"]') from None

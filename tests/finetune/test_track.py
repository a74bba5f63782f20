"""The log goes to trackio and TensorBoard as well, which are played here: the numbers, the steps, the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foveal.errors import MissingDependency
from foveal.finetune.log import Log
from foveal.finetune.track import Kind, open_trackers


class _Played(ModuleType):
    """Both libraries at once: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("played")
        self.told: list[tuple[Any, ...]] = []

    def init(self, **options: Any) -> None:
        self.told.append(("init", options))

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.told.append((step, numbers))

    def finish(self) -> None:
        self.told.append(("end",))

    def SummaryWriter(self, folder: str, purge_step: int | None) -> _Played:
        self.told.append(("init", {"folder": folder, "purge_step": purge_step}))
        return self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.told.append((step, {name: value}))

    def close(self) -> None:
        self.told.append(("end",))


@pytest.mark.parametrize("kind", ["trackio", "tensorboard"])
def test_a_run_is_tracked(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = _Played()
    monkeypatch.setitem(sys.modules, "trackio" if kind == "trackio" else "torch.utils.tensorboard", played)
    folder = tmp_path / "project" / "run"
    log = Log(folder, 7, trackers=open_trackers([kind], folder, 7, {"seed": 3}))
    log.add({"step": 8, "loss": 2.0})
    log.add({"step": 8, "eval_loss": 1.5})
    log.close()
    assert [json.loads(line) for line in log.file.read_text().splitlines()] == [
        {"step": 8, "loss": 2.0}, {"step": 8, "eval_loss": 1.5},
    ]  # fmt: skip
    (_, begun), *told = played.told
    assert told == [(8, {"loss": 2.0}), (8, {"eval_loss": 1.5}), ("end",)]
    if kind == "trackio":
        assert begun == {"project": "project", "name": "run", "config": {"seed": 3}, "resume": "allow"}
    else:
        assert begun == {"folder": str(folder / "tensorboard"), "purge_step": 8}


@pytest.mark.parametrize(("kind", "module"), [("trackio", "trackio"), ("tensorboard", "torch.utils.tensorboard")])
def test_the_missing_one_is_named(kind: Kind, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf'needs {kind}, which is not installed; run: pip install -e "\.\[{kind}\]"'):
        open_trackers([kind], tmp_path, 0, {})

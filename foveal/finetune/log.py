"""The log of a run, metrics.jsonl: a line for steps and one for every evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal.finetune.track import Tracker

FILE = "metrics.jsonl"
_SUMS = ("samples", "tokens", "learned")


class Log:
    """Appends to a run's log. Lines of steps after `step`, which a resumed run will make again, are taken out first.

    writes: whether this process does; the others of a team only keep in mind what has been evaluated. trackers: are told the
    same numbers.
    """

    def __init__(self, folder: Path, step: int, *, writes: bool = True, trackers: Sequence[Tracker] = ()) -> None:
        self.file, self._writes, self._trackers = folder / FILE, writes, trackers
        self._evaluated: float = -1
        self._open: list[dict[str, Any]] = []
        if self.file.is_file():
            lines = [line for line in self.file.read_text().splitlines() if _step(line) <= step]
            if writes:
                part = folder / f".{FILE}.part"
                part.write_text("".join(line + "\n" for line in lines))
                part.replace(self.file)
            self._evaluated = max((_step(line) for line in lines if "eval_loss" in line), default=-1)

    def add(self, line: dict[str, Any], write: bool = True) -> None:
        """Take a line; with `write` put out one that stands for all taken since: sums of counts, means of the rest."""
        if "eval_loss" in line:
            self._evaluated = line["step"]
            self._write(line)
            return
        self._open.append(line)
        if write:
            self.flush()

    def flush(self) -> None:
        """Put out a line for what has been taken since the last one, as before a state is saved: neither knows of more."""
        if self._open:
            self._write(_joined(self._open))
            self._open.clear()

    def has_evaluation(self, step: int) -> bool:
        """Tell whether the evaluation of a step has been logged."""
        return self._evaluated == step

    def close(self) -> None:
        """Put out the rest, and end the trackers."""
        self.flush()
        for tracker in self._trackers:
            tracker.close()

    def _write(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.add(line["step"], {name: value for name, value in line.items() if name != "step"})


def _joined(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the lines of several steps: the loss by weight, speed by tokens, everything else as of the last."""
    out = dict(lines[-1])
    if len(lines) > 1:
        weight = sum(line["weight"] for line in lines)
        out["loss"] = sum(line["loss"] * line["weight"] for line in lines) / weight
        out |= {key: sum(line[key] for line in lines) for key in _SUMS}
        out["tokens_per_s"] = round(out["tokens"] / sum(line["tokens"] / line["tokens_per_s"] for line in lines), 1)
    return out


def _step(line: str) -> float:
    """Read a line's step; of half a line, left by a kill, it is beyond any."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")

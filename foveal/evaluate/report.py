"""Lines to a report: every metric of every arm with its interval, and every difference of two arms, paired item by item."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import foveal
from foveal.evaluate.bootstrap import difference, estimate
from foveal.evaluate.run import Line, Run
from foveal.evaluate.scorers import badness

Lines = dict[str, dict[str, Line]]
"""Of one task: the lines of each arm, by id."""

SHARES = ("right", "exact", "iou@", "r1@")  # of a single box or span; several count as a ratio
LOWER_IS_BETTER = ("cer", "error_s")


def make_report(run: Run, seed: int = 0) -> dict[str, Any]:
    """Report on what has been answered so far. The order in which answers came changes nothing but times."""
    tasks = {task.name: _lines(run, task.name) for task in run.tasks}
    out = []
    for task in run.tasks:
        lines = tasks[task.name]
        seen = (metric for of_arm in lines.values() for line in of_arm.values() for metric in line["scores"])
        names = list(dict.fromkeys(("right", *seen)))
        out.append({"name": task.name, "facts": task.facts()} | _measured([lines], names, seed))
    return {
        "what": "foveal eval", "foveal": foveal.__version__, "arms": [_arm(run, name) for name in run.arms], "tasks": out,
        "mean": _measured(list(tasks.values()), ["right"], seed),
    }  # fmt: skip


def estimate_text(metric: str, one: Mapping[str, Any], *, signed: bool = False) -> str:
    """Write a value and its interval in percent, an error in time in seconds: 97.2 [95.3, 98.3]."""
    if one["value"] is None:
        return "–"
    scale, digits = (1.0, 2) if metric == "error_s" else (100.0, 1)

    def show(value: float) -> str:
        return f"{scale * value:{'+' if signed else ''}.{digits}f}"

    ends = f" [{show(one['low'])}, {show(one['high'])}]" if one["low"] is not None else ""
    return f"{show(one['value'])}{ends}"


def worst(run: Run, task: str, count: int) -> list[str]:
    """Name the items that went most wrong, those first that some arm got right: they say more about the difference."""
    by_id: dict[str, list[Line]] = {}
    for of_arm in _lines(run, task).values():
        for id, line in of_arm.items():
            by_id.setdefault(id, []).append(line)

    def rank(id: str) -> tuple[bool, float, str]:
        right = [line["scores"]["right"][0] == 1 for line in by_id[id]]
        return not any(right), -max(badness(line["scores"]) for line in by_id[id]), id

    failed = [id for id, lines in by_id.items() if any(line["scores"]["right"][0] < 1 for line in lines)]
    return sorted(failed, key=rank)[:count]


def _lines(run: Run, task: str) -> Lines:
    """Collect a task's lines, arms in the order of the run and ids sorted."""
    out: Lines = {arm: {} for arm in run.arms}
    for (arm, id), line in sorted(run.lines.items(), key=lambda entry: entry[0][1]):
        if line["task"] == task and arm in out:
            out[arm][id] = line
    return out


def _measured(tasks: Sequence[Lines], metrics: Sequence[str], seed: int) -> dict[str, Any]:
    """Estimate metrics over tasks, each weighing alike, and all differences: the later arm less the earlier."""
    values: dict[str, Any] = {}
    differences: dict[str, list[dict[str, Any]]] = {}
    arms = list(tasks[0])
    for metric in metrics:
        values[metric] = {
            arm: estimate(
                [_pairs(lines, [arm], metric)[0] for lines in tasks], seed, is_share=metric.startswith(SHARES)
            ).to_json()
            for arm in arms
        }
        differences[metric] = []
        for first, second in itertools.combinations(arms, 2):
            both = [_pairs(lines, [first, second], metric) for lines in tasks]
            made = difference([pairs[0] for pairs in both], [pairs[1] for pairs in both], seed)
            differences[metric].append({"arm": second, "against": first} | made.to_json())
    return {"metrics": values, "differences": differences}


def _pairs(lines: Lines, arms: Sequence[str], metric: str) -> np.ndarray:
    """Collect a metric of the items that all of some arms answered: (arms, n, 2), a row for all but items of 0 / 0 in all."""
    ids = [id for id in lines[arms[0]] if all(id in lines[arm] for arm in arms)]
    out = np.array([[lines[arm][id]["scores"].get(metric, (0.0, 0.0)) for id in ids] for arm in arms], np.float64)
    out = out.reshape(len(arms), -1, 2)
    return out[:, out[:, :, 1].any(0)]


def _arm(run: Run, name: str) -> dict[str, Any]:
    """Say what an arm was and what it took."""
    lines = [line for (arm, _), line in run.lines.items() if arm == name]
    reasons = Counter(line["finish_reason"] for line in lines)

    def mean(kind: str) -> float:
        return round(statistics.fmean(line["tokens"][kind] for line in lines), 2) if lines else 0.0

    return {
        "name": name, "settings": run.arms[name], "answered": len(lines),
        "refused": sum(line["error"] is not None for line in lines), "finish_reasons": dict(sorted(reasons.items())),
        "prompt_tokens": mean("prompt"), "generated_tokens": mean("generated"),
        "median_s": round(statistics.median(line["seconds"] for line in lines), 4) if lines else 0.0,
    }  # fmt: skip

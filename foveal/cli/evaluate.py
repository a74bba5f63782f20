"""`foveal eval`: ask every arm the same, keep every answer, report."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.cli import arms as words
from foveal.cli import session, show
from foveal.errors import ConfigError

_CHOSEN = {"items": None, "level": "world", "first_seed": 0, "scorer": None, "root": None}  # what stands where nothing is said


def run(
    tasks: Sequence[str], specs: Sequence[str], base: words.Options, output: Path | None, resume: bool, as_json: bool,
    **chosen: Any,
) -> None:  # fmt: skip
    from foveal.evaluate import examine, make_report
    from foveal.evaluate.page import render
    from foveal.evaluate.run import PAGE, REPORT, write_text

    began = _resumed(tasks, specs, base, output, chosen) if resume else _begun(tasks, specs, base, output, chosen)
    given = {name: words.from_settings(settings) for name, settings in began.arms.items()}
    before = len(began.lines)
    try:
        with session.progress() as line:
            arms = [words.make_arm(name, options, line) for name, options in given.items()]
            examine(began, arms, lambda arm, task, count, total: line(f"{arm}: {task}, {count} of {total} answers"))
            line("drawing the report")
            report = make_report(began)
            write_text(began.folder / REPORT, show.json_text(report))
            write_text(began.folder / PAGE, render(began, report))
    except BaseException:
        if kept := len(began.lines):
            session.note(f"{kept} answers ({kept - before} new) are kept in {began.folder}; --resume goes on")
        raise
    if as_json:
        show.write_json(report)
    else:
        _print(report)
    refused = sum(arm["refused"] for arm in report["arms"])
    if refused:
        session.note(f"{refused} questions were refused and count as wrong; their reasons are in the page and the answers")
    session.note(f"wrote {began.folder / PAGE}, with every answer beside it")


def _begun(tasks: Sequence[str], specs: Sequence[str], base: words.Options, output: Path | None, chosen: Any) -> Any:
    from foveal.evaluate import Run, open_tasks

    arms = words.read_arms(specs, base)
    for name, options in arms.items():
        words.check(name, options)
    made = open_tasks(tasks, **chosen)
    folder = output or Path("runs") / f"eval-{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    return Run.new(folder, made, {name: options.given() for name, options in arms.items()})


def _resumed(tasks: Sequence[str], specs: Sequence[str], base: words.Options, output: Path | None, chosen: Any) -> Any:
    """Open a run; tasks and arms are its own, and --arm adds arms to it."""
    from foveal.evaluate import Run

    if output is None:
        raise ConfigError("--resume needs --output, the folder of the run to go on with")
    if tasks or chosen != _CHOSEN or (base.given() and not specs):
        raise ConfigError("--resume takes tasks and settings from the run; leave them out (--arm adds an arm)")
    began = Run.open(output)
    added = words.read_arms(specs, base) if specs else {}
    for name in added:
        if name in began.arms:
            raise ConfigError(f"the run in {output} has an arm {name} already; give the new one another name")
    for name, options in (*((n, words.from_settings(s)) for n, s in began.arms.items()), *added.items()):
        words.check(name, options)
    if added:
        began.arms |= {name: options.given() for name, options in added.items()}
        began.save()
    return began


def _print(report: Mapping[str, Any]) -> None:
    """Lay out the shares of right answers, every other metric, and how arms differ from the first."""
    from foveal.evaluate.report import estimate_text

    names = [arm["name"] for arm in report["arms"]]
    rows = []
    for task in (*report["tasks"], {"name": "mean of tasks", **report["mean"]}):
        if task["name"] == "mean of tasks" and len(report["tasks"]) == 1:
            continue
        for metric, values in task["metrics"].items():
            cells = [estimate_text(metric, values[name]) for name in names]
            cells += [estimate_text(metric, d, signed=True) for d in task["differences"][metric] if d["against"] == names[0]]
            rows.append((task["name"] if metric == "right" else "", metric, *cells))
    columns = ("task", "", *names, *(f"{name} less {names[0]}" for name in names[1:]))
    out = show.console()
    title = "in % (error_s in s), with 95 % intervals; differences are paired"
    made = show.table(title, rows, columns, right=range(2, len(columns)))
    if out.measure(made, options=out.options.update(max_width=10_000)).maximum > out.width:
        # Each interval stands under its value: wrapped anywhere else it could not be read.
        below = [tuple(cell.replace(" [", "\n[") for cell in row) for row in rows]
        made = show.table(title, below, columns, right=range(2, len(columns)))
    out.print(made)
    arms = [
        (arm["name"], f"{arm['answered']:,}", f"{arm['prompt_tokens']:.1f}", f"{arm['generated_tokens']:.1f}",
         show.seconds(arm["median_s"]), ", ".join(f"{reason} {count:,}" for reason, count in arm["finish_reasons"].items()))
        for arm in report["arms"]
    ]  # fmt: skip
    heads = ("arm", "answers", "prompt tokens", "reply tokens", "median time", "ended by")
    out.print(show.table("\narms", arms, heads, right=(1, 2, 3, 4)))

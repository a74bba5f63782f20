"""Words and options of `foveal eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

from foveal.cli.arms import Options, ServerOptions
from foveal.cli.options import OUTPUT, Flag, MediaOptions, ModelOptions, SamplingOptions

TASKS = Group("Tasks", sort_key=0)

Spec = Annotated[
    str,
    Parameter(
        help="Kinds of the generated world (count, receipt_total, ...) or groups (all, second, bars, ...); JSON or JSONL files."
    ),
]


def register(app: App) -> None:
    """Add the command to an app."""
    app.command(examine, name="eval")


def examine(
    *tasks: Spec,
    arm: Annotated[
        list[str] | None,
        Parameter(negative="", help="name:key=value,... with options of ask, on top of those given here; may be repeated."),
    ] = None,
    items: Annotated[int | None, Parameter(group=TASKS, help="Of each task; by default 100 of a kind, all of a file.")] = None,
    difficulty: Annotated[
        Literal["world", "wide"], Parameter(group=TASKS, help="As the embedded model is trained for, or all there is.")
    ] = "world",
    first_seed: Annotated[int, Parameter(group=TASKS, help="Where the world's items begin.")] = 0,
    scorer: Annotated[
        str | None, Parameter(group=TASKS, help="Of files: text, exact, list, box, time, span or yesno; else by the reference.")
    ] = None,
    root: Annotated[
        Path | None, Parameter(group=TASKS, help="Folder that a file's media are relative to; else its own.")
    ] = None,
    model: ModelOptions | None = None,
    media: MediaOptions | None = None,
    sampling: SamplingOptions | None = None,
    server: ServerOptions | None = None,
    output: Annotated[Path | None, Parameter(group=OUTPUT, help="Folder of the run; a dated one in runs/ by default.")] = None,
    resume: Annotated[Flag, Parameter(help="Go on with the run in --output; --arm adds an arm to it.")] = False,
    json: Annotated[Flag, Parameter(help="The report as JSON instead of tables.")] = False,
) -> None:
    """Examine models side by side: every answer kept, every difference with its interval.

    foveal eval count box --items 200 --arm plain: --arm q8:quantize=8 --output runs/q8
    """
    from foveal.cli.evaluate import run

    base = Options(model or ModelOptions(), media or MediaOptions(), sampling or SamplingOptions(), server or ServerOptions())
    run(tasks, arm or [], base, output, resume, json, items=items, level=difficulty, first_seed=first_seed, scorer=scorer,
        root=root)  # fmt: skip

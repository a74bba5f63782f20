"""`foveal train`, `foveal merge` and `foveal timestamps`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foveal.cli import session, show
from foveal.cli.models import check_runnable
from foveal.errors import ConfigError


def run(config: Path | None, changes: dict[str, Any], assignments: Sequence[str]) -> None:
    from foveal.finetune.settings import read_settings

    if config is None and (changes["data"] is None or changes["output"] is None):
        raise ConfigError("foveal train needs a TOML file of settings, or --data and --output")
    settings = read_settings(config, changes, assignments)
    check_runnable(settings.model)
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, if it did
    say = session.note if leads else _keep_quiet
    if settings.model is None:
        say("fine-tuning the embedded model; name another with -m")
    with _Bar(shown=leads) as bar:
        bar.say("loading")
        from foveal.finetune.run import new_tuner, write_result

        tuner = new_tuner(settings, progress=bar, notify=lambda reason: say(f"left out: {reason}"))
        count = sum(p.numel() for parameters in tuner.learning.values() for p in parameters.values())
        start = f"going on from step {tuner.step}" if tuner.step else "starting"
        team = tuner.team
        shared = "" if team.mesh is None else f" on {team.data * team.tensor} processes"
        say(f"{count:,} weights learn{shared} ({', '.join(tuner.learning)}); {start}; Ctrl-C saves and stops")
        names = {name for parameters in tuner.learning.values() for name in parameters}
        if tuner.model.config.timestamps == "tokens" and not any("embed_tokens" in name for name in names):
            say("the timestamp tokens do not learn: adapters reach no embeddings; new tokens need a run without [lora] first")
        if settings.accumulate % team.data:
            say(f"a step has {settings.accumulate} batches for {team.data} processes: some run for nothing; set accumulate")
        with _stopped_by_signals(tuner):
            finished = tuner.run()
        if not finished:
            say(f"saved step {tuner.step} in {settings.output}; run the same command to go on")
            team.leave()
            raise KeyboardInterrupt
        bar.say("writing")
        for folder in write_result(tuner):
            say(f"wrote {folder}")
        team.leave()
    say(f"{tuner.step} steps in {show.seconds(tuner.elapsed_s)}; log and picture are in {settings.output}")


def _keep_quiet(line: str) -> None:
    """Say nothing: another process says it."""


def run_merge(adapter: Path, output: Path, model: str | None) -> None:
    check_runnable(model)
    with session.progress() as line:
        line("merging")
        from foveal.finetune.run import merge_into

        count = merge_into(adapter, output, model)
    session.note(f"wrote {output}: {count} weights changed; foveal ask -m {output} asks it")


def run_timestamps(output: Path, model: str | None, seconds: int) -> None:
    check_runnable(model)
    with session.progress() as line:
        line("adding tokens")
        from foveal.finetune.run import model_folder
        from foveal.finetune.timestamps import add_timestamps

        count = add_timestamps(model_folder(model), output, seconds)
    session.note(f"wrote {output}: {count} new tokens, each the mean of its text; foveal train -m {output} teaches them")


@contextlib.contextmanager
def _stopped_by_signals(tuner: Any) -> Iterator[None]:
    """Let Ctrl-C and a polite kill end the run after the step it is in; a second Ctrl-C ends it at once.

    It is said at once, since a step may last a minute, and written without the buffer that the signal may have come upon.
    """

    def stop(number: int, frame: object) -> None:
        tuner.stop()
        if tuner.team.leads:
            with contextlib.suppress(OSError):  # stderr is closed: there is nobody to tell
                os.write(2, b"\nfoveal: stopping after this step; Ctrl-C once more ends it at once and loses it\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """A progress bar on a terminal's stderr; anywhere else, a line for each evaluation."""

    def __init__(self, shown: bool) -> None:
        self._console, self._shown = show.error_console(), shown
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Bar:
        if self._shown and self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, what: str) -> None:
        """Name what is being done."""
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def __call__(self, share: float, line: dict[str, Any]) -> None:
        """Show a step, and say an evaluation, where there is no bar too: a log of hours should tell what was learned."""
        if "eval_loss" in line:
            said = f"step {line['step']}: evaluation loss {line['eval_loss']:.4f}"
            if self._bar is None:
                session.note(said)
            else:
                self._bar.console.print(said)
        elif self._bar is not None:
            what = f"step {line['step']}  loss {line['loss']:.3f}  {line['tokens_per_s']:,.0f} tokens/s"
            self._bar.update(self._task, description=what, completed=share)

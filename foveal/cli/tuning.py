"""Words and options of the commands that fine-tune: `train`, `merge`, `timestamps`, `data check`, `data show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from foveal.cli.options import OUTPUT, Flag, MediaOptions

Model = Annotated[str | None, Parameter(name=["--model", "-m"], help="Folder or hub name; the embedded model by default.")]
Root = Annotated[Path | None, Parameter(help="Folder that media are relative to; by default each file's own.")]
Config = Annotated[Path | None, Parameter(help="TOML file of a run: its named sources, model and budgets count here, too.")]
Source = Annotated[str, Parameter(help="JSON or JSONL file, or a source the configuration names.")]

data = App(name="data", help="Look at training data before it costs anything.")


def register(app: App) -> None:
    """Add the commands to an app."""
    app.command(train)
    app.command(merge)
    app.command(timestamps)
    app.command(data)


def train(
    config: Annotated[Path | None, Parameter(help="TOML file of settings.")] = None,
    *,
    model: Model = None,
    data: Annotated[
        list[str] | None, Parameter(help="JSON or JSONL file, file%50 for half of it an epoch; may be repeated.", negative="")
    ] = None,
    output: Annotated[Path | None, Parameter(help="Folder of the run; one that holds a run goes on with it.")] = None,
    steps: Annotated[int | None, Parameter(help="How many steps; instead of epochs.")] = None,
    set: Annotated[list[str] | None, Parameter(help="Any setting, as key=value: lora.rank=8.", negative="")] = None,
    bits: Annotated[int | None, Parameter(help="8: under [lora], keep frozen weights in a quarter of the memory.")] = None,
    skip_bad: Annotated[bool, Parameter(help="Report bad lines and go on; without it, one ends the run.", negative="")] = False,
) -> None:
    """Fine-tune a model on your own data; run again to resume.

    foveal train run.toml --set language=2e-5
    """
    from foveal.cli.train import run

    changes = {"model": model, "data": data, "output": output, "steps": steps, "bits": bits, "skip_bad": skip_bad or None}
    run(config, changes, set or [])


def merge(
    adapter: Annotated[Path, Parameter(help="Folder with adapter_config.json and adapter_model.safetensors.")],
    output: Annotated[Path, Parameter(help="Checkpoint folder to write.")],
    *,
    model: Annotated[str | None, Parameter(name=["--model", "-m"], help="The adapter's own model by default.")] = None,
) -> None:
    """Write a checkpoint with a LoRA adapter merged into its weights.

    foveal merge runs/receipts/adapter receipts-2b
    """
    from foveal.cli.train import run_merge

    run_merge(adapter, output, model)


def timestamps(
    output: Annotated[Path, Parameter(help="Checkpoint folder to write.")],
    *,
    model: Model = None,
    seconds: Annotated[int, Parameter(help="The last second that gets a token.")] = 600,
) -> None:
    """Write a checkpoint with one learnable token a second (<t_3m27s>) in place of times as text, to be trained.

    foveal timestamps qwen-2b-stamps -m 2B --seconds 600
    """
    from foveal.cli.train import run_timestamps

    run_timestamps(output, model, seconds)


@data.command
def check(
    *sources: Source,
    model: Model = None,
    config: Config = None,
    root: Root = None,
    media: MediaOptions | None = None,
    max_tokens: Annotated[int | None, Parameter(help="The longest sample; the model's context by default.")] = None,
    plot: Annotated[Path | None, Parameter(group=OUTPUT, help="Write the histogram of lengths to this PNG.")] = None,
    json: Annotated[Flag, Parameter(help="One JSON object instead of tables.")] = False,
) -> None:
    """Read every sample as training would; list bad lines with their reasons, and count tokens.

    foveal data check train.jsonl -m 2B --plot lengths.png
    """
    from foveal.cli.data import run_check

    run_check(sources, model, config, root, media or MediaOptions(), max_tokens, plot, json)


@data.command
def show(
    source: Source,
    index: Annotated[int, Parameter(help="Which sample, counted from 0.")] = 0,
    *,
    model: Model = None,
    config: Config = None,
    root: Root = None,
    media: MediaOptions | None = None,
) -> None:
    """Print a sample as the model sees it, what is learned of it in colour.

    foveal data show train.jsonl 12 -m 2B
    """
    from foveal.cli.data import run_show

    run_show(source, index, model, config, root, media or MediaOptions())

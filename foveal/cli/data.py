"""`foveal data check` and `foveal data show`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli import session, show
from foveal.cli.models import check_runnable
from foveal.cli.options import MediaOptions
from foveal.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from foveal.finetune.samples import Sample, SampleReader
    from foveal.finetune.settings import TuneSettings
    from foveal.finetune.sources import Source

SHOWN = 50  # bad lines listed in the table; --json has all


def run_check(
    specs: tuple[str, ...], model: str | None, config: Path | None, root: Path | None, media: MediaOptions,
    max_tokens: int | None, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from foveal.finetune import plots
    from foveal.finetune.check import Report, check
    from foveal.finetune.sources import require_whole

    if plot is not None:
        plots.require_matplotlib()
        if not plot.absolute().parent.is_dir():
            raise DataError(f"{plot}: there is no folder {plot.parent}")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"--max-tokens is {max_tokens}; expected 1 or more")
    settings = _settings(config)
    for spec in specs:
        require_whole(spec, settings.sources if settings else None)
    specs = specs or (settings.data + settings.eval if settings else ())
    if not specs:
        raise DataError("there is nothing to check; name a JSON or JSONL file, or a run's TOML with --config")
    reader = _reader(model, settings, media, max_tokens)
    report = Report()
    with session.progress() as line:
        for spec in specs:
            try:
                source = _open(spec, settings, root)
            except DataError as error:
                report.bad.append(str(error))
                continue
            check([source], reader, lambda place: line(f"reading {place}"), report)
    if plot is not None:
        figure = plots.new_figure(6.4, 3.6)
        plots.draw_lengths(figure, report.lengths, report.learned, reader.max_tokens)
        plots.save(figure, plot)
        session.note(f"wrote {plot}")
    facts = report.summary()
    if as_json:
        show.write_json(facts)
    else:
        _print(facts)
    if report.bad:
        total = len(report.lengths) + len(report.bad)
        raise DataError(f"{len(report.bad)} of {total} samples are bad; the first: {report.bad[0]}")


def _print(facts: dict[str, Any]) -> None:
    tokens, lengths = facts["tokens"], facts["lengths"]
    rows = [
        ("samples", f"{facts['samples']:,} good, {facts['bad']:,} bad"),
        ("media", f"{facts['pictures']:,} pictures, {facts['clips']:,} clips"),
        ("tokens", f"{tokens['all']:,}: " + ", ".join(f"{tokens.get(k, 0):,} {k}" for k in ("text", "image", "video"))),
        ("learned", f"{tokens['learned']:,} tokens, {tokens['learned'] / max(1, tokens['all']):.1%} of all"),
    ]
    if lengths:
        rows.append(("length", f"{lengths['shortest']:,} to {lengths['longest']:,} tokens, half up to {lengths['median']:,}"))
    out = show.console()
    out.print(show.table("data", rows))
    if bad := facts["bad_lines"]:
        out.print("\nbad lines", style="bold")
        for reason in bad[:SHOWN]:
            out.print(reason, markup=False)
        if len(bad) > SHOWN:
            out.print(f"and {len(bad) - SHOWN} more; --json lists all")


def run_show(spec: str, index: int, model: str | None, config: Path | None, root: Path | None, media: MediaOptions) -> None:
    from foveal.finetune.sources import require_whole

    settings = _settings(config)
    require_whole(spec, settings.sources if settings else None)
    source = _open(spec, settings, root)
    if not 0 <= index < len(source):
        raise DataError(f"{spec} has the samples 0 to {len(source) - 1}, and no sample {index}")
    reader = _reader(model, settings, media, None)
    sample = reader(source, index)
    _print_sample(sample, reader)


def _print_sample(sample: Sample, reader: SampleReader) -> None:
    """Write a prompt's tokens, those that are learned on a coloured ground, by turns of two so that edges show."""
    from rich.text import Text

    from foveal.finetune.labels import IGNORE
    from foveal.tokenizer import IncrementalDecoder

    out = show.console()
    counts = ", ".join(f"{n:,} {kind}" for kind, n in sample.request.tokens_by_kind().items() if n)
    out.print(Text(f"{sample.place}: {counts} tokens, {sample.learned} learned", style="bold"))
    ids, rows = sample.request.sequence.token_ids, sample.request.sequence.vision_rows
    learned = [False, *(sample.labels[:-1] != IGNORE)]  # row t predicts token t + 1
    text = Text()
    for kind, start, stop in _runs(rows, learned):
        if kind == "vision":
            text.append(f"[{stop - start} vision tokens]", style="dim cyan")
        elif kind == "given":
            text.append(_visible(reader.processor.tokenizer.decode(ids[start:stop], skip_special=False)), style="dim")
        else:
            decoder = IncrementalDecoder(reader.processor.tokenizer, skip_special=False)
            for i in range(start, stop):
                style = "black on green" if (i - start) % 2 == 0 else "black on bright_green"
                piece = _visible(decoder.push(int(ids[i])))
                text.append(piece.replace("\n", "↵\n") if out.is_terminal else piece, style=style)
    out.print(text)


def _runs(vision_rows: np.ndarray, learned: list[bool]) -> list[tuple[str, int, int]]:
    """Cut a prompt into runs of vision, given and learned tokens."""
    runs: list[tuple[str, int, int]] = []
    for i, (row, is_learned) in enumerate(zip(vision_rows, learned, strict=True)):
        kind = "vision" if row >= 0 else "learned" if is_learned else "given"
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1], i + 1)
        else:
            runs.append((kind, i, i + 1))
    return runs


def _settings(config: Path | None) -> TuneSettings | None:
    if config is None:
        return None
    from foveal.finetune.settings import read_settings

    return read_settings(config)


def _open(spec: str, settings: TuneSettings | None, root: Path | None) -> Source:
    from foveal.finetune.sources import open_source

    source = open_source(spec, settings.sources if settings else None)
    if root is None:
        return source
    if not root.is_dir():
        raise ConfigError(f"--root {root} is not a folder")
    return replace(source, options=replace(source.options, root=root))


def _reader(model: str | None, settings: TuneSettings | None, media: MediaOptions, max_tokens: int | None) -> SampleReader:
    from foveal.finetune.samples import reader_of
    from foveal.hub import EMBEDDED, resolve
    from foveal.processor import Processor

    model = model or (settings.model if settings else None)
    check_runnable(model)
    processor = Processor.from_checkpoint(EMBEDDED if model is None else resolve(model, weights=False))
    reader = reader_of(processor, settings)
    reader.budget = media.budget(reader.budget)
    reader.clip_sampling = media.clip_sampling(reader.clip_sampling)
    reader.max_tokens = reader.max_tokens if max_tokens is None else max_tokens
    return reader


def _visible(text: str) -> str:
    """Spell out control characters but tabs and line breaks: a terminal would obey those of the data."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)

"""`foveal trace`: run one request, show every stage, draw it on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveal.cli import session, show
from foveal.cli.inputs import read_inputs
from foveal.cli.options import MediaOptions, ModelOptions, SamplingOptions
from foveal.errors import ConfigError


def run(
    words: tuple[str, ...],
    model: ModelOptions,
    media: MediaOptions,
    sampling: SamplingOptions,
    as_json: bool,
    html: Path | None,
) -> None:
    inputs = read_inputs(words)
    session.check(model, media, sampling)
    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"--html is {html}, but there is no folder {html.absolute().parent}")
    with session.progress() as line:
        pipeline = session.load(model, line)
        chosen = session.sampling(sampling, pipeline.processor.generation)
        line("running the request")
        from foveal.trace import run as trace

        result = trace(
            pipeline, inputs.question, inputs.files, system=sampling.system, sampling=chosen,
            **session.media_arguments(media, pipeline),
        )  # fmt: skip
        if html is not None:
            line("drawing the page")
            try:
                html.write_text(result.html(pipeline), encoding="utf-8")
            except OSError as e:
                raise ConfigError(f"--html {html} cannot be written: {e.strerror}") from e
    if as_json:
        show.write_json(result.data)
    else:
        _print(result.data)
    if html is not None:
        session.note(f"wrote {html}")


def _print(data: dict[str, Any]) -> None:
    out = show.console()
    whole = sum(s["seconds"] for s in data["stages"]) or 1.0
    rows = []
    for stage in data["stages"]:
        arrays = [f"{a['name']} {tuple(a['shape'])} {a['dtype']}" for a in stage["arrays"]]
        rows.append((
            stage["name"], show.seconds(stage["seconds"]), f"{stage['seconds'] / whole:.0%}",
            show.num_bytes(stage["bytes"]) if stage["bytes"] else "", "\n".join([*arrays, *stage["notes"]]),
        ))  # fmt: skip
    out.print(show.table(f"{data['model']}, {data['machine']}", rows, ("stage", "time", "", "bytes", "value"), right=(1, 2, 3)))
    sequence, vision = data["sequence"], data["vision"]
    out.print(show.table("\nsequence", [_run(run, data) for run in sequence["runs"]],
                         ("kind", "tokens", "from t h w", "to t h w"), right=(1,)))  # fmt: skip
    if data["blocks"] and vision["taps"]:
        taps = [
            (f"tap {i}", f"vision block {block} → after decoder layer {layer}",
             f"rms {data['tap_rms'][i]:.3g}" if data["tap_rms"] else "")
            for i, (block, layer) in enumerate(zip(vision["taps"], vision["tap_layers"], strict=True))
        ]  # fmt: skip
        out.print(show.table("\ntaps", taps, ("", "", "")))
    work = [(c["stage"], show.flops(c["flops"]), show.seconds(c["seconds"]), show.flops(c["flops"] / c["seconds"]) + "/s")
            for c in data["costs"]]  # fmt: skip
    out.print(show.table("\nwork", work, ("", "FLOPs", "time", "rate"), right=(1, 2, 3)))
    out.print(f"\nanswer ({show.counted(len(data['steps']), 'token')}, {data['finish_reason']})", style="bold")
    out.print(data["answer"], markup=False)


def _run(run: dict[str, Any], data: dict[str, Any]) -> tuple[str, str, str, str]:
    positions = data["sequence"]["positions"]
    first, last = (" ".join(str(axis[i]) for axis in positions) for i in (run["start"], run["stop"] - 1))
    kind = "text"
    if run["kind"] != "text":
        name = data["media"][run["media"]]["name"]
        kind = name if run["kind"] == "image" else f"{name}, pair {run['frame']}"
    return kind, str(run["stop"] - run["start"]), first, last

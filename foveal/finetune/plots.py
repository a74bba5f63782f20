"""Pictures of a data set and of a run, by matplotlib, which the extra `train` brings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal.errors import MissingDependency

INK, ALL, LEARNED = "#1f2933", "#2f7fc1", "#d9822b"


def require_matplotlib() -> None:
    """Raise MissingDependency before a run that would want to draw, not hours into it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingDependency("matplotlib", "train", "drawing (leave it out with plot=false)") from None


def new_figure(width: float, height: float) -> Any:
    """Make a figure that belongs to no window system."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_lengths(figure: Any, lengths: Sequence[int], learned: Sequence[int], limit: int | None = None) -> None:
    """Draw how long samples are, and how much of each is learned."""
    axes = figure.subplots()
    longest = max(lengths, default=1)
    edges = [longest * i / 40 for i in range(41)]
    axes.hist(lengths, bins=edges, color=ALL, alpha=0.8, label=f"all tokens: {sum(lengths):,}")
    axes.hist(learned, bins=edges, color=LEARNED, alpha=0.8, label=f"learned tokens: {sum(learned):,}")
    if limit is not None and limit <= 1.5 * longest:
        axes.axvline(limit, color=INK, lw=1, ls=":", label=f"at most {limit:,}")
    axes.set(xlabel="tokens of a sample", ylabel="samples", title=f"{len(lengths):,} samples")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)  # bars may stand in any corner
    axes.spines[["top", "right"]].set_visible(False)


def draw_run(figure: Any, log: Path) -> None:
    """Draw the losses and the speed that a run's metrics.jsonl has so far."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    left, right = figure.subplots(1, 2)
    trained = [line for line in lines if "loss" in line]
    left.plot([line["step"] for line in trained], [line["loss"] for line in trained], color=ALL, lw=1, label="training")
    examined = [line for line in lines if "eval_loss" in line]
    if examined:
        steps, losses = zip(*((line["step"], line["eval_loss"]) for line in examined), strict=True)
        left.plot(steps, losses, "o-", color=LEARNED, ms=3, label="evaluation")
    left.set(xlabel="step", ylabel="loss (nats a token)", title="loss")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    right.plot([line["step"] for line in trained], [line["tokens_per_s"] for line in trained], color=ALL, lw=1)
    right.set(xlabel="step", ylabel="tokens a second", title="throughput")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, file: Path) -> None:
    """Write a PNG, replacing an older one at once."""
    part = file.with_name(f".{file.name}.part")
    figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
    part.replace(file)

"""Numbers for people, and tables on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_SI = ("", "k", "M", "G", "T", "P", "E")


def scaled(value: float, unit: str) -> str:
    """Write a number in thousands, millions, ...: 4.26 GB, 812 MFLOP, 37 B."""
    power = 0
    while abs(value) >= 999.5 and power < len(_SI) - 1:
        value /= 1000
        power += 1
    digits = f"{value:.0f}" if power == 0 or value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{digits} {_SI[power]}{unit}"


def num_bytes(value: float) -> str:
    return scaled(value, "B")


def flops(value: float) -> str:
    return scaled(value, "FLOP")


def seconds(value: float) -> str:
    """Write a duration: 840 µs, 12.3 ms, 4.56 s."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def console() -> Console:
    """Make a console on stdout; rich leaves out colours by itself for pipes and NO_COLOR."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def error_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def table(title: str, rows: Iterable[Sequence[str]], columns: Sequence[str] = ("", ""), right: Sequence[int] = ()) -> Table:
    """Lay out rows; the columns of `right` are aligned to the right, and headings are left out when all are empty."""
    # Text, not str: rich would read "[...]" in a file name as markup.
    out = Table(title=Text(title), title_justify="left", title_style="bold", box=None, show_header=any(columns), pad_edge=False,
                header_style="dim")  # fmt: skip
    for i, name in enumerate(columns):
        out.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        out.add_row(*map(Text, row))
    return out


def json_text(value: Any) -> str:
    """Write an object for a file."""
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def write_json(value: Any, *, lines: bool = False) -> None:
    """Write one JSON object on stdout; `lines`: on one line, on a terminal too."""
    indent = 2 if sys.stdout.isatty() and not lines else None
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
    sys.stdout.flush()

"""Tables on a terminal and JSON; numbers for people are written as units.py says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveal.units import counted, flops, num_bytes, scaled, seconds

__all__ = [
    "console", "counted", "error_console", "flops", "json_text", "num_bytes", "scaled", "seconds", "table", "write_json",
]  # fmt: skip


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
    """Write an object for a file; infinities and NaN are no JSON, and a ValueError."""
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def write_json(value: Any, *, lines: bool = False) -> None:
    """Write one JSON object on stdout; `lines`: on one line, on a terminal too."""
    indent = 2 if sys.stdout.isatty() and not lines else None
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()

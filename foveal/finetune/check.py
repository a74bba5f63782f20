"""Read all of a data set as training would, and say what is in it and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from foveal.errors import DataError
from foveal.finetune.samples import Sample, SampleReader
from foveal.finetune.sources import Source


@dataclass
class Report:
    """What a check found.

    lengths, learned: tokens of every good sample; tokens: all of them by kind; bad: reasons that begin with their places.
    """

    lengths: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Count a good sample."""
        self.lengths.append(len(sample))
        self.learned.append(sample.learned)
        self.tokens.update(sample.request.tokens_by_kind())
        self.media.update(patches.kind for patches in sample.request.patches)

    def summary(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        ordered = sorted(self.lengths)
        middle = {"median": ordered[len(ordered) // 2], "longest": ordered[-1], "shortest": ordered[0]} if ordered else {}
        return {
            "samples": len(self.lengths), "bad": len(self.bad), "pictures": self.media["image"], "clips": self.media["video"],
            "tokens": {"all": sum(self.lengths), **self.tokens, "learned": sum(self.learned)}, "lengths": middle,
            "bad_lines": self.bad,
        }  # fmt: skip


def check(
    sources: Iterable[Source], reader: SampleReader, seen: Callable[[str], None] = lambda place: None,
    report: Report | None = None,
) -> Report:  # fmt: skip
    """Read every record of every source, and return what was found, with what `report` holds already.

    seen: told each place before it is read.
    """
    report = Report() if report is None else report
    for source in sources:
        for index in range(len(source)):
            seen(str(source.place(index)))
            try:
                report.add(reader(source, index))
            except DataError as error:
                report.bad.append(str(error))
    return report

"""Records of a file as a task: any format that `foveal train` reads, with more references, a scorer and evidence if given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.errors import DataError, FovealError
from foveal.evaluate.items import Box, Evidence, Item
from foveal.evaluate.metrics import Scores
from foveal.evaluate.scorers import SCORERS, best, infer
from foveal.finetune.formats import read_record
from foveal.finetune.sources import Source
from foveal.messages import split_media


@dataclass(frozen=True, eq=False)
class FileTask:
    """Records of a JSON or JSONL file in any format `foveal train` reads; the last answer of each is the reference.

    A record may have `answers` (more references), `scorer` (else `scorer`, else by the reference's form) and `evidence`
    ({"boxes": [[x1, y1, x2, y2]], "frames": [...], "span_s": [from, to]}).
    """

    name: str
    source: Source
    count: int
    scorer: str | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Item]:
        return (self._read(index) for index in range(self.count))

    def item(self, id: str) -> Item:
        """Read an item again."""
        return self._read(int(id.rpartition("/")[2]))

    def facts(self) -> dict[str, Any]:
        path = self.source.options.path
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "task": self.name, "file": str(path.resolve()), "sha256": digest,
            "root": str(self.source.root.resolve()), "items": self.count, "scorer": self.scorer,
        }  # fmt: skip

    def check(self) -> None:
        """Read every record, and see that its files are there and its reference can be scored. Raise DataError."""
        for index in range(self.count):
            item = self._read(index)
            for _, source in item.media:
                for one in source if isinstance(source, list) else [source]:
                    if isinstance(one, str) and "://" not in one and not one.startswith("data:") and not Path(one).is_file():
                        raise DataError(f"{self.source.place(index)}: there is no file {one}")
            try:
                item.score("")
            except DataError as error:
                raise DataError(f"{self.source.place(index)}: {error}") from error

    def _read(self, index: int) -> Item:
        place = self.source.place(index)
        record = self.source.record(index)
        try:
            said = read_record(record, self.source.root)
            *messages, last = said.messages
            if not messages or messages[-1]["role"] == "assistant":
                raise DataError("there is no question before the last answer")
            if said.tools:
                raise DataError("the record has tools, which an examination cannot call; take them out")
            references = _references(last, record)
            scorer = _scorer(record.get("scorer"), self.scorer, references)
            evidence = _evidence(record.get("evidence"))
        except FovealError as error:
            raise DataError(f"{place}: {error}") from error

        def judge(answer: str) -> Scores:
            return best(scorer, answer, references)

        return Item(f"{self.name}/{index}", messages, references, scorer, judge, evidence)


def _references(last: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[str, ...]:
    content = last["content"]
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in split_media([last])[0][0]["content"])
    more = record.get("answers") or []
    if not isinstance(more, list) or not all(isinstance(one, str) for one in more):
        raise DataError("answers is not a list of texts")
    return (content, *(one for one in more if one != content))


def _scorer(own: Any, asked: str | None, references: Sequence[str]) -> str:
    name = own if own is not None else asked if asked is not None else infer(references[0])
    if name not in SCORERS:
        raise DataError(f"the scorer is {name!r}; expected one of {', '.join(SCORERS)}")
    return str(name)


def _evidence(value: Any) -> Evidence:
    if value is None:
        return Evidence()
    try:
        boxes: tuple[Box, ...] = tuple(
            (float(a), float(b), float(c), float(d)) for a, b, c, d in value.get("boxes") or ()
        )  # fmt: skip
        span = value.get("span_s")
        found = Evidence(
            boxes,
            tuple(int(i) for i in value.get("frames") or ()),
            (float(span[0]), float(span[1])) if span else None,
            tuple(int(i) for i in value.get("pictures") or ()),
        )
    except (AttributeError, TypeError, ValueError, IndexError):
        raise DataError(
            f"evidence is {json.dumps(value)[:80]}; expected boxes [[x1, y1, x2, y2], ...], frames [...], span_s [from, to], "
            "pictures [...]"
        ) from None
    for what, given in (("frames", found.frames), ("pictures", found.pictures)):
        if given and len(given) != len(found.boxes):
            raise DataError(f"evidence has {len(given)} {what} for {len(found.boxes)} boxes; give every box its {what[:-1]}")
    return found

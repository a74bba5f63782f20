"""Records of a file as a task: any format that `foveal train` reads, with more references, a scorer and evidence if given."""

from __future__ import annotations

import hashlib
import json
import math
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
from foveal.media import ClipSampling, probe
from foveal.messages import MediaPart, split_media

EVERY_FRAME = ClipSampling(num_frames=2**31)


@dataclass(frozen=True, eq=False)
class FileTask:
    """Records of a JSON or JSONL file in any format `foveal train` reads; the last answer of each is the reference.

    A record may have `answers` (more references), `scorer` (else `scorer`, else by the reference's form) and `evidence`
    ({"boxes": [[x1, y1, x2, y2]], "frames": [...], "span_s": [from, to], "pictures": [...]}), which must be in its media; a
    list of those has one for each answer, as `foveal world` writes them, and the last is meant.
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
        """Read every record, and see that its files are there, its evidence in them, its reference scored. Raise DataError."""
        for index in range(self.count):
            item = self._read(index)
            for _, source in item.media:
                for one in source if isinstance(source, list) else [source]:
                    if isinstance(one, str) and "://" not in one and not one.startswith("data:") and not Path(one).is_file():
                        raise DataError(f"{self.source.place(index)}: there is no file {one}")
            try:
                item.score("")
                _check_inside(item)
            except FovealError as error:
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
            answers = sum(message["role"] == "assistant" for message in said.messages)
            evidence = _evidence(_last(record.get("evidence"), answers), split_media(messages)[1])
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
    if not isinstance(name, str) or name not in SCORERS:
        raise DataError(f"the scorer is {name!r}; expected one of {', '.join(SCORERS)}")
    return name


def _last(evidence: Any, answers: int) -> Any:
    """Take the last answer's evidence of a list, which has one for each answer."""
    if not isinstance(evidence, list):
        return evidence
    if len(evidence) != answers:
        raise DataError(f"evidence is a list of {len(evidence)} for {answers} answers; give one for each, or the last alone")
    return evidence[-1]


def _evidence(value: Any, media: Sequence[MediaPart]) -> Evidence:
    if value is None:
        return Evidence()
    try:
        boxes: tuple[Box, ...] = tuple(
            (float(a), float(b), float(c), float(d)) for a, b, c, d in value.get("boxes") or ()
        )  # fmt: skip
        span = value.get("span_s")
        found = Evidence(
            boxes,
            tuple(_number(i) for i in value.get("frames") or ()),
            (float(span[0]), float(span[1])) if span else None,
            tuple(_number(i) for i in value.get("pictures") or ()),
        )
    except (AttributeError, TypeError, ValueError, LookupError, OverflowError):
        raise DataError(
            f"evidence is {json.dumps(value)[:80]}; expected boxes [[x1, y1, x2, y2], ...], frames [...], span_s [from, to], "
            "pictures [...]"
        ) from None
    for what, given in (("frames", found.frames), ("pictures", found.pictures)):
        if given and len(given) != len(found.boxes):
            raise DataError(f"evidence has {len(given)} {what} for {len(found.boxes)} boxes; give every box its {what[:-1]}")
    for box in found.boxes:
        x1, y1, x2, y2 = box
        if not (all(map(math.isfinite, box)) and x1 < x2 and y1 < y2):
            raise DataError(f"evidence has the box {list(box)}; expected numbers [x1, y1, x2, y2], x1 < x2 and y1 < y2")
    if found.span_s is not None and not 0 <= found.span_s[0] <= found.span_s[1] < math.inf:
        raise DataError(f"evidence has the span {list(found.span_s)}; expected seconds [from, to], from 0 on")
    for number, frame in zip(found.pictures or (0,) * len(found.boxes), found.frames or (0,) * len(found.boxes), strict=True):
        if not 0 <= number < len(media):
            which = f"picture {number}" if found.pictures else "boxes"
            raise DataError(f"evidence names {which}, and the question has {len(media)} pictures and clips; they count from 0")
        part = media[number]
        _check_frame(frame, number, 1 if part.kind == "image" else len(part.source) if isinstance(part.source, list) else None)
    return found


def _number(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(value)
    return int(value)


def _check_frame(frame: int, number: int, count: int | None) -> None:
    """Refuse a frame that picture or clip `number` has not; None: how many it has is not known."""
    if frame < 0 or (count is not None and frame >= count):
        has = "" if count is None else f" has {count}"
        raise DataError(f"evidence names frame {frame} of picture {number}, which{has}; they count from 0")


def _check_inside(item: Item) -> None:
    """Look into the files of an item's media whether they hold its evidence; not at addresses, which cost a download."""
    for number, (kind, source) in enumerate(item.media):
        places = item.evidence.on(number)
        one = source[0] if isinstance(source, list) and source else source
        if not places or not isinstance(one, str) or "://" in one or one.startswith("data:"):
            continue
        found = probe(one, sampling=EVERY_FRAME)
        height, width = found.source_size
        for frame, box in places:
            if kind == "video" and not isinstance(source, list) and found.kind == "video":
                _check_frame(frame, number, len(found.times_s))
            x1, y1, x2, y2 = box
            if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:  # a pixel more is how one rounds
                raise DataError(
                    f"evidence has the box {list(box)} in picture {number}, which is {width} x {height} pixels; boxes are "
                    "[x1, y1, x2, y2] in its pixels"
                )

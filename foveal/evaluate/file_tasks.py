"""Records of a file as a task: any format that `foveal train` reads, with more references, a scorer and evidence if given."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from foveal.errors import DataError, FovealError, MediaError
from foveal.evaluate.items import Box, Evidence, Item, prompt_json
from foveal.evaluate.metrics import Scores
from foveal.evaluate.scorers import SCORERS, best, infer
from foveal.finetune.formats import read_record, texts_of
from foveal.finetune.sources import Source
from foveal.media import ClipSampling, Limits, probe
from foveal.media.source import fetch, resolve
from foveal.messages import MediaPart, split_media

EVERY_FRAME = ClipSampling(num_frames=2**31)
_ADDRESS = re.compile("https?://", re.IGNORECASE)


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
        """Read every record; its files must be readable, its evidence in them, its reference scored. Raise DataError."""
        for index in range(self.count):
            item = self._read(index)
            try:
                item.score("")
                _check_media(item)
                json.dumps(prompt_json(item.messages), allow_nan=False)  # as every answer's line will hold it
            except ValueError as error:  # a FovealError, too
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
    first, more = "".join(texts_of(last)), record.get("answers") or []
    if not isinstance(more, list) or not all(isinstance(one, str) for one in more):
        raise DataError("answers is not a list of texts")
    if not all(one.strip() for one in (first, *more)):
        raise DataError("an answer to compare with is empty; the last message and all of answers need a text")
    return (first, *(one for one in more if one != first))


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


def _check_file(source: str, *, is_picture: bool) -> None:
    """Look at a picture's header, and whether a clip is there: to look into one, the extra `video` is needed."""
    try:
        if is_picture:
            probe(source)
        else:
            resolve(source, Limits(), fetch)
    except MediaError as error:
        where = "" if source[:5].lower() == "data:" else f"{source}: "
        raise DataError(f"{where}{error}") from error


def _check_media(item: Item) -> None:
    """See that what an item shows can be read and holds its evidence; not of addresses, which cost a download."""
    for number, (kind, source) in enumerate(item.media):
        is_list = kind == "video" and isinstance(source, list)
        files = source if is_list else [source]
        if not files or not all(isinstance(one, str) for one in files):
            raise DataError(f"{kind} {number} is {brief(source)}; expected the name of a file, or of a clip a list of pictures")
        if any(_ADDRESS.match(one) for one in files):
            continue
        for one in files:
            _check_file(one, is_picture=kind == "image" or is_list)
        places = item.evidence.on(number)
        if not places:
            continue
        found = probe(files[0], sampling=EVERY_FRAME)
        height, width = found.source_size
        for frame, box in places:
            if kind == "video" and not is_list and found.kind == "video":
                _check_frame(frame, number, len(found.times_s))
            x1, y1, x2, y2 = box
            if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:  # a pixel more is how one rounds
                raise DataError(
                    f"evidence has the box {list(box)} in picture {number}, which is {width} x {height} pixels; boxes are "
                    "[x1, y1, x2, y2] in its pixels"
                )

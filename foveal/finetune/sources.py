"""Files of training data: where every record lies, and how many of them an epoch takes.

A file is indexed once, by byte, and records are read when they are wanted: a set of millions takes the memory of its index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foveal.errors import ConfigError, DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_SHARE = re.compile(r"(.+)%(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Place:
    """Where a record stands: a file, and there a line, counted from 1, or the index of an array, counted from 0."""

    file: Path
    line: int | None = None
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.file}[{self.index}]" if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class SourceOptions:
    """What a configuration says of a named source.

    root: the folder media are relative to, by default the file's; share: part of the records an epoch takes, above 1 some of
    them again; weight: part of the whole mix, in proportion to the other sources' weights.
    """

    path: Path
    root: Path | None = None
    share: float = 1.0
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """An indexed file: spans (n, 2) int64 of bytes, lines (n,) int64 from 1, None of an array."""

    options: SourceOptions
    spans: np.ndarray = field(repr=False)
    lines: np.ndarray | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def root(self) -> Path:
        return self.options.root or self.options.path.parent

    def place(self, index: int) -> Place:
        if self.lines is None:
            return Place(self.options.path, index=index)
        return Place(self.options.path, line=int(self.lines[index]))

    def record(self, index: int) -> Any:
        """Read and parse one record. Raise DataError, with its place, for what is not JSON."""
        start, stop = (int(at) for at in self.spans[index])
        with self.options.path.open("rb") as file:
            file.seek(start)
            raw = file.read(stop - start)
        try:
            return json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.place(index)}: not UTF-8: {error.reason} at byte {error.start + 1} of the line") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.place(index)}: not valid JSON: {_reason(error)}") from None


def open_source(spec: str, registry: Mapping[str, SourceOptions] | None = None) -> Source:
    """Index a file, or a source the registry names; `%50` behind either takes that part of it.

    Raise DataError for a file that cannot be read, ConfigError for a part that makes no sense.
    """
    options = source_options(spec, registry or {})
    if not options.share > 0:
        raise ConfigError(f"{spec} takes {options.share:.0%} of its records; expected more than 0")
    if options.weight is not None and not options.weight > 0:
        raise ConfigError(f"the weight of {options.path} is {options.weight}; expected more than 0")
    if options.root is not None and not options.root.is_dir():
        raise DataError(f"{options.root}, the root of {options.path}, is not a folder")
    try:
        spans, lines = _index_array(options.path) if _is_array(options.path) else _index_lines(options.path)
    except OSError as error:
        raise DataError(f"{options.path} cannot be read: {error.strerror}") from None
    if not spans:
        raise DataError(f"{options.path} holds no records")
    return Source(options, np.array(spans, np.int64), None if lines is None else np.array(lines, np.int64))


def source_options(spec: str, registry: Mapping[str, SourceOptions]) -> SourceOptions:
    """Read `name`, `name%50`, `file` or `file%50`."""
    name, share = _split_share(spec, registry)
    known = registry.get(name)
    if known is None:
        if not Path(name).exists():
            named = f"; the named sources are {', '.join(registry)}" if registry else ""
            raise DataError(f"{name}: no such file{named}")
        known = SourceOptions(Path(name))
    return SourceOptions(known.path, known.root, known.share * share, known.weight)


def require_whole(spec: str, registry: Mapping[str, SourceOptions] | None = None) -> None:
    """Raise ConfigError for a `%50` where no epoch takes a part."""
    name, share = _split_share(spec, registry or {})
    if share != 1:
        raise ConfigError(f"{spec} is a part, and only an epoch of training takes parts; name {name}, of which all is read")


def _split_share(spec: str, registry: Mapping[str, SourceOptions]) -> tuple[str, float]:
    """Split `name%50` into the name and 0.5; a source or file may have a % in its own name."""
    match = None if spec in registry or Path(spec).exists() else _SHARE.fullmatch(spec)
    return (match[1], float(match[2]) / 100) if match else (spec, 1.0)


def draws(sources: Sequence[Source]) -> list[int]:
    """Count the records an epoch takes of every source: its share, or the whole divided by the weights."""
    counts = [max(1, round(len(source) * source.options.share)) for source in sources]
    weights = [source.options.weight for source in sources]
    given = [weight for weight in weights if weight is not None]
    if not given:
        return counts
    if len(given) < len(weights):
        without = next(s.options.path for s in sources if s.options.weight is None)
        raise ConfigError(
            f"{len(given)} of {len(weights)} sources have a weight, and {without} has none; give all one, or none"
        )
    return [max(1, round(sum(counts) * weight / sum(given))) for weight in given]


def _is_array(path: Path) -> bool:
    """Tell a JSON array from lines of JSON: .jsonl always is the latter, else the first character decides."""
    if path.suffix == ".jsonl":
        return False
    with path.open("rb") as file:
        while piece := file.read(4096):
            if piece := piece.removeprefix(b"\xef\xbb\xbf").lstrip():
                return piece[:1] == b"["
    return False


def _index_lines(path: Path) -> tuple[list[tuple[int, int]], list[int]]:
    spans: list[tuple[int, int]] = []
    lines: list[int] = []
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            start = at + (3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0)
            at += len(line)
            if line.strip():
                if not spans and line.removeprefix(b"\xef\xbb\xbf").strip() in (b"{", b"["):
                    raise DataError(
                        f"{path}:{number}: JSON laid out over several lines; put one record on each line, or name a .json file "
                        "that holds a list of records"
                    )
                spans.append((start, at))
                lines.append(number)
    return spans, lines


def _index_array(path: Path) -> tuple[list[tuple[int, int]], None]:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    return list(_elements(text, path)), None


def _elements(text: str, path: Path) -> Iterator[tuple[int, int]]:
    """Yield the bytes of every element of an array."""
    decoder = json.JSONDecoder()
    char, byte = 0, 0  # where the counts have got to

    def bad(at: int, why: str) -> DataError:
        return DataError(f"{path}:{1 + text.count(chr(10), 0, at)}: not valid JSON: {why}")

    at = text.index("[") + 1
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        byte, char = byte + len(text[char:at].encode()), at
        try:
            _, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise bad(error.pos, error.msg) from None
        except RecursionError as error:
            raise bad(at, _reason(error)) from None
        yield byte, byte + len(text[char:at].encode())
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != "]":
            raise bad(at, "expected , or ] after an element" if at < len(text) else "the array does not end")
    if _skip(text, at + 1) != len(text):
        raise bad(at, "there is more after the array")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches nothing at least
    return match.end()


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (character {error.pos + 1})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)

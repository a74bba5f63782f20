"""Files are indexed by byte: every record is found again, with its line, whatever stands around it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.errors import ConfigError, DataError
from foveal.finetune.sources import SourceOptions, draws, open_source, require_whole

RECORDS: list[Any] = [{"a": "ü😀\n"}, [1, {"b": "]}"}], "text, [", {"c": {"d": []}}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n\n  "])
def test_an_array(tmp_path: Path, indent: int | None, before: str) -> None:
    file = tmp_path / "data.json"
    text = before + json.dumps(RECORDS, indent=indent, ensure_ascii=False)
    file.write_bytes(text.encode())
    source = open_source(str(file))
    assert [source.record(i) for i in range(len(source))] == RECORDS
    assert [str(source.place(i)) for i in range(4)] == [f"{file}[{i}]" for i in range(4)]  # they may share one line


@settings(max_examples=60)
@given(
    st.lists(
        st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)), min_size=1
    )
)
def test_lines_and_arrays_hold_the_same(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("both")
    (folder / "a.json").write_text(json.dumps(records, ensure_ascii=False, indent=1).encode("utf-8", "replace").decode())
    (folder / "a.jsonl").write_text("\n\n".join(json.dumps(r) for r in records))
    array, lines = open_source(str(folder / "a.json")), open_source(str(folder / "a.jsonl"))
    assert [lines.record(i) for i in range(len(lines))] == records
    assert [lines.place(i).line for i in range(len(lines))] == [1 + 2 * i for i in range(len(records))]
    assert [array.record(i) for i in range(len(array))] == json.loads((folder / "a.json").read_text())


def test_lines_of_json_without_the_suffix(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    assert len(open_source(str(file))) == 2


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"a": 1},\n{"a" 2}]', r"a\.json:2: not valid JSON: Expecting ':' delimiter"),
        ("a.json", '[{"a": 1}\n', r"a\.json:2: not valid JSON: the array does not end"),
        ("a.json", '[1 2]', r"a\.json:1: not valid JSON: expected , or \] after an element"),
        ("a.json", '{\n "a": 1\n}', r"a\.json:1: JSON laid out over several lines; put one record on each line"),
        ("a.jsonl", '\n[\n{"a": 1}\n]', r"a\.jsonl:2: JSON laid out over several lines"),
        ("a.json", '[1]\n[2]', r"a\.json:1: not valid JSON: there is more after the array"),
        ("a.json", "[]", "holds no records"),
        ("a.jsonl", "\n \n", "holds no records"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_indexed(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        open_source(str(tmp_path / name))


def test_a_bad_line_is_named_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{broken\n')
    source = open_source(str(file))
    assert source.record(0) == {"a": 1}
    with pytest.raises(DataError, match=re.escape(f"{file}:3: not valid JSON: Expecting property name")):
        source.record(1)


def test_shares_names_and_weights(tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 40), ("c%50", 4)):
        (tmp_path / f"{name}.jsonl").write_text("{}\n" * count)
    registry = {"few": SourceOptions(tmp_path / "a.jsonl", share=0.5), "heavy": SourceOptions(tmp_path / "b.jsonl", weight=3.0)}
    assert draws([open_source(f"{tmp_path}/a.jsonl%50"), open_source(f"{tmp_path}/b.jsonl%250")]) == [5, 100]
    assert draws([open_source("few%50", registry)]) == [2]
    assert draws([open_source(f"{tmp_path}/c%50.jsonl")]) == [4]  # a file's own name goes first
    light = SourceOptions(tmp_path / "a.jsonl", weight=1.0)
    assert draws([open_source("heavy", registry), open_source("light", {"light": light})]) == [38, 12]
    with pytest.raises(ConfigError, match=r"1 of 2 sources have a weight, and .*a\.jsonl has none"):
        draws([open_source("heavy", registry), open_source(f"{tmp_path}/a.jsonl")])
    with pytest.raises(DataError, match="gone: no such file; the named sources are few, heavy"):
        open_source("gone%50", registry)
    with pytest.raises(ConfigError, match="takes 0% of its records"):
        open_source("few%0", registry)


def test_a_part_is_refused_where_all_is_read(tmp_path: Path) -> None:
    for name in ("a", "b%50"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    registry = {"half": SourceOptions(tmp_path / "a.jsonl", share=0.5)}
    for whole in ("half", f"{tmp_path}/a.jsonl", f"{tmp_path}/b%50.jsonl"):
        require_whole(whole, registry)
    for part in ("half%50", f"{tmp_path}/a.jsonl%50"):
        with pytest.raises(ConfigError, match=f"{part} is a part, .*; name {part[:-3]}, of which all is read"):
            require_whole(part, registry)


def test_a_line_that_is_not_utf_8_is_called_so(tmp_path: Path) -> None:
    """json guesses encodings, and takes a line that begins with these bytes for UTF-16."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\xff\xfe{"a": 2}\n')
    with pytest.raises(DataError, match=re.escape(f"{file}:2: not UTF-8: invalid start byte at byte 1 of the line")):
        open_source(str(file)).record(1)

"""The order is a function of seed and cursor; batches hold everything once and never more than they may."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.errors import ConfigError, DataError
from foveal.finetune import order
from foveal.finetune.order import Cursor, Stream, batches, epoch_order
from foveal.finetune.samples import SampleReader
from foveal.finetune.sources import Source, SourceOptions, open_source
from tests.finetune.conftest import Write, mixed


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 120), st.integers(1, 9))
def test_batches(lengths: list[int], tokens: int, size: int) -> None:
    packed = batches(lengths, 1, tokens, np.random.default_rng(0))
    assert sorted(i for group in packed for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= tokens for group in packed)
    assert len(packed) <= 2 * sum(lengths) / tokens + 1  # no two batches could have been one
    counted = batches(lengths, size, None, np.random.default_rng(0))
    assert sorted(i for group in counted for i in group) == list(range(len(lengths)))
    assert sorted(map(len, counted), reverse=True)[:-1] == [size] * (len(counted) - 1)
    spread = sum(max(lengths[i] for i in g) - min(lengths[i] for i in g) for g in counted)
    assert spread <= max(lengths) - min(lengths)  # of like length


def test_a_sample_that_fits_in_no_batch() -> None:
    with pytest.raises(ConfigError, match="a sample has 9 tokens, and batch_tokens is 8"):
        batches([3, 9], 1, 8, np.random.default_rng(0))


def test_an_epoch_takes_each_share_and_other_records_the_next_time(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 6)):
        (tmp_path / f"{name}.jsonl").write_text("{}\n" * count)
    half = open_source(str(tmp_path / "a.jsonl%50"))
    twice = open_source("b", {"b": SourceOptions(tmp_path / "b.jsonl", share=2.5)})
    orders = [[*map(tuple, epoch_order([half, twice], 7, epoch).tolist())] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    for taken_up in orders:
        taken = [i for source, i in taken_up if source == 0]
        assert len(taken_up) == 25 and len(set(taken)) == len(taken) == 10
        assert sorted({taken_up.count((1, i)) for i in range(6)}) == [2, 3]
    assert {i for s, i in orders[0] if s == 0} != {i for s, i in orders[1] if s == 0}


def _stream(reader: SampleReader, write: Write, records: list[Any] | None = None, **changes: Any) -> Stream:
    options: dict[str, Any] = {"seed": 3, "window": 5, "batch_tokens": 150, "epochs": 2.5, "workers": 2}
    return Stream([open_source(str(write(records or mixed(12))))], reader, **options | changes)


def test_an_epoch_is_shuffled_once(reader: SampleReader, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of millions of records it takes a second, and a window is 64 of them."""
    shuffled = list[int]()

    def counted(sources: Sequence[Source], seed: int, epoch: int) -> np.ndarray:
        shuffled.append(epoch)
        return epoch_order(sources, seed, epoch)

    monkeypatch.setattr(order, "epoch_order", counted)
    assert len(list(_stream(reader, write).start(Cursor()))) > 0 and shuffled == [0, 1, 2]


def test_every_cursor_takes_up_the_same_stream(reader: SampleReader, write: Write) -> None:
    whole = list(_stream(reader, write).start(Cursor()))
    lines = [[sample.place.line for sample in packed.samples] for packed in whole]
    assert sum(map(len, lines)) == 30 and sorted(line for group in lines for line in group)[:3] in ([1, 1, 1], [1, 1, 2])
    assert [packed.done for packed in whole] == sorted({packed.done for packed in whole}) and whole[-1].done == 30
    for i, packed in enumerate(whole[:-1]):
        rest = [[sample.place.line for sample in later.samples] for later in _stream(reader, write).start(packed.after)]
        assert rest == lines[i + 1 :], i
    assert list(_stream(reader, write).start(whole[-1].after)) == []


def test_a_bad_record_ends_the_stream_or_is_reported(reader: SampleReader, write: Write) -> None:
    records = [*mixed(4), {"conversations": []}, *mixed(3)]
    with pytest.raises(DataError, match=r"data\.jsonl:5: conversations is \[\]"):
        list(_stream(reader, write, records).start(Cursor()))
    reasons: list[str] = []
    whole = list(_stream(reader, write, records, epochs=1.0, skipped=reasons.append).start(Cursor()))
    assert sorted(s.place.line for packed in whole for s in packed.samples) == [1, 2, 3, 4, 6, 7, 8]
    assert len(reasons) == 1 and "data.jsonl:5: conversations is []" in reasons[0]


def test_a_bad_record_is_reported_once_in_all_epochs(reader: SampleReader, write: Write) -> None:
    reasons: list[str] = []
    whole = list(_stream(reader, write, [*mixed(2), {"conversations": []}], epochs=3.0, skipped=reasons.append).start(Cursor()))
    assert sum(len(packed.samples) for packed in whole) == 6
    assert len(reasons) == 1


def test_a_set_of_bad_records_alone_ends(reader: SampleReader, write: Write) -> None:
    reasons: list[str] = []
    with pytest.raises(DataError, match="all 3 records of an epoch were skipped; foveal data check says why"):
        list(_stream(reader, write, [{"conversations": []}] * 3, epochs=None, skipped=reasons.append).start(Cursor()))
    assert len(reasons) == 3

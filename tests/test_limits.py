"""The machine's limits: measured once, kept whole or not at all, never believed when they are of another machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal import kernels, limits
from foveal.limits import PATHS, TOKENS, Limits, kept_in

PATHS_HERE = PATHS if kernels.available() else PATHS[:2]
FOUND = Limits(2e10, {path: (1e10, 5e10, 1e11) for path in PATHS_HERE})


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Give an empty cache, and a measurement that counts how often it is made."""
    count: list[int] = []

    def measure() -> Limits:
        count.append(1)
        return FOUND

    monkeypatch.setattr(limits, "cache_folder", lambda: tmp_path / "foveal" / "kernels")
    monkeypatch.setattr(limits, "measure", measure)
    limits._limits.cache_clear()
    yield count
    limits._limits.cache_clear()


def again() -> Limits:
    """Ask as a process of its own would."""
    limits._limits.cache_clear()
    return limits.limits()


def test_measured_once_then_kept(measured: list[int]) -> None:
    assert limits.limits() == limits.limits() == again() == FOUND
    assert len(measured) == 1
    assert [file.name for file in kept_in().parent.iterdir()] == [kept_in().name]  # nothing half written is left


def _changed(**changes: Any) -> str:
    return json.dumps({"machine": limits._machine(), "read_bytes_per_s": 1e9, "ops_per_s": dict(FOUND.ops_per_s)} | changes)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "\x00\x01", _changed(machine={}), _changed(machine=limits._machine() | {"processor": "another"}),
        _changed(read_bytes_per_s=-1.0), _changed(read_bytes_per_s=float("nan")), _changed(read_bytes_per_s="fast"),
        _changed(read_bytes_per_s=float("inf")), _changed(ops_per_s={}), _changed(ops_per_s=7),
        _changed(ops_per_s={path: (1e9,) for path in PATHS_HERE}), _changed(ops_per_s={"float32": (1e9, 1e9, 1e9)}),
    ],
)  # fmt: skip
def test_a_corrupt_file_is_measured_anew_and_replaced(measured: list[int], text: str) -> None:
    kept_in().parent.mkdir(parents=True)
    kept_in().write_text(text)
    assert limits.limits() == again() == FOUND
    assert len(measured) == 1


def test_a_sound_file_is_believed(measured: list[int]) -> None:
    kept_in().parent.mkdir(parents=True)
    kept_in().write_text(_changed())
    assert limits.limits() == Limits(1e9, FOUND.ops_per_s) and not measured


def test_bytes_that_are_no_text_are_measured_anew(measured: list[int]) -> None:
    kept_in().parent.mkdir(parents=True)
    kept_in().write_bytes(b"\xff\xfe{")
    assert limits.limits() == FOUND and len(measured) == 1


def test_a_busy_machine_is_not_remembered(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "measure", lambda: replace(FOUND, quiet=False))
    assert not limits.limits().quiet and not kept_in().exists()


@pytest.mark.parametrize(("slow", "jumps"), [(1.0, False), (0.0, True)])
def test_what_is_busy(slow: float, jumps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took too long, or many rows were slower than few."""
    seconds, clock = itertools.count(1), itertools.count()
    monkeypatch.setattr(kernels, "available", lambda: False)
    monkeypatch.setattr(limits, "_best", lambda run, began: float(next(seconds)) ** 9 if jumps else 1.0)
    monkeypatch.setattr(limits.time, "perf_counter", lambda: slow * next(clock))
    assert not limits.measure().quiet
    monkeypatch.setattr(limits, "_best", lambda run, began: 1.0)
    monkeypatch.setattr(limits.time, "perf_counter", lambda: 0.0)
    assert limits.measure().quiet


def test_a_cache_that_cannot_be_written_is_done_without(
    measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(limits, "cache_folder", lambda: tmp_path / "file" / "foveal" / "kernels")
    assert limits.limits() == again() == FOUND
    assert len(measured) == 2


def test_other_threads_are_another_machine(measured: list[int]) -> None:
    before, file = torch.get_num_threads(), kept_in()
    limits.limits()
    torch.set_num_threads(before + 1)
    try:
        assert kept_in() != file
        limits.limits()
    finally:
        torch.set_num_threads(before)
    assert len(measured) == 2 and limits.limits() == FOUND


def test_speeds_go_by_the_count_below() -> None:
    assert [FOUND.speed("float32", rows) for rows in (1, 15, 16, 255, 256, 5000)] == [1e10, 1e10, 5e10, 5e10, 1e11, 1e11]
    assert FOUND.peak("float32") == 1e11


@pytest.mark.parametrize("native", [True, False])
def test_a_real_measurement(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can run has figures of the right order; without the library torch's paths remain."""
    if not native:
        monkeypatch.setattr(kernels, "available", lambda: False)
    found = limits.measure()
    assert list(found.ops_per_s) == list(PATHS_HERE if native else PATHS[:2])
    assert all(len(speeds) == len(TOKENS) and min(speeds) > 1e6 for speeds in found.ops_per_s.values())
    assert 1e7 < found.read_bytes_per_s < 1e13

"""The precision nobody named: by measured speed, only among what the quality table and the checkpoint allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foveal import choice
from foveal.choice import ACCURATE_BITS, AGREEMENT, Choice, choose, choose_by, fastest, weight_s
from foveal.config import preset
from foveal.limits import PATHS, Limits
from foveal.model.quantize import WIDTHS
from tests.command import tiny_config

QUICK = Limits(1e10, dict(zip(PATHS, [(1e11,) * 3, (2e11,) * 3, (4e11,) * 3, (5e11,) * 3], strict=True)))
SLOW_HALF = Limits(1e10, {**QUICK.ops_per_s, "bfloat16": (1e9,) * 3})
RELEASED = preset("2B")


def test_the_widths_taken_unasked_are_those_the_newest_quality_table_supports() -> None:
    newest = max((Path(__file__).parent.parent / "bench" / "results").glob("*-quantized.json"))
    agreement = json.loads(newest.read_text())["answers"]["agreement"]
    assert tuple(bits for bits in WIDTHS if agreement[f"{bits} bits"] >= AGREEMENT) == ACCURATE_BITS


def test_bfloat16_where_it_is_the_checkpoint_s_own_and_faster() -> None:
    assert RELEASED.dtype == "bfloat16"
    assert choose_by(QUICK, RELEASED).path == "bfloat16"
    assert choose_by(SLOW_HALF, RELEASED).path == "float32"
    assert choose_by(QUICK, replace(RELEASED, dtype="float32")).path == "float32"


def test_disturbed_figures_decide_nothing() -> None:
    assert choose_by(replace(QUICK, quiet=False), RELEASED).path == "float32"


def test_a_gain_as_small_as_a_measurement_s_error_changes_nothing() -> None:
    hardly = Limits(1e15, {"float32": (1e11,) * 3, "bfloat16": (1.2e11,) * 3})
    clearly = Limits(1e15, {"float32": (1e11,) * 3, "bfloat16": (1.3e11,) * 3})
    assert [choose_by(one, RELEASED).path for one in (hardly, clearly)] == ["float32", "bfloat16"]


def test_fewer_bits_only_where_they_are_accurate_wanted_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ACCURATE_BITS", (8,))
    assert choose_by(QUICK, RELEASED) == Choice("8 bits", choose_by(QUICK, RELEASED).why)
    assert choose_by(QUICK, RELEASED, packs=False).path == "bfloat16"
    without = Limits(1e10, {path: QUICK.ops_per_s[path] for path in PATHS[:2]})
    assert choose_by(without, RELEASED).path == "bfloat16"


def test_a_small_model_is_not_worth_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure() -> Limits:
        raise AssertionError("measured")

    monkeypatch.setattr(choice, "limits", measure)
    assert tiny_config().num_parameters < choice.SMALL and choose(tiny_config()).path == "float32"
    with pytest.raises(AssertionError, match="measured"):
        choose(RELEASED)


def test_what_a_choice_means() -> None:
    assert [(one.dtype, one.bits) for one in (Choice(path, "") for path in PATHS)] == [
        ("float32", None), ("bfloat16", None), ("float32", 8), ("float32", 4),
    ]  # fmt: skip


def test_one_row_is_bound_by_memory_and_many_by_arithmetic() -> None:
    assert weight_s(QUICK, "float32", 1) == 4 / 1e10
    assert weight_s(QUICK, "float32", 1200) == pytest.approx(2 * 1200 / 1e11)
    assert fastest(QUICK, 1) == "4 bits" and fastest(QUICK, 364, ("float32", "bfloat16")) == "bfloat16"
    assert fastest(SLOW_HALF, 1, ("float32", "bfloat16")) == "float32"

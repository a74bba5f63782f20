"""`foveal bench` on a tiny checkpoint: its figures, its table, its refusals."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_commands import refused
from tests.command import Run


def test_one_line_of_json_with_medians_of_its_readings(run_foveal: Run, checkpoint: str) -> None:
    options = ("--picture", "24x16", "--requests", 3, "--tokens", 4, "--runs", 2)
    done = run_foveal("bench", "-m", checkpoint, *options, "--json")
    assert done.code == 0 and done.out.count("\n") == 1 and done.err == ""
    figures = json.loads(done.out)
    assert (figures["picture"], figures["reply_tokens"], figures["requests"], figures["runs"]) == ("24x16", 4, 3, 2)
    for part in ("alone", "together"):
        for name, readings in figures["readings"][part].items():
            assert len(readings) == 2 and min(readings) > 0
            assert figures[part][name] == pytest.approx(sum(readings) / 2)
    table = run_foveal("bench", "-m", checkpoint, *options).out
    for word in ("first token, the same picture again", "3 at once", "times one after another", "peak memory"):
        assert word in table


def test_what_cannot_be_timed_is_refused_before_a_model_is_loaded(run_foveal: Run, checkpoint: str) -> None:
    refused(run_foveal("bench", "-m", checkpoint, "--picture", "640"), 2, "--picture is '640'", "WIDTHxHEIGHT")
    refused(run_foveal("bench", "-m", checkpoint, "--runs", 0), 2, "--runs is 0")

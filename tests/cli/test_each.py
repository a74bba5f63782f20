"""`foveal ask --each`: every file by itself, in order; one that cannot be read does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import foveal
from tests.cli.test_commands import refused
from tests.command import Run


def test_each_file_is_answered_as_if_asked_alone(run_foveal: Run, checkpoint: str, photo: str, movie: str) -> None:
    options = ("-m", checkpoint, "--max-tokens", 6, "--frames", 4)
    done = run_foveal("ask", photo, movie, "What is it?", "--each", "--json", *options)
    assert done.code == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    model = foveal.load(checkpoint)
    sampling, clips = model.sampling(max_tokens=6), foveal.ClipSampling(num_frames=4)
    expected = [model.ask("What is it?", file, sampling=sampling, clip_sampling=clips).answer for file in (photo, movie)]
    assert [(line["file"], line["answer"]) for line in lines] == list(
        zip((photo, movie), (a.text for a in expected), strict=True)
    )
    assert [line["usage"]["completion_tokens"] for line in lines] == [6, 6]
    plain = run_foveal("ask", photo, movie, "What is it?", "--each", *options).out.splitlines()
    assert plain == [f"{f}: {' '.join(a.text.split())}" for f, a in zip((photo, movie), expected, strict=True)]


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_answered(
    run_foveal: Run, checkpoint: str, photo: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    done = run_foveal("ask", broken, photo, "What is it?", "--each", "-m", checkpoint, "--max-tokens", 2)
    assert done.code == 2 and done.out.startswith(f"{photo}: ") and done.out.count("\n") == 1
    first, last = done.err.splitlines()
    assert first.startswith(f"foveal: {broken}: ") and first.count("broken.png") == 1
    assert "1 of 2 files could not be answered" in last


def test_each_needs_files_and_writes_no_tables(run_foveal: Run, checkpoint: str, photo: str) -> None:
    refused(run_foveal("ask", "What?", "--each", "-m", checkpoint), 2, "no file is named")
    refused(run_foveal("ask", photo, "What?", "--each", "--stats", "-m", checkpoint), 2, "--each writes one line a file")

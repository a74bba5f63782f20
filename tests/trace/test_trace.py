"""A trace is the request as it ran: its shapes, its numbers, its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal import kernels
from foveal.cost import decoder_flops, encode_flops
from foveal.generate import PREFILL_WINDOW, Pipeline
from foveal.model.quantize import num_bytes
from foveal.patches import Patches, patchify, resize, target_size
from foveal.prompt import timestamp_text
from foveal.trace import WATCHED, Trace, run
from foveal.trace.page import MAX_FRAMES, rebuild, render
from foveal.trace.recorder import Recorder
from tests.command import Run

STAGES = ["media", "patches", "vision tokens", "sequence", "batch", "decoder: prefill", "decoder: decode", "sampler → text"]
QUESTION = "What </script><b>happens</b>?"


@pytest.fixture(scope="module")
def pipeline(checkpoint: str) -> Pipeline:
    return foveal.load(checkpoint)


@pytest.fixture(scope="module")
def trace(pipeline: Pipeline, photo: str, movie: str) -> Trace:
    return run(pipeline, QUESTION, [photo, movie], sampling=pipeline.sampling(max_tokens=7), system="Be brief.")


def test_it_is_the_request_that_ask_runs(pipeline: Pipeline, trace: Trace, photo: str, movie: str) -> None:
    answer = pipeline.ask(QUESTION, photo, movie, sampling=pipeline.sampling(max_tokens=7), system="Be brief.").answer
    data = trace.data
    assert (data["answer"], data["finish_reason"]) == (answer.text, answer.finish_reason)
    assert [step["id"] for step in data["steps"]] == list(answer.token_ids)
    assert data["sequence"]["length"] == answer.stats.prompt_tokens


def test_every_stage_of_the_spine_is_there(pipeline: Pipeline, trace: Trace) -> None:
    stages = {stage["name"]: stage for stage in trace.data["stages"]}
    assert list(stages) == STAGES
    assert all(stage["seconds"] >= 0 for stage in stages.values())
    assert sum(stage["seconds"] for stage in stages.values()) > 0
    vision, text = pipeline.processor.config.vision, pipeline.processor.config.text
    shapes = {(a["name"], tuple(a["shape"])) for stage in stages.values() for a in stage["arrays"]}
    tokens, length = trace.data["sequence"]["num_vision_tokens"], trace.data["sequence"]["length"]
    assert ("embeddings", (tokens, text.hidden_size)) in shapes
    assert ("taps", (len(vision.taps), tokens, text.hidden_size)) in shapes
    assert ("position_ids", (3, length)) in shapes
    assert ("logits", (1, text.vocab_size)) in shapes
    assert stages["patches"]["bytes"] == sum(p.pixels.nbytes for p in trace.patches)
    assert stages["vision tokens"]["bytes"] == (1 + len(vision.taps)) * tokens * text.hidden_size * 4


def test_the_sequence_can_be_read_back(trace: Trace) -> None:
    sequence, media = trace.data["sequence"], trace.data["media"]
    runs = sequence["runs"]
    assert [r["start"] for r in runs] == [0] + [r["stop"] for r in runs[:-1]]
    assert runs[-1]["stop"] == sequence["length"] == len(sequence["positions"][0])
    text = "".join(token[1] for r in runs if r["kind"] == "text" for token in r["tokens"])
    assert QUESTION in text and "Be brief." in text and "seconds>" in text
    assert sum(m["tokens"] for m in media) == sequence["num_vision_tokens"] == len(sequence["vision"])
    time, row, column = sequence["positions"]
    for index, m, frame, r, c in sequence["vision"]:
        run_of = next(x for x in runs if x["start"] <= index < x["stop"])
        assert (run_of["media"], run_of["frame"]) == (m, frame)
        start = time[run_of["start"]]
        assert (time[index], row[index], column[index]) == (start, start + r, start + c)


def test_layers_blocks_taps_and_steps_were_all_watched(pipeline: Pipeline, trace: Trace) -> None:
    config, data = pipeline.processor.config, trace.data
    assert len(data["blocks"]) == config.vision.depth and len(data["layers"]) == config.text.num_hidden_layers
    assert all(layer["seconds"] > 0 and layer["rms_text"] > 0 and layer["rms_vision"] > 0 for layer in data["layers"])
    assert len(data["tap_rms"]) == len(config.vision.taps) and min(data["tap_rms"]) > 0
    for step in data["steps"]:
        probabilities = [p for _, p in step["top"]]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1 + 1e-6
        assert step["probability"] == probabilities[0]  # greedy takes the likeliest


def test_work_agrees_with_cost(pipeline: Pipeline, trace: Trace) -> None:
    config = pipeline.processor.config
    work = {c["stage"]: c["flops"] for c in trace.data["costs"]}
    length = trace.data["sequence"]["length"]
    assert work["encode"] == encode_flops(config.vision, [(p.kind, p.lengths()) for p in trace.patches]).total
    assert work["prefill"] == decoder_flops(config.text, length).total
    assert work["decode"] == decoder_flops(config.text, 6, cached=length, outputs=6).total
    assert trace.data["kv_bytes"] == config.text.kv_bytes_per_token("float32") * (length + 6)


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
def test_a_packed_model_is_described_as_it_is(trace: Trace) -> None:
    """Its weights are counted as packed, and its decode steps are said to be slower than those nobody watches."""
    packed = foveal.load(bits=8)
    traced = run(packed, "What?", [], sampling=packed.sampling(max_tokens=2, ignore_end=True))
    data = traced.data
    assert data["dtype"] == "8 bits" and data["weight_bytes"] == num_bytes(packed.model) < 16e6
    notes = {name: [stage for one in some["stages"] if one["name"] == name for stage in one["notes"]]
             for name, some in (("decoder: decode", data), ("decoder: prefill", data))}  # fmt: skip
    assert WATCHED in notes["decoder: decode"] and WATCHED not in notes["decoder: prefill"]
    assert WATCHED in traced.html(packed)
    assert WATCHED not in str(trace.data)  # plain weights run as they always do


def test_text_alone_and_a_long_prompt(pipeline: Pipeline) -> None:
    data = run(pipeline, "word " * 250, [], sampling=pipeline.sampling(max_tokens=1)).data
    stages = {stage["name"]: stage for stage in data["stages"]}
    assert list(stages) == STAGES[3:]
    rest = data["sequence"]["length"] - PREFILL_WINDOW
    assert rest > 0 and stages["batch"]["notes"] == [f"windows: {PREFILL_WINDOW} + {rest}"]
    assert data["blocks"] == [] and data["layers"][0]["rms_vision"] is None
    assert len(data["steps"]) == 1 and len(data["steps"][0]["top"]) == 5


def test_the_recorder_leaves_nothing_behind_and_changes_nothing(pipeline: Pipeline) -> None:
    ask = lambda: pipeline.ask("x", sampling=pipeline.sampling(max_tokens=4)).answer.token_ids  # noqa: E731
    before = ask()
    with Recorder(pipeline.model) as recorder:
        assert ask() == before
    passes = len(recorder.passes)
    assert passes == len(before)
    ask()
    assert len(recorder.passes) == passes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipeline.model.modules())


@pytest.mark.parametrize("which", [0, 1])
def test_pictures_are_rebuilt_from_the_patches_themselves(pipeline: Pipeline, photo: str, movie: str, which: int) -> None:
    config = pipeline.processor.config.vision
    frames, budget = pipeline.processor.open([photo, movie])
    found = frames[which]
    patches = patchify(found, config, budget)
    size = target_size(len(found.pixels), *found.source_size, found.kind, config, budget)
    per = 1 if found.kind == "image" else 2
    for t in range(len(patches.grids)):
        assert np.array_equal(rebuild(patches, config, t), resize(found.pixels[t * per : t * per + 1], size)[0])
    some = patches.take([0])
    canvas = rebuild(some, config, 0)
    side = config.factor
    assert np.array_equal(canvas[:side, :side], rebuild(patches, config, 0)[:side, :side])
    assert (canvas[side:] == 128).all()


def test_the_page_needs_nothing_and_obeys_nobody(pipeline: Pipeline, trace: Trace) -> None:
    page = trace.html(pipeline)
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<(?:link|iframe|object)\b|@import|\bsrc=|url\(", page)
    body = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert body is not None
    data = json.loads(body[1])  # the question's own </script> has not ended it
    assert data["question"] == QUESTION
    assert page.count("</script>") == 2 and "<b>happens" not in page
    assert [len(m["frames"]) for m in data["media"]] == [1, len(trace.patches[1].grids)]
    for media in data["media"]:
        for frame in media["frames"]:
            assert re.match(r"data:image/(png|jpeg);base64,", frame["src"])


def test_the_page_says_times_and_sizes_as_the_prompt_and_the_plan_do(pipeline: Pipeline, trace: Trace) -> None:
    """JavaScript would round 0.25 to 0.3 where the prompt has 0.2; columns stand before rows, as width before height."""
    clip = replace(trace.patches[1], times_s=(0.25, 1.25, 2.75))
    page = render(trace.data | {"media": [trace.data["media"][1]]}, [clip], pipeline.processor.config.vision)
    frames = json.loads(page.split('type="application/json">')[1].split("</script>")[0])["media"][0]["frames"]
    assert [frame["time"] for frame in frames] == ["0.2 s", "1.2 s", "2.8 s"]
    assert [f"<{frame['time'].removesuffix(' s')} seconds>" for frame in frames] == [timestamp_text(t) for t in clip.times_s]
    assert "frame.time}" in page and "frame.time_s" not in page
    assert "${run.columns} x ${run.rows} tokens" in page and "${width / t} x ${height / t} vision tokens" in page


def test_a_long_clip_shows_some_frames_and_counts_the_rest(pipeline: Pipeline, trace: Trace) -> None:
    clip = trace.patches[1]
    times = 40
    per = len(clip.pixels) // len(clip.grids)
    coords = np.tile(clip.coords[:per], (times, 1))
    coords[:, 0] = np.repeat(np.arange(times), per)
    long = Patches(
        np.tile(clip.pixels[:per], (times, 1)), coords, clip.grids[:1] * times, tuple(map(float, range(times))), "video",
        clip.merge, clip.source_size,
    )  # fmt: skip
    page = render(trace.data | {"media": [trace.data["media"][1]]}, [long], pipeline.processor.config.vision)
    assert f'"hidden_frames":{times - MAX_FRAMES}' in page
    assert '"index":0' in page and f'"index":{times - 1}' in page


def test_the_command(run_foveal: Run, checkpoint: str, photo: str, tmp_path: Path) -> None:
    html = tmp_path / "trace.html"
    words = ["trace", "-m", checkpoint, photo, "Why?", "--max-tokens", "3"]
    done = run_foveal(*words, "--html", html)
    assert done.code == 0 and f"wrote {html}" in done.err
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    for text in ("photo [1].png (1, 200, 330, 3) uint8", "after decoder layer 2", "FLOP/s", "answer (3 tokens, length)"):
        assert text in done.out
    data = json.loads(run_foveal(*words, "--json").out)
    assert [stage["name"] for stage in data["stages"]] == STAGES
    refused = run_foveal(*words, "--html", tmp_path)
    assert refused.code == 2 and "cannot be written" in refused.err

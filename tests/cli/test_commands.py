"""Every command, run in this process: what it writes where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal import kernels
from foveal.cli import ask as ask_module
from foveal.cli import models, session
from foveal.config import PRESETS, preset
from foveal.errors import HubError
from foveal.generate import EMBEDDED, Answer, Piece, Stats
from foveal.limits import PATHS
from foveal.model.load import load_model
from foveal.model.quantize import packed_weights
from foveal.processor import Processor
from tests.command import Done, Run, tiny_config


def refused(done: Done, code: int, *words: str) -> None:
    """Expect one clear line on stderr, nothing on stdout, and no traceback."""
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == 1 and done.err.startswith("foveal: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def test_ask_writes_the_answer_and_nothing_else(run_foveal: Run, checkpoint: str, photo: str, movie: str) -> None:
    done = run_foveal("ask", movie, "What is it?", "-m", checkpoint, photo, "--max-tokens", 12, "--stats", "--frames", 4)
    model = foveal.load(checkpoint)
    expected = model.ask(
        "What is it?", movie, photo, sampling=model.sampling(max_tokens=12), clip_sampling=foveal.ClipSampling(num_frames=4)
    ).answer
    assert done.code == 0
    assert done.out == expected.text + "\n"
    stats = expected.stats
    kinds = f"{stats.text_tokens} text + {stats.image_tokens} picture + {stats.video_tokens} clip"
    for part in (kinds, "first token", "tokens/s decoding", "peak memory", "cut after 12 tokens", "of this machine's limit"):
        assert part in done.err


def test_ask_as_json_agrees_with_itself_and_with_plan(run_foveal: Run, checkpoint: str, photo: str) -> None:
    options = ("-m", checkpoint, photo, "Why?", "--image-tokens", "8..20", "--json", "--max-tokens", 5)
    done, plan = run_foveal("ask", *options), json.loads(run_foveal("plan", *options).out)
    answer = json.loads(done.out)
    assert done.err == ""
    assert answer["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["prompt_tokens"] == sum(usage["prompt_tokens_details"].values()) == plan["prompt_tokens"]
    assert 8 <= usage["prompt_tokens_details"]["image"] == plan["vision_tokens"] <= 20
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert set(answer["timings"]) == {"prepare_s", "encode_s", "prefill_s", "decode_s", "first_token_s", "tokens_per_s"}
    assert answer["reasoning"] is None and answer["peak_memory_bytes"] > 10**7


def test_every_sampling_option_arrives(run_foveal: Run, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(self: Any, question: str, *files: Any, **options: Any) -> Any:
        seen.update(options, question=question)
        raise KeyboardInterrupt

    monkeypatch.setattr("foveal.generate.Pipeline.ask", spy)
    done = run_foveal(
        "ask", "-m", checkpoint, "q", "--temperature", 0.5, "--top-p", 0.9, "--top-k", 7, "--min-p", 0.1, "--max-tokens", 9,
        "--seed", 3, "--system", "Be brief.", "--stop", "a", "--stop", "b", "--repetition-penalty", 1.1, "--presence-penalty",
        0.2, "--frequency-penalty", 0.3, "--thinking-tokens", 4, "--fps", 3, "--start", 1, "--end", 2.5,
        "--frame-tokens", "4..8",
    )  # fmt: skip
    assert done.code == 130
    assert seen["sampling"] == foveal.Sampling(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, max_tokens=9, seed=3, stop=("a", "b"), repetition_penalty=1.1,
        presence_penalty=0.2, frequency_penalty=0.3, thinking_tokens=4,
    )  # fmt: skip
    assert seen["system"] == "Be brief."
    assert seen["clip_sampling"] == foveal.ClipSampling(fps=3, start_s=1, end_s=2.5)
    assert seen["budget"].frame == (4, 8)


def test_sampling_options_that_do_nothing_are_named(run_foveal: Run, checkpoint: str) -> None:
    done = run_foveal("ask", "-m", checkpoint, "q", "--max-tokens", 1, "--top-p", 0.9, "--seed", 1)
    assert "--top-p and --seed change nothing" in done.err


def test_question_from_stdin(run_foveal: Run, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Qu'est-ce ?")))
    assert json.loads(run_foveal("plan", "-m", checkpoint, "-", "--json").out)["question"] == "Qu'est-ce ?"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "photo.png", "What?"], "photo.png: no such file"),
        (["ask", "a", "b"], "2 questions"),
        (["ask", "q", "--top-k", "many"], "--top-k"),
        (["ask", "q", "--nonsense"], "unknown option --nonsense; see foveal ask --help"),
        (["ask", "q", "--temprature=1"], "did you mean --temperature?"),
        (["plan", "q", "--temprature=1"], "unknown option --temprature=1; see foveal plan --help"),
        (["plan", "q", "--temperature", "1"], "no option --temperature; foveal ask, foveal trace and foveal eval have it"),
        (["ask", "q", "--html=x"], "foveal ask has no option --html; foveal trace has it"),
        (["trace", "q", "--each"], "foveal trace has no option --each; foveal ask has it"),
        (["ask", "q", "--", "--json"], "--json stands after --"),
        (["plan", "q", "-m", "8B", "--quantize", "5"], "--quantize"),
        (["plan", "q", "-m", "8B", "--quantize", "4", "--dtype", "float32"], "leave out --dtype"),
        (["pack", "mini4", "--bits", "4"], "name the checkpoint to pack with -m"),
        (["ask", "q", "--top-k"], "--top-k"),
        (["info", "--nonsense"], "--nonsense"),
        (["ask", "q", "-m", "nowhere/at/all"], "neither a folder nor a hub name"),
        (["ask", "q", "-m", "overview"], "preset without weights"),
        (["ask", "q", "--device", "tpu"], "--device is 'tpu'"),
        (["ask", "q", "--dtype", "int3"], "--dtype"),
        (["ask", "q", "--kv-cache", "int4"], "--kv-cache"),
        (["plan", "q", "-m", "8B", "--kv-cache", "int4"], "--kv-cache"),
        (["ask", "q", "--fps", "2", "--frames", "3"], "exclude each other"),
        (["plan", "q", "-m", "9B"], "presets are 2B"),
        (["plan", "q", "-m", "8B", "--dtype", "int3"], "--dtype is 'int3'"),
        (["plan", "q", "-m", "8B", "--max-tokens", "-1"], "--max-tokens"),
        (["plan", "q", "-m", "8B", "--image-tokens", "9..2"], "--image-tokens is '9..2'"),
        (["info", "nowhere"], "presets are 2B"),
        (["new", "x", "--preset", "9B", "--random"], "no preset '9B'"),
        (["new", "x", "--preset", "2B"], "--random"),
        (["nonsense"], "nonsense"),
        (["trace", "q", "--html", "/no/such/folder/x.html", "-m", "8B"], "no folder"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    run_foveal: Run, words: list[str], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "EMBEDDED", Path(__file__).parent)  # never loaded: all of these end before
    monkeypatch.setattr(models, "embedded", lambda: models.EMBEDDED)
    refused(run_foveal(*words), 2, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["q", "--temperature", "-1"], "temperature is -1"),
        (["q " * 3000], "the context holds 2048"),
        (["q", "--image-tokens", "0..4"], "--image-tokens is '0..4'"),
        (["broken.png", "q"], "broken.png"),
        (["q", "--stop", ""], "stop is ['']"),
    ],
)
def test_mistakes_found_with_the_model(
    run_foveal: Run, checkpoint: str, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    refused(run_foveal("ask", "-m", checkpoint, *words), 2, message)


def test_a_bug_ends_with_1_and_says_how_to_report(run_foveal: Run, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(session, "load", bug)
    refused(run_foveal("ask", "q", "-m", checkpoint), 1, "RuntimeError: two lines", "report", "FOVEAL_DEBUG=1")
    for words, variable in ((["--debug"], "0"), ([], "1")):
        monkeypatch.setenv("FOVEAL_DEBUG", variable)
        done = run_foveal("ask", "q", "-m", checkpoint, *words)
        assert done.code == 1 and "Traceback" in done.err


def test_debug_shows_where_a_mistake_was_found_too(run_foveal: Run) -> None:
    done = run_foveal("ask", "photo.png", "q", "--debug")
    assert done.code == 2 and "Traceback" in done.err and done.err.endswith("no such file\n")


def test_out_of_memory_says_what_to_do(run_foveal: Run, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(session, "load", full)
    refused(run_foveal("ask", "q", "-m", checkpoint), 1, "out of memory", "--dtype bfloat16")


class SaidAlready:
    """A Reply whose pieces are known."""

    def __init__(self, answer: Answer, *pieces: Piece) -> None:
        self.answer, self._pieces = answer, pieces

    def pieces(self) -> Iterator[Piece]:
        return iter(self._pieces)


def stats(generated: int) -> Stats:
    return Stats(
        text_tokens=3, image_tokens=0, video_tokens=0, generated_tokens=generated, reasoning_tokens=1, prepare_s=0.0,
        encode_s=0.0, prefill_s=0.1, decode_s=0.2, first_token_s=0.1, peak_memory_bytes=10**8,
    )  # fmt: skip


def test_reasoning_goes_aside_and_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (False, True):
        pieces = [Piece("Let me [see].\n", "reasoning"), Piece("Red", "answer"), Piece(".", "answer")]
        answer = Answer("Red.", "Let me [see].\n", "stop", (1, 2), stats(2))
        assert ask_module.stream(SaidAlready(answer, *pieces), session.Progress(), shown) == answer  # type: ignore[arg-type]
        captured = capsys.readouterr()
        assert captured.out == "Red.\n"
        assert ("Let me [see]." in captured.err) == shown


@pytest.mark.parametrize("reason", ["length", "context", "loop"])
def test_an_answer_that_was_cut_says_so_on_stderr(run_foveal: Run, checkpoint: str, reason: str, monkeypatch: Any) -> None:
    answer = Answer("", "Hm", reason, (1,), stats(7))  # type: ignore[arg-type]
    monkeypatch.setattr("foveal.generate.Pipeline.ask", lambda *_, **__: SaidAlready(answer))
    done = run_foveal("ask", "q", "-m", checkpoint)
    assert (done.code, done.out) == (0, "\n")
    assert {"length": "7 tokens", "context": "context is full", "loop": "repeated itself"}[reason] in done.err
    assert "--thinking-tokens" in done.err
    assert json.loads(run_foveal("ask", "q", "-m", checkpoint, "--json").out)["finish_reason"] == reason


def test_the_embedded_model_is_announced(run_foveal: Run, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.EMBEDDED == EMBEDDED
    monkeypatch.setattr(models, "EMBEDDED", Path(checkpoint))
    monkeypatch.setattr("foveal.generate.EMBEDDED", Path(checkpoint))
    done = run_foveal("ask", "q", "--max-tokens", 1)
    assert done.code == 0 and "embedded model" in done.err.splitlines()[0]
    monkeypatch.setattr(models, "EMBEDDED", Path(checkpoint) / "nothing")
    refused(run_foveal("ask", "q"), 2, "holds no embedded model")


@pytest.mark.parametrize("name", PRESETS)
def test_info_of_presets(run_foveal: Run, name: str) -> None:
    facts = json.loads(run_foveal("info", name.lower(), "--json").out)
    parts = facts["parameters"]
    total, active = parts.pop("total"), parts.pop("active_per_decoded_token")
    config = preset(name)
    assert total == sum(parts.values()) == config.num_parameters
    assert all(n >= 0 for n in parts.values()) and active == config.num_active_parameters
    assert facts["weight_bytes"]["bfloat16"] == 2 * total
    assert len(facts["architecture"]["taps"]) == len(config.vision.taps)
    assert facts["machine"]["threads"] >= 1
    table = run_foveal("info", name).out
    assert facts["kv_bytes_per_token"]["int8"] == 17 / 32 * facts["kv_bytes_per_token"]["bfloat16"]
    for text in (f"{total:,}", f"{config.text.max_position_embeddings:,} tokens", "151655", "cache per token", "int8 cache"):
        assert text in table


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("8b", "8b is described by its preset, without a download; Qwen/Qwen3-VL-8B-Instruct is the same with"),
        ("30B-A3B", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
        ("overview", "overview is a preset: a shape without released weights"),
    ],
)
def test_a_preset_says_that_it_is_one(run_foveal: Run, name: str, says: str) -> None:
    for words in (("info", name), ("plan", "q", "-m", name)):
        done = run_foveal(*words, "--json")
        assert done.code == 0 and says in done.err and done.err.count("\n") == 1
        json.loads(done.out)


def test_a_folder_goes_before_a_size(run_foveal: Run, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "8B").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    for words in (("info", "8B"), ("plan", "q", "-m", "8B"), ("ask", "q", "-m", "8B", "--max-tokens", 1)):
        done = run_foveal(*words, "--json")
        assert done.code == 0 and done.err == ""
        assert json.loads(done.out)["model"] == "8B"


@pytest.mark.parametrize("name", ["2B", "qwen3-vl:2b", "2B-thinking", "Qwen/Qwen3-VL-2B-Instruct-FP8"])
def test_a_model_that_cannot_be_downloaded(run_foveal: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs no weights still works, and the error says how."""

    def offline(*_: Any, **__: Any) -> None:
        raise HubError("the hub cannot be reached")

    monkeypatch.setattr("foveal.generate.resolve", offline)
    monkeypatch.setattr(models, "resolve", offline)
    plan, new = "foveal plan -m 2B", "foveal new --preset 2B --random DIR"
    refused(run_foveal("ask", "q", "-m", name), 2, "cannot be reached; without them", plan, new)
    refused(run_foveal("ask", "q", "-m", "someone/other"), 2, "error: the hub cannot be reached\n")
    if name == "2B":
        assert run_foveal("plan", "q", "-m", name).code == 0
    else:
        refused(run_foveal("plan", "q", "-m", name), 2, "cannot be reached; 2B alone is foveal's preset of that shape")
    refused(run_foveal("info", "someone/other"), 2, "error: the hub cannot be reached\n")


def test_info_of_a_checkpoint_lists_its_special_tokens(run_foveal: Run, checkpoint: str) -> None:
    facts = json.loads(run_foveal("info", checkpoint, "--json").out)
    assert facts["special_tokens"]["<|image_pad|>"] == 400
    assert facts["special_tokens"]["<|im_end|>"] < 400
    assert facts["directory"] == checkpoint


def test_new_writes_what_ask_reads(run_foveal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config())
    directory = tmp_path / "new"
    done = run_foveal("new", "--preset", "tiny", "--random", directory, "--dtype", "bfloat16", "--seed", 5)
    assert done.code == 0 and f"{tiny_config().num_parameters:,} random weights" in done.err
    assert run_foveal("ask", "-m", directory, "hello", "--max-tokens", 2).code == 0
    assert json.loads(run_foveal("info", directory, "--json").out)["architecture"]["dtype"] == "bfloat16"
    refused(run_foveal("new", "--preset", "tiny", "--random", directory), 2, "not an empty folder")


def test_help_and_version(run_foveal: Run) -> None:
    shown = run_foveal("--help")
    assert shown.code == 0 and all(name in shown.out for name in ("ask", "plan", "trace", "info", "new"))
    assert run_foveal("--version").out.strip() == f"foveal {foveal.__version__}"
    for command in ("ask", "plan", "trace", "info", "new"):
        assert run_foveal(command, "--help").code == 0
    assert run_foveal().code == 0


def test_torch_s_threads_sleep_soon_unless_someone_decided(run_foveal: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "7")  # so that what main sets is undone
        monkeypatch.delenv(name)
    run_foveal("--version")
    assert os.environ.pop("GOMP_SPINCOUNT") == "5000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_foveal("--version")
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    run_foveal("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "3"


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
def test_pack_writes_what_quantize_answers_with(run_foveal: Run, checkpoint: str, photo: str, tmp_path: Path) -> None:
    target = str(tmp_path / "packed")
    done = run_foveal("pack", target, "-m", checkpoint, "--bits", 4)
    assert (done.code, done.out) == (0, "") and "of weights" in done.err
    words = (photo, "What is it?", "--max-tokens", 8)
    packed = run_foveal("ask", "-m", target, *words)
    assert packed.code == 0 and packed.out == run_foveal("ask", "-m", checkpoint, "--quantize", 4, *words).out
    assert "4 bits" in run_foveal("ask", "-m", target, "--stats", *words).err
    assert json.loads(run_foveal("info", target, "--json").out)["speeds"]["choice"] is None
    refused(run_foveal("ask", "-m", target, "--quantize", 8, *words), 2, "packed to 4 bits")
    refused(run_foveal("ask", "-m", target, "--quantize", "none", *words), 2, "is packed", "load the original")
    refused(run_foveal("pack", tmp_path / "again", "-m", target), 2, "packed already")
    refused(run_foveal("ask", "-m", checkpoint, "--quantize", 8, "--dtype", "float32", *words), 2, "--dtype")


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
def test_pack_calibrates_with_conversations(run_foveal: Run, checkpoint: str, photo: str, tmp_path: Path) -> None:
    asked = {"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": "What is it?"}]}
    data, target = tmp_path / "data.jsonl", str(tmp_path / "packed")
    data.write_text(json.dumps({"messages": [asked, {"role": "assistant", "content": "A thing."}]}) + "\n")
    done = run_foveal("pack", target, "-m", checkpoint, "--bits", 4, "--calibrate", data)
    assert (done.code, done.out) == (0, "") and "of weights" in done.err
    plain, calibrated = (packed_weights(model) for model in (load_model(checkpoint, bits=4), load_model(target)))
    assert not all(torch.equal(packed.codes, calibrated[name].codes) for name, packed in plain.items())
    assert run_foveal("ask", "-m", target, photo, "What is it?", "--max-tokens", 4).code == 0
    again = ("pack", tmp_path / "again", "-m", checkpoint, "--calibrate", data)
    refused(run_foveal(*again, "--conversations", 0), 2, "one or more")
    refused(run_foveal(*again[:-1], tmp_path / "missing.jsonl"), 2, "missing.jsonl")
    refused(run_foveal(*again[:4], "--conversations", 3), 2, "--conversations counts those of --calibrate")


@pytest.mark.parametrize("command", ["pack", "new", "merge", "timestamps"])
def test_a_folder_that_holds_something_is_not_written_into(
    run_foveal: Run, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Nor is anything loaded, calibrated or generated before that is said."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "model-00001-of-00002.safetensors").write_bytes(b"somebody's weights")
    monkeypatch.setattr("foveal.model.load.load_model", lambda *_, **__: pytest.fail("loaded"))
    words = {
        "pack": (other, "-m", checkpoint), "new": (other, "--preset", "2B", "--random"),
        "merge": (tmp_path / "adapter", other, "-m", checkpoint), "timestamps": (other, "-m", checkpoint),
    }  # fmt: skip
    refused(run_foveal(command, *words[command]), 2, f"{other} exists and is not an empty folder; name another one")
    file = other / "file"
    file.write_text("")
    refused(run_foveal(command, *[file if word == other else word for word in words[command]]), 2, "not an empty folder")
    assert (other / "model-00001-of-00002.safetensors").read_bytes() == b"somebody's weights"
    assert sorted(path.name for path in other.iterdir()) == ["file", "model-00001-of-00002.safetensors"]


def test_a_cache_of_8_bits_is_planned_as_it_is_used(run_foveal: Run, checkpoint: str) -> None:
    words = ("What?", "-m", checkpoint, "--kv-cache", "int8", "--max-tokens", 4, "--json")
    planned, traced = (json.loads(run_foveal(command, *words).out) for command in ("plan", "trace"))
    text = Processor.from_checkpoint(checkpoint).config.text
    assert planned["kv_cache"] == "int8"
    assert planned["memory_bytes"]["kv_cache"] == text.kv_bytes_per_token("int8") * (planned["prompt_tokens"] + 4)
    assert traced["kv_bytes"] % text.kv_bytes_per_token("int8") == 0 < traced["kv_bytes"] <= planned["memory_bytes"]["kv_cache"]


def test_info_counts_packed_bytes(run_foveal: Run) -> None:
    facts = json.loads(run_foveal("info", "2B", "--json").out)
    four, eight = facts["packed_bytes"]["4 bits"], facts["packed_bytes"]["8 bits"]
    assert four < eight < facts["weight_bytes"]["bfloat16"]
    assert facts["machine"]["kernels"]


def test_info_shows_the_machine_s_limits_and_what_is_chosen(run_foveal: Run, checkpoint: str) -> None:
    speeds = json.loads(run_foveal("info", checkpoint, "--json").out)["speeds"]
    assert speeds["read_bytes_per_s"] > 0 and speeds["choice"]["path"] == "float32"
    assert set(speeds["fastest"]) == {"encode", "prefill", "decode"} and set(speeds["fastest"].values()) <= set(PATHS)
    table = run_foveal("info", checkpoint).out
    assert "measured limits" in table and speeds["choice"]["why"] in table
    assert ("delete it to measure anew" if speeds["kept_in"] else "too busy to measure") in table

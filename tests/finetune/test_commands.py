"""foveal train, merge, data check and data show, as a person runs them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from foveal.cli.train import _stopped_by_signals
from foveal.errors import ConfigError
from foveal.finetune.run import model_folder, new_tuner
from foveal.finetune.settings import TuneSettings, read_settings
from foveal.generate import Pipeline
from foveal.model.load import load_model
from tests.command import Run, run_foveal
from tests.finetune.conftest import Write, chat, mixed

__all__ = ["run_foveal"]


def _config(folder: Path, checkpoint: Path, text: str = "") -> Path:
    file = folder / "run.toml"
    file.write_text(
        f'model = "{checkpoint}"\noutput = "run"\ndata = ["data.jsonl"]\nsteps = 2\nbatch_tokens = 200\nlanguage = 1e-2\n{text}'
    )
    return file


def test_an_adapter_is_trained_and_merged(run_foveal: Run, checkpoint: Path, write: Write, tmp_path: Path) -> None:
    write(mixed(6))
    lora = '[lora]\nrank = 2\ntarget = ["q_proj"]\n'
    done = run_foveal("train", _config(tmp_path, checkpoint, lora))
    assert done.code == 0 and "weights learn (language)" in done.err and done.out == ""
    assert sorted(p.name for p in (tmp_path / "run" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (tmp_path / "run" / "run.png").is_file() and not (tmp_path / "run" / "model").exists()
    done = run_foveal("merge", tmp_path / "run" / "adapter", tmp_path / "merged", "-m", checkpoint)
    assert done.code == 0 and "5 weights changed" in done.err
    before, after = load_model(checkpoint), load_model(tmp_path / "merged")
    changed = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert len(changed) == 5 and all("q_proj" in name for name in changed)
    assert Pipeline.load(tmp_path / "merged").processor.end_ids == Pipeline.load(checkpoint).processor.end_ids


def test_a_whole_model_is_written_and_a_finished_run_stays(
    run_foveal: Run, checkpoint: Path, write: Write, tmp_path: Path
) -> None:
    write(mixed(6))
    config = _config(tmp_path, checkpoint, "checkpointing = true\nplot = false\n")
    assert run_foveal("train", config, "--set", "merger=1e-3").code == 0
    first = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert run_foveal("train", config, "--set", "merger=1e-3").code == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == first
    done = run_foveal("train", config)
    assert done.code == 2 and "merger is 0.0, but" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train",), "foveal train needs a TOML file of settings, or --data and --output"),
        (("train", "gone.toml"), "gone.toml cannot be read"),
        (("data", "check", "gone.jsonl"), "1 of 1 samples are bad; the first: gone.jsonl: no such file"),
        (("data", "check"), "there is nothing to check"),
        (("data", "show", "gone.jsonl"), "gone.jsonl: no such file"),
        (("data", "check", "gone.jsonl%50"), "gone.jsonl%50 is a part, and only an epoch of training takes parts"),
        (("data", "show", "gone.jsonl%50"), "gone.jsonl%50 is a part"),
        (("data", "check", "gone.jsonl", "--max-tokens", "0"), "--max-tokens is 0; expected 1 or more"),
        (("data", "check", "gone.jsonl", "--max-tokens", "-5"), "--max-tokens is -5"),
        (("merge", "gone", "out"), "adapter_config.json cannot be read"),
    ],
)
def test_mistakes_are_one_line(run_foveal: Run, words: tuple[str, ...], says: str) -> None:
    done = run_foveal(*words)
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert says in last and "Traceback" not in done.err


def test_check_counts_and_lists(run_foveal: Run, checkpoint: Path, write: Write, tmp_path: Path) -> None:
    file = write([chat("<image>what?", "red", image="a.png"), chat("<image>", "x"), chat("what?", "blue")])
    done = run_foveal("data", "check", file, "-m", checkpoint, "--json", "--plot", tmp_path / "lengths.png")
    facts = json.loads(done.out)
    assert done.code == 2 and f"{file}:2: the messages have 1 image placeholder" in done.err
    assert (facts["samples"], facts["bad"], facts["pictures"]) == (2, 1, 1)
    tokens = facts["tokens"]
    assert tokens["all"] == tokens["text"] + tokens["image"] and tokens["image"] > 0 < tokens["learned"] < tokens["text"]
    assert (tmp_path / "lengths.png").read_bytes()[:4] == b"\x89PNG"
    good = write([chat("what?", "blue")])
    assert run_foveal("data", "check", good, "-m", checkpoint).code == 0


def test_show_colours_what_is_learned(run_foveal: Run, checkpoint: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = write([chat("<image>say assistant", "red", image="a.png")])
    done = run_foveal("data", "show", file, "-m", checkpoint)
    assert done.code == 0 and "vision tokens]" in done.out
    coloured = "".join(piece.split("m", 1)[1].split("\x1b")[0] for piece in done.out.split("\x1b[30;")[1:])
    assert coloured == "red<|im_end|>"
    assert run_foveal("data", "show", file, "7", "-m", checkpoint).code == 2


def test_settings_from_a_file_and_on_top(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        'output = "o"\ndata = ["a.jsonl%50", "few%20"]\nimage_tokens = [4, 64]\n'
        '[sources.few]\npath = "b.jsonl"\nroot = "pics"\n[lora]\nrank = 8\n'
    )
    made = read_settings(tmp_path / "x.toml", {"steps": 3, "model": None}, ["lora.target=q_proj|v_proj", "language=2e-4"])
    assert made.output == tmp_path / "o" and made.data == (str(tmp_path / "a.jsonl%50"), "few%20")
    assert made.sources["few"].root == tmp_path / "pics" and made.image_tokens == (4, 64)
    assert made.lora is not None and (made.lora.rank, made.lora.target) == (8, "q_proj|v_proj")
    assert (made.steps, made.language) == (3, 2e-4)
    for change, says in (
        ("langage=1", "unknown setting langage; did you mean language"), ("steps=x", "steps is 'x'; expected int"),
        ("lora.rank=0", "lora.rank is 0"), ("language=0", "nothing would learn"), ("loss=mean", "loss is 'mean'"),
        ("epochs=2", "steps and epochs are both given"), ("word", "is not an assignment"), ("betas=[0.9]", "betas is"),
        ("betas=[1.0, 0.9]", "betas is .*below 1"), ("seed=-1", "seed is -1"), ("language=inf", "language is inf"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            read_settings(tmp_path / "x.toml", {"steps": 3}, [change])


def test_paths_that_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "m").mkdir(parents=True)
    (tmp_path / "x.toml").write_text(
        'output = "~/run"\nmodel = "~/m"\ndata = ["~/a.jsonl%50", "b.jsonl", "mine%50"]\neval = ["~/c.jsonl"]\n'
        '[sources.mine]\npath = "~/d.jsonl"\nroot = "~/d"\n'
    )
    settings, home = read_settings(tmp_path / "x.toml"), tmp_path / "home"
    assert settings.output == home / "run" and settings.model == settings.base == str(home / "m")
    assert settings.data == (f"{home}/a.jsonl%50", str(tmp_path / "b.jsonl"), "mine%50") and settings.eval == (
        f"{home}/c.jsonl",
    )
    assert settings.sources["mine"].path == home / "d.jsonl" and settings.sources["mine"].root == home / "d"
    (tmp_path / "x.toml").write_text('output = "~nobody-of-this-name/run"\ndata = ["a.jsonl"]\n')
    with pytest.raises(ConfigError, match=r"begins with ~, but .*; write the path in full"):
        read_settings(tmp_path / "x.toml")


@pytest.mark.parametrize(("device", "says"), [("gpu", "no device 'gpu'"), ("cuda:99", r"finds (no|\d+) GPUs; use cpu")])
def test_a_device_that_is_not_there(device: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        new_tuner(TuneSettings(output=tmp_path / "run", data=("a.jsonl",), device=device))
    assert not (tmp_path / "run").exists()


def test_the_embedded_model_is_the_default() -> None:
    assert (model_folder(None) / "model.safetensors").is_file()


def test_an_adapter_is_merged_into_the_model_it_names(
    run_foveal: Run, checkpoint: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(mixed(6))
    (tmp_path / "base").symlink_to(checkpoint)
    _config(tmp_path, Path("base"), 'eval = ["data.jsonl"]\n[lora]\nrank = 2\ntarget = ["q_proj"]\n')
    monkeypatch.chdir(tmp_path)
    done = run_foveal("train", "run.toml")
    assert done.code == 0 and "step 2: evaluation loss" in done.err  # without a terminal, too
    monkeypatch.chdir(tmp_path / "run")  # it is named by a path that means the same from anywhere
    done = run_foveal("merge", tmp_path / "run" / "adapter", tmp_path / "merged")
    assert done.code == 0 and "5 weights changed" in done.err
    assert load_model(tmp_path / "merged").config == load_model(checkpoint).config


def test_the_legend_hides_no_bar() -> None:
    from foveal.finetune import plots

    figure = plots.new_figure(6.4, 3.6)
    plots.draw_lengths(figure, [86] * 24 + [130] * 14, [5] * 38)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_an_output_that_cannot_be_a_folder_is_said_before_training(
    run_foveal: Run, checkpoint: Path, write: Write, tmp_path: Path
) -> None:
    write(mixed(6))
    (tmp_path / "run").write_text("a file")
    done = run_foveal("train", _config(tmp_path, checkpoint))
    assert done.code == 2 and "cannot be made a folder: File exists; name another" in done.err
    assert "weights learn" not in done.err


def test_a_terminal_does_not_obey_the_data(run_foveal: Run, checkpoint: Path, write: Write) -> None:
    file = write([chat("\x1b[31mwhat?", "bl\x07ue")])
    done = run_foveal("data", "show", file, "-m", checkpoint)
    assert done.code == 0 and "\\x1b[31mwhat?" in done.out and "bl\\x07ue" in done.out
    assert "\x1b" not in done.out and "\x07" not in done.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[bool] = []
    tuner = SimpleNamespace(stop=lambda: asked.append(True), team=SimpleNamespace(leads=True))
    with pytest.raises(KeyboardInterrupt), _stopped_by_signals(tuner):
        os.kill(os.getpid(), number)
        assert asked == [True]
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("foveal: stopping after this step") == 1

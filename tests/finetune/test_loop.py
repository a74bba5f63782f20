"""The loop: it learns, only what it should; it resumes bit for bit; it stops at what is not finite; a kill loses nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.errors import CheckpointError, ConfigError, DataError, DivergenceError
from foveal.finetune import fingerprint
from foveal.finetune import state as state_files
from foveal.finetune.loop import Tuner
from foveal.finetune.order import Cursor, Stream
from foveal.finetune.prepare import PARTS, part_of
from foveal.finetune.samples import SampleReader
from foveal.finetune.settings import LoraSettings, TuneSettings
from foveal.finetune.sources import open_source
from foveal.model import Qwen3VL
from foveal.model.load import load_model
from tests.finetune.conftest import Write, mixed

NewTuner = Callable[..., Tuner]


@pytest.fixture
def tuner(checkpoint: Path, reader: SampleReader, write: Write, tmp_path: Path) -> NewTuner:
    """Make a Tuner of a fresh model; keyword arguments are settings."""
    file = write(mixed(10))

    def new(name: str = "run", **changes: Any) -> Tuner:
        fast: dict[str, Any] = {
            "steps": 5,
            "batch_tokens": 150,
            "window": 4,
            "language": 1e-3,
            "plot": False,
            "save_every": 100,
        }
        settings = TuneSettings(output=tmp_path / name, **{"data": (str(file),)} | fast | changes)
        reasons: list[str] = []
        made = Tuner(load_model(checkpoint, dtype=settings.dtype), reader, settings, notify=reasons.append)
        made.reasons = reasons  # type: ignore[attr-defined]
        return made

    return new


def _weights(model: Qwen3VL) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _files(tuner: Tuner) -> dict[Path, bytes]:
    """Read all files of a run's state."""
    return {file: file.read_bytes() for file in (tuner.settings.output / state_files.FOLDER).rglob("*") if file.is_file()}


def _run_in_sittings(new: NewTuner, name: str, **settings: Any) -> Tuner:
    """Run with a stop after every step, in a new Tuner with a new model each time."""
    for _ in range(20):
        part = new(name, **settings)
        part.progress = lambda share, metrics, part=part: part.stop()
        if part.run():
            return part
    pytest.fail("the run does not end")


VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"vision": 1e-3, "merger": 1e-3, "weight_decay": 0.1},
    "lora": {"merger": 1e-3, "lora": LoraSettings(2, 4.0, 0.2, target=("q_proj", "gate_proj"))},
    "epochs": {"steps": None, "epochs": 1.5, "loss": "sqrt", "accumulate": 2, "batch_tokens": None, "batch_size": 2},
    "bfloat16": {"dtype": "bfloat16", "checkpointing": True, "loss": "sample"},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_resume_is_bit_for_bit(tuner: NewTuner, variant: str) -> None:
    whole = tuner("whole", **VARIANTS[variant])
    before = _weights(whole.model)
    assert whole.run()
    parts = _run_in_sittings(tuner, "parts", **VARIANTS[variant])
    assert whole.step == parts.step >= 3
    changed = 0
    for name, weight in _weights(whole.model).items():
        assert torch.equal(weight, parts.model.get_parameter(name)), name
        changed += not torch.equal(weight, before[name])
    assert changed > 4
    one, two = (t.optimiser.tensors() for t in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    logs = [[json.loads(line) for line in t.log.file.read_text().splitlines()] for t in (whole, parts)]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]


def test_it_learns_what_it_is_shown(tuner: NewTuner) -> None:
    run = tuner(steps=60, language=3e-3, merger=3e-3, loss="token", eval=(str(tuner().sources[0].options.path),), eval_every=20)
    untaught = run.evaluate()
    run.run()
    lines = [json.loads(line) for line in run.log.file.read_text().splitlines()]
    examined = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(examined) == 3 and examined[-1] < 0.5 * untaught
    assert run.evaluate() == pytest.approx(examined[-1], rel=1e-5)
    assert all({"step", "loss", "grad_norm", "lr_scale", "tokens_per_s"} <= line.keys() for line in lines if "loss" in line)


@pytest.mark.parametrize("parts", [("vision",), ("merger",), ("language",), ("merger", "language")])
def test_only_what_has_a_rate_learns(tuner: NewTuner, parts: tuple[str, ...]) -> None:
    run = tuner(steps=2, **{part: 1e-3 if part in parts else 0.0 for part in PARTS})
    before = _weights(run.model)
    run.run()
    changed = {name for name, weight in _weights(run.model).items() if not torch.equal(weight, before[name])}
    assert {part_of(name) for name in changed} == set(parts)
    if "merger" in parts:
        assert {"visual.merger.norm.weight", "visual.deepstack_merger_list.2.linear_fc2.weight"} <= changed


def test_adapters_learn_and_their_part_does_not(tuner: NewTuner) -> None:
    run = tuner(steps=3, merger=1e-3, lora=LoraSettings(2, target=r".*language_model.*v_proj"))
    before = _weights(run.model)
    run.run()
    changed = {name for name, weight in _weights(run.model).items() if not torch.equal(weight, before[name])}
    language = {name for name in changed if part_of(name) == "language"}
    assert len(language) == 2 * 5 and all("lora_" in name for name in language)
    assert {part_of(name) for name in changed} == {"merger", "language"}


def test_each_part_has_its_own_rate(tuner: NewTuner) -> None:
    """AdamW's first step is its learning rate in every coordinate with a gradient."""
    run = tuner(steps=1, vision=1e-4, merger=1e-3, language=1e-2, warmup=0.0, batch_tokens=390, window=10)
    before = _weights(run.model)
    run.run()
    scale = 0.5  # half of the cosine at the middle of the only step
    for part, rate in (("vision", 1e-4), ("merger", 1e-3), ("language", 1e-2)):
        moved = [(w - before[n]).abs().max().item() for n, w in _weights(run.model).items() if part_of(n) == part]
        assert max(moved) == pytest.approx(rate * scale, rel=0.02)


def test_accumulated_batches_are_one_batch(tuner: NewTuner) -> None:
    whole = tuner("whole", steps=1, batch_tokens=None, batch_size=4, window=4, loss="sqrt")
    parts = tuner("parts", steps=1, batch_tokens=None, batch_size=1, window=4, accumulate=4, loss="sqrt")
    for run in (whole, parts):
        run.run()
    for name, tensor in whole.optimiser.tensors().items():
        if name.startswith("exp_avg."):
            other = parts.optimiser.tensors()[name]
            assert (tensor - other).abs().max() <= 1e-5 * tensor.abs().max() + 1e-8, name


def test_recomputed_activations_give_the_same_gradients(tuner: NewTuner) -> None:
    rates = {"steps": 1, "vision": 1e-3, "merger": 1e-3}
    kept, again = tuner("kept", **rates), tuner("again", checkpointing=True, **rates)
    for run in (kept, again):
        run.run()
    for name, weight in _weights(kept.model).items():
        assert torch.equal(weight, again.model.get_parameter(name)), name


def test_what_is_not_finite_stops_the_run(tuner: NewTuner) -> None:
    first = tuner(steps=4)
    first.progress = lambda share, metrics: first.stop() if metrics["step"] == 2 else None
    assert not first.run()
    good = _files(first)
    broken = tuner(steps=4)
    with torch.no_grad():
        broken.model.language_model.norm.weight.fill_(float("nan"))
    says = r"step 2: the loss is nan; the batch was .*data\.jsonl:\d+.*; the last good checkpoint, of step 2, is .*/step-2"
    with pytest.raises(DivergenceError, match=says):
        broken.run()
    assert _files(first) == good
    endless = tuner("endless")
    endless.learning["language"]["language_model.norm.weight"].register_hook(lambda grad: grad * float("inf"))
    before = _weights(endless.model)
    with pytest.raises(DivergenceError, match=r"step 0: the gradient norm is (inf|nan); .* there is no checkpoint yet"):
        endless.run()
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(endless.model).items())


@pytest.mark.parametrize("save_every", [1, 100])
def test_weights_that_the_last_step_threw_away_are_not_saved(tuner: NewTuner, save_every: int) -> None:
    """Its loss and gradient were finite; nobody computes another loss."""
    run = tuner(steps=1, language=1e38, warmup=0.0, save_every=save_every)
    with pytest.raises(DivergenceError, match=r"the last step made weights that are not finite, .* there is no checkpoint yet"):
        run.run()
    assert state_files.newest(run.settings.output) is None


def test_an_evaluation_that_is_not_finite_leaves_the_last_good_state(tuner: NewTuner) -> None:
    data = str(tuner().sources[0].options.path)
    run = tuner(steps=4, save_every=1, eval=(data,), eval_every=2)

    def spoil(share: float, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2:
            with torch.no_grad():
                run.model.language_model.norm.weight.fill_(float("nan"))

    run.progress = spoil
    says = r"step 2: the evaluation loss is nan; the last good checkpoint, of step 1, is .*step-1; lower the learning rates"
    with pytest.raises(DivergenceError, match=says):
        run.run()
    newest = state_files.newest(run.settings.output)
    assert newest is not None and newest.name == "step-1"
    assert "NaN" not in run.log.file.read_text()


def test_a_run_whose_data_lies_elsewhere_is_gone_on_with(
    tuner: NewTuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuner(steps=3)
    first.progress = lambda share, metrics: first.stop()
    assert not first.run()
    monkeypatch.chdir(tmp_path)
    again = tuner(steps=3, data=("data.jsonl",))
    assert again.step == 1 and again.run()
    with pytest.raises(ConfigError, match=r"the data has changed since"):
        tuner(steps=3, data=("data.jsonl%50",))


def test_one_easy_batch_is_no_standard(tuner: NewTuner) -> None:
    """A few easy tokens in the first step, then ordinary batches; a loss that then runs away is still noticed."""
    run = tuner()
    for loss, weight in [(0.05, 2.0), *[(4.0, 100.0)] * 60]:
        run._watch(loss, weight, [])
        run.step += 1
    assert run.lowest_loss == pytest.approx(4.0, rel=0.01)
    with pytest.raises(DivergenceError, match=r"the mean loss is 13.* and was [34]"):
        for _ in range(60):
            run._watch(20.0, 100.0, [])


def test_a_loss_that_runs_away_stops_the_run(tuner: NewTuner) -> None:
    with pytest.raises(DivergenceError, match=r"step \d+: the mean loss is .* and was "):
        tuner(steps=60, language=30.0, warmup=0.5, divergence=1.0).run()
    assert tuner("patient", steps=8, language=30.0, divergence=0.0).run()


def test_a_bad_line_ends_the_run_unless_it_may_be_left_out(tuner: NewTuner, write: Write) -> None:
    write([*mixed(3), {"conversations": 5}, *mixed(3)])
    with pytest.raises(DataError, match=r"data\.jsonl:4: conversations is 5"):
        tuner(steps=None, epochs=1.0).run()
    lenient = tuner("lenient", steps=None, epochs=1.0, skip_bad=True)
    assert lenient.run()
    assert len(lenient.reasons) == 1 and "data.jsonl:4" in lenient.reasons[0]  # type: ignore[attr-defined]


def test_a_bad_line_of_the_evaluation_is_found_before_training(tuner: NewTuner, tmp_path: Path) -> None:
    file = tmp_path / "val.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in [*mixed(2), {"conversations": 5}]))
    strict = tuner("strict", eval=(str(file),))
    with pytest.raises(DataError, match=r"val\.jsonl:3: conversations is 5"):
        strict.run()
    assert strict.step == 0
    lenient = tuner("lenient", steps=2, eval=(str(file),), eval_every=1, skip_bad=True)
    assert lenient.run()
    assert len(lenient.reasons) == 1 and "val.jsonl:3" in lenient.reasons[0]  # type: ignore[attr-defined]


def test_bad_records_of_one_line_are_told_apart(reader: SampleReader, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([*mixed(1), *[{"conversations": []}] * 3]))
    told: list[str] = []
    stream = Stream([open_source(str(file))], reader, seed=0, window=4, epochs=2, skipped=told.append)
    assert sum(len(packed.samples) for packed in stream.start(Cursor())) == 2
    assert sorted(reason.partition(": ")[0] for reason in told) == [f"{file}[{i}]" for i in (1, 2, 3)]


def test_another_run_is_not_gone_on_with(tuner: NewTuner, write: Write, tmp_path: Path) -> None:
    tuner(steps=2).run()
    with pytest.raises(ConfigError, match=r"language is 0\.1, but .*state/step-2 was begun with 0\.001"):
        tuner(steps=2, language=0.1)
    tuner(steps=2, save_every=7, log_every=3, divergence=9.0)  # none of these moves a weight
    longer = r"steps is 3, but .* begun with 2; .*; to train longer, begin another run from what this one has learned"
    with pytest.raises(ConfigError, match=longer):
        tuner(steps=3)
    lines = write(mixed(10)).read_text()
    write(mixed(11))
    with pytest.raises(ConfigError, match=r"the data has changed since .* 10.* became .* 11"):
        tuner(steps=2)
    (tmp_path / "data.jsonl").write_text(lines.replace("red 1", "red 7", 1))  # as many lines and bytes
    with pytest.raises(ConfigError, match=r"the data has changed since"):
        tuner(steps=2)


def test_a_base_that_changed_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "_HEAD", 100)
    small, large = tmp_path / "config.json", tmp_path / "model.safetensors"
    small.write_bytes(b"{}")
    large.write_bytes(bytes(50_000))
    (tmp_path / "README.md").write_text("of no account")
    seen = [fingerprint.of_checkpoint(tmp_path)]
    for file, data in ((small, b"[]"), (large, b"\1" + bytes(49_999)), (large, bytes(49_999) + b"\1"), (large, bytes(50_001))):
        file.write_bytes(data)
        seen.append(fingerprint.of_checkpoint(tmp_path))
    assert all(one.keys() == {"config.json", "model.safetensors"} for one in seen)
    assert len({tuple(one.items()) for one in seen}) == len(seen)


def test_a_run_is_not_gone_on_with_on_another_base(tuner: NewTuner, tmp_path: Path) -> None:
    run = tuner(steps=1)
    run.base = {"model.safetensors": "another"}
    run.save()
    with pytest.raises(ConfigError, match=r"the embedded model has changed since .*step-0 was begun on it; put it back"):
        tuner(steps=1)


def test_lines_of_steps_that_a_kill_lost_are_not_logged_twice(tuner: NewTuner) -> None:
    first = tuner(steps=4, save_every=2)
    first.progress = lambda share, metrics: (_ for _ in ()).throw(KeyboardInterrupt) if metrics["step"] == 3 else None
    with pytest.raises(KeyboardInterrupt):
        first.run()
    with first.log.file.open("a") as file:
        file.write('{"step": 4, "lo')
    second = tuner(steps=4, save_every=2)
    assert second.step == 2 and second.run()
    assert [json.loads(line)["step"] for line in second.log.file.read_text().splitlines()] == [1, 2, 3, 4]


def test_the_log_knows_of_all_that_the_state_does(tuner: NewTuner) -> None:
    """A line stands for three steps; what a save, or the end, comes before is a line, too."""
    run = tuner(steps=5, log_every=3, save_every=4)
    assert run.run()
    lines = [json.loads(line) for line in run.log.file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 5]
    stopped = tuner("stopped", steps=5, log_every=3)
    stopped.progress = lambda share, metrics: stopped.stop()
    assert not stopped.run() and '"step": 1' in stopped.log.file.read_text()
    broken = tuner("broken", steps=5, log_every=3)
    broken.progress = lambda share, metrics: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    assert '"step": 1' in broken.log.file.read_text()


def test_what_lies_beside_the_states_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / state_files.FOLDER
    for name in ("step-2-backup", "best", "notes.part", "step-9.part"):
        (folder / name).mkdir(parents=True)
    for name in (".DS_Store", "step-77"):
        (folder / name).write_text("")
    assert state_files.newest(tmp_path) is None
    for step in (1, 2):
        state_files.save(tmp_path, step, {"a": torch.ones(2)}, {}, True)
    assert state_files.newest(tmp_path) == folder / "step-2"
    held = {path.name for path in folder.iterdir()}
    assert held == {"step-2", "step-2-backup", "best", "notes.part", ".DS_Store", "step-77"}


def test_a_kill_while_saving_loses_nothing(tmp_path: Path) -> None:
    """Saves without end are killed at different times; the newest state is whole every time, and of one save."""
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom foveal.finetune import state\n"
        "for step in range(int(sys.argv[2]), 10**9):\n"
        "    tensors = {str(i): torch.full((200_000,), float(step)) for i in range(8)}\n"
        "    state.save(Path(sys.argv[1]), step, tensors, {'step': step}, True)\n"
        "    print(step, flush=True)\n"
    )
    first = 0
    for wait in (1, 3):
        command = [sys.executable, "-c", code, str(tmp_path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(wait):
                child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
            rest = child.stdout.read().split()
        folder = state_files.newest(tmp_path)
        assert folder is not None
        run = state_files.read_run(folder)
        assert run["step"] >= (int(rest[-1]) if rest else first + wait - 1) and folder.name == f"step-{run['step']}"
        tensors = {name: torch.zeros(200_000) for name in state_files.names(folder)}
        state_files.load(folder, tensors)
        assert len(tensors) == 8
        assert all(torch.equal(t, torch.full((200_000,), float(run["step"]))) for t in tensors.values())
        first = run["step"] + 1


def test_a_full_disk_keeps_the_state_before(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writes fail as they do there."""
    state_files.save(tmp_path, 1, {"a": torch.ones(8)}, {"step": 1}, True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"state/step-2 could not be written: .*; the state before it, if any, is whole"
        ):
            state_files.save(tmp_path, 2, {"a": torch.ones(100_000)}, {"step": 2}, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = state_files.newest(tmp_path)
    assert kept is not None and state_files.read_run(kept) == {"step": 1}
    assert list(kept.parent.iterdir()) == [kept]  # what was written of the other would fill the disk further
    held = {"a": torch.zeros(8)}
    state_files.load(kept, held)
    assert torch.equal(held["a"], torch.ones(8))


def test_a_disk_that_is_full_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_files.save(tmp_path, 1, {"a": torch.ones(8)}, {"step": 1}, True)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(
            CheckpointError, match="state/step-2 could not be written: No space left on device; the state before"
        ):
            state_files.save(tmp_path, 2, {"a": torch.ones(8)}, {"step": 2}, True)
    assert [folder.name for folder in (tmp_path / state_files.FOLDER).iterdir()] == ["step-1"]


def test_the_picture_of_a_run(tuner: NewTuner) -> None:
    from PIL import Image

    run = tuner(steps=3, plot=True, eval=(str(tuner().sources[0].options.path),), eval_every=2)
    run.run()
    with Image.open(run.settings.output / "run.png") as picture:
        assert picture.size[0] > 600 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_settings_of_a_run_are_json(tuner: NewTuner) -> None:
    settings = replace(tuner().settings, lora=LoraSettings())
    assert json.loads(json.dumps(settings.same_run())) == settings.same_run()

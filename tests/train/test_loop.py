"""The loop: it learns, it resumes bit for bit, it stops between steps, and a bad gradient leaves the last checkpoint alone."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from foveal.config import ModelConfig
from foveal.errors import CheckpointError, ConfigError
from foveal.generate import Pipeline
from foveal.model import Qwen3VL
from foveal.train import checkpoint, teacher
from foveal.train.data import Example, ExampleMaker, Mix
from foveal.train.loop import Settings, Stage, Trainer
from foveal.train.optimiser import schedule
from foveal.world import EASY, QUESTION_KINDS

Tiny = tuple[ModelConfig, ExampleMaker]


def _trainer(tiny: Tiny, folder: Path, steps: int = 6, **changes: Any) -> Trainer:
    config, maker = tiny
    model = Qwen3VL(config)
    model.init_weights(3)
    fast: dict[str, Any] = {"warmup": 2, "log_every": 2, "save_every": 100, "reweigh_every": 2, "teacher_steps": 2}
    settings = Settings(steps=steps, **(fast | changes))
    stages = [
        Stage(0.5, Mix(EASY), 2, answers=0.0, dense=1.0, teacher=1.0),
        Stage(1.0, Mix(EASY, 0.5), 2, answers=1.0, dense=0.5),
    ]
    return Trainer(model, maker, settings, stages, folder)


def _run_until(part: Trainer, last: int) -> None:
    """Run a trainer that is asked to stop while it does a step."""
    step = part._train_step

    def stopping(examples: list[Example], stage: Stage) -> dict[str, float]:
        if part.step + 1 == last:
            part.stop()
        return step(examples, stage)

    with mock.patch.object(part, "_train_step", stopping):
        part.run()


def test_resume_is_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    whole = _trainer(tiny, tmp_path / "whole")
    whole.run()
    # Interrupted in each stage, by a stop asked for during a step.
    for _ in range(6):
        part = _trainer(tiny, tmp_path / "parts")
        _run_until(part, part.step + 1)
    assert part.step == whole.step == 6
    assert part.next_seed == whole.next_seed == 12
    for name, weight in whole.optimiser.masters.items():
        assert torch.equal(weight, part.optimiser.masters[name]), name
    assert part.accuracy == whole.accuracy


def test_a_stop_is_heard_while_the_teacher_learns(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _trainer(tiny, tmp_path, teacher_steps=100_000)
    timer = threading.Timer(1.0, trainer.stop)
    timer.start()
    trainer.run()
    assert trainer.step == 0 and not (tmp_path / teacher.FILE).exists()
    finished = _trainer(tiny, tmp_path)
    finished.run()
    assert finished.step == 6 and (tmp_path / teacher.FILE).exists()


def test_a_teacher_that_is_needed_later_is_trained_then(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _trainer(tiny, tmp_path, steps=2)
    first, second = trainer.stages
    trainer.stages = [replace(first, teacher=0.0), replace(second, teacher=1.0)]
    trainer.run()
    assert trainer.teacher is not None and (tmp_path / teacher.FILE).exists()


def test_it_learns(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _trainer(tiny, tmp_path, steps=60, lr=3e-3)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    dense = [line["dense"] for line in lines if "dense" in line]
    answers = [line["loss"] for line in lines if "loss" in line]
    assert dense[-1] < 0.9 * dense[0]
    assert answers[-1] < 0.9 * answers[0]


def test_an_encoder_that_stands_still_is_looked_at_only(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _trainer(tiny, tmp_path)
    trainer.stages = [Stage(1.0, Mix(EASY), 2, answers=1.0, dense=1.0, evidence=0.5, vision=0.0)]
    before = {name: p.detach().clone() for name, p in trainer.optimiser.named.items()}
    trainer.run()
    moved = {name for name, p in trainer.optimiser.named.items() if not torch.equal(p, before[name])}
    assert not any(name.startswith("visual.") for name in moved)
    assert {name.partition(".")[0] for name in moved} == {"language_model", "dense", "evidence"}
    with pytest.raises(ConfigError, match=r"teacher=2, but the encoder stands still"):
        replace(trainer.stages[0], teacher=2.0)


def test_a_bad_gradient_leaves_the_last_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _trainer(tiny, tmp_path, steps=2)
    trainer.run()
    before = (tmp_path / checkpoint.FILE).read_bytes()
    broken = _trainer(tiny, tmp_path, steps=4)
    with torch.no_grad():
        broken.model.visual.merger.linear_fc2.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 2 \(seeds 4..5\): the gradient norm is nan; the last good"):
        broken.run()
    assert (tmp_path / checkpoint.FILE).read_bytes() == before


def test_an_interrupted_save_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"a": torch.ones(3)}, {"step": 1})

    def full(*_: object, **__: object) -> None:
        (tmp_path / f"{checkpoint.FILE}.part").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, {"a": torch.zeros(3)}, {"step": 2})
    tensors, state = checkpoint.load(tmp_path)
    assert torch.equal(tensors["a"], torch.ones(3)) and state == {"step": 1}


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        checkpoint.load(tmp_path)


def test_schedule() -> None:
    scales = [schedule(step, 100, 10) for step in range(101)]
    assert scales[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert scales[10:61] == [1.0] * 51 and scales[100] == pytest.approx(0.02)
    assert scales[60:] == sorted(set(scales[60:]), reverse=True)


def test_export_is_a_whole_checkpoint(tmp_path: Path) -> None:
    from foveal.train import mini
    from foveal.train.export import export

    run = tmp_path / "run"
    mini.folder_tokenizer(run)
    import tokenizers

    config = mini.config(tokenizers.Tokenizer.from_file(str(run / "tokenizer.json")))
    model = Qwen3VL(config)
    model.init_weights(5)
    masters = {f"master.{name}": p.detach().clone() for name, p in model.named_parameters()}
    checkpoint.save(run, masters | {"master.dense.heads.0.bias": torch.ones(2)}, {})
    export([run], tmp_path / "out")
    pipeline = Pipeline.load(tmp_path / "out")
    assert pipeline.processor.budget == mini.BUDGET
    for name, p in pipeline.model.named_parameters():
        assert torch.equal(p, masters[f"master.{name}"].half().float()), name
    assert sum(f.stat().st_size for f in (tmp_path / "out").iterdir()) < 24_000_000
    later = tmp_path / "later"
    mini.folder_tokenizer(later)
    checkpoint.save(later, {name: 3 * p for name, p in masters.items()}, {})
    export([run, later], tmp_path / "mean")
    larger = replace(mini.BUDGET, image=(100, 256))
    checkpoint.save(later, {name: 3 * p for name, p in masters.items()}, {"budget": asdict(larger)})
    export([later], tmp_path / "second")
    assert Pipeline.load(tmp_path / "second").processor.budget == larger
    for name, p in Pipeline.load(tmp_path / "mean").model.named_parameters():
        assert torch.equal(p, (2 * masters[f"master.{name}"]).half().float()), name
    (later / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        export([run, later], tmp_path / "none")


def _second(tiny: Tiny, folder: Path, steps: int, **changes: Any) -> Trainer:
    """A trainer whose only stage is of both editions, in batches bounded by tokens."""
    trainer = _trainer(tiny, folder, steps, **changes)
    kinds = (("needle", 1.0), ("turns", 1.0), ("pictures", 1.0), ("reasoned", 1.0), ("event", 1.0))
    mix = Mix(EASY, 0.3, cases=0.7, case_kinds=kinds)
    trainer.stages = [Stage(1.0, mix, 8, answers=1.0, dense=0.5, evidence=0.2, tokens=900)]
    return trainer


def test_both_editions_resume_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    whole = _second(tiny, tmp_path / "whole", 4)
    whole.run()
    assert whole.next_seed > 4 and whole.accuracy.keys() > set(QUESTION_KINDS)
    for stop in (1, 3, 4):
        part = _second(tiny, tmp_path / "parts", 4)
        _run_until(part, stop)
        assert part.step == stop
    assert part.next_seed == whole.next_seed and part.accuracy == whole.accuracy
    for name, weight in whole.optimiser.masters.items():
        assert torch.equal(weight, part.optimiser.masters[name]), name


def test_both_editions_are_learned(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _second(tiny, tmp_path, 24, lr=3e-3, log_every=4)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for loss in ("loss", "dense", "evidence"):
        assert lines[-1][loss] < 0.9 * lines[0][loss], loss
    assert set(lines[0]["accuracy"]) > {"colour", "needle_code", "turns_find", "event_appear_time"}
    assert all(0 < line["tokens"] <= 900 and 1 <= line["examples"] <= 8 for line in lines)


def test_a_teacher_helps_with_both_editions(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _second(tiny, tmp_path, 2)
    trainer.stages = [replace(stage, teacher=1.0) for stage in trainer.stages]
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["lessons"] > 0 and lines[-1]["loss"] > 0 and (tmp_path / teacher.FILE).exists()


def test_a_run_goes_on_with_its_own_budget(tiny: Tiny, tmp_path: Path) -> None:
    config, maker = tiny
    _trainer(tiny, tmp_path).save()
    other = ExampleMaker(config, maker.tokenizer, maker.template, replace(maker.budget, image=(9, 101)))
    with pytest.raises(CheckpointError, match=r"budget of .*\[9, 100\].*\[9, 101\].*begin in another folder"):
        _trainer((config, other), tmp_path)


def test_a_run_goes_on_with_its_own_recipe(tiny: Tiny, tmp_path: Path) -> None:
    _trainer(tiny, tmp_path, recipe="second").save()
    _trainer(tiny, tmp_path, steps=9, recipe="second")  # longer is fine
    for other in ({"recipe": "first"}, {"recipe": "second", "lr": 0.1}):
        with pytest.raises(CheckpointError, match=r"with a settings of \{.*but \{.*--start, --edition"):
            _trainer(tiny, tmp_path, **other)


def test_muon_multiplies_in_what_the_model_computes_in(tiny: Tiny, tmp_path: Path) -> None:
    trainer = _trainer(tiny, tmp_path, steps=1)
    masters = {name: master.clone() for name, master in trainer.optimiser.masters.items()}
    trainer.model.to(torch.bfloat16)
    trainer.run()
    assert trainer.optimiser.muon.dtype == torch.bfloat16
    assert {master.dtype for master in trainer.optimiser.masters.values()} == {torch.float32}
    assert any(not torch.equal(master, masters[name]) for name, master in trainer.optimiser.masters.items())

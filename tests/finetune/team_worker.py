"""One of two processes that fine-tune together; test_team.py starts both and compares what they leave behind with one alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from foveal.finetune.loop import Tuner
from foveal.finetune.run import new_tuner, write_result
from foveal.finetune.settings import LoraSettings, TuneSettings

STEPS, STOP = 4, 2
LORA = LoraSettings(2, 4.0, 0.2, target=("q_proj", "o_proj", "gate_proj", "down_proj", "mlp.linear_fc1"))
ALL: dict[str, Any] = {"vision": 1e-3, "merger": 1e-3}
# Settings by case. Three batches a step, so that one of two processes runs out of them; some without any picture.
CASES: dict[str, dict[str, Any]] = {
    "sharded": {**ALL, "accumulate": 3, "weight_decay": 0.1},
    "sharded-lora": {"merger": 1e-3, "accumulate": 2, "lora": LORA, "checkpointing": True},
    "sharded-vision": {"vision": 1e-3, "language": 0.0, "accumulate": 2, "batch_tokens": None},
    # Small steps: Adam makes the rounding of other sums grow (test_divided_products_give_the_gradients_of_whole_ones).
    # One ordinary step: its moments are the gradients.
    "tensor-gradients": {**ALL, "tensor_parallel": 2, "steps": 1, "eval_every": 0},
    "tensor": {"vision": 1e-5, "merger": 1e-5, "language": 1e-5, "tensor_parallel": 2},
    "tensor-lora": {"vision": 1e-3, "tensor_parallel": 2, "lora": replace(LORA, dropout=0.0), "merge": True},
    "experts": {"accumulate": 2, "balance": 0.1},
    "two-then-one": {**ALL, "accumulate": 2},
    "one-then-two": {"accumulate": 2, "lora": LORA},
    "tensor-then-one": {"language": 1e-5, "tensor_parallel": 2},
}


def settings(case: str, folder: Path, output: Path, **changes: Any) -> TuneSettings:
    """Describe a case's run. folder: holds the checkpoints and the data; output: where runs go."""
    data = str(folder / "data.jsonl")
    model = str(folder / ("experts" if case == "experts" else "dense"))
    base: dict[str, Any] = {
        "model": model, "data": (data,), "eval": (data,), "eval_every": STEPS, "steps": STEPS, "batch_tokens": 150, "window": 8,
        "language": 1e-3, "plot": False, "save_every": 100,
    }  # fmt: skip
    return TuneSettings(output=output / case, **base | CASES[case] | changes)


def stop_early(tuner: Tuner) -> None:
    """Let a run end after STOP steps."""
    tuner.progress = lambda share, line: tuner.stop() if line["step"] == STOP else None


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for case in CASES:
        tuner = new_tuner(settings(case, folder, folder / "two"))
        if case in ("two-then-one", "tensor-then-one"):
            stop_early(tuner)
        if tuner.run():
            write_result(tuner)
        if tuner.team.leads:
            with (folder / "done.jsonl").open("a") as file:
                local = [p.to_local() if isinstance(p, DTensor) else p for p in tuner.model.parameters()]
                team, held = tuner.team, sum(p.numel() for p in local)
                file.write(json.dumps({"case": case, "data": team.data, "tensor": team.tensor, "held": held}) + "\n")
    tuner.team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

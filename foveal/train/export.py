"""Write a training run as a complete checkpoint in the released layout: python -m foveal.train.export RUN... OUT.

Several runs, copies of one folder at several steps, become the mean of their weights: what the last steps jitter about.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch

from foveal.errors import CheckpointError
from foveal.model import Qwen3VL
from foveal.model.load import save_model
from foveal.patches import Budget
from foveal.standin import write_companions
from foveal.train import checkpoint, mini


def export(runs: Sequence[Path], out: Path) -> None:
    """Write float16 weights, the mean of the runs' last checkpoints, with configs, template and tokenizer of the first.

    Raise CheckpointError for runs whose tokenizers differ: their embeddings mean different things.
    """
    first = (runs[0] / "tokenizer.json").read_bytes()
    for run in runs:
        if (run / "tokenizer.json").read_bytes() != first:
            raise CheckpointError(f"{run} has another tokenizer than {runs[0]}; only checkpoints of one run have a mean")
    config = mini.config(tokenizers.Tokenizer.from_file(str(runs[0] / "tokenizer.json")))
    model = Qwen3VL(config)
    # Strict about the model's own names; what is left over is the dense heads, which were only there to learn with.
    masters, states = zip(*(checkpoint.load(run) for run in runs), strict=True)
    mean = {name: torch.stack([one[f"master.{name}"] for one in masters]).mean(0) for name in model.state_dict()}
    model.load_state_dict(mean)
    save_model(model, out, dtype=torch.float16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(runs[0] / name, out / name)
    write_companions(config, out, _budget(states[0]), tokenizer=False)


def _budget(state: Mapping[str, Any]) -> Budget:
    """Read the budget a run was trained with; a run that is older than this entry had the first edition's."""
    if "budget" not in state:
        return mini.BUDGET
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in state["budget"].items()
    }  # fmt: skip
    return Budget(**given)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.export", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="run", help="the folder a training run was given, or copies of it"
    )
    parser.add_argument("out", type=Path, help="the checkpoint folder to write")
    args = parser.parse_args()
    export(args.runs, args.out)


if __name__ == "__main__":
    main()

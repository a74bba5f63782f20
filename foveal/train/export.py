"""Write a training run as a complete checkpoint in the released layout: python -m foveal.train.export RUN OUT."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import tokenizers
import torch

from foveal.model import Qwen3VL
from foveal.model.load import save_model
from foveal.standin import write_companions
from foveal.train import checkpoint, mini


def export(run: Path, out: Path) -> None:
    """Write float16 weights, configs, template and tokenizer of the run's last checkpoint."""
    config = mini.config(tokenizers.Tokenizer.from_file(str(run / "tokenizer.json")))
    tensors, _ = checkpoint.load(run)
    model = Qwen3VL(config)
    masters = {name.removeprefix("master."): tensor for name, tensor in tensors.items() if name.startswith("master.")}
    # Strict about the model's own names; what is left over is the dense heads, which were only there to learn with.
    model.load_state_dict({name: masters[name] for name in model.state_dict()})
    save_model(model, out, dtype=torch.float16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(run / name, out / name)
    write_companions(config, out, mini.BUDGET, tokenizer=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.export", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder a training run was given")
    parser.add_argument("out", type=Path, help="the checkpoint folder to write")
    args = parser.parse_args()
    export(args.run, args.out)


if __name__ == "__main__":
    main()

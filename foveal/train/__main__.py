"""Train the embedded model: python -m foveal.train FOLDER --steps N. Run again to resume."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Two cores share training and the making of data: threads that wait must sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m foveal.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where checkpoints, metrics and the tokenizer are kept")
    parser.add_argument("--steps", type=int, default=30000, help="optimiser steps of the whole run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="compute in float32; bfloat16 needs a CPU that is fast at it")
    args = parser.parse_args()

    import tokenizers
    import torch

    from foveal.model import Qwen3VL
    from foveal.prompt import ChatTemplate
    from foveal.tokenizer import Tokenizer
    from foveal.train import mini
    from foveal.train.data import ExampleMaker
    from foveal.train.loop import Trainer

    torch.set_num_threads(args.threads)
    file = mini.folder_tokenizer(args.folder)
    config = mini.config(tokenizers.Tokenizer.from_file(str(file)))
    tokenizer = Tokenizer.from_file(file)
    maker = ExampleMaker(config, tokenizer, ChatTemplate.builtin("instruct", tokenizer), mini.BUDGET)
    model = Qwen3VL(config)
    model.init_weights(mini.settings(1).seed)
    trainer = Trainer(model, maker, mini.settings(args.steps), mini.stages(), args.folder)
    if not args.float32:
        model.to(torch.bfloat16)
        model.language_model.reset_tables()
    trainer.run()


if __name__ == "__main__":
    main()

"""Train the embedded model: python -m foveal.train FOLDER --steps N. Run again to resume."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

# Two cores share training and the making of data: threads that wait must sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m foveal.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where checkpoints, metrics and the tokenizer are kept")
    parser.add_argument("--steps", type=int, default=2700, help="optimiser steps of the whole run")
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from, which can see already; default: random weights")
    parser.add_argument(
        "--edition", type=int, choices=(1, 2), default=1, help="of the world to train on: 2 is both, from --start on"
    )
    parser.add_argument(
        "--image-tokens", type=int, nargs=2, metavar=("MIN", "MAX"),
        help="vision tokens of one picture, at least and at most; default: as the recipe says",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: whichever is faster here"
    )
    args = parser.parse_args()
    if args.edition == 2 and args.start is None:
        parser.error("--edition 2 goes on from a checkpoint that can see already; name it with --start")

    import tokenizers
    import torch

    from foveal.choice import fastest
    from foveal.limits import limits
    from foveal.model import Qwen3VL
    from foveal.model.load import load_model
    from foveal.prompt import ChatTemplate
    from foveal.tokenizer import Tokenizer
    from foveal.train import mini
    from foveal.train.data import ExampleMaker
    from foveal.train.initial import know_places, look_nearby
    from foveal.train.loop import Trainer

    torch.set_num_threads(args.threads)
    file = mini.folder_tokenizer(args.folder, args.start)
    config = mini.config(tokenizers.Tokenizer.from_file(str(file)))
    tokenizer = Tokenizer.from_file(file)
    budget = replace(mini.BUDGET, image=tuple(args.image_tokens)) if args.image_tokens else mini.BUDGET
    maker = ExampleMaker(config, tokenizer, ChatTemplate.builtin("instruct", tokenizer), budget)
    model = Qwen3VL(config)
    settings = mini.further_settings(args.steps, args.edition) if args.start else mini.settings(args.steps)
    if args.start:
        model.load_state_dict(load_model(args.start, dtype=torch.float32).state_dict())
    else:
        model.init_weights(settings.seed)
        look_nearby(model.visual, settings.seed)
        know_places(model.visual, seed=settings.seed)
    stages = mini.second_stages() if args.edition == 2 else mini.further_stages() if args.start else mini.stages()
    trainer = Trainer(model, maker, settings, stages, args.folder)
    # Some CPUs are several times slower in bfloat16.
    name = fastest(limits(), 2048, ("float32", "bfloat16")) if args.dtype == "auto" else args.dtype
    dtype = getattr(torch, name)
    model.to(dtype)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: trainer.stop())
    print(f"training in {dtype} from step {trainer.step} of {args.steps}; Ctrl-C saves and stops", file=sys.stderr)
    trainer.run()


if __name__ == "__main__":
    main()

"""Examine the embedded model: fresh test-split items of every kind, one question each, answered by foveal's own generation.

usage: python bench/embedded.py [--model DIR] [--items 500] [--difficulty world|wide] [--kinds colour,shape,...] [--jobs 2]

"world" is what the model is trained for (foveal.train.mini.world), "wide" what the generator can make: larger pictures,
smaller text, longer clips. Prints a table and, last, one JSON line; --keep writes bench/results/DATE-embedded-DIFFICULTY.json
and a picture of the weakest kind's errors.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import foveal
from foveal.media import Frames
from foveal.sampler import Sampling
from foveal.train import mini
from foveal.world import CLIP_KINDS, Difficulty, Item, Question, clip_item, picture_item, score

BARS = {"colour": 0.95, "shape": 0.95, "count": 0.90, "relation": 0.90, "read_number": 0.80, "box": 0.80,
        "appear_time": 0.70, "first": 0.70}  # fmt: skip
ALSO = ("icon", "read_word", "describe", "vanish_time", "moves", "clip_colour", "clip_count", "timeline")
RESULTS = Path(__file__).parent / "results"


def items(kind: str, count: int, level: Difficulty) -> list[tuple[Item, Question]]:
    """Collect items of the test split, none ever trained on, whose first question is of the kind."""
    found: list[tuple[Item, Question]] = []
    level = replace(level, questions=((kind, 1.0),), max_questions=1)
    make = clip_item if kind in CLIP_KINDS else picture_item
    seed = 0
    while len(found) < count:
        item = make(seed, level, "test")
        seed += 1
        if not item.questions:
            continue
        question = item.questions[0]
        # The bar speaks of left and right; above and below are asked, too, but not counted here.
        if kind == "relation" and question.answer not in ("left", "right"):
            continue
        found.append((item, question))
    return found


def examine(name: str | None, kind: str, count: int, level: Difficulty) -> dict[str, Any]:
    """Ask about `count` items of a kind, on one thread; return the tally and what was answered wrongly."""
    import torch

    torch.set_num_threads(1)
    model = foveal.load(name)
    right, wrong = 0, []
    started = time.perf_counter()
    for item, question in items(kind, count, level):
        frames = Frames(item.pixels, item.times_s, item.kind, item.pixels.shape[1:3], "world")
        message = {
            "role": "user",
            "content": [{"type": item.kind, item.kind: frames}, {"type": "text", "text": question.question}],
        }
        answer = model.chat([message], sampling=Sampling(max_tokens=160)).answer.text
        if score(kind, answer, question):
            right += 1
        else:
            wrong.append((item, question, answer))
    return {
        "right": right,
        "of": count,
        "accuracy": right / count,
        "seconds": round(time.perf_counter() - started, 1),
        "wrong": wrong,
    }


def draw(kind: str, wrong: list[tuple[Item, Question, str]], path: Path) -> None:
    """Draw failures of a kind on their pictures, and the commonest confusions as the title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    pairs = Counter((q.answer[:24], a[:24]) for _, q, a in wrong).most_common(3)
    fig, axes = plt.subplots(3, 4, figsize=(12, 9))
    for ax in axes.flat:
        ax.axis("off")
    for ax, (item, question, answer) in zip(axes.flat, wrong, strict=False):
        ax.imshow(item.pixels[len(item.pixels) // 2])
        ax.set_title(f"{question.question}\nsaid {answer[:40]!r}\nright {question.answer[:40]!r}", fontsize=7)
    fig.suptitle(f"{kind}: " + "; ".join(f"{said} for {truth} x{n}" for (truth, said), n in pairs), fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=70)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--difficulty", choices=("world", "wide"), default="world")
    parser.add_argument("--jobs", type=int, default=2, help="kinds examined at the same time")
    parser.add_argument("--kinds", default=",".join((*BARS, *ALSO)))
    parser.add_argument("--keep", action="store_true", help="write the result and the picture of the weakest kind")
    args = parser.parse_args()
    level = mini.world() if args.difficulty == "world" else Difficulty()
    rows, failures = {}, {}
    kinds = args.kinds.split(",")
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = [pool.submit(examine, args.model, kind, args.items, level) for kind in kinds]
        for kind, future in zip(kinds, results, strict=True):
            result = future.result()
            failures[kind] = result.pop("wrong")
            rows[kind] = result | ({"bar": BARS[kind]} if kind in BARS else {})
            bar = f"bar {BARS[kind]:.0%}" if kind in BARS else ""
            print(f"{kind:12} {result['accuracy']:6.1%} of {result['of']}  {bar}", flush=True)
    record = {
        "what": "embedded model, test split", "date": datetime.date.today().isoformat(), "difficulty": args.difficulty,
        "model": args.model or "embedded", "python": platform.python_version(), "kinds": rows,
    }  # fmt: skip
    if args.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{record['date']}-embedded-{args.difficulty}.json").write_text(json.dumps(record, indent=1) + "\n")
        weakest = min((k for k in rows if k in BARS), key=lambda k: rows[k]["accuracy"] / BARS[k])
        draw(weakest, failures[weakest], RESULTS / f"{record['date']}-embedded-{args.difficulty}-{weakest}.png")
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())

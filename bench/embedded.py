"""Examine the embedded model: fresh test-split items of every kind, one question each, by foveal.evaluate.

usage: python bench/embedded.py [--model DIR] [--items 500] [--difficulty world|wide] [--kinds colour,shape,...] [--jobs 2]

"world" is what the model is trained for (foveal.train.mini.world), "wide" what the generator can make: larger pictures,
smaller text, longer clips; it concerns the first edition's kinds. Prints a table and, last, one JSON line; --keep writes
bench/results/DATE-embedded-DIFFICULTY.json and a picture of the errors of the kind that is furthest below its bar.
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
from pathlib import Path
from typing import Any

import foveal
from foveal.evaluate import Local, Task, answered, open_tasks
from foveal.sampler import Sampling

# What is wanted of the kinds that have a bar; where both editions have one, it is the second's, which is higher.
BARS = {
    "colour": 0.97, "shape": 0.97, "left_right": 0.95, "box": 0.90, "read_word": 0.80, "reasoned_count": 0.92,
    "absent_one": 0.90, "event_appear_time": 0.85, "event_vanish_time": 0.85, "order_list": 0.90, "emoji_name": 0.80,
    "needle_16px": 0.85, "receipt_total": 0.75, "count": 0.90, "read_number": 0.80, "appear_time": 0.70, "first": 0.70,
}  # fmt: skip
FIRST = (
    "colour", "shape", "count", "left_right", "read_number", "box", "appear_time", "first", "icon", "read_word", "describe",
    "vanish_time", "moves", "clip_colour", "clip_count", "timeline",
)  # fmt: skip
"""The first edition's kinds."""

F1 = {"absent_one": "f1 no"}  # bars that are not of what is right
RESULTS = Path(__file__).parent / "results"

Wrong = list[tuple[str, str]]
"""Ids of items that were answered wrongly, and the answers."""


def task_of(kind: str, count: int, level: str, first_seed: int = 0) -> Task:
    """Make the task of a kind: items of the test split, none ever trained on."""
    (task,) = open_tasks([kind], items=count, level=level, first_seed=first_seed)
    return task


def examine(name: str | None, kind: str, count: int, level: str, first_seed: int) -> tuple[dict[str, Any], Wrong]:
    """Ask about `count` items of a kind, on one thread; return the tally and what was answered wrongly."""
    import torch

    torch.set_num_threads(1)
    model = Local(foveal.load(name), Sampling(max_tokens=256))
    right, wrong = 0, []
    hits, both = 0.0, 0.0
    started = time.perf_counter()
    for item, said in answered(model, task_of(kind, count, level, first_seed)):
        scores = item.score(said.text)
        top, bottom = scores.get(F1.get(kind, "right"), (0.0, 0.0))
        hits, both = hits + top, both + bottom
        if scores["right"][0] == 1:
            right += 1
        else:
            wrong.append((item.id, said.text))
    wrong.sort(key=lambda pair: int(pair[0].rpartition("/")[2]))  # by seed, whoever was answered first
    seconds = round(time.perf_counter() - started, 1)
    value = hits / both if both else 0.0
    return {"right": right, "of": count, "accuracy": right / count, "value": value, "seconds": seconds}, wrong


def draw(kind: str, task: Task, wrong: Wrong, path: Path) -> None:
    """Draw failures of a kind on their pictures, and the commonest confusions as the title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    items = [(task.item(id), answer) for id, answer in wrong]
    pairs = Counter((item.references[0][:24], answer[:24]) for item, answer in items).most_common(3)
    fig, axes = plt.subplots(3, 4, figsize=(12, 9))
    for ax in axes.flat:
        ax.axis("off")
    for ax, (item, answer) in zip(axes.flat, items, strict=False):
        pixels = item.media[0][1].pixels
        ax.imshow(pixels[len(pixels) // 2])
        ax.set_title(f"{item.question}\nsaid {answer[:40]!r}\nright {item.references[0][:40]!r}", fontsize=7)
    fig.suptitle(f"{kind}: " + "; ".join(f"{said} for {truth} x{n}" for (truth, said), n in pairs), fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=70)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--difficulty", choices=("world", "wide"), default="world")
    parser.add_argument("--first-seed", type=int, default=0, help="of the items; others than 0 to choose between weights by")
    parser.add_argument("--jobs", type=int, default=2, help="kinds examined at the same time")
    parser.add_argument("--kinds", default=",".join(dict.fromkeys((*BARS, *FIRST))))
    parser.add_argument("--keep", action="store_true", help="write the result and the picture of the weakest kind")
    args = parser.parse_args()
    rows, failures = {}, {}
    kinds = args.kinds.split(",")
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = [pool.submit(examine, args.model, kind, args.items, args.difficulty, args.first_seed) for kind in kinds]
        for kind, future in zip(kinds, results, strict=True):
            result, failures[kind] = future.result()
            bar = BARS.get(kind)
            rows[kind] = result | ({} if bar is None else {"bar": bar})
            wanted = "" if bar is None else f"bar {bar:.0%} of {F1.get(kind, 'right')}: {result['value']:.1%}"
            print(f"{kind:18} {result['accuracy']:6.1%} of {result['of']}  {wanted}", flush=True)
    record = {
        "what": "embedded model, test split", "date": datetime.date.today().isoformat(), "difficulty": args.difficulty,
        "model": args.model or "embedded", "first_seed": args.first_seed, "python": platform.python_version(), "kinds": rows,
    }  # fmt: skip
    if args.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{record['date']}-embedded-{args.difficulty}.json").write_text(json.dumps(record, indent=1) + "\n")
        weakest = min((k for k in rows if "bar" in rows[k]), key=lambda k: rows[k]["value"] / rows[k]["bar"])
        task = task_of(weakest, args.items, args.difficulty, args.first_seed)
        draw(weakest, task, failures[weakest], RESULTS / f"{record['date']}-embedded-{args.difficulty}-{weakest}.png")
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())

"""Cases of the generated world a second, on one core, by kind.

usage: python bench/world.py [--cases 40] [--split train] [--keep]

Processor time, so that a busy machine does not count against it; every kind warms up on one case. Prints a table and, last,
one JSON line; --keep writes bench/results/DATE-world.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import numpy as np

from foveal.world import CASE_KINDS, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, help="of each kind")
    parser.add_argument("--split", default="train")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    rows = []
    for kind in CASE_KINDS:
        make(kind, 0, args.split)
        began = time.process_time()
        made = [make(kind, 1 + seed, args.split) for seed in range(args.cases)]
        taken = time.process_time() - began
        pixels = sum(item.pixels.size // 3 for case in made for item in case.items)
        rows.append(
            {
                "kind": kind, "cases_s": round(args.cases / taken, 1), "ms": round(1e3 * taken / args.cases, 1),
                "megapixels": round(pixels / args.cases / 1e6, 2),
                "questions": sum(len(c.questions) for c in made) / args.cases,
            }
        )  # fmt: skip
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    record = {
        "what": f"cases a second of processor time, {args.cases} of each kind, split {args.split}",
        "date": str(datetime.date.today()), "machine": platform.processor() or platform.machine(), "numpy": np.__version__,
        "python": platform.python_version(), "rows": rows,
        "cases_s": round(1e3 * len(rows) / sum(float(row["ms"]) for row in rows), 1),
    }  # fmt: skip
    if args.keep:
        path = Path(__file__).parent / "results" / f"{record['date']}-world.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""Whether torch's threads and the kernels' get in each other's way: native work right after torch's, and left in peace.

usage: python bench/threads.py [--layers 4] [--bits 8] [--threads 2] [--runs 15] [--rounds 2] [--keep]

Torch's OpenMP threads look for work for some milliseconds after each operation before they sleep, on the cores the kernels'
threads need by then; how long is decided by OMP_WAIT_POLICY and GOMP_SPINCOUNT when torch is loaded, so that each setting has
a process of its own, and the processes take turns. Medians, in ms:

idle after torch, idle after step: processor time the process takes while it sleeps, its threads' looking for work. It does not
depend on what else the machine does.
step, prompt: on some layers of the 2B shape, packed, a step of decoding, and a prompt of 64 tokens, whose attention is torch's
between native products; after a pause, and right after a torch operation on all threads.
torch: that operation itself, after a pause and right after a step.
float32 token: of the embedded model, torch alone: what a setting costs where nobody fights.

Prints a table and, last, one JSON line; --keep writes bench/results/DATE-threads.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SETTINGS: dict[str, dict[str, str]] = {
    "as torch comes": {},
    "spin a little": {"GOMP_SPINCOUNT": "5000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
PAUSE_S = 0.03


def child(layers: int, bits: int, threads: int, runs: int) -> dict[str, float]:
    import torch

    import foveal
    from bench.decode import shortened
    from foveal import kernels
    from foveal.batch import Batch
    from foveal.sampler import Sampling

    torch.set_num_threads(threads)
    kernels.set_threads(threads)
    model = shortened(layers, bits)
    cache = model.new_cache(256)
    for part in cache.views() or ():
        part.normal_()
    many = torch.ones(1 << 20)
    prompt = Batch(torch.full((64,), 5), torch.arange(64).expand(3, -1), (64,), torch.empty(0, dtype=torch.long))
    prompt = prompt.with_output(torch.tensor([63]))

    def step() -> None:
        cache.truncate(0)
        cache.length = 128
        model(Batch.step([5], [128]), [cache])

    def prefill() -> None:
        cache.truncate(0)
        model(prompt, [cache])

    def torch_op() -> None:
        many.mul_(1.0)

    def after(before: Callable[[], object], timed: Callable[[], object]) -> float:
        taken = []
        for _ in range(runs):
            before()
            began = time.perf_counter()
            timed()
            taken.append(time.perf_counter() - began)
        return 1e3 * statistics.median(taken)

    def pause() -> None:
        time.sleep(PAUSE_S)

    def idle_after(before: Callable[[], object]) -> float:
        """Return the processor time of a process that has nothing to do."""
        taken = []
        for _ in range(runs):
            before()
            began = time.process_time()
            time.sleep(10 * PAUSE_S)
            taken.append(time.process_time() - began)
        return 1e3 * statistics.median(taken)

    plain = foveal.load()
    said = [plain.ask("What do you see?", sampling=Sampling(max_tokens=24, ignore_end=True)).answer.stats for _ in range(3)]
    with torch.inference_mode():
        for warm in (step, prefill, torch_op):
            warm()
        return {
            "idle after torch": idle_after(torch_op), "idle after step": idle_after(step),
            "step": after(pause, step), "step after torch": after(torch_op, step), "prompt": after(pause, prefill),
            "prompt after torch": after(torch_op, prefill), "torch": after(pause, torch_op),
            "torch after step": after(step, torch_op), "float32 token": 1e3 / max(stats.tokens_per_s for stats in said),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="3 or more")
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2, help="of the settings")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.layers, args.bits, args.threads, args.runs)))
        return
    numbers = ("--layers", args.layers, "--bits", args.bits, "--threads", args.threads, "--runs", args.runs)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, variables in SETTINGS.items():
            clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
            command = [sys.executable, __file__, "--child", *map(str, numbers)]
            done = subprocess.run(command, env=clean | variables, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    rows = {
        name: {what: round(statistics.median(one[what] for one in ones), 3) for what in ones[0]} for name, ones in found.items()
    }
    for name, row in rows.items():
        slower = {what: row[f"{what} after torch"] / row[what] for what in ("step", "prompt")}
        print(f"{name:15}", "  ".join(f"{what} {ms:.2f}" for what, ms in row.items()), end="")
        print(f"  | after torch: step x {slower['step']:.2f}, prompt x {slower['prompt']:.2f}", flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    record = {
        "what": f"native work after torch's, {args.layers} layers of the 2B shape, {args.bits} bits, in ms",
        "date": str(datetime.date.today()), "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(), "threads": args.threads, "cpus": os.cpu_count(), "load": load, "rows": rows,
    }  # fmt: skip
    if args.keep:
        path = ROOT / "bench" / "results" / f"{record['date']}-threads.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""Ask an engine for minutes on end, everything mixed, and watch its memory: it must stay flat within 2 %.

usage: python bench/soak.py [--minutes 60] [--model DIR] [--bits 8] [--keep]

Four clients ask the embedded model (or a folder) about fresh pictures and clips, the same ones again, and text; in second
turns, for several samples, with log-probabilities; they cancel, leave, and send what cannot be read. Minutes are minutes of
work: while the process is stopped, by a debugger or for somebody's timing, they do not count. The memory is what the process
holds after a collection, with the allocator's free pages given back, sampled thirty times with nothing running. The
first third fills the caches, whose limits are set low; of the rest the highest is compared with the lowest. Prints samples on
stderr on a terminal, and one JSON line; --keep writes bench/results/DATE-soak.json. Exit code 1 where it was not flat.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foveal
from foveal.engine import BusyError, Engine, Settings
from foveal.errors import FovealError
from foveal.sampler import Sampling

CLIENTS, SAMPLES, FLAT = 4, 30, 0.02
TICK_S, STOPPED_S = 0.2, 1.0  # a tick that takes longer than this was not slow: the process was stopped
QUESTIONS = ("What is in this picture?", "What colour is the circle?", "How many shapes are there?", "Why?")


def resident_bytes() -> int:
    """Return what the process holds, after everything that can be given back was."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def medium(rng: np.random.Generator, kept: list[np.ndarray]) -> np.ndarray:
    """Make a picture or a clip, or take one that was asked about before."""
    if kept and rng.random() < 0.4:
        return kept[rng.integers(len(kept))]
    side = [int(n) for n in rng.integers(32, 200, 2)]
    shape = (*side, 3) if rng.random() < 0.8 else (int(rng.integers(2, 9)), *side, 3)
    made = rng.integers(0, 256, shape, dtype=np.uint8)
    kept.append(made)
    del kept[:-20]
    return made


def client(one: Engine, number: int, until: threading.Event, ends: Counter[str], lock: threading.Lock) -> None:
    rng, kept = np.random.default_rng(number), list[np.ndarray]()
    while not until.is_set():
        sampling = Sampling(
            temperature=float(rng.integers(2)), seed=int(rng.integers(1000)), max_tokens=int(rng.integers(1, 40))
        )
        question = " ".join(QUESTIONS[i] for i in rng.integers(len(QUESTIONS), size=rng.integers(1, 4)))
        files: list[Any] = [medium(rng, kept) for _ in range(rng.integers(3))]
        if rng.random() < 0.05:
            files.append(b"no picture at all")
        n = int(rng.choice([1, 1, 1, 3]))
        try:
            if rng.random() < 0.2 and files:
                turns = [
                    {"role": "user", "content": [{"type": "image", "image": files[0]}, {"type": "text", "text": question}]}
                ]
                said = one.chat(turns, sampling=sampling).answer.text
                turns += [{"role": "assistant", "content": said}, {"role": "user", "content": QUESTIONS[1]}]
                stream = one.chat(turns, sampling=sampling)
            else:
                stream = one.ask(question, *files, sampling=sampling, n=n, logprobs=2 if rng.random() < 0.1 else None)
            leaves = rng.random()
            if leaves < 0.1:
                next(iter(stream), None)
                stream.cancel()
            end = "left" if leaves > 0.95 else stream.answers[0].finish_reason
        except BusyError:
            time.sleep(0.05)
            continue
        except FovealError as error:
            end = type(error).__name__
        with lock:
            ends[end] += 1


class Clock:
    """Time in which the process was not stopped."""

    def __init__(self) -> None:
        self.seconds = self.stopped_s = 0.0

    def work_until(self, seconds: float) -> None:
        """Sleep in ticks until the clock shows so many seconds."""
        while (left := seconds - self.seconds) > 0:
            began = time.perf_counter()
            time.sleep(min(left, TICK_S))
            took = time.perf_counter() - began
            if took > STOPPED_S:
                self.stopped_s += took
            else:
                self.seconds += took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--model")
    parser.add_argument("--bits", type=int, choices=(8, 4))
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    pipeline = foveal.load(args.model, bits=args.bits)
    ends, lock, samples = Counter[str](), threading.Lock(), list[dict[str, float]]()
    with Engine(pipeline, Settings(num_blocks=256, vision_bytes=2**22, max_waiting=2 * CLIENTS)) as one:
        clock = Clock()
        for turn in range(SAMPLES):
            until = threading.Event()
            arguments = [(one, turn * CLIENTS + i, until, ends, lock) for i in range(CLIENTS)]
            threads = [threading.Thread(target=client, args=given) for given in arguments]
            for thread in threads:
                thread.start()
            clock.work_until((turn + 1) * 60 * args.minutes / SAMPLES)
            until.set()
            for thread in threads:
                thread.join()
            while (usage := one.usage())["blocks_held"] or usage["queue"] or usage["running"]:
                time.sleep(0.01)
            samples.append({"minutes": clock.seconds / 60, "requests": ends.total(), "bytes": resident_bytes()})
            if sys.stderr.isatty():
                print("  ".join(f"{key} {value:,.2f}" for key, value in samples[-1].items()), file=sys.stderr, flush=True)
    settled = [sample["bytes"] for sample in samples[SAMPLES // 3 :]]
    spread = max(settled) / min(settled) - 1
    record = {
        "what": "memory of an engine under mixed requests", "date": datetime.date.today().isoformat(), "minutes": args.minutes,
        "stopped_minutes": clock.stopped_s / 60, "model": pipeline.name, "bits": args.bits, "requests": dict(ends),
        "spread": spread, "bar": FLAT, "samples": samples, "usage": usage,
        "torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    if args.keep:
        path = Path(__file__).parent / "results" / f"{record['date']}-soak.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    sys.exit(spread > FLAT)


if __name__ == "__main__":
    main()

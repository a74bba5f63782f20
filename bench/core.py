"""Time the spine against transformers: preprocess, vision encode, prefill, decode; the same weights, one process, by turns.

usage: python bench/core.py [--preset 2B] [--runs 5] [--keep]
Both sides share one set of random float32 weights in memory (2B: 8.5 GB) and are asked for the same numbers; the largest
difference is printed beside the times, so that nothing is compared that does not do the same work. Prints a table and,
last, one JSON line; --keep writes bench/results/DATE-core-PRESET.json.
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
from typing import Any

# Threads that wait must sleep, not spin: on two cores both sides gain, and neither disturbs the other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from foveal.batch import Batch
from foveal.config import preset
from foveal.media import Frames
from foveal.model import Qwen3VL
from foveal.patches import Budget, patchify
from foveal.sequence import TextSegment, build
from tests.parity.reference import image_processor, pixel_values, shared_reference, transformers

RESULTS = Path(__file__).parent / "results"
PREFILL = 364  # tokens: the figure the peers are measured at
BARS = {"preprocess 1920x1080": 3.0}


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], runs: int) -> dict[str, Any]:
    """Run both by turns after one warm run each. Return both medians (seconds), all readings, and their ratio."""
    ours(), theirs()
    times: dict[str, list[float]] = {"foveal_s": [], "transformers_s": []}
    for _ in range(runs):
        for name, call in (("foveal_s", ours), ("transformers_s", theirs)):
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    mid = {name: statistics.median(values) for name, values in times.items()}
    return mid | {"ratio": mid["transformers_s"] / mid["foveal_s"], "readings": times}


def photograph(height: int, width: int) -> np.ndarray:
    """A picture with smooth parts, edges and noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    wave = 127 + 90 * np.sin(y / 37.0) * np.cos(x / 23.0)
    noise = rng.normal(0, 9, (height, width, 3))
    return np.clip(wave[..., None] * (0.7, 0.9, 1.1) + noise, 0, 255).astype(np.uint8)


def preprocess(runs: int, vision: Any, sizes: tuple[tuple[int, int], ...]) -> dict[str, dict[str, Any]]:
    """Time decoded pixels to what the encoder takes, under the released budget, which shrinks neither size."""
    from PIL import Image

    budget, rows = Budget(image=(64, 16384)), {}
    processor = image_processor(vision, budget.image)
    for width, height in sizes:
        pixels = photograph(height, width)
        image = Image.fromarray(pixels)
        frames = Frames(pixels[None], np.zeros(1), "image", (height, width), "bench")
        ours = lambda frames=frames: patchify(frames, vision, budget)  # noqa: E731
        theirs = lambda image=image: processor(images=[image], return_tensors="pt")  # noqa: E731
        row = alternate(ours, theirs, runs)
        row["difference"] = (pixel_values(ours(), vision) - theirs()["pixel_values"]).abs().max().item()
        rows[f"preprocess {width}x{height}"] = row
    return rows


@torch.inference_mode()
def stages(runs: int, name: str) -> dict[str, dict[str, Any]]:
    model = Qwen3VL(preset(name))
    model.init_weights(0)
    theirs: Any = shared_reference(model.eval())
    rows = {}

    patches = patchify(Frames(photograph(480, 640)[None], np.zeros(1), "image", (480, 640), "bench"), model.config.vision,
                       Budget(image=(64, 16384)))  # fmt: skip
    values, grid = pixel_values(patches, model.config.vision), torch.tensor([[1, *patches.grids[0]]])
    row = alternate(lambda: model.encode([patches]), lambda: theirs.model.visual(values, grid_thw=grid), runs)
    a, b = model.encode([patches]).embeddings, theirs.model.visual(values, grid_thw=grid).pooler_output
    rows["vision encode 640x480"] = row | {"difference": _relative(a, b)}

    ids = np.random.default_rng(0).integers(0, min(100000, model.config.image_token_id), PREFILL)
    sequence = build([TextSegment(tuple(ids.tolist()))], [], kinds=[], merge=2,
                     image_token_id=model.config.image_token_id, video_token_id=model.config.video_token_id)  # fmt: skip
    batch = Batch.pack([sequence], output="last")
    long = torch.from_numpy(ids)[None]

    def prefill() -> tuple[Tensor, Any]:
        cache = model.new_cache(PREFILL + 64)
        return model(batch, [cache]), cache

    def prefill_theirs() -> Any:
        return theirs(input_ids=long, logits_to_keep=1, use_cache=True)

    row = alternate(prefill, prefill_theirs, runs)
    (a, cache), out = prefill(), prefill_theirs()
    rows[f"prefill {PREFILL}"] = row | {"difference": _relative(a[0], out.logits[0, -1])}

    token, past = torch.tensor([[7]]), out.past_key_values

    def decode() -> Tensor:
        return model(Batch.step([7], [cache.length]), [cache])

    def decode_theirs() -> Tensor:
        return theirs(input_ids=token, past_key_values=past, use_cache=True).logits

    a, b = decode(), decode_theirs()
    row = alternate(decode, decode_theirs, 3 * runs)
    rows["decode, one token"] = row | {"difference": _relative(a[0], b[0, -1])}
    return rows


def startup(runs: int) -> dict[str, float]:
    """Seconds of `foveal --help` and of `import foveal`, each in a fresh interpreter."""
    commands = {
        "foveal --help": [sys.executable, "-m", "foveal", "--help"],
        "import foveal": [sys.executable, "-c", "import foveal"],
    }
    out = {}
    for name, command in commands.items():
        readings = []
        for _ in range(runs + 1):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            readings.append(time.perf_counter() - started)
        out[name] = statistics.median(readings[1:])
    return out


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="2B")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    starts = startup(args.runs)
    rows = preprocess(2 * args.runs, preset(args.preset).vision, ((640, 480), (1920, 1080)))
    rows |= stages(args.runs, args.preset)
    print(f"{'':24}{'foveal':>10}{'transformers':>14}{'times as fast':>15}{'largest difference':>20}")
    for name, row in rows.items():
        bar = f"   bar {BARS[name]:.1f}" if name in BARS else ""
        times = f"{row['foveal_s'] * 1e3:8.1f}ms{row['transformers_s'] * 1e3:12.1f}ms"
        print(f"{name:24}{times}{row['ratio']:15.2f}{row['difference']:20.1e}{bar}")
    for name, seconds in starts.items():
        print(f"{name:24}{seconds * 1e3:8.0f}ms")
    record = {
        "what": "foveal against transformers, float32, same weights, by turns", "date": datetime.date.today().isoformat(),
        "preset": args.preset, "threads": args.threads, "runs": args.runs, "seed": 0, "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers().__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": rows, "startup_s": starts,
    }  # fmt: skip
    if args.keep:
        (RESULTS / f"{record['date']}-core-{args.preset}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""A step of decoding in one call against the same layers called one by one, and against what memory allows.

usage: python bench/decode.py [--layers 8] [--bits 8,4] [--cache bfloat16,int8] [--positions 16,2000] [--runs 3] [--keep]

The 2B shape with fewer layers, a small vocabulary and random weights, packed in memory: the ways, the kinds of cache and the
lengths take turns, medians of 20 steps each and then of the runs. The floor is the bytes of the packed weights and of what the
cache holds over the read speed measured in the same run; of_first is the speed of a step as a share of that after the first
number of positions, beside what the floors allow. Prints a table and, last, one JSON line; --keep writes
bench/results/DATE-decode.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foveal import kernels
from foveal.batch import Batch
from foveal.config import preset
from foveal.model import Qwen3VL
from foveal.model.quantize import packed_weights, quantize


def shortened(layers: int, bits: int) -> Qwen3VL:
    """Make the 2B shape with fewer layers, packed."""
    whole = preset("2B")
    config = replace(
        whole, image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4,
        text=replace(whole.text, num_hidden_layers=layers, vocab_size=32768),
        vision=replace(whole.vision, depth=3, taps=(0, 1, 2)),
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen3VL(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return quantize(model, bits)


@torch.inference_mode()
def step_s(model: Qwen3VL, positions: int, steps: int = 25) -> float:
    """Return the median seconds of a step after so many positions."""
    cache, text = model.new_cache(positions + steps), model.config.text
    for layer in range(text.num_hidden_layers):
        cache.write(layer, *torch.randn(2, positions, text.num_key_value_heads, text.head_dim))
    cache.length = positions
    taken = []
    for i in range(steps):
        began = time.perf_counter()
        model(Batch.step([5], [positions + i]), [cache])
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--bits", default="8,4")
    parser.add_argument("--cache", default="bfloat16,int8")
    parser.add_argument("--positions", default="16,2000")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(kernels.threads())
    rows = []
    for bits in map(int, args.bits.split(",")):
        model = shortened(args.layers, bits)
        text, step = model.language_model, model.language_model.step
        num_bytes = sum(p.num_bytes for name, p in packed_weights(model).items() if "language_model" in name)
        cases = [(kind, int(n)) for kind in args.cache.split(",") for n in args.positions.split(",")]
        taken: dict[tuple[str, int, str], list[float]] = {}
        speeds = []
        for _ in range(args.runs):
            speeds.append(kernels.read_bandwidth())
            for kind, positions in cases:
                model.kv_cache = getattr(torch, kind)
                for name, way in (("layers", None), ("step", step)):
                    text.step = way
                    taken.setdefault((kind, positions, name), []).append(step_s(model, positions))
        speed = statistics.median(speeds)
        first: dict[str, Any] = {}
        for kind, positions in cases:
            ms = {name: round(1e3 * statistics.median(taken[kind, positions, name]), 2) for name in ("layers", "step")}
            floor = 1e3 * (num_bytes + positions * model.config.text.kv_bytes_per_token(kind)) / speed
            if first.get("cache") != kind:
                first = {"cache": kind, "step": ms["step"], "floor": floor}
            rows.append(
                {
                    "bits": bits, "cache": kind, "positions": positions, **ms, "times": round(ms["layers"] / ms["step"], 2),
                    "floor_ms": round(floor, 2), "share": round(floor / ms["step"], 2), "read_GB_s": round(speed / 1e9, 1),
                    "of_first": round(first["step"] / ms["step"], 3), "of_first_floor": round(first["floor"] / floor, 3),
                }
            )  # fmt: skip
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    record = {
        "what": f"a step of decoding, {args.layers} layers of the 2B shape", "date": str(datetime.date.today()),
        "machine": platform.processor() or platform.machine(), "path": kernels.path(), "threads": kernels.threads(),
        "torch": torch.__version__, "python": platform.python_version(), "rows": rows,
    }  # fmt: skip
    if args.keep:
        path = Path(__file__).parent / "results" / f"{record['date']}-decode.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""Time the vision encoder of a packed model: stage by stage beside what the machine allows, and whole against transformers.

usage: python bench/encode.py [--blocks 24] [--runs 5] [--size 640x480] [--without-transformers] [--processor-time] [--keep]

The 2B shape with random weights, packed in memory. Stages are those of one block, of a merger and of what comes before the
blocks, each timed by itself, with how often a picture needs it and the floor of one: for 8-bit products 370 G operations a
second (two cores of 3.3 GHz with AVX2; see docs/quantization.md), for attention its products at the speed at which torch
multiplies float32 matrices here, for all else its bytes at the speed at which memory is read here. "attention by torch" is
what stood there before: queries and keys turned by torch, then its float32 attention. The whole is timed by turns with that
in its place, and with transformers' encoder in float32 on the same weights. Last, attention's error against float64. Prints
tables and, last, one JSON line; --keep writes bench/results/DATE-encode.json. With --processor-time all of it is one thread's
own time, for a machine that others keep busy: shares and ratios mean something then, seconds do not. --agreement N instead
counts, of N test items a kind, the embedded model's float32 tokens that its 8-bit weights predict with either attention.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import foveal
from bench.core import photograph
from bench.embedded import FIRST, task_of
from bench.quantized import scores
from foveal import kernels
from foveal.batch import PatchBatch
from foveal.config import preset
from foveal.kernels.frames import Frames
from foveal.media import Frames as Media
from foveal.model import Qwen3VL
from foveal.model.attention import attend_frames
from foveal.model.quantize import quantize
from foveal.model.rope import rotate, vision_tables
from foveal.model.vision import VisionAttention, VisionBlock
from foveal.patches import Budget, patchify
from foveal.sampler import Sampling

PRODUCTS = 370e9 / 2  # 8-bit operations a second of a thread, at best
Call = Callable[[], Any]
clock = time.perf_counter


def medians(calls: dict[str, Call], runs: int) -> dict[str, float]:
    """Run all by turns, once to warm up; return median seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            started = clock()
            call()
            if run:
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def random_model(blocks: int) -> Qwen3VL:
    """Make the 2B shape's encoder in float32; of its decoder no more than a model must have."""
    whole = preset("2B")
    config = replace(
        whole, image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4,
        text=replace(whole.text, num_hidden_layers=3, vocab_size=1024),
        vision=replace(whole.vision, depth=blocks, taps=tuple(blocks * i // 4 for i in (1, 2, 3))),
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen3VL(config)
    model = model.to_empty(device="cpu").eval()
    model.language_model.reset_tables()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name and name.endswith("weight")), 0.02, generator=generator)
    return model


def stages(model: Qwen3VL, batch: PatchBatch, runs: int) -> list[dict[str, Any]]:
    """Time every stage by itself, those of one block by turns."""
    visual, config = model.visual, model.config.vision
    count, width, inner, heads = len(batch.rows_columns), config.hidden_size, config.intermediate_size, config.num_heads
    block = visual.blocks[1]
    assert isinstance(block, VisionBlock)
    joined, tokens = width * config.spatial_merge_size**2, count // config.spatial_merge_size**2
    tables = vision_tables(batch.rows_columns, config.head_dim, config.rope_theta)
    x = torch.randn(count, width)
    normed, raw = kernels.quantise(block.norm1(x)), torch.randn(count, inner)
    rows = block.attn.qkv(normed)
    frames = Frames(rows, batch.lengths, heads)
    frames.pack(*tables)
    fc1, mlp_in = block.mlp.linear_fc1, kernels.quantise(raw)
    projection = visual.patch_embed.proj
    folded = projection.folded(1)
    float_multiply = statistics.median(float_gemm() for _ in range(runs))
    memory = kernels.read_bandwidth()

    def product(n: int, k: int, rows: int = count) -> float:
        return 2 * rows * n * k / (PRODUCTS * kernels.threads())

    def moved(*numbers: float) -> float:
        return sum(numbers) / memory

    def by_torch() -> Any:
        q, k, v = rows.view(count, 3, heads, -1).unbind(1)
        q, k = (rotate(part, *tables) for part in (q, k))
        return attend_frames(q, k, v, batch.lengths).flatten(1)

    seen = sum(4 * n * n * width for n in batch.lengths)
    depth, taps, row = config.depth, len(config.taps), 4 * count * width
    listed: list[tuple[str, int, float, Call]] = [
        ("patch embedding", 1, 2 * count * width * folded[0].shape[1] / float_multiply,
         lambda: projection.embed(batch.stills, *projection.folded(1))),
        ("learned positions", 1, moved(6 * row), lambda: visual.placed(x, batch.position_index, batch.position_weight)),
        ("LayerNorm", 2 * depth, moved(2 * row), lambda: block.norm1(x)),
        ("to 8 bits, 1024 wide", 3 * depth, moved(1.25 * row), lambda: kernels.quantise(x)),
        ("qkv", depth, product(3 * width, width), lambda: block.attn.qkv(normed)),
        ("pack keys and values, turned", depth, moved(2 * row, row), lambda: frames.pack(*tables)),
        ("attend", depth, seen / float_multiply, lambda: frames.attend(*tables)),
        ("proj", depth, product(width, width), lambda: block.attn.proj(normed)),
        ("add", 2 * depth, moved(3 * row), lambda: x + x),
        ("fc1 and GELU", depth, product(inner, width),
         lambda: kernels.matmul(normed, fc1.packed, fc1.bias, gelu=True)),
        ("to 8 bits, 4096 wide", depth, moved(5 * count * inner), lambda: kernels.quantise(raw)),
        ("fc2", depth, product(width, inner), lambda: block.mlp.linear_fc2(mlp_in)),
        ("merger", 1 + taps, product(joined, joined, tokens) + product(config.out_hidden_size, joined, tokens),
         lambda: visual.merger(x)),
        ("attention by torch", 0, seen / float_multiply, by_torch),
    ]  # fmt: skip
    taken = medians({name: call for name, _, _, call in listed}, runs)
    return [
        {"stage": name, "times": times, "ms": round(1e3 * taken[name], 2), "floor_ms": round(1e3 * floor, 2)}
        for name, times, floor, _ in listed
    ]


def errors() -> list[dict[str, float]]:
    """Hold attention over 1,200 patches, four heads of 64, against float64; some channels much larger than the rest."""
    rows = []
    for times in (1, 20, 100):
        generator = torch.Generator().manual_seed(times)
        qkv = torch.randn(1200, 3 * 4 * 64, generator=generator)
        qkv[:, ::31] *= times
        frames = Frames(qkv, (1200,), 4)
        frames.pack(None, None)
        q, k, v = qkv.view(1200, 3, 4, 64).unbind(1)
        wanted = attend_frames(q.double(), k.double(), v.double(), (1200,)).flatten(1)
        made = {"integers": frames.attend(None, None), "float32": attend_frames(q, k, v, (1200,)).flatten(1)}
        rows.append({"times": times} | {name: float((x - wanted).norm() / wanted.norm()) for name, x in made.items()})
    return rows


def agreement(items: int) -> dict[str, Any]:
    """Give packed weights, with either attention, the answers of the embedded model, and count what they would have said."""
    plain = foveal.load()
    eight = quantize(copy.deepcopy(plain.model), 8)
    row = {"items_per_kind": items, "tokens": 0, "integers": 0, "attention by torch": 0, "alike": 0}
    for kind in FIRST:
        for item in task_of(kind, items, "world"):
            request = plain.processor(item.messages)
            ids = list(plain.run(request, Sampling(max_tokens=160)).answer.token_ids)
            integers = scores(eight, request, ids).argmax(-1)
            with mock.patch.object(VisionAttention, "in_integers", False):
                by_torch = scores(eight, request, ids).argmax(-1)
            row["tokens"] += len(ids)
            row["integers"] += int((integers == torch.tensor(ids)).sum())
            row["attention by torch"] += int((by_torch == torch.tensor(ids)).sum())
            row["alike"] += int((integers == by_torch).sum())
        print(kind, row, flush=True)
    return row


def float_gemm() -> float:
    """Return the float32 operations a second of a product of 1200 x 1024 x 1024 in torch."""
    a, b = torch.ones(1200, 1024), torch.ones(1024, 1024)
    started = clock()
    a @ b
    return 2 * 1200 * 1024 * 1024 / (clock() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--agreement", type=int, help="items a kind")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    if args.processor_time:
        global clock
        clock = time.thread_time
        kernels.set_threads(1)
    torch.set_num_threads(kernels.threads())
    if args.agreement:
        return keep({"what": "tokens of the embedded model", **agreement(args.agreement)}, "-agreement", args.keep)
    model = random_model(args.blocks)
    width, height = map(int, args.size.split("x"))
    media = Media(photograph(height, width)[None], np.zeros(1), "image", (height, width), "bench")
    patches = patchify(media, model.config.vision, Budget())
    whole: dict[str, Call] = {}
    if not args.without_transformers:
        from tests.parity.reference import pixel_values, shared_reference

        theirs = shared_reference(model).model.visual
        values, grid = pixel_values(patches, model.config.vision), torch.tensor([[1, *patches.grids[0]]])
        whole["transformers float32"] = lambda: theirs(values, grid_thw=grid)
    quantize(model, 8)  # the other keeps the float32 weights
    batch = PatchBatch.pack([patches], model.config.vision)

    def before() -> None:
        with mock.patch.object(VisionAttention, "in_integers", False):
            model.visual(batch)

    whole |= {"foveal": lambda: model.visual(batch), "with attention by torch": before}
    with torch.inference_mode():
        rows = stages(model, batch, args.runs)
        taken, off = medians(whole, args.runs), errors()
    print(f"{'stage':32}{'times':>6}{'ms':>9}{'floor':>9}{'all, ms':>9}")
    for row in rows:
        print(f"{row['stage']:32}{row['times']:6}{row['ms']:9.2f}{row['floor_ms']:9.2f}{row['times'] * row['ms']:9.0f}")
    for name, seconds in taken.items():
        print(f"encode, {name:28}{seconds:7.3f} s   {seconds / taken['foveal']:.2f} times foveal's", flush=True)
    for row in off:
        print(f"error of attention, channels x {row['times']}: {row['integers']:.1e}, torch in float32 {row['float32']:.1e}")
    record = {
        "what": f"vision encoder, {args.blocks} blocks of the 2B shape, {args.size}", "patches": len(patches.pixels),
        "processor_time": args.processor_time, "encode_s": taken, "stages": rows, "errors": off,
    }  # fmt: skip
    keep(record, "-processor-time" if args.processor_time else "", args.keep)


def keep(found: dict[str, Any], which: str, write: bool) -> None:
    """Print a reading, and write it where that is asked for."""
    record = {
        "date": str(datetime.date.today()), "machine": platform.processor() or platform.machine(), "path": kernels.path(),
        "threads": kernels.threads(), "torch": torch.__version__, "python": platform.python_version(),
        "load": os.getloadavg()[0], **found,
    }  # fmt: skip
    if write:
        path = Path(__file__).parent / "results" / f"{record['date']}-encode{which}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

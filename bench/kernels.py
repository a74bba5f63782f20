"""Time the native kernels: matrix-vector and matrix-matrix products in 8 and 4 bits beside torch's linear, and attention.

usage: python bench/kernels.py [--threads 2] [--seconds 0.4] [--path avx2] [--keep]
Weights take turns until their bytes exceed the caches, as they do in a model: a matrix-vector product then runs at the speed
of memory, which is measured in the same run. Best times. Prints a table and, last, one JSON line; --keep writes
bench/results/DATE-kernels.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads that wait must sleep, not spin: torch's would otherwise hold the cores while ours are timed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from foveal import kernels
from foveal.kernels.window import attend_window

SHAPES = [(6144, 2048), (2048, 6144), (4096, 1024), (1024, 4096)]  # (N, K): up and down, 2B's decoder and vision
TOKENS = [1, 2, 4, 8, 64, 364, 1200]
BEYOND_CACHE = 128 << 20


def best(calls: list[Callable[[], Any]], seconds: float) -> float:
    """Call one after the other, round and round, for some seconds; return the shortest time of a call."""
    for call in calls:
        call()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for call in calls:
            start = time.perf_counter()
            call()
            shortest = min(shortest, time.perf_counter() - start)
    return shortest


def products(seconds: float, bandwidth: float) -> list[dict[str, Any]]:
    rows = []
    for n, k in SHAPES:
        weight = torch.randn(n, k)
        for kind in ("8 bits", "4 bits", "float32", "bfloat16"):
            if kind.endswith("bits"):
                first = kernels.pack(weight, int(kind[0]))
                size = first.num_bytes
                copies: list[Any] = [
                    kernels.Packed(first.bits, n, k, first.codes.clone(), first.scales.clone())
                    for _ in range(-(-BEYOND_CACHE // size))
                ]
            else:
                first = weight.to(getattr(torch, kind))
                size = first.nbytes
                copies = [first.clone() for _ in range(-(-BEYOND_CACHE // size))]
            for tokens in TOKENS:
                x = torch.randn(tokens, k)
                if kind.endswith("bits"):  # with the quantisation of the activations, as a layer pays it
                    out = torch.empty(tokens, n)
                    calls = [lambda w=w, x=x, out=out: kernels.matmul(x, w, out=out) for w in copies]
                else:
                    x = x.to(first.dtype)
                    calls = [lambda w=w, x=x: F.linear(x, w) for w in copies]
                if tokens > 64:
                    calls = calls[:2]
                took = best(calls, seconds)
                rows.append({
                    "n": n, "k": k, "weight": kind, "tokens": tokens, "ms": round(took * 1e3, 4),
                    "gb_s": round(size / took / 1e9, 2), "of_memory": round(size / took / bandwidth, 3),
                    "gop_s": round(2e-9 * n * k * tokens / took, 1),
                })  # fmt: skip
                print(
                    "{n:>6}x{k:<6}{weight:>10}{tokens:>8}{ms:>11.3f}{gb_s:>9.2f}{of_memory:>8.0%}{gop_s:>9.1f}".format(
                        **rows[-1]
                    )
                )
    return rows


def others(seconds: float) -> dict[str, float]:
    """Milliseconds of one layer's attention (16 heads over 8) and other work: of one token over 2,000 positions, of prompts."""
    q, store = torch.randn(16, 128), torch.randn(2, 8, 2000, 128)
    found = {}
    pools: list[Any] = [store.clone() for _ in range(8)]
    torch_calls = [lambda s=s: F.scaled_dot_product_attention(q.view(1, 8, 2, 128), s[0][None], s[1][None]) for s in pools]
    found["attend_torch_float32"] = best(torch_calls, seconds)
    found["attend_float32"] = best([lambda s=s: kernels.attend(q, s[0], s[1]) for s in pools], seconds)
    half = [s.bfloat16() for s in pools]
    found["attend_bfloat16"] = best([lambda s=s: kernels.attend(q, s[0], s[1]) for s in half], seconds)
    (k, ks), (v, vs) = (kernels.quantise_cache(x.contiguous()) for x in store)
    found["attend_int8"] = best([lambda: kernels.attend(q, k, v, key_scales=ks, value_scales=vs)], seconds)
    for n in (364, 2000):  # a prompt's own attention
        window, kept = torch.randn(n, 16, 128), store[:, :, :n]
        head_first = window.transpose(0, 1)[None]
        calls = {
            "torch": lambda q=head_first, s=kept: F.scaled_dot_product_attention(
                q, s[0][None], s[1][None], is_causal=True, enable_gqa=True
            ),
            "integers": lambda q=window, s=kept: attend_window(q, s[0], s[1]),
        }
        for name, call in calls.items():
            found[f"window_{name}_{n}"] = best([call], seconds)
    x, norm = torch.randn(364, 2048), torch.ones(2048)
    found["rms_quantise_1"] = best([lambda: kernels.rms_quantise(x[:1], norm, 1e-6)], seconds)
    found["rms_quantise_364"] = best([lambda: kernels.rms_quantise(x, norm, 1e-6)], seconds)
    gate, up = (kernels.pack(torch.randn(6144, 2048), 4) for _ in range(2))
    found["swiglu_4_bits_364"] = best([lambda: kernels.swiglu(x, gate, up)], seconds)
    weight = torch.randn(6144, 2048).bfloat16()
    for bits in (8, 4):
        out = kernels.pack(weight, bits)
        took = best([lambda out=out, bits=bits: kernels.pack(weight, bits, out=out)], seconds)
        found[f"pack_{bits}_bits_2e9_weights_s"] = took * 2e6 / weight.numel()  # seconds once multiplied by 1e3 below
    return {name: round(took * 1e3, 4) for name, took in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--path")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    if not kernels.available():
        sys.exit(kernels.reason())
    torch.set_num_threads(args.threads)
    kernels.set_threads(args.threads)
    kernels.use_path(args.path)
    bandwidth = kernels.read_bandwidth()
    load = os.getloadavg()[0]
    print(f"{kernels.path()}, {args.threads} threads, load {load:.1f}; memory is read at {bandwidth / 1e9:.1f} GB/s")
    print(f"{'N x K':>13}{'weight':>10}{'tokens':>8}{'ms':>11}{'GB/s':>9}{'memory':>8}{'GOP/s':>9}")
    rows = products(args.seconds, bandwidth)
    rest = others(args.seconds)
    for name, value in rest.items():
        print(f"{name:>32}{value:>10.3f}{' s' if name.endswith('_s') else ' ms'}")
    line = json.dumps({
        "bench": "kernels", "date": datetime.date.today().isoformat(), "machine": platform.machine(),
        "path": kernels.path(), "threads": args.threads, "load_before": round(load, 2), "torch": torch.__version__,
        "read_gb_s": round(bandwidth / 1e9, 2), "products": rows, "others_ms": rest,
    })  # fmt: skip
    if args.keep:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{datetime.date.today()}-kernels.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()

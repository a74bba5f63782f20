"""What packing to 8 and 4 bits costs in quality: on the embedded model's answers, and on activations with outliers.

usage: python bench/quantized.py [--items 40] [--only answers,caches,linear,decoder] [--keep]

answers: the embedded model answers test-split items in float32; each packed model is then given the same prompts with those
answers and must predict the same tokens (agreement), and answers by itself (right); beside them the same weights in bfloat16,
which shows what rounding to the precision of released checkpoints changes. caches: the same of narrower caches, each against
the same weights with a float32 cache. outliers: one linear of 2048 x 6144 and a
decoder of 1024 channels whose norms blow a few channels up 20 to 100 times and whose first token is massive, as in real
decoders; errors are relative to float32, beside 8-bit weights by row with one 7-bit scale a token, the arithmetic of torch's
dynamic int8 linear. Prints tables and, last, one JSON line; --keep writes bench/results/DATE-quantized.json.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import foveal
from bench.embedded import ALSO, BARS, task_of
from foveal import kernels
from foveal.batch import Batch
from foveal.config import preset
from foveal.generate import Pipeline
from foveal.model import Qwen3VL
from foveal.model.quantize import WIDTHS, quantize
from foveal.processor import Request
from foveal.sampler import Sampling

RESULTS = Path(__file__).parent / "results"


@torch.inference_mode()
def predicted(model: Qwen3VL, request: Request, ids: list[int]) -> Tensor:
    """Return what the model would say at every place of an answer that is given to it, (n,)."""
    sequence = request.sequence
    cache = model.new_cache(len(sequence) + len(ids))
    vision = model.encode(request.patches)
    first = model(Batch.pack([sequence], [vision], output="last"), [cache])
    if len(ids) == 1:
        return first.argmax(-1)
    places = torch.arange(sequence.next_position, sequence.next_position + len(ids) - 1).expand(3, -1)
    rest = Batch(torch.tensor(ids[:-1]), places, (len(ids) - 1,), torch.empty(0, dtype=torch.long))
    return torch.cat([first, model(rest, [cache])]).argmax(-1)


def answers(count: int) -> dict[str, Any]:
    plain = foveal.load()
    packed = {f"{bits} bits": Pipeline(quantize(copy.deepcopy(plain.model), bits), plain.processor, "") for bits in WIDTHS}
    packed["bfloat16"] = Pipeline(copy.deepcopy(plain.model).to(torch.bfloat16), plain.processor, "")
    return compared(plain, packed, count)


def caches(count: int) -> dict[str, Any]:
    """Compare kinds of cache, of the plain model and of the model in 4 bits."""
    plain = foveal.load()
    four = Pipeline(quantize(copy.deepcopy(plain.model), 4), plain.processor, "")
    out = {}
    for name, pipeline in (("float32", plain), ("4 bits", four)):
        kinds = {f"{kind} cache": with_cache(pipeline, kind) for kind in ("float32", "bfloat16", "int8")}
        print("weights:", name)
        out[name] = compared(kinds.pop("float32 cache"), kinds, count)
    return out


def with_cache(pipeline: Pipeline, kind: str) -> Pipeline:
    model = copy.copy(pipeline.model)  # the same weights
    model.kv_cache = getattr(torch, kind)
    return Pipeline(model, pipeline.processor, kind)


def compared(plain: Pipeline, packed: dict[str, Pipeline], count: int) -> dict[str, Any]:
    """Hold pipelines against a plain one, on `count` items of each kind."""
    rows: dict[str, Any] = {}
    for kind in (*BARS, *ALSO):
        row: dict[str, Any] = {"tokens": 0, "plain": 0} | dict.fromkeys(packed, 0)
        row["agree"] = dict.fromkeys(packed, 0)
        for item in task_of(kind, count, "world"):
            request = plain.processor(item.messages)
            reply = plain.run(request, Sampling(max_tokens=160)).answer
            ids = list(reply.token_ids)
            row["tokens"] += len(ids)
            row["plain"] += int(item.score(reply.text)["right"][0])
            for name, pipeline in packed.items():
                row["agree"][name] += int((predicted(pipeline.model, request, ids) == torch.tensor(ids)).sum())
                said = pipeline.run(request, Sampling(max_tokens=160)).answer.text
                row[name] += int(item.score(said)["right"][0])
        rows[kind] = row
        shares = [f"{name}: {row[name] / count:6.1%}, agree {row['agree'][name] / row['tokens']:7.2%}" for name in packed]
        print(f"{kind:12} plain {row['plain'] / count:6.1%}  {'  '.join(shares)}", flush=True)
    total = sum(row["tokens"] for row in rows.values())
    agreement = {name: sum(row["agree"][name] for row in rows.values()) / total for name in packed}
    print("agreement of all", total, "tokens:", {name: f"{share:.2%}" for name, share in agreement.items()})
    return {"items_per_kind": count, "kinds": rows, "agreement": agreement}


def coarse(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply with 8-bit weights by row and 7-bit activations by token."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    step = (x.abs().amax(-1, keepdim=True) / 63).clamp(min=1e-30)
    return ((x / step).round() * step) @ ((weight / scale).round() * scale).T


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def planted(x: Tensor, times: float, generator: torch.Generator) -> Tensor:
    """Blow up 8 of the channels."""
    channels = torch.randperm(x.shape[-1], generator=generator)[:8]
    x = x.clone()
    x[..., channels] *= times
    return x


def one_linear() -> list[dict[str, float]]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6144, 2048, generator=generator) * 2048**-0.5
    rows = []
    for times in (1, 20, 50, 100):
        x = planted(torch.randn(64, 2048, generator=generator), times, generator)
        wanted = x @ weight.T
        row = {
            "times": times,
            **{f"{bits} bits": off(kernels.matmul(x, kernels.pack(weight, bits)), wanted) for bits in WIDTHS},
        }
        row["7-bit by token"] = off(coarse(x, weight), wanted)
        rows.append(row)
        print("linear, channels x", times, {k: f"{v:.2%}" for k, v in row.items() if k != "times"}, flush=True)
    return rows


@torch.inference_mode()
def decoder() -> list[dict[str, float]]:
    base = preset("2B")
    text = replace(base.text, vocab_size=4096, hidden_size=1024, intermediate_size=3072, num_hidden_layers=8,
                   num_attention_heads=8, num_key_value_heads=4)  # fmt: skip
    vision = replace(base.vision, depth=2, taps=(0, 1), tap_layers=(0, 1), hidden_size=128, num_heads=2, intermediate_size=256,
                     out_hidden_size=1024)  # fmt: skip
    config = replace(base, text=text, vision=vision, image_token_id=4000, video_token_id=4001, vision_start_token_id=4002,
                     vision_end_token_id=4003)  # fmt: skip
    rows = []
    for times in (1, 20, 50, 100):
        generator = torch.Generator().manual_seed(times)
        model = Qwen3VL(config)
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.1) + (p.ndim == 1))
            if "layernorm" in name:
                p.copy_(planted(p, times, generator))
        # The first token is massive in two channels, as attention sinks are.
        model.language_model.embed_tokens.weight[0, :2] = 30.0 * times
        ids = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(1, 4000, (95,), generator=generator)])
        batch = Batch(ids, torch.arange(96).expand(3, -1), (96,), torch.empty(0, dtype=torch.long))
        wanted = model(batch)
        row: dict[str, float] = {"times": times}
        rough = copy.deepcopy(model)
        for module in rough.language_model.modules():
            if isinstance(module, nn.Linear):
                module.forward = lambda x, w=module.weight: coarse(x, w)
        row["7-bit by token"] = off(rough(batch), wanted)
        for bits in WIDTHS:
            row[f"{bits} bits"] = off(quantize(copy.deepcopy(model), bits)(batch), wanted)
        rows.append(row)
        print("logits, channels x", times, {k: f"{v:.2%}" for k, v in row.items() if k != "times"}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=40, help="of each kind")
    parser.add_argument("--keep", action="store_true", help="write the result")
    parser.add_argument("--only", default="linear,decoder,answers,caches", help="which parts")
    args = parser.parse_args()
    parts = {
        "linear": one_linear,
        "decoder": decoder,
        "answers": lambda: answers(args.items),
        "caches": lambda: caches(args.items),
    }
    record = {
        "what": "quality of packed weights", "date": datetime.date.today().isoformat(), "python": platform.python_version(),
        "torch": torch.__version__, "kernels": kernels.path(), "seed": 0,
        **{name: parts[name]() for name in args.only.split(",")},
    }  # fmt: skip
    if args.keep:
        which = "" if set(args.only.split(",")) == set(parts) else f"-{args.only.replace(',', '-')}"
        (RESULTS / f"{record['date']}-quantized{which}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

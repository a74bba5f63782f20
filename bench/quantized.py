"""What packing to 8 and 4 bits costs in quality: on the embedded model's answers, and on activations with outliers.

usage: python bench/quantized.py [--items 40] [--only answers,caches,parts,linear,decoder] [--keep]

answers: the embedded model answers test-split items in float32; each packed model is then given the same prompts with those
answers and must predict the same tokens (agreement), and answers by itself (right); beside them the same weights in bfloat16,
which shows what rounding to the precision of released checkpoints changes, and packed models that were calibrated with
questions of the training split. parts: what rounding only the weights or only the
activations of a part of it changes. caches: the same of narrower caches, each against
the same weights with a float32 cache. outliers: one linear of 2048 x 6144 and a
decoder of 1024 channels whose norms blow a few channels up 20 to 100 times and whose first token is massive, as in real
decoders; errors are relative to float32, beside 8-bit weights by row with one 7-bit scale a token, the arithmetic of torch's
dynamic int8 linear. Prints tables and, last, one JSON line; --keep puts its parts into bench/results/DATE-quantized.json, among
those of the same day that are there.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Several
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import foveal
from bench.embedded import FIRST, task_of
from foveal import kernels
from foveal.batch import Batch
from foveal.config import preset
from foveal.generate import Pipeline
from foveal.media import Frames
from foveal.model import Qwen3VL
from foveal.model.feedback import Feedback, Moments, gather
from foveal.model.quantize import WIDTHS, quantize, width
from foveal.patches import Patches
from foveal.processor import Processor, Request
from foveal.sampler import Sampling
from foveal.sequence import Sequence
from foveal.train.mini import world
from foveal.world import clip_item, picture_item

RESULTS = Path(__file__).parent / "results"
LESSONS = 128  # conversations to calibrate with


@torch.inference_mode()
def scores(model: Qwen3VL, request: Request, ids: list[int]) -> Tensor:
    """Return the logits at every place of an answer that is given to the model, (n, R)."""
    sequence = request.sequence
    cache = model.new_cache(len(sequence) + len(ids))
    vision = model.encode(request.patches)
    first = model(Batch.pack([sequence], [vision], output="last"), [cache])
    if len(ids) == 1:
        return first
    places = torch.arange(sequence.next_position, sequence.next_position + len(ids) - 1).expand(3, -1)
    rest = Batch(torch.tensor(ids[:-1]), places, (len(ids) - 1,), torch.empty(0, dtype=torch.long))
    return torch.cat([first, model(rest, [cache])])


def lessons(processor: Processor, count: int) -> Iterator[tuple[Sequence, Several[Patches]]]:
    """Lay out questions of the training split with their answers, every fourth about a clip."""
    for seed in range(count):
        item = (clip_item if seed % 4 == 3 else picture_item)(seed, world())
        question = item.questions[seed // 4 % len(item.questions)]
        frames = Frames(item.pixels, item.times_s, item.kind, item.pixels.shape[1:3], f"lesson {seed}")
        asked = [{"type": item.kind, item.kind: frames}, {"type": "text", "text": question.question}]
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": question.answer}]
        request = processor(said, add_generation_prompt=False)
        yield request.sequence, request.patches


def answers(count: int) -> dict[str, Any]:
    plain = foveal.load()
    moments = gather(plain.model, lessons(plain.processor, LESSONS))
    packed = {}
    for bits in WIDTHS:
        for name, known in ((f"{bits} bits", None), (f"{bits} bits, calibrated", moments)):
            packed[name] = Pipeline(quantize(copy.deepcopy(plain.model), bits, known), plain.processor, "")
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
    for kind in FIRST:
        row: dict[str, Any] = {"tokens": 0, "plain": 0} | dict.fromkeys(packed, 0)
        row["agree"] = dict.fromkeys(packed, 0)
        for item in task_of(kind, count, "world"):
            request = plain.processor(item.messages)
            reply = plain.run(request, Sampling(max_tokens=160)).answer
            ids = list(reply.token_ids)
            row["tokens"] += len(ids)
            row["plain"] += int(item.score(reply.text)["right"][0])
            for name, pipeline in packed.items():
                alike = scores(pipeline.model, request, ids).argmax(-1) == torch.tensor(ids)
                row["agree"][name] += int(alike.sum())
                # What is predicted alike in every place is the same answer.
                said = reply.text if alike.all() else pipeline.run(request, Sampling(max_tokens=160)).answer.text
                row[name] += int(item.score(said)["right"][0])
        rows[kind] = row
        shares = [f"{name}: {row[name] / count:6.1%}, agree {row['agree'][name] / row['tokens']:7.2%}" for name in packed]
        print(f"{kind:12} plain {row['plain'] / count:6.1%}  {'  '.join(shares)}", flush=True)
    total = sum(row["tokens"] for row in rows.values())
    agreement = {name: sum(row["agree"][name] for row in rows.values()) / total for name in packed}
    print("agreement of all", total, "tokens:", {name: f"{share:.2%}" for name, share in agreement.items()})
    return {"items_per_kind": count, "kinds": rows, "agreement": agreement}


# What is rounded: the name of the part, its tensors, to how many bits. Activations are always rounded to 8.
PARTS = {
    "everything": (r".*", 8),
    "encoder": (r"visual\..*", 8),
    "decoder layers": (r"language_model\.layers\..*", 8),
    "embeddings and head": (r"language_model\.embed_tokens\..*", 8),
    "decoder layers but the ends, 4 bits": (r"language_model\.layers\.[1-4]\..*", 4),
}


def parts(count: int) -> dict[str, Any]:
    """Round weights or activations of one part of the embedded model; look at answers about boxes, where they differ most."""
    plain = foveal.load()
    moments = gather(plain.model, lessons(plain.processor, LESSONS))
    models = {}
    for name, (pattern, bits) in PARTS.items():
        models[f"{name}: weights"] = rounded(plain.model, pattern, bits)
        if bits == 4 or "encoder" not in name:
            models[f"{name}: weights, calibrated"] = rounded(plain.model, pattern, bits, moments)
        if bits == 8:
            models[f"{name}: activations"] = rounded(plain.model, pattern, None)
    rows = {name: {"agree": 0, "off": 0.0} for name in models}
    tokens, size = 0, 0.0
    for item in task_of("box", count, "world"):
        request = plain.processor(item.messages)
        ids = list(plain.run(request, Sampling(max_tokens=160)).answer.token_ids)
        wanted = scores(plain.model, request, ids)
        tokens, size = tokens + len(ids), size + float(wanted.square().sum())
        for name, model in models.items():
            found = scores(model, request, ids)
            rows[name]["agree"] += int((found.argmax(-1) == torch.tensor(ids)).sum())
            rows[name]["off"] += float((found - wanted).square().sum())
    for name, row in rows.items():
        row["off"] = (row["off"] / size) ** 0.5
        print(f"{name:50} agree {row['agree'] / tokens:7.2%} of {tokens}, logits off by {row['off']:.2%}", flush=True)
    return {"items": count, "tokens": tokens, "rows": rows}


def rounded(plain: Qwen3VL, pattern: str, bits: int | None, moments: Mapping[str, Moments] | None = None) -> Qwen3VL:
    """Copy a model with the weights that a pattern names rounded as packing rounds them; without bits, what they are given."""
    model = copy.deepcopy(plain)
    for name, parameter in model.named_parameters():
        if not re.fullmatch(pattern, name) or width(name, 8, model.config) is None:
            continue
        if bits is not None:
            fed = Feedback(moments[name]).pack if moments and name in moments else kernels.pack
            parameter.data = kernels.unpack(fed(parameter.detach(), bits))
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _module, given: (to_8_bits(given[0]),))
        else:  # the tied head
            model.language_model.norm.register_forward_hook(lambda _module, _given, out: to_8_bits(out))
    return model


def to_8_bits(x: Tensor) -> Tensor:
    """Round rows (..., K), K a multiple of 32, as the kernels round activations."""
    groups = x.unflatten(-1, (-1, 32))
    step = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / step).round() * step).flatten(-2)


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
    parser.add_argument("--only", default="linear,decoder,parts,answers,caches", help="which parts")
    args = parser.parse_args()
    what: dict[str, Callable[[], Any]] = {
        "linear": one_linear,
        "decoder": decoder,
        "parts": lambda: parts(args.items),
        "answers": lambda: answers(args.items),
        "caches": lambda: caches(args.items),
    }
    record = {
        "what": "quality of packed weights", "date": datetime.date.today().isoformat(), "python": platform.python_version(),
        "torch": torch.__version__, "kernels": kernels.path(), "seed": 0,
        **{name: what[name]() for name in args.only.split(",")},
    }  # fmt: skip
    if args.keep:
        file = RESULTS / f"{record['date']}-quantized.json"
        kept = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(kept | record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""Time the engine against the plain generator, against itself without what it adds, and against transformers: ratios with bars.

usage: python bench/engine.py [--model 2B] [--layers N] [--bits 8|4|0] [--rows overhead,picture,...] [--runs 5] [--keep]

MODEL: 2B is made in memory with random weights and packed (it needs 12 GB for a moment), with fewer layers for a quick trial;
"embedded" or a folder is loaded instead. Every reading has its baseline beside it, by turns, in the same process; medians of
all runs. Each row says how many minutes it took, so that it can be run by itself: --keep puts it among the rows of the same day
that are kept already, in place of one of the same claim, model, layers and bits.

Random weights say nothing that could be copied or guessed, so the two rows about speculation put words into the model's mouth:
the work of a step is done, and the sampler then says the next word of a page of this project. Prints a table and, last, one
JSON line; --keep writes bench/results/DATE-engine.json. With 0 bits, and without kernels, weights stay float32.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import itertools
import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

# Threads that wait must sleep, not spin: worker threads and transformers share the cores with the kernels.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import foveal
from foveal import kernels
from foveal.config import preset
from foveal.engine import Engine, Request, Settings, Stream
from foveal.generate import Pipeline
from foveal.model import Qwen3VL
from foveal.model.quantize import num_bytes, packed_weights, quantize
from foveal.model.save import write_json
from foveal.processor import Processor
from foveal.processor import Request as Prompt
from foveal.sampler import Sampler, Sampling
from foveal.sequence import TextSegment, build
from foveal.standin import write_companions

HERE = Path(__file__).parent
REPLY = 64  # tokens of a reply
QUIET_S = 15.0  # that a reply goes on by itself, at most, to see what the machine does to its tokens
WHOLE = Sampling(max_tokens=REPLY, ignore_end=True, loop_guard=None)
QUESTIONS = ("What is here?", "Which colour?")
numbers = itertools.count()


@dataclass
class Row:
    """One claim: readings of both sides, how they become a figure, and the bar for it."""

    what: str
    figure: Callable[[float, float], float]  # of the medians of ours and of the baseline
    bar: float
    at_least: bool
    unit: str = "x"
    ours: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    beside: dict[str, list[float]] = field(default_factory=dict)  # what else to know of the same runs, by what it is

    def add(self, ours: float, base: float, **beside: float) -> None:
        self.ours.append(ours)
        self.base.append(base)
        for name, value in beside.items():
            self.beside.setdefault(name, []).append(value)

    def result(self) -> dict[str, Any]:
        ours, base = statistics.median(self.ours), statistics.median(self.base)
        value = self.figure(ours, base)
        kept = value >= self.bar if self.at_least else value <= self.bar
        return {"what": self.what, "ours": ours, "baseline": base, "value": value, "unit": self.unit, "bar": self.bar,
                "at_least": self.at_least, "kept": kept, "runs": len(self.ours),
                "readings": {"ours": self.ours, "baseline": self.base},
                "beside": {name: statistics.median(values) for name, values in self.beside.items()}}  # fmt: skip


def share(ours: float, base: float) -> float:
    return ours / base


def picture(width: int, height: int) -> bytes:
    """Return a JPEG with edges, smooth parts and noise; no two are alike."""
    rng = np.random.default_rng(next(numbers))
    y, x = np.mgrid[0:height, 0:width]
    a, b = rng.uniform(15, 45, 2)
    pixels = 127 + 90 * np.sin(y / a)[..., None] * np.cos(x / b)[..., None] + rng.normal(0, 9, (height, width, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def random_pipeline(name: str, layers: int | None, bits: int | None) -> Pipeline:
    """Make a released shape with random weights in memory, and what stands beside weights."""
    config = preset(name)
    if layers is not None:
        taps = tuple(range(min(3, layers)))
        vision = replace(config.vision, depth=min(layers, config.vision.depth), taps=taps, tap_layers=taps)
        config = replace(config, text=replace(config.text, num_hidden_layers=layers), vision=vision)
    with tempfile.TemporaryDirectory() as folder:
        write_companions(config, Path(folder))
        write_json(Path(folder) / "config.json", config.to_dict())
        processor = Processor.from_checkpoint(folder)
    with torch.device("meta"):
        model = Qwen3VL(config)
    model = model.to_empty(device="cpu").eval()
    model.init_weights(0)
    return Pipeline(model if bits is None else quantize(model, bits), processor, f"random {name}")


def engine(pipeline: Pipeline, **settings: Any) -> Engine:
    return Engine(pipeline, Settings(num_blocks=1024, **settings))


def asked(pipeline: Pipeline, question: str, *files: bytes) -> Callable[[], Prompt]:
    return lambda: pipeline.processor.ask(question, files)


def first_token_s(one: Engine, prompt: Callable[[], Prompt], salt: str = "") -> float:
    """Ask for one token, and return the seconds until the reader has it."""
    began = time.perf_counter()
    _ = one.submit(Request(prompt, replace(WHOLE, max_tokens=1), salt=salt)).answer
    return time.perf_counter() - began


def arrivals_s(stream: Stream) -> Iterator[tuple[float, int]]:
    """Yield when each delta reached its reader, and how many tokens it has."""
    for delta in stream:
        yield time.perf_counter(), len(delta.token_ids)


def overhead(pipeline: Pipeline, runs: int) -> list[Row]:
    """A text of forty words or so, so that milliseconds can be seen: ours as it reaches the reader, theirs as it is chosen."""
    first = Row("overhead, first token", lambda a, b: 1e3 * (a - b), 3.0, False, "ms")
    each = Row("overhead, each further token", lambda a, b: 1e3 * (a - b), 0.5, False, "ms")
    with engine(pipeline, speculation="never") as one:
        for run in range(2 * runs + 1):
            question = f"{run} " + "What is in this picture, and where? " * 4
            answer = pipeline.ask(question, sampling=WHOLE).answer
            began = time.perf_counter()
            times = list(arrivals_s(one.submit(Request(asked(pipeline, question), WHOLE))))
            if run:  # the first warms up
                first.add(times[0][0] - began, answer.stats.first_token_s)
                each.add((times[-1][0] - times[0][0]) / (REPLY - 1), answer.stats.decode_s / (REPLY - 1))
    return [first, each]


def again(pipeline: Pipeline, runs: int) -> list[Row]:
    """A picture of 640x480, then another question about it."""
    row = Row("the same picture again, first token", share, 0.15, False)
    with engine(pipeline) as one:
        for _ in range(runs):
            seen = picture(640, 480)
            cold, warm = (first_token_s(one, asked(pipeline, question, seen)) for question in QUESTIONS)
            row.add(warm, cold)
    return [row]


def turns(pipeline: Pipeline, runs: int) -> list[Row]:
    """Picture, question, answer, question: the second turn where the first was answered, and where it was not."""
    row = Row("second turn, first token", share, 0.10, False)
    tokenizer, said = pipeline.processor.tokenizer, "A red circle stands left of a blue square, and nothing else is there."
    ids = tokenizer.encode_text(said)[:REPLY]
    with engine(pipeline) as one, mock.patch("foveal.engine.jobs.Sampler", Scripted):
        for _ in range(runs):
            part = {"type": "image", "image": picture(640, 480)}
            first = [{"role": "user", "content": [part, {"type": "text", "text": QUESTIONS[0]}]}]
            second = [*first, {"role": "assistant", "content": tokenizer.decode(ids)},
                      {"role": "user", "content": QUESTIONS[1]}]  # fmt: skip
            prompt = functools.partial(pipeline.processor, second)
            cold = first_token_s(one, prompt, salt=str(next(numbers)))  # shares no prefix with what follows
            Scripted.script = ids
            _ = one.chat(first, sampling=replace(WHOLE, max_tokens=len(ids))).answer
            row.add(first_token_s(one, prompt), cold)
    return [row]


def batch(pipeline: Pipeline, runs: int, size: tuple[int, int] = (320, 240), at_least: float = 2.5) -> list[Row]:
    """Eight pictures, 64 tokens each: tokens a second from the first request to the last token, pictures too.

    Beside it, of one after another, what nobody can share (the times to the first token, added) and what eight can; with the
    time of a step of eight rows over that of one this gives the largest ratio there is.
    """
    row = Row(f"8 requests at once, {size[0]}x{size[1]}, tokens/s", lambda a, b: a / b, at_least, True)
    with engine(pipeline, speculation="never") as one:

        def taken(at_once: int) -> tuple[float, list[Stream]]:
            requests = [Request(asked(pipeline, QUESTIONS[0], picture(*size)), WHOLE) for _ in range(8)]
            streams, began = list[Stream](), time.perf_counter()
            for start in range(0, len(requests), at_once):
                streams += (batch := [one.submit(request) for request in requests[start : start + at_once]])
                for stream in batch:
                    _ = stream.answer
            return time.perf_counter() - began, streams

        for _ in range(runs):
            together, _ = taken(8)
            apart, streams = taken(1)
            first = sum(stream.answer.stats.first_token_s for stream in streams)
            alone, eight = (one.scheduler.pace.decode_s(rows) or math.nan for rows in (1, 8))
            most = apart / (first + (apart - first) * eight / alone / 8)
            row.add(8 * REPLY / together, 8 * REPLY / apart, together_s=together, apart_s=apart, apart_first_tokens_s=first,
                    step_of_1_s=alone, step_of_8_s=eight, largest_ratio=most)  # fmt: skip
    return [row]


def transformers(runs: int, bits: int | None) -> list[Row]:
    """The embedded model in this project and in transformers: eight pictures at once, padded there, 64 tokens each."""
    from torch.nn.functional import pad as padded

    from tests.parity.reference import model_inputs, new_reference

    theirs: Any = new_reference(foveal.load().model)
    ours = foveal.load(bits=bits)
    row = Row("8 at once, embedded, against transformers", lambda a, b: a / b, 3.0, True)
    pad = ours.processor.tokenizer.encode_text("\n")[0]
    with engine(ours, speculation="never") as one:

        @torch.inference_mode()
        def generate(prompts: list[Prompt]) -> float:
            inputs = [model_inputs(p.sequence, list(p.patches), ours.processor.config) for p in prompts]
            lengths = [len(p.sequence) for p in prompts]
            longest = max(lengths)
            joined = {key: torch.cat([i[key] for i in inputs]) for key in ("pixel_values", "image_grid_thw")}
            for key, fill in (("input_ids", pad), ("mm_token_type_ids", 0)):
                joined[key] = torch.cat([padded(i[key], (longest - i[key].shape[1], 0), value=fill) for i in inputs])
            joined["attention_mask"] = torch.stack([(torch.arange(longest) >= longest - n).long() for n in lengths])
            began = time.perf_counter()
            theirs.generate(**joined, max_new_tokens=REPLY, min_new_tokens=REPLY, do_sample=False, pad_token_id=pad)
            return time.perf_counter() - began

        for run in range(runs + 1):
            words = [" ".join(["please"] * i) for i in range(8)]  # prompts of unlike lengths
            prompts = [ours.processor.ask(f"What is here? {w}", [picture(96, 96)]) for w in words]
            began = time.perf_counter()
            for stream in [one.submit(Request(prompt, WHOLE)) for prompt in prompts]:
                _ = stream.answer
            taken = time.perf_counter() - began
            base = generate(prompts)
            if run:
                row.add(8 * REPLY / taken, 8 * REPLY / base)
    return [row]


def gaps(pipeline: Pipeline, runs: int) -> list[Row]:
    """The longest time between two tokens of a reply while a large picture is read, encoded and prefilled.

    Beside it how much of that is this machine's: the longest gap of the same reply once nobody comes any more, of as many
    tokens, or as many as go into QUIET_S seconds, over the same median.
    """
    row = Row("between tokens beside a 1600x1200 picture, worst", share, 3.0, False)
    before = 16
    with engine(pipeline, speculation="never") as one:
        for _ in range(runs):
            seen = picture(1600, 1200)
            question = f"{next(numbers)} " + "Tell me all. " * 8
            talks = one.submit(Request(asked(pipeline, question), replace(WHOLE, max_tokens=4000)))
            comes: Stream | None = None
            times, ended = list[float](), one.metrics.requests["finished_length"]
            until, enough = 0, math.inf  # the gap in which the picture was done, and the one that is the last to be timed
            for at, _count in arrivals_s(talks):
                times.append(at)
                if len(times) == 1 + before:
                    comes = one.submit(Request(asked(pipeline, QUESTIONS[0], seen), replace(WHOLE, max_tokens=1)))
                if not until and one.metrics.requests["finished_length"] > ended:
                    until = len(times)
                    enough = until + min(until, QUIET_S / float(np.median(np.diff(times[: 1 + before]))))
                if len(times) > enough:
                    break
            talks.cancel()
            assert comes is not None and until and comes.answer.finish_reason == "length", "the picture was not read in time"
            between = np.diff(times)
            base, beside, undisturbed = float(np.median(between[:before])), between[before:until], between[until + 1 :]
            row.add(
                float(beside.max()), base, median=float(np.median(beside)) / base, gaps=len(beside),
                percentile_99=float(np.quantile(beside, 0.99)) / base, over_3=float((beside > 3 * base).sum()),
                undisturbed_worst=float(undisturbed.max()) / base, undisturbed_gaps=len(undisturbed),
                first_token_s=comes.answer.stats.first_token_s,
            )  # fmt: skip
    return [row]


class Scripted(Sampler):
    """Do the work of choosing a token, then say the next one of a script."""

    script: ClassVar[Sequence[int]] = ()

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._place = 0

    def __call__(self, logits: Any) -> int:
        chosen = super().__call__(logits)
        if self._place < len(self.script):
            chosen = self.script[self._place]
        self._place += 1
        return chosen


def words() -> list[int]:
    """Number the words and marks of a page of this project, as a tokenizer would: alike ones get the same id."""
    text = (HERE.parent / "docs" / "data-flow.md").read_text(encoding="utf-8")
    number: dict[str, int] = {}
    return [1000 + number.setdefault(word, len(number)) for word in re.findall(r"\w+|[^\w\s]", text)]


def text_prompt(pipeline: Pipeline, ids: Sequence[int]) -> Prompt:
    config = pipeline.processor.config
    ids = [i % config.image_token_id for i in ids]
    segments = (TextSegment(tuple(ids)),)
    sequence = build(list(segments), [], kinds=[], merge=config.vision.spatial_merge_size, image_token_id=config.image_token_id,
                     video_token_id=config.video_token_id)  # fmt: skip
    return Prompt(sequence, (), segments, "", (), False)


def speculation(pipeline: Pipeline, runs: int) -> list[Row]:
    """A reply that says what stands in its prompt, and one that goes on where its prompt ends: with guesses and without."""
    rows = []
    page = words()
    for what, prompt, script, bar in (
        ("copying, tokens/s with speculation", page[:300], page[40:240], 2.0),
        ("ordinary, tokens/s with speculation", page[:300], page[300:500], 0.95),
    ):
        row = Row(what, lambda a, b: a / b, bar, True)
        rows.append(row)
        Scripted.script = text_prompt(pipeline, script).sequence.token_ids.tolist()
        asks, sampling = text_prompt(pipeline, prompt), replace(WHOLE, max_tokens=len(script))
        with engine(pipeline) as one, mock.patch("foveal.engine.jobs.Sampler", Scripted):
            for run in range(runs + 1):
                speeds = []
                for guesses in (True, False):
                    times = list(arrivals_s(one.submit(Request(asks, sampling, speculate=guesses))))
                    speeds.append(sum(count for _, count in times[1:]) / (times[-1][0] - times[0][0]))
                if run:
                    row.add(*speeds)
    return rows


ROWS: dict[str, Callable[[Pipeline, int], list[Row]]] = {
    "overhead": overhead, "picture": again, "turn": turns, "batch": batch,
    "small": functools.partial(batch, size=(224, 224)), "gaps": gaps, "speculation": speculation,
}  # fmt: skip
PLACE = ("what", "model", "layers", "bits")  # rows that agree in these are readings of the same


def kept(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Put a record's rows among those of a file, if there is one: each in place of an earlier reading of the same."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {tuple(row[key] for key in PLACE): row for row in record["rows"]}
    old = {tuple(row.get(key) for key in PLACE): row for row in rows}
    return record | {"rows": list((old | new).values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2B")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--bits", type=int, default=8, choices=(8, 4, 0), help="0: float32")
    parser.add_argument("--rows", default=",".join([*ROWS, "transformers"]))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(kernels.threads())
    bits = args.bits or None if kernels.available() else None
    chosen = args.rows.split(",")
    if unknown := set(chosen) - {*ROWS, "transformers"}:
        parser.error(f"there are no rows {sorted(unknown)}; rows are {', '.join(ROWS)}, transformers")
    done: list[dict[str, Any]] = []

    def report(measure: Callable[[], list[Row]], model: str, facts: dict[str, Any]) -> None:
        began = time.perf_counter()
        rows = measure()
        minutes = (time.perf_counter() - began) / 60
        for row in rows:
            result = row.result()
            sign = "at least" if row.at_least else "at most"
            verdict = "kept" if result["kept"] else "MISSED"
            print(f"{row.what:50}{result['value']:8.2f} {row.unit:3}{sign:9}{row.bar:5.2f}  {verdict:7}"
                  f"({result['ours']:.4g} against {result['baseline']:.4g})  {minutes:.1f} min", flush=True)  # fmt: skip
            for name, value in result["beside"].items():
                print(f"    {name.replace('_', ' '):46}{value:8.3g}", flush=True)
            done.append(result | {"model": model, "bits": bits, "minutes": minutes, "load": os.getloadavg()[0], **facts})

    if set(chosen) & set(ROWS):
        if args.model == "embedded" or Path(args.model).is_dir():
            pipeline = foveal.load(None if args.model == "embedded" else args.model, bits=bits)
        else:
            pipeline = random_pipeline(args.model, args.layers, bits)
        facts: dict[str, Any] = {
            "layers": pipeline.processor.config.text.num_hidden_layers,
            "weight_bytes": num_bytes(pipeline.model),
        }
        if bits is not None:
            read = sum(p.num_bytes for name, p in packed_weights(pipeline.model).items() if ".visual." not in name)
            facts |= {"bytes_per_token": read, "bandwidth": kernels.read_bandwidth()}
        for name, measure in ROWS.items():
            if name in chosen:
                report(functools.partial(measure, pipeline, args.runs), Path(args.model).name, facts)
        del pipeline
    if "transformers" in chosen:
        layers = foveal.load().processor.config.text.num_hidden_layers
        report(lambda: transformers(args.runs, bits), "embedded", {"layers": layers})
    record = {
        "what": "the engine", "date": datetime.date.today().isoformat(), "threads": kernels.threads(),
        "kernels": kernels.path() if bits else None, "torch": torch.__version__, "python": platform.python_version(),
        "rows": done,
    }  # fmt: skip
    if args.keep:
        path = HERE / "results" / f"{record['date']}-engine.json"
        path.write_text(json.dumps(kept(path, record), indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()

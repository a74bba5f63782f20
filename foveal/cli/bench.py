"""`foveal bench`: how soon a model answers and how much it says, alone and with several requests at once."""

from __future__ import annotations

import re
import statistics
import time
from typing import TYPE_CHECKING, Any

from foveal.cli import session, show
from foveal.cli.options import ModelOptions
from foveal.errors import ConfigError

if TYPE_CHECKING:
    from foveal.engine import Engine, Stream
    from foveal.generate import Pipeline

QUESTIONS = ("What is in this picture?", "Which colours does it have?")


def run(model: ModelOptions, size: str, requests: int, tokens: int, runs: int, as_json: bool) -> None:
    height, width = parse_size(size)
    for name, value in (("requests", requests), ("tokens", tokens), ("runs", runs)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; expected 1 or more")
    model.check()
    with session.progress() as line:
        pipeline = session.load(model, line)
        figures = measure(pipeline, (height, width), requests, tokens, runs, line)
    if as_json:
        show.write_json(figures, lines=True)
    else:
        show.console().print(tabled(figures))


def parse_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT; return (height, width)."""
    match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[x×]\s*([1-9]\d{0,4})\s*", text)
    if match is None:
        raise ConfigError(f"--picture is {text!r}; expected WIDTHxHEIGHT in pixels, such as 640x480")
    return int(match[2]), int(match[1])


def measure(
    pipeline: Pipeline, size: tuple[int, int], requests: int, tokens: int, runs: int, line: session.Progress
) -> dict[str, Any]:
    """Ask about pictures of noise, one request at a time, then all at once; medians over `runs` readings after a first.

    Replies go on past their end for `tokens` tokens, and nothing is guessed: random weights repeat themselves, and what they
    repeat would be guessed too well.
    """
    import numpy as np
    import torch

    from foveal import kernels
    from foveal.engine import Engine, Settings
    from foveal.generate import peak_memory_bytes
    from foveal.model.quantize import num_bytes

    rng = np.random.default_rng(0)
    sampling = pipeline.sampling(max_tokens=tokens, ignore_end=True, loop_guard=None, temperature=0.0)
    settings = Settings(speculation="never", max_running=max(requests, 16), max_waiting=max(requests, 256))
    alone: dict[str, list[float]] = {"first_token_s": [], "again_s": [], "decoded_per_s": [], "tokens_per_s": []}
    together: dict[str, list[float]] = {"first_token_s": [], "tokens_per_s": []}

    def picture() -> Any:
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)

    def ask(engine: Engine, question: str, seen: Any) -> Stream:
        return engine.ask(question, seen, sampling=sampling)

    with Engine(pipeline, settings) as engine:
        for reading in range(runs + 1):
            line(f"one request at a time, {reading} of {runs}")
            seen = picture()
            first, again = (ask(engine, question, seen).answer.stats for question in QUESTIONS)
            alone["first_token_s"].append(first.first_token_s)
            alone["again_s"].append(again.first_token_s)
            alone["decoded_per_s"].append(first.tokens_per_s)
            alone["tokens_per_s"].append(tokens / (first.first_token_s + first.decode_s))
        for reading in range(runs):
            line(f"{requests} requests at once, {reading} of {runs}")
            pictures = [picture() for _ in range(requests)]
            began = time.perf_counter()
            streams = [ask(engine, QUESTIONS[0], seen) for seen in pictures]
            answers = [stream.answer for stream in streams]
            took = time.perf_counter() - began
            together["tokens_per_s"].append(sum(len(answer.token_ids) for answer in answers) / took)
            together["first_token_s"].append(statistics.median(answer.stats.first_token_s for answer in answers))
        usage = engine.usage()
    for readings in alone.values():
        del readings[0]  # it read the weights from the disk
    return {
        "model": pipeline.name, "weight_bytes": num_bytes(pipeline.model), "picture": f"{size[1]}x{size[0]}",
        "prompt_tokens": first.prompt_tokens, "reply_tokens": tokens, "requests": requests, "runs": runs,
        "alone": {name: statistics.median(values) for name, values in alone.items()},
        "together": {name: statistics.median(values) for name, values in together.items()},
        "readings": {"alone": alone, "together": together}, "preemptions": usage["preemptions"],
        "peak_memory_bytes": peak_memory_bytes(pipeline.model.device), "device": str(pipeline.model.device),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "kernels": kernels.path() if kernels.available() else None,
    }  # fmt: skip


def tabled(figures: dict[str, Any]) -> Any:
    """Lay out what was measured, for people."""
    alone, together, many = figures["alone"], figures["together"], figures["requests"]
    ratio = together["tokens_per_s"] / alone["tokens_per_s"]
    return show.table(f"{figures['model']}: a picture of {figures['picture']}, {figures['prompt_tokens']:,} tokens", [
        ("first token", show.seconds(alone["first_token_s"])),
        ("first token, the same picture again", show.seconds(alone["again_s"])),
        ("decoding", f"{alone['decoded_per_s']:.1f} tokens/s"),
        (f"{many} at once, first token", f"{show.seconds(together['first_token_s'])} (median)"),
        (f"{many} at once, pictures included", f"{together['tokens_per_s']:.1f} tokens/s, "
         f"{ratio:.1f} times one after another"),
        ("weights", show.num_bytes(figures["weight_bytes"])),
        ("peak memory", show.num_bytes(figures["peak_memory_bytes"])),
    ])  # fmt: skip

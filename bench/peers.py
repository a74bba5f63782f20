"""Time foveal in 8 and 4 bits against its peers on one shape: each in a process of its own, all taking turns.

usage: python bench/peers.py --checkpoint DIR [--packed8 DIR --packed4 DIR] [--llama PYTHON --gguf PREFIX]
           [--openvino PYTHON --exported DIR] [--runs 5] [--keep]

DIR: a 2B checkpoint (foveal new --preset 2B --random DIR); foveal packs it while loading unless packed folders are named.
PYTHON: an interpreter with llama-cpp-python, PREFIX: of PREFIX-q8_0.gguf and PREFIX-q4_0.gguf of the same decoder; or one with
openvino-genai, DIR: the same checkpoint exported by optimum-intel with --weight-format int8.
Stages: vision encode of 640x480 (1,200 patches), prefill of 364 tokens, 256 MB read by foveal's threads and nothing else, one
decoded token after those 364, and after 2,000, the same with a cache of 8 bits, and the first token about a 640x480 picture
with a 32-token question, picture decoding and the LM head included. Medians. What a peer cannot do is left out. Beside decode
stand its share of the speed at which memory was read just before, over the bytes of weights and cache, and the speed after
2,000 as a share of that after 364: medians of each run's own. Prints a table and, last, one JSON line; --keep writes
bench/results/DATE-peers.json.
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

PREFILL, LONG, STEPS = 364, 2000, 8
READ_MB = 256
# Stages whose ratios are asked for take turns as well: what the machine does meanwhile is then the same for them.
TURNS = (("vision",), ("prefill",), ("read", "decode", "decode at 2000", "in 8 bits"), ("first token",))
STAGES = tuple(stage for turn in TURNS for stage in turn)
QUESTION = "What is in this picture, please?"  # 32 tokens of the stand-in tokenizer, which has no words
THREADS = 2

seeds = itertools.count(1)

_kept: list[Any] = []  # a callback lives as long as the object that wraps it

Stage = Callable[[], float]  # runs it once and returns seconds (of one token, where it decodes several)


def clocked(call: Callable[[], Any], share: int = 1) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) / share


def photograph(seed: int = 0) -> bytes:
    """A 640x480 JPEG with edges, smooth parts and noise; another one for another seed, so that nobody can remember it."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:480, 0:640]
    pixels = 127 + 90 * np.sin(y / 37.0)[..., None] * np.cos(x / 23.0)[..., None] + rng.normal(0, 9, (480, 640, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def foveal_worker(directory: str, bits: str) -> tuple[dict[str, Stage], dict[str, Any]]:
    import numpy as np
    import torch

    import foveal
    from foveal import kernels
    from foveal.batch import Batch
    from foveal.model.quantize import num_bytes
    from foveal.sampler import Sampling

    torch.set_num_threads(THREADS)
    kernels.set_threads(THREADS)
    started = time.perf_counter()
    pipeline = foveal.load(directory, bits=None if bits == "file" else int(bits))
    loaded = time.perf_counter() - started
    model, picture = pipeline.model, photograph()
    request = pipeline.processor.ask(QUESTION, [picture])
    ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 100000, LONG))
    none = torch.empty(0, dtype=torch.long)

    def rows(start: int, stop: int) -> Batch:
        last = torch.tensor([stop - start - 1])
        return Batch(ids[start:stop], torch.arange(start, stop).expand(3, -1), (stop - start,), none, output_rows=last)

    caches: dict[tuple[int, torch.dtype | None], Any] = {}

    @torch.inference_mode()
    def vision() -> float:
        return clocked(lambda: model.encode(request.patches))

    @torch.inference_mode()
    def prefill() -> float:
        return clocked(lambda: model(rows(0, PREFILL), [model.new_cache(PREFILL)]))

    @torch.inference_mode()
    def decode(length: int, kept: torch.dtype | None = None) -> float:
        model.kv_cache = kept
        if (length, kept) not in caches:
            cache = caches[length, kept] = model.new_cache(length + 1024)
            for start in range(0, length, 500):
                model(rows(start, min(start + 500, length)), [cache])
        cache = caches[length, kept]
        cache.truncate(length)

        def steps() -> None:
            for i in range(STEPS):
                model(Batch.step([7 + i], [cache.length]), [cache])

        return clocked(steps, STEPS)

    def first_token() -> float:
        model.kv_cache = None
        fresh = photograph(next(seeds))
        return clocked(lambda: next(pipeline.ask(QUESTION, fresh, sampling=Sampling(max_tokens=1)).pieces(), None))

    one = sum(packed.num_bytes for name, packed in packed_decoder(model).items())
    one += PREFILL * model.config.text.kv_bytes_per_token("bfloat16")
    return (
        {"vision": vision, "prefill": prefill, "read": lambda: (READ_MB << 20) / kernels.read_bandwidth(READ_MB),
         "decode": lambda: decode(PREFILL), "decode at 2000": lambda: decode(LONG),
         "in 8 bits": lambda: decode(LONG, torch.int8), "first token": first_token},
        {"load_s": loaded, "weight_bytes": num_bytes(model), "bytes_per_token": one, "prompt_tokens": len(request.sequence),
         "kernels": kernels.path()},
    )  # fmt: skip


def packed_decoder(model: Any) -> dict[str, Any]:
    """Everything packed that one decoded token reads: the layers and the head; an embedding's one row is nothing.

    Beside these it reads what its cache holds."""
    from foveal.model.quantize import packed_weights

    return {name: packed for name, packed in packed_weights(model).items() if ".visual." not in name}


def transformers_worker(directory: str) -> tuple[dict[str, Stage], dict[str, Any]]:
    import numpy as np
    import torch

    from foveal.processor import Processor
    from tests.parity.reference import pixel_values, transformers

    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    model = transformers().Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    loaded = time.perf_counter() - started
    processor, picture = Processor.from_checkpoint(directory), photograph()
    ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 100000, (1, LONG)))
    caches: dict[int, Any] = {}
    request = processor.ask(QUESTION, [picture])
    grid = torch.tensor([[1, *request.patches[0].grids[0]]])
    values = pixel_values(request.patches[0], processor.config.vision)

    @torch.inference_mode()
    def vision() -> float:
        return clocked(lambda: model.model.visual(values, grid_thw=grid))

    @torch.inference_mode()
    def prefill() -> float:
        return clocked(lambda: model(input_ids=ids[:, :PREFILL], logits_to_keep=1, use_cache=True))

    @torch.inference_mode()
    def decode(length: int) -> float:
        if length not in caches:
            caches[length] = model(input_ids=ids[:, :length], logits_to_keep=1, use_cache=True).past_key_values
        if extra := caches[length].get_seq_length() - length:
            caches[length].crop(-extra)

        def steps() -> None:
            for i in range(STEPS):
                model(input_ids=torch.tensor([[7 + i]]), past_key_values=caches[length], use_cache=True)

        return clocked(steps, STEPS)

    @torch.inference_mode()
    def first_token() -> float:
        # Its own processor wants a released tokenizer; the picture goes through ours, which is the faster one.
        fresh = photograph(next(seeds))

        def whole() -> None:
            asked = processor.ask(QUESTION, [fresh])
            tokens = torch.from_numpy(asked.sequence.token_ids)[None]
            model(input_ids=tokens, pixel_values=pixel_values(asked.patches[0], processor.config.vision), image_grid_thw=grid,
                  mm_token_type_ids=(tokens == processor.config.image_token_id).int(), logits_to_keep=1)  # fmt: skip

        return clocked(whole)

    return (
        {"vision": vision, "prefill": prefill, "decode": lambda: decode(PREFILL), "decode at 2000": lambda: decode(LONG),
         "first token": first_token},
        {"load_s": loaded},
    )  # fmt: skip


def llama_worker(path: str) -> tuple[dict[str, Stage], dict[str, Any]]:
    import llama_cpp as lib
    import numpy as np

    _kept.append(lib.llama_log_callback(lambda *_: None))
    lib.llama_log_set(_kept[-1], None)  # it says a thousand lines of each graph
    lib.llama_backend_init()
    started = time.perf_counter()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    loaded = time.perf_counter() - started
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 4096, 2048, 512
    params.n_threads = params.n_threads_batch = THREADS
    contexts: dict[int, Any] = {}  # by the tokens of ids that its cache holds
    ids = np.random.default_rng(0).integers(1000, 100000, LONG).tolist()

    def run(context: Any, tokens: list[int]) -> None:
        array = (lib.llama_token * len(tokens))(*tokens)  # the batch points into it
        assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens))) == 0
        lib.llama_synchronize(context)

    def filled(length: int) -> float:
        context = contexts[length] = contexts.get(length) or lib.llama_init_from_model(model, params)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        return clocked(lambda: run(context, ids[:length]))

    def decode(length: int) -> float:
        if length not in contexts:
            filled(length)
        context = contexts[length]
        lib.llama_memory_seq_rm(lib.llama_get_memory(context), 0, length, -1)
        return clocked(lambda: [run(context, [7 + i]) for i in range(STEPS)], STEPS)

    stages = {
        "prefill": lambda: filled(PREFILL), "decode": lambda: decode(PREFILL), "decode at 2000": lambda: decode(LONG)
    }  # fmt: skip
    return stages, {"load_s": loaded}


def openvino_worker(directory: str) -> tuple[dict[str, Stage], dict[str, Any]]:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai
    from PIL import Image

    started = time.perf_counter()
    pipe = genai.VLMPipeline(directory, "CPU", INFERENCE_NUM_THREADS=THREADS)
    loaded = time.perf_counter() - started
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = 1
    config.ignore_eos, config.do_sample = True, False

    def ask(encoded: bytes) -> Any:
        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))[None]
        return pipe.generate(QUESTION, images=[ov.Tensor(np.ascontiguousarray(pixels))], generation_config=config).perf_metrics

    def vision() -> float:
        return float(ask(photograph(next(seeds))).get_prepare_embeddings_duration().mean) / 1e3

    def first_token() -> float:
        fresh = photograph(next(seeds))
        return clocked(lambda: ask(fresh))

    facts = {"load_s": loaded, "prompt_tokens": int(ask(photograph()).get_num_input_tokens())}
    return {"vision": vision, "first token": first_token}, facts


def work(kind: str, *arguments: str) -> None:
    """Serve one peer: a line with a stage comes in, a line with seconds goes out."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not disturb the answers
    makers = {"foveal": foveal_worker, "transformers": transformers_worker, "llama": llama_worker, "openvino": openvino_worker}
    stages, facts = makers[kind](*arguments)
    print(json.dumps({"stages": list(stages), **facts}), file=answer, flush=True)
    for line in sys.stdin:
        seconds = stages[line.strip()]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), file=answer, flush=True)


class Peer:
    def __init__(self, name: str, python: str, *arguments: str) -> None:
        # Threads that wait must sleep: the peers share the cores, one at a time.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(THREADS)}
        self.name, self.peak = name, 0
        command = [python, __file__, "--work", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.facts = self._read()
        self.times: dict[str, list[float]] = {stage: [] for stage in self.facts["stages"]}

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}; its own words are above")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, stage: str) -> float:
        assert self.process.stdin is not None
        print(stage, file=self.process.stdin, flush=True)
        answer = self._read()
        self.peak = max(self.peak, answer["peak_bytes"])
        return float(answer["seconds"])


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        return work(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--packed8")
    parser.add_argument("--packed4")
    parser.add_argument("--llama", help="a Python with llama-cpp-python")
    parser.add_argument("--gguf", help="prefix of -q8_0.gguf and -q4_0.gguf")
    parser.add_argument("--openvino", help="a Python with openvino-genai")
    parser.add_argument("--exported", help="the checkpoint as optimum-intel exports it, 8-bit weights")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--without-transformers", action="store_true", help="it takes 9 GB and most of the time")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    peers = [
        Peer("foveal 8-bit", sys.executable, "foveal", *((args.packed8, "file") if args.packed8 else (args.checkpoint, "8"))),
        Peer("foveal 4-bit", sys.executable, "foveal", *((args.packed4, "file") if args.packed4 else (args.checkpoint, "4"))),
    ]
    if args.llama and args.gguf:
        peers += [Peer(f"llama.cpp {kind}", args.llama, "llama", f"{args.gguf}-{kind}.gguf") for kind in ("q8_0", "q4_0")]
    if args.openvino and args.exported:
        peers.append(Peer("openvino int8", args.openvino, "openvino", args.exported))
    if not args.without_transformers:
        peers.append(Peer("transformers float32", sys.executable, "transformers", args.checkpoint))
    for turn in TURNS:
        for run in range(args.runs + 1):
            for peer, stage in itertools.product(peers, turn):
                if stage in peer.times:
                    seconds = peer.run(stage)
                    if run:  # the first is for warming up
                        peer.times[stage].append(seconds)
    medians = {peer.name: {stage: median(times) for stage, times in peer.times.items()} for peer in peers}
    shares: dict[str, dict[str, float]] = {}
    print(f"{'':22}" + "".join(f"{stage:>16}" for stage in STAGES) + f"{'peak memory':>14}{'load':>9}")
    for peer in peers:
        mine = medians[peer.name]
        cells = "".join(f"{mine[stage] * 1e3:14.1f}ms" if stage in mine else f"{'':16}" for stage in STAGES)
        print(f"{peer.name:22}{cells}{peer.peak / 2**30:11.2f}GiB{peer.facts['load_s']:8.1f}s")
        if "bytes_per_token" in peer.facts:
            read, taken, speed = peer.facts["bytes_per_token"], peer.times, (READ_MB << 20) / mine["read"]
            shares[peer.name] = {
                "of_read_speed": median(
                    read / (READ_MB << 20) * s / d for s, d in zip(taken["read"], taken["decode"], strict=True)
                ),
                **{
                    f"{stage} of decode": median(d / s for d, s in zip(taken["decode"], taken[stage], strict=True))
                    for stage in ("decode at 2000", "in 8 bits")
                },
            }
            said = ", ".join(f"{what} {share:.1%}" for what, share in shares[peer.name].items())
            print(f"{'':22}decode reads {read / 1e9:.2f} GB a token at {speed / 1e9:.1f} GB/s; shares: {said}")
    record = {
        "what": "2B shape, random weights, peers by turns", "date": datetime.date.today().isoformat(), "threads": THREADS,
        "runs": args.runs, "python": platform.python_version(), "processor": processor_name(), "load": os.getloadavg()[0],
        "medians_s": medians, "shares": shares, "readings_s": {peer.name: peer.times for peer in peers},
        "facts": {peer.name: peer.facts | {"peak_bytes": peer.peak} for peer in peers},
    }  # fmt: skip
    if args.keep:
        (HERE / "results" / f"{record['date']}-peers.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()

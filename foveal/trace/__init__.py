"""The execution trace of one real request: every stage of the spine with shapes, types, bytes and times.

The request runs through the ordinary code, with one exception. Host stages are timed around their calls, the model by hooks on
its layers (recorder.py); a packed decoder, which otherwise puts a token through all layers in one native call (model/step.py),
is run layer by layer while it is watched. Its results are the same bits and its decode steps slower, which the stage says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from foveal.cost import estimate
from foveal.media import ClipSampling, Frames
from foveal.patches import Budget, Patches, patchify
from foveal.processor import conversation
from foveal.sequence import TextSegment
from foveal.units import counted, num_bytes

if TYPE_CHECKING:
    from foveal.generate import Answer, Pipeline
    from foveal.processor import Request
    from foveal.sampler import Sampling
    from foveal.trace.recorder import DecoderPass, Recorder

__all__ = ["Trace", "run"]

WATCHED = "timed layer by layer; unwatched, these packed weights take a token through all layers in one call, which is faster"


@dataclass(frozen=True)
class Trace:
    """What happened: `data` is plain JSON for people and pages, `patches` are those of the request, in order."""

    data: dict[str, Any]
    patches: tuple[Patches, ...]

    def html(self, pipeline: Pipeline) -> str:
        """Draw it as one page that needs nothing else."""
        from foveal.trace.page import render

        return render(self.data, self.patches, pipeline.processor.config.vision)


def run(
    pipeline: Pipeline, question: str, files: Seq[Any], *, system: str | None = None, sampling: Sampling | None = None,
    budget: Budget | None = None, clip_sampling: ClipSampling | None = None,
) -> Trace:  # fmt: skip
    """Ask a question as Pipeline.ask does, and watch."""
    from foveal.trace.recorder import Recorder

    processor = pipeline.processor
    clock = [time.perf_counter()]
    frames, shared = processor.open(files, budget=budget, clip_sampling=clip_sampling)
    clock.append(time.perf_counter())
    patches = [patchify(f, processor.config.vision, shared) for f in frames]
    clock.append(time.perf_counter())
    messages = conversation(question, [f.kind for f in frames], system)
    request = processor.lay_out(messages, patches, names=[f.name for f in frames])
    clock.append(time.perf_counter())
    host_s = [b - a for a, b in pairwise(clock)]
    with Recorder(pipeline.model) as recorder:
        began = recorder.now()
        answer = pipeline.run(request, sampling).answer
        ended = recorder.now()
    view = _View(pipeline, question, frames, request, recorder, answer, host_s, (began, ended))
    return Trace(view.data(), request.patches)


@dataclass(frozen=True)
class _View:
    """Arrange what was recorded as plain data."""

    pipeline: Pipeline
    question: str
    frames: Seq[Frames]
    request: Request
    recorder: Recorder
    answer: Answer
    host_s: Seq[float]
    span: tuple[float, float]

    def data(self) -> dict[str, Any]:
        from foveal.model.quantize import num_bytes as weight_bytes
        from foveal.model.quantize import packed_bits

        prefill, decode = self._passes()
        config, stats = self.pipeline.processor.config, self.answer.stats
        model = self.pipeline.model
        dtype, kept = (str(one).removeprefix("torch.") for one in (model.dtype, model.cache_dtype))
        bits = packed_bits(model)
        cost = estimate(config, [(p.kind, p.lengths()) for p in self.request.patches], len(self.request.sequence),
                        new_tokens=len(decode), dtype=dtype, kv_cache=kept)  # fmt: skip
        return {
            "model": self.pipeline.name,
            "machine": _machine(self.pipeline),
            "question": self.question,
            "answer": self.answer.text,
            "reasoning": self.answer.reasoning,
            "finish_reason": self.answer.finish_reason,
            "dtype": dtype if bits is None else f"{bits} bits",
            "stages": self._stages(prefill, decode, cost.kv_bytes),
            "media": self._media(),
            "vision": {
                "patch_size": config.vision.patch_size, "merge": config.vision.spatial_merge_size,
                "taps": list(config.vision.taps), "tap_layers": list(config.vision.tap_layers),
            },
            "sequence": self._sequence(),
            "blocks": self._blocks(),
            "layers": self._layers(prefill),
            "tap_rms": next((p.tap_rms for p in prefill if p.tap_rms), []),
            "steps": self._steps(prefill, decode),
            "costs": self._costs(cost, prefill, decode),
            "weight_bytes": weight_bytes(model),
            "kv_bytes": cost.kv_bytes,
            "peak_memory_bytes": stats.peak_memory_bytes,
        }  # fmt: skip

    def _passes(self) -> tuple[list[DecoderPass], list[DecoderPass]]:
        """Part the decoder's passes into those that read the prompt and those that read one generated token."""
        rows, count = 0, 0
        while rows < len(self.request.sequence):
            rows += self.recorder.passes[count].rows
            count += 1
        return self.recorder.passes[:count], self.recorder.passes[count:]

    def _stages(self, prefill: list[DecoderPass], decode: list[DecoderPass], kv_bytes: int) -> list[dict[str, Any]]:
        sequence, config = self.request.sequence, self.pipeline.processor.config
        # What lies between two passes of the decoder is sampling, text, and packing the next token; the head of the prompt's
        # last window ran there too.
        last = prefill[-1]
        decode_s = sum(p.seconds + p.head_s for p in decode)
        gaps_s = max(0.0, self.span[1] - last.start_s - last.seconds - last.head_s - decode_s)
        encodes_s = sum(e.seconds for e in self.recorder.encodes)
        encode_start = self.recorder.encodes[0].start_s if self.recorder.encodes else self.span[0]
        pack_patches_s = encode_start - self.span[0]
        prefill_s = sum(p.seconds for p in prefill) + last.head_s
        batch_s = last.start_s - encode_start - encodes_s - sum(p.seconds for p in prefill[:-1])
        text_bytes = sequence.token_ids.nbytes + sequence.position_ids.nbytes + sequence.vision_rows.nbytes
        layers = config.text.num_hidden_layers
        stages: list[dict[str, Any]] = []

        def stage(name: str, seconds: float, arrays: list[dict[str, Any]], *notes: str) -> None:
            size = sum(a["bytes"] for a in arrays)
            values = [f"{a['name']} {a['shape']} {a['dtype']}" for a in arrays] + ([num_bytes(size)] if arrays else [])
            stages.append(
                {"name": name, "seconds": seconds, "bytes": size, "arrays": arrays, "notes": list(notes),
                 "values": [*values, *notes]}
            )  # fmt: skip

        if self.frames:
            stage("media", self.host_s[0], [_array(f.name, f.pixels) for f in self.frames])
            stage("patches", self.host_s[1], [_array(f.name, p.pixels)
                                              for f, p in zip(self.frames, self.request.patches, strict=True)])  # fmt: skip
            stage("vision tokens", encodes_s + pack_patches_s, self._encoded(), counted(config.vision.depth, "block"))
        stage("sequence", self.host_s[2], [
            _array("token_ids", sequence.token_ids), _array("position_ids", sequence.position_ids),
            _array("vision_rows", sequence.vision_rows),
        ], f"next position {sequence.next_position}")  # fmt: skip
        windows = " + ".join(str(p.rows) for p in prefill)
        stage("batch", batch_s, [{"name": "rows", "shape": [sum(p.rows for p in prefill)], "dtype": "int64",
                                  "bytes": text_bytes}], f"windows: {windows}")  # fmt: skip
        stage("decoder: prefill", prefill_s, [
            {"name": "hidden", "shape": [len(sequence), config.text.hidden_size], "dtype": prefill[-1].dtype,
             "bytes": len(sequence) * config.text.hidden_size * self.pipeline.model.dtype.itemsize},
        ], counted(layers, "layer"), f"cache {num_bytes(kv_bytes)}")  # fmt: skip
        speed = [f"{decode_s / len(decode) * 1e3:.1f} ms a token" if decode else "none needed"]
        if decode and self.pipeline.model.language_model.step is not None:
            speed.append(WATCHED)
        passes = "1 pass" if len(decode) == 1 else f"{len(decode):,} passes"
        stage("decoder: decode", decode_s, [], f"{passes} of 1 row", *speed)
        logits = prefill[-1].logits_shape
        stage("sampler → text", gaps_s, [{"name": "logits", "shape": list(logits), "dtype": prefill[-1].dtype,
                                          "bytes": logits[0] * logits[1] * self.pipeline.model.dtype.itemsize}],
              counted(len(self.answer.token_ids), "id"), counted(len(self.answer.text), "character"))  # fmt: skip
        return stages

    def _encoded(self) -> list[dict[str, Any]]:
        width = self.pipeline.processor.config.vision.out_hidden_size
        out = []
        for e in self.recorder.encodes:
            size = e.num_bytes // (1 + e.tap_shape[0])
            out += [
                {"name": "embeddings", "shape": [e.vision_tokens, width], "dtype": e.dtype, "bytes": size},
                {"name": "taps", "shape": list(e.tap_shape), "dtype": e.dtype, "bytes": e.num_bytes - size},
            ]
        return out

    def _media(self) -> list[dict[str, Any]]:
        return [
            {
                "name": frames.name, "kind": patches.kind, "source_size": list(patches.source_size),
                "size": [side * self.pipeline.processor.config.vision.patch_size for side in patches.grids[0]],
                "frames": len(frames.pixels), "frame_times_s": [float(t) for t in frames.times_s],
                "times_s": list(patches.times_s), "grid": [side // patches.merge for side in patches.grids[0]],
                "tokens": patches.num_tokens,
            }
            for frames, patches in zip(self.frames, self.request.patches, strict=True)
        ]  # fmt: skip

    def _sequence(self) -> dict[str, Any]:
        sequence, tokenizer = self.request.sequence, self.pipeline.processor.tokenizer
        coords = [
            (m, int(t), int(r) // p.merge, int(c) // p.merge)
            for m, p in enumerate(self.request.patches) for t, r, c in p.coords[:: p.merge**2]
        ]  # fmt: skip
        vision = [[i, *coords[row]] for i, row in enumerate(sequence.vision_rows.tolist()) if row >= 0]
        special = set(tokenizer.added.values())
        runs: list[dict[str, Any]] = []
        at = 0
        for segment in self.request.segments:
            if isinstance(segment, TextSegment):
                tokens = [[i, tokenizer.decode([i], skip_special=False), i in special] for i in segment.token_ids]
                runs.append({"kind": "text", "start": at, "stop": at + len(tokens), "tokens": tokens})
            else:
                patches = self.request.patches[segment.media]
                rows, columns = (side // patches.merge for side in patches.grids[segment.frame])
                count = rows * columns if segment.tokens is None else len(segment.tokens)
                runs.append({"kind": patches.kind, "start": at, "stop": at + count, "media": segment.media,
                             "frame": segment.frame, "rows": rows, "columns": columns})  # fmt: skip
            at = runs[-1]["stop"]
        return {
            "length": len(sequence), "num_vision_tokens": sequence.num_vision_tokens,
            "next_position": sequence.next_position, "positions": sequence.position_ids.tolist(), "runs": runs,
            "vision": vision,
        }  # fmt: skip

    def _blocks(self) -> list[dict[str, Any]]:
        """Sum what every vision block took, over all runs of the encoder."""
        blocks: list[dict[str, Any]] = []
        for encode in self.recorder.encodes:
            calls = [c for c in encode.calls if c.name.startswith("block")]
            for i, (call, rms) in enumerate(zip(calls, encode.rms, strict=True)):
                if i == len(blocks):
                    blocks.append({"seconds": 0.0, "rms": rms, "shape": list(call.shape)})
                blocks[i]["seconds"] += call.seconds
        return blocks

    def _layers(self, prefill: list[DecoderPass]) -> list[dict[str, Any]]:
        """Sum what every decoder layer took to read the prompt; sizes are of the first window with vision rows."""
        shown = next((p for p in prefill if p.vision_rows), prefill[0])
        seconds = [0.0] * len(shown.rms_text)
        for one in prefill:
            for i, call in enumerate(c for c in one.calls if c.name.startswith("layer")):
                seconds[i] += call.seconds
        return [
            {"seconds": s, "rms_text": shown.rms_text[i], "rms_vision": shown.rms_vision[i] if shown.vision_rows else None}
            for i, s in enumerate(seconds)
        ]  # fmt: skip

    def _steps(self, prefill: list[DecoderPass], decode: list[DecoderPass]) -> list[dict[str, Any]]:
        """Pair every generated id with the pass that gave it; forced ids (a closed thought) have the pass they displaced."""
        tokenizer, out = self.pipeline.processor.tokenizer, []
        for token, one in zip(self.answer.token_ids, [prefill[-1], *decode], strict=True):
            top = [[tokenizer.decode([i], skip_special=False), p] for i, p in one.top]
            probability = next((p for i, p in one.top if i == token), None)
            out.append({"id": token, "text": tokenizer.decode([token], skip_special=False), "seconds": one.seconds + one.head_s,
                        "probability": probability, "top": top})  # fmt: skip
        return out

    def _costs(self, cost: Any, prefill: list[DecoderPass], decode: list[DecoderPass]) -> list[dict[str, Any]]:
        from foveal.cost import decoder_flops

        text = self.pipeline.processor.config.text
        after = decoder_flops(text, len(decode), cached=len(self.request.sequence), outputs=len(decode))
        rows = [
            ("encode", cost.encode.total, sum(e.seconds for e in self.recorder.encodes)),
            ("prefill", cost.prefill.total, sum(p.seconds for p in prefill) + prefill[-1].head_s),
            ("decode", after.total, sum(p.seconds + p.head_s for p in decode)),
        ]  # fmt: skip
        return [{"stage": name, "flops": flops, "seconds": s} for name, flops, s in rows if flops and s > 0]


def _machine(pipeline: Pipeline) -> str:
    import torch

    where = counted(torch.get_num_threads(), "CPU thread")
    if pipeline.model.device.type == "cuda":
        where = torch.cuda.get_device_name(pipeline.model.device)
    return f"torch {torch.__version__}, {where}"


def _array(name: str, values: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(values.shape), "dtype": str(values.dtype), "bytes": int(values.nbytes)}

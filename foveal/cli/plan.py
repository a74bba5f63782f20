"""`foveal plan`: what a question will cost, from headers, configuration and tokenizer alone. No weights, and rarely torch.

Torch is imported where the precision depends on what this machine measures (a folder of more than `choice.SMALL` weights), and
to count packed weights.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from foveal.choice import Choice, choose
from foveal.cli import session, show
from foveal.cli.inputs import Inputs, read_inputs
from foveal.cli.models import Target, describe
from foveal.cli.options import MediaOptions, check_dtype
from foveal.config import ModelConfig, read_json
from foveal.cost import Cost, estimate
from foveal.errors import ConfigError
from foveal.media import Probe, probe
from foveal.messages import MediaInfo
from foveal.patches import Budget, target_size
from foveal.processor import Processor, conversation
from foveal.prompt import timestamp_text
from foveal.sequence import Segment, Sequence, TextSegment, VisionSegment, build
from foveal.sizing import MediaShape, shared_budget

BYTES_PER_TOKEN = 4  # of English prose in the released vocabulary, roughly; only used where there is no tokenizer


@dataclass(frozen=True)
class PlannedMedia:
    """One picture or clip: sizes are (height, width) in pixels, grid is (rows, columns) in vision tokens."""

    name: str
    kind: str
    source_size: tuple[int, int]
    size: tuple[int, int]
    grid: tuple[int, int]
    frames: int
    frame_times_s: tuple[float, ...]
    pair_times_s: tuple[float, ...]
    vision_tokens: int
    info: MediaInfo
    grids: tuple[tuple[int, int], ...]


class Precision(NamedTuple):
    """What the weights are priced in: a dtype, None for a preset's own, or packed to bits; `choice` where nobody named one."""

    dtype: str | None
    bits: int | None = None
    choice: Choice | None = None


def run(
    words: tuple[str, ...], name: str | None, dtype: str | None, bits: int | None, kv_cache: str | None, media: MediaOptions,
    system: str | None, max_tokens: int, as_json: bool,
) -> None:  # fmt: skip
    check_dtype(dtype)
    if max_tokens < 0:
        raise ConfigError(f"--max-tokens is {max_tokens}; expected 0 or more")
    inputs, target = read_inputs(words), describe(name)
    facts = collect(inputs, target, media, system=system, dtype=dtype, bits=bits, kv_cache=kv_cache, max_tokens=max_tokens)
    if target.note is not None:
        session.note(target.note)
    if as_json:
        show.write_json(facts)
    else:
        _print(facts)


def collect(
    inputs: Inputs, target: Target, options: MediaOptions, *, system: str | None, dtype: str | None, max_tokens: int,
    bits: int | None = None, kv_cache: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Lay the request out without its pixels and price it. bits: 8 or 4, 0 for none, None where nothing was said."""
    processor = None if target.directory is None else Processor.from_checkpoint(target.directory)
    config = target.config if processor is None else processor.config
    precision = decide(target, config, dtype, bits)
    context = config.text.max_position_embeddings
    media = look(inputs.files, config, options, processor)
    if processor is None:
        segments = estimated_segments(config, media, inputs.question, system)
    else:
        messages = conversation(inputs.question, [m.info.kind for m in media], system)
        prompt = processor.template.render(messages, media=[m.info for m in media], timestamps=config.timestamps)
        segments = list(prompt.segments)
    sequence = lay_out(config, segments, media)
    if precision.bits is not None:
        kv_cache = kv_cache or "bfloat16"  # as `Qwen3VL.cache_dtype` has it
    cost = estimate(config, [(m.info.kind, [h * w for h, w in m.grids]) for m in media], len(sequence),
                    new_tokens=max_tokens, dtype=precision.dtype, kv_cache=kv_cache)  # fmt: skip
    if precision.bits is not None:
        cost = as_packed(cost, config, precision.bits)
    fits = max(len(sequence), sequence.next_position) + max_tokens <= context
    return {
        "model": target.label,
        "question": inputs.question,
        "media": [_media_json(m) for m in media],
        "text_tokens_are_estimated": processor is None,
        "text_tokens": sequence.num_text_tokens,
        "vision_tokens": sequence.num_vision_tokens,
        "prompt_tokens": len(sequence),
        "answer_tokens": max_tokens,
        "positions_used": sequence.next_position,
        "context_tokens": context,
        "fits": fits,
        "dtype": cost.dtype,
        "why": _why(precision, config),
        "kv_cache": cost.kv_cache,
        "memory_bytes": {"weights": cost.weight_bytes, "kv_cache": cost.kv_bytes, "patches": _patch_bytes(config, media)},
        "decode_read_bytes_per_token": cost.decode_read_bytes,
        "flops": _flops_json(cost),
    }


def decide(target: Target, config: ModelConfig, dtype: str | None, bits: int | None) -> Precision:
    """Decide the precision as `Pipeline.load` does on a CPU; a preset has its own unless one is named, since it loads nothing.

    Raise ConfigError for what loading would refuse.
    """
    held = None if target.directory is None else folder_bits(target.directory)
    if held is not None:
        if dtype not in (None, "float32"):
            raise ConfigError(f"--dtype is {dtype}, but {target.label} is packed to {held} bits; leave it out")
        if bits == 0:
            raise ConfigError(f"{target.label} is packed, and plain weights are not in it; plan with the original")
        if bits not in (None, held):
            raise ConfigError(f"{target.label} is packed to {held} bits; leave --quantize out, or plan with the original")
        return Precision(None, held)
    if bits and dtype is not None:
        raise ConfigError("--quantize decides the precision; leave out --dtype")
    if bits or dtype is not None or target.directory is None:
        return Precision(dtype, bits or None)
    choice = choose(config, packs=bits is None)
    return Precision(choice.dtype, choice.bits, choice)


def _why(precision: Precision, config: ModelConfig) -> str | None:
    """Say where the precision comes from; None where it was named or is the file's."""
    if precision.choice is not None:
        return f"{precision.choice.path}: {precision.choice.why}; --quantize or --dtype overrules"
    if precision.bits is None and precision.dtype is None:
        return f"{config.dtype} as published; on a CPU ask takes float32 unless that is much slower, --dtype float32 prices it"
    return None


def folder_bits(directory: Path) -> int | None:
    """Say to how many bits a folder is packed; None where it is not, which takes no torch to know."""
    raw = read_json(directory / "config.json")
    if raw.get("quantization_config") is None:
        return None
    from foveal.model.quantize import file_bits, is_packed

    return file_bits(raw, str(directory / "config.json")) if is_packed(raw) else None


def as_packed(cost: Cost, config: ModelConfig, bits: int) -> Cost:
    """Count weights, and what a token reads of them, as a packed folder has them."""
    from foveal.model.checkpoint import skeleton
    from foveal.model.quantize import expected_bytes, expected_step_bytes

    model, cache = skeleton(config), config.text.kv_bytes_per_token(cost.kv_cache) * cost.tokens
    return replace(
        cost, dtype=f"{bits} bits", weight_bytes=expected_bytes(model, bits),
        decode_read_bytes=expected_step_bytes(model, bits) + cache,
    )  # fmt: skip


def look(files: Seq[str], config: ModelConfig, options: MediaOptions, processor: Processor | None = None) -> list[PlannedMedia]:
    """Decide sizes and frames of files from their headers, as a request does."""
    sampling = options.clip_sampling(None if processor is None else processor.clip_sampling)
    budget = options.budget(Budget() if processor is None else processor.budget)
    found = [probe(file, sampling=sampling) for file in files]
    shared = shared_budget(config, budget, [MediaShape(f.kind, len(f.times_s), f.source_size) for f in found])
    return [_planned(f, config, shared) for f in found]


def _planned(found: Probe, config: ModelConfig, budget: Budget) -> PlannedMedia:
    vision, frames = config.vision, len(found.times_s)
    height, width = target_size(frames, *found.source_size, found.kind, vision, budget)
    per = 1 if found.kind == "image" else vision.temporal_patch_size
    times = [float(t) for t in found.times_s]
    padded = times + [times[-1]] * (-frames % per)  # an odd clip repeats its last frame
    pairs = tuple((padded[i] + padded[i + per - 1]) / 2 for i in range(0, len(padded), per))
    grid = height // vision.patch_size, width // vision.patch_size
    merge = vision.spatial_merge_size
    return PlannedMedia(
        name=found.name, kind=found.kind, source_size=found.source_size, size=(height, width),
        grid=(grid[0] // merge, grid[1] // merge), frames=frames, frame_times_s=tuple(times), pair_times_s=pairs,
        vision_tokens=len(pairs) * grid[0] * grid[1] // merge**2, info=MediaInfo(found.kind, pairs), grids=(grid,) * len(pairs),
    )  # fmt: skip


def lay_out(config: ModelConfig, segments: Seq[Segment], media: Seq[PlannedMedia]) -> Sequence:
    return build(
        segments, [m.grids for m in media], kinds=[m.info.kind for m in media], merge=config.vision.spatial_merge_size,
        image_token_id=config.image_token_id, video_token_id=config.video_token_id,
    )  # fmt: skip


def estimated_segments(config: ModelConfig, media: Seq[PlannedMedia], question: str, system: str | None) -> list[Segment]:
    """Lay out the released chat template without a tokenizer: markup and timestamps counted exactly, free text by its bytes.

    Released vocabularies write `<12.5 seconds>` as "<", one token a digit, ".", " seconds" and ">".
    """

    def text(count: int) -> TextSegment:
        return TextSegment((0,) * count)

    def free(words: str) -> int:
        return max(1, round(len(words.encode("utf-8", "replace")) / BYTES_PER_TOKEN))

    # <|im_start|> role \n ... <|im_end|> \n
    segments: list[Segment] = [text(3 + free(system) + 2)] if system else []
    segments.append(text(3))
    for i, medium in enumerate(media):
        for frame, seconds in enumerate(medium.info.times_s):
            stamp = 0
            if medium.kind == "video":
                stamp = 1 if config.timestamps == "tokens" else len(timestamp_text(seconds)) - len("< seconds>") + 3
            segments += [text(stamp + 1), VisionSegment(i, frame), text(1)]
    segments.append(text(free(question) + 2 + 3))  # ... <|im_end|> \n <|im_start|> assistant \n
    return segments


def _patch_bytes(config: ModelConfig, media: Seq[PlannedMedia]) -> int:
    vision = config.vision
    pixel_bytes = vision.in_channels * vision.patch_size**2
    per = {"image": 1, "video": vision.temporal_patch_size}
    return sum(h * w * pixel_bytes * per[m.kind] for m in media for h, w in m.grids)


def _media_json(media: PlannedMedia) -> dict[str, Any]:
    values = asdict(media)
    del values["info"], values["grids"]
    return values


def _flops_json(cost: Cost) -> dict[str, Any]:
    return {
        "encode": asdict(cost.encode) | {"total": cost.encode.total},
        "prefill": asdict(cost.prefill) | {"total": cost.prefill.total},
        "decode_per_token": asdict(cost.decode) | {"total": cost.decode.total},
        "until_first_token": cost.prompt_flops,
        "whole_answer": cost.prompt_flops + cost.answer.total,
    }


def _print(facts: dict[str, Any]) -> None:
    out = show.console()
    for media in facts["media"]:
        (h, w), (sh, sw), (rows, columns) = media["size"], media["source_size"], media["grid"]
        size = f"{sw} x {sh} pixels" + ("" if (h, w) == (sh, sw) else f" → {w} x {h}")
        tokens = f"{columns} x {rows} = {columns * rows} vision tokens"
        lines = [("size", size), ("tokens", tokens)]
        if media["kind"] == "video":
            pairs = show.counted(len(media["pair_times_s"]), "pair")
            lines[1] = ("tokens", f"{tokens} a pair, {media['vision_tokens']:,} in all")
            lines.append(("frames", f"{media['frames']} in {pairs}: {_times(media['frame_times_s'])}"))
        out.print(show.table(f"{media['name']} ({'picture' if media['kind'] == 'image' else 'clip'})", lines))
        out.print()
    about = "about " if facts["text_tokens_are_estimated"] else ""
    note = f"  (free text estimated at {BYTES_PER_TOKEN} bytes a token: a preset has no tokenizer)" if about else ""
    room = "fits" if facts["fits"] else "does NOT fit"
    rows = [
        ("text tokens", f"{about}{facts['text_tokens']:,}{note}"),
        ("vision tokens", f"{facts['vision_tokens']:,}"),
        ("prompt", f"{about}{facts['prompt_tokens']:,} tokens on {facts['positions_used']:,} positions"),
        ("context", f"{room}: {facts['prompt_tokens']:,} + {facts['answer_tokens']:,} for the answer, of "
         f"{facts['context_tokens']:,}"),
    ]  # fmt: skip
    out.print(show.table("prompt", rows))
    memory = facts["memory_bytes"]
    out.print(show.table(f"\nmemory in {facts['dtype']}", [
        *([("chosen", facts["why"])] if facts["why"] else []),
        ("weights", show.num_bytes(memory["weights"])),
        ("key-value cache", f"{show.num_bytes(memory['kv_cache'])}, prompt and answer, in {facts['kv_cache']}"),
        ("patches", f"{show.num_bytes(memory['patches'])}, 8 bits a value"),
        ("read for one token", f"{show.num_bytes(facts['decode_read_bytes_per_token'])} at least"),
    ]))  # fmt: skip
    out.print(_flops_table(facts["flops"], facts["answer_tokens"]))


def _flops_table(flops: dict[str, Any], answer_tokens: int) -> Any:
    rows = []
    for stage, label in (("encode", "encode"), ("prefill", "prefill"), ("decode_per_token", "decode, a token")):
        parts = flops[stage]
        if not parts["total"]:
            continue
        detail = ", ".join(f"{name.replace('_', ' ')} {show.flops(n)}" for name, n in parts.items() if name != "total")
        rows.append((label, show.flops(parts["total"]), detail))
    rows.append(("until the first token", show.flops(flops["until_first_token"]), ""))
    rows.append((f"with {show.counted(answer_tokens, 'token')} of answer", show.flops(flops["whole_answer"]), ""))
    return show.table("\nwork", rows, ("", "", ""), right=(1,))


def _times(times: Seq[float]) -> str:
    shown = [f"{t:.2f}" for t in times]
    if len(shown) > 12:
        shown = [*shown[:8], "…", *shown[-3:]]
    return ", ".join(shown) + " s"

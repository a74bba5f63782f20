"""`foveal info`: a model's configuration, parameters by part, bytes, special tokens; and this machine."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from foveal.cli import session, show
from foveal.cli.models import Target, describe
from foveal.config import CACHE_DTYPES, DTYPE_BYTES, ModelConfig, read_json


def run(name: str | None, as_json: bool) -> None:
    target = describe(name)
    facts = collect(target)
    if target.note is not None:
        session.note(target.note)
    if as_json:
        show.write_json(facts)
    else:
        _print(facts, target.config)


def collect(target: Target) -> dict[str, Any]:
    """Gather everything the command shows."""
    config = target.config
    return {
        "model": target.label,
        "directory": None if target.directory is None else str(target.directory),
        "architecture": architecture(config),
        "parameters": parameters_by_part(config),
        "weight_bytes": {dtype: config.weight_bytes(dtype) for dtype in DTYPE_BYTES},
        "packed_bytes": packed_bytes(config),
        "kv_bytes_per_token": {
            dtype: config.text.kv_bytes_per_token(dtype) for dtype in dict.fromkeys((*DTYPE_BYTES, *CACHE_DTYPES))
        },
        "special_tokens": special_tokens(config, target.directory),
        "machine": machine(),
        "speeds": speeds(target),
    }


def speeds(target: Target) -> dict[str, Any]:
    """Show the machine's measured limits, what they make fastest at every stage, and what is chosen for this model."""
    from foveal.choice import STAGES, choose, fastest
    from foveal.limits import TOKENS, kept_in, limits
    from foveal.model.quantize import is_packed

    measured = limits()
    packed = target.directory is not None and is_packed(read_json(target.directory / "config.json"))
    chosen = None if packed else choose(target.config)
    return {
        "read_bytes_per_s": measured.read_bytes_per_s,
        "ops_per_s": {path: dict(zip(map(str, TOKENS), speeds, strict=True)) for path, speeds in measured.ops_per_s.items()},
        "fastest": {stage: fastest(measured, rows) for stage, rows in STAGES.items()},
        "choice": None if chosen is None else {"path": chosen.path, "why": chosen.why},
        "kept_in": str(kept_in()) if measured.quiet else None,
    }


def architecture(config: ModelConfig) -> dict[str, Any]:
    vision, text, rope = config.vision, config.text, config.text.rope
    out: dict[str, Any] = {
        "dtype": config.dtype,
        "context_tokens": text.max_position_embeddings,
        "vocabulary": text.vocab_size,
        "tied_embeddings": config.tie_word_embeddings,
        "timestamps": config.timestamps,
        "vision": {
            "blocks": vision.depth, "width": vision.hidden_size, "heads": vision.num_heads,
            "mlp_width": vision.intermediate_size, "patch_px": vision.patch_size,
            "frames_per_patch": vision.temporal_patch_size, "merge": vision.spatial_merge_size, "token_px": vision.factor,
            "position_table_side": vision.position_side,
        },
        "taps": [
            {"after_vision_block": block, "after_decoder_layer": layer}
            for block, layer in zip(vision.taps, vision.tap_layers, strict=True)
        ],
        "decoder": {
            "layers": text.num_hidden_layers, "width": text.hidden_size, "query_heads": text.num_attention_heads,
            "kv_heads": text.num_key_value_heads, "head_dim": text.head_dim, "mlp_width": text.intermediate_size,
        },
        "rope": {
            "theta": rope.theta, "mrope_section": list(rope.mrope_section), "interleaved": rope.interleaved,
            "type": rope.rope_type, "factor": rope.factor,
        },
        "experts": None,
    }  # fmt: skip
    if text.moe is not None:
        out["experts"] = {
            "num_experts": text.moe.num_experts, "per_token": text.moe.num_experts_per_tok,
            "mlp_width": text.moe.moe_intermediate_size,
            "sparse_layers": sum(text.moe.is_sparse(i) for i in range(text.num_hidden_layers)),
        }  # fmt: skip
    return out


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Count weights by part; the parts before "total" add up to it."""
    vision, text = config.vision, config.text
    blocks = vision.depth * vision.block_parameters
    embeddings = text.vocab_size * text.hidden_size
    mlp = sum(text.mlp_parameters(i) for i in range(text.num_hidden_layers))
    head = 0 if config.tie_word_embeddings else embeddings
    return {
        "vision_embeddings": vision.num_parameters - blocks - vision.merger_parameters,
        "vision_blocks": blocks,
        "mergers": vision.merger_parameters,
        "token_embeddings": embeddings,
        "decoder_attention_and_norms": text.num_parameters - embeddings - mlp,
        "decoder_mlp": mlp,
        "head": head,
        "total": config.num_parameters,
        "active_per_decoded_token": config.num_active_parameters,
    }


def packed_bytes(config: ModelConfig) -> dict[str, int]:
    """Count the bytes of the weights packed to 8 and 4 bits, by the policy that packs them."""
    from foveal.model.checkpoint import skeleton
    from foveal.model.quantize import WIDTHS, expected_bytes

    model = skeleton(config)
    return {f"{bits} bits": expected_bytes(model, bits) for bits in WIDTHS}


def special_tokens(config: ModelConfig, directory: Path | None) -> dict[str, int]:
    """List the tokenizer's special tokens, or the four ids a configuration knows."""
    if directory is not None and (directory / "tokenizer.json").is_file():
        from foveal.tokenizer import Tokenizer

        added = Tokenizer.from_file(directory / "tokenizer.json").added
        return dict(sorted(added.items(), key=lambda entry: entry[1]))
    return {
        "<|vision_start|>": config.vision_start_token_id,
        "<|vision_end|>": config.vision_end_token_id,
        "<|image_pad|>": config.image_token_id,
        "<|video_pad|>": config.video_token_id,
    }


def machine() -> dict[str, Any]:
    """Describe what a bug report needs."""
    import torch

    from foveal import kernels

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "foveal": version("foveal"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "av": version("av"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
        "kernels": f"{kernels.path()}, {show.counted(kernels.threads(), 'thread')}"
        if kernels.available()
        else f"none: {kernels.reason()}",
    }


def version(package: str) -> str | None:
    """Return an installed package's version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as find

    try:
        return find(package)
    except PackageNotFoundError:
        return None


def _print(facts: dict[str, Any], config: ModelConfig) -> None:
    out = show.console()
    arch, vision, decoder = facts["architecture"], facts["architecture"]["vision"], facts["architecture"]["decoder"]
    rope, experts = arch["rope"], arch["experts"]
    sparse = experts is not None and experts["sparse_layers"] == decoder["layers"]
    rows = [
        ("vision encoder",
         f"{vision['blocks']} blocks of {vision['width']}, {vision['heads']} heads, MLP {vision['mlp_width']}"),
        ("vision token",
         f"{vision['token_px']} x {vision['token_px']} pixels ({vision['merge']} x {vision['merge']} patches of "
         f"{vision['patch_px']}), {vision['frames_per_patch']} frames of a clip"),
        ("decoder",
         f"{decoder['layers']} layers of {decoder['width']}, {decoder['query_heads']} query and {decoder['kv_heads']} "
         f"key-value heads of {decoder['head_dim']}" + ("" if sparse else f", MLP {decoder['mlp_width']}")),
    ]  # fmt: skip
    if experts:
        rows.append(("experts", f"{experts['num_experts']} of {experts['mlp_width']} in {experts['sparse_layers']} layers, "
                     f"{experts['per_token']} a token"))  # fmt: skip
    taps = ", ".join(f"block {t['after_vision_block']} → layer {t['after_decoder_layer']}" for t in arch["taps"]) or "none"
    layout = "interleaved" if rope["interleaved"] else "blocked"
    stretched = f", YaRN x {rope['factor']:g}" if rope["type"] == "yarn" else ""
    section = " + ".join(map(str, rope["mrope_section"]))
    rows += [
        ("taps (DeepStack)", taps + "  (added after it; both count from 0)" * bool(arch["taps"])),
        ("positions", f"t + h + w = {section} frequencies, {layout}, theta {rope['theta']:g}{stretched}"),
        ("timestamps", "learnable tokens" if arch["timestamps"] == "tokens" else "text, such as <3.0 seconds>"),
        ("context", show.counted(arch["context_tokens"], "token")),
        ("vocabulary", f"{arch['vocabulary']:,}, head {'tied to' if arch['tied_embeddings'] else 'apart from'} the embeddings"),
    ]
    out.print(show.table(f"{facts['model']}", rows))
    parameters = dict(facts["parameters"])
    total = parameters["total"]
    lines = [(part.replace("_", " "), f"{count:,}", f"{count / total:.1%}") for part, count in parameters.items()]
    out.print(show.table("\nparameters", lines, ("", "", ""), right=(1, 2)))
    memory = [
        (dtype + (" (the checkpoint's own)" if dtype == config.dtype else ""), show.num_bytes(facts["weight_bytes"][dtype]),
         show.num_bytes(facts["kv_bytes_per_token"][dtype]))
        for dtype in DTYPE_BYTES
    ] + [(bits, show.num_bytes(size), "") for bits, size in facts["packed_bytes"].items()]  # fmt: skip
    memory += [(f"{kind} cache", "", show.num_bytes(size)) for kind, size in facts["kv_bytes_per_token"].items()
               if kind not in DTYPE_BYTES]  # fmt: skip
    out.print(show.table("\nmemory", memory, ("", "weights", "cache per token"), right=(1, 2)))
    tokens = facts["special_tokens"]
    shown = [(token, str(index)) for token, index in tokens.items() if token.startswith("<")][:40]
    out.print(show.table(f"\nspecial tokens ({len(tokens)})", shown, right=(1,)))
    out.print(show.table("\nmachine", [(key, _plain(value)) for key, value in facts["machine"].items()]))
    speed = facts["speeds"]
    counts = next(iter(speed["ops_per_s"].values()))
    lines = [(path, *(show.scaled(ops, "OP/s") for ops in by.values())) for path, by in speed["ops_per_s"].items()]
    titles = ("linears", *(show.counted(int(count), "token") for count in counts))
    out.print(show.table("\nmeasured limits", lines, titles, right=range(1, len(titles))))
    choice = speed["choice"]
    out.print(show.table("", [
        ("memory", show.scaled(speed["read_bytes_per_s"], "B/s")),
        ("fastest", ", ".join(f"{stage} {path}" for stage, path in speed["fastest"].items())),
        ("chosen", "as the file is packed" if choice is None else f"{choice['path']}: {choice['why']}"),
        ("kept", "not, the machine is too busy to measure" if speed["kept_in"] is None
         else f"in {speed['kept_in']}; delete it to measure anew"),
    ]))  # fmt: skip


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)

"""Weights in 8 or 4 bits: which tensor at which width, packing a checkpoint tensor by tensor, the packed file.

A packed checkpoint is a folder of the released layout whose model.safetensors holds, for a weight NAME (N, K) that is packed,
`NAME.codes` uint8 (N/16, K/32, 512 or 256) and `NAME.scales` float16 (N/16, K/32, 16), N and K rounded up, and float32 for all
others; foveal_kernels.c says how codes lie. Experts have one pair for each: `experts.0.gate`, `.up` (F, D) and `.down` (D, F).
Its config.json says so under quantization_config. Loading maps the file: nothing is read before it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal import kernels
from foveal.config import ModelConfig
from foveal.errors import CheckpointError, ConfigError
from foveal.kernels import Packed
from foveal.kernels.oracle import GROUP, LANES
from foveal.model import Qwen3VL
from foveal.model.checkpoint import Scratch, Source, disk_name
from foveal.model.feedback import Feedback, Moments
from foveal.model.linear import PackedEmbedding, PackedExperts, PackedLinear, QuantisingNorm, TurningNorm
from foveal.model.moe import Experts, SparseMLP
from foveal.model.rms_norm import RMSNorm
from foveal.model.save import copy_companions, staged, write_json, write_weights
from foveal.model.step import decode_step
from foveal.model.tensorfile import TensorFile

METHOD = "foveal"
WIDTHS = (8, 4)
# Which weights are packed, and at which width where 4 bits are asked for: the first rule that fits. All others stay as they
# are: norms, biases, positions, the patch embedding, routers. ENDS are the first and the last layer.
POLICY: tuple[tuple[str, int], ...] = (
    (r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])\.weight", 8),
    (r"visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]\.weight", 8),
    (r"(language_model\.embed_tokens|lm_head)\.weight", 8),
    (r"language_model\.layers\.ENDS\..*(_proj\.weight|experts\.(gate_up|down)_proj)", 8),
    (r"language_model\.layers\.\d+\..*(_proj\.weight|experts\.(gate_up|down)_proj)", 4),
)


def width(name: str, bits: int, config: ModelConfig) -> int | None:
    """Say in how many bits a parameter is kept when a model is packed to `bits`; None: as it is."""
    ends = f"(0|{config.text.num_hidden_layers - 1})"
    for pattern, at_four in POLICY:
        if re.fullmatch(pattern.replace("ENDS", ends), name):
            return at_four if bits == 4 else 8
    return None


def parts(name: str, shape: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """List the matrices a parameter is packed as, (name, rows, columns): itself; of experts gate and up, or down, of each."""
    if len(shape) == 2:
        return [(name, *shape)]
    experts, inputs, outputs = shape
    folder, _, leaf = name.rpartition(".")
    kinds = ("gate", "up") if leaf == "gate_up_proj" else ("down",)
    return [(f"{folder}.{e}.{kind}", outputs // len(kinds), inputs) for e in range(experts) for kind in kinds]


def check_bits(bits: int) -> None:
    """Raise ConfigError for a width there is none of, and where the kernels cannot be had."""
    if bits not in WIDTHS:
        raise ConfigError(f"{bits} bits; weights are packed to {' or '.join(map(str, WIDTHS))} bits")
    if not kernels.available():
        raise ConfigError(f"packed weights need the native kernels: {kernels.reason()}; without them use float32")


def pack_into(model: Qwen3VL, sources: Mapping[str, Source], bits: int, moments: Mapping[str, Moments] | None = None) -> None:
    """Replace the modules of a skeleton whose weights the policy packs, reading them from a checkpoint piece by piece.

    All other parameters are filled already: a module takes its bias along. moments: of what linears are given, by the name of
    the weight, as `feedback.gather` finds them. Peak: what is packed, and one piece.
    """
    scratch = Scratch()
    chosen = {name: at for name, _ in model.named_parameters() if (at := width(name, bits, model.config))}
    for name in sorted(chosen, key=lambda n: sources[disk_name(n)].place):
        source = sources[disk_name(name)]
        if len(source.file.entries[source.name].shape) == 2:
            feedback = Feedback(moments[name]) if moments and name in moments else None
            place(model, name, [_pack_matrix(source, chosen[name], scratch, feedback)])
            continue
        experts: list[Packed] = []
        for _, _, piece in source.pieces(scratch):
            experts += _pack(name, piece.transpose(1, 2) if source.flipped else piece, chosen[name])
        place(model, name, experts)
    fuse(model)


def _pack_matrix(source: Source, bits: int, scratch: Scratch, feedback: Feedback | None) -> Packed:
    rows, columns = source.file.entries[source.name].shape
    code_shape, scale_shape = kernels.packed_shapes(rows, columns, bits)
    codes, scales = torch.empty(code_shape, dtype=torch.uint8), torch.empty(scale_shape, dtype=torch.float16)
    for first, stop, piece in source.pieces(scratch, multiple=LANES):
        part = slice(first // LANES, -(-stop // LANES))
        out = Packed(bits, stop - first, columns, codes[part], scales[part])
        (feedback.pack if feedback else kernels.pack)(piece, bits, out=out)
    return Packed(bits, rows, columns, codes, scales)


def quantize(model: Qwen3VL, bits: int, moments: Mapping[str, Moments] | None = None) -> Qwen3VL:
    """Pack the weights of a model in memory, in place, and return it. It must be on the CPU; the rest becomes float32.

    moments: as of `pack_into`.
    """
    check_bits(bits)
    for name, parameter in list(model.named_parameters()):
        chosen = width(name, bits, model.config)
        if chosen is not None:
            value = parameter.detach()
            if moments is not None and name in moments:
                place(model, name, [Feedback(moments[name]).pack(value, chosen)])
            else:
                place(model, name, _pack(name, value, chosen))
    return fuse(model.float())


def _pack(name: str, value: Tensor, bits: int) -> list[Packed]:
    """Pack a parameter, or a piece of experts along their first axis, as `parts` lists it."""
    if value.ndim == 2:
        return [kernels.pack(value, bits)]
    halves = 2 if name.endswith("gate_up_proj") else 1
    return [kernels.pack(half.contiguous(), bits) for expert in value for half in expert.T.chunk(halves)]


def place(model: Qwen3VL, name: str, packed: list[Packed]) -> None:
    """Put a packed module where a parameter's module stands; a bias that is filled comes along.

    Both tensors of a layer's experts end up in one module, whichever comes first.
    """
    path, _, leaf = name.rpartition(".")
    standing = model.get_submodule(path)
    if isinstance(standing, (Experts, PackedExperts)):
        module: nn.Module = standing if isinstance(standing, PackedExperts) else PackedExperts([], [], [])
        assert isinstance(module, PackedExperts)
        if leaf == "gate_up_proj":
            module.gate, module.up = packed[::2], packed[1::2]
        else:
            module.down = packed
    elif isinstance(standing, nn.Embedding):
        module = PackedEmbedding(packed[0])
    else:
        module = PackedLinear(packed[0], standing.get_parameter("bias") if standing.bias is not None else None)
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def fuse(model: Qwen3VL) -> Qwen3VL:
    """Let the norms of a packed model do what follows them: quantise rows for packed linears, turn queries and keys.

    And where every layer is dense, let one call of the kernels do a whole step of decoding.
    """
    for layer in model.language_model.layers:
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        replaced: list[tuple[nn.Module, str, type[QuantisingNorm] | type[TurningNorm]]] = [
            (layer, "input_layernorm", QuantisingNorm), (attention, "q_norm", TurningNorm), (attention, "k_norm", TurningNorm),
        ]  # fmt: skip
        if not isinstance(mlp, SparseMLP):  # a router reads plain rows
            replaced.append((layer, "post_attention_layernorm", QuantisingNorm))
        for parent, name, kind in replaced:
            norm = parent.get_submodule(name)
            assert isinstance(norm, RMSNorm)
            setattr(parent, name, kind(norm))
    model.language_model.step = decode_step(model.language_model)
    return model.eval()


def packed_weights(model: nn.Module) -> dict[str, Packed]:
    """Name everything that is packed, by released name; of a part of a model by the names inside it."""
    found: dict[str, Packed] = {}
    for path, module in model.named_modules():
        if isinstance(module, (PackedLinear, PackedEmbedding)):
            found[disk_name(f"{path}.weight")] = module.packed
        elif isinstance(module, PackedExperts):
            for kind in ("gate", "up", "down"):
                found |= {disk_name(f"{path}.{e}.{kind}"): packed for e, packed in enumerate(getattr(module, kind))}
    return found


def num_bytes(model: nn.Module) -> int:
    """Count the bytes of all weights of a model or of a part of one, packed or not."""
    plain = sum(p.nbytes for p in model.parameters())
    biases = sum(m.bias.nbytes for m in model.modules() if isinstance(m, PackedLinear) and m.bias is not None)
    return plain + biases + sum(packed.num_bytes for packed in packed_weights(model).values())


def step_bytes(model: Qwen3VL) -> int:
    """Count the bytes of weights that one token reads on its way through the decoder and the head: K of E experts."""
    text = model.language_model
    total = num_bytes(text)
    if model.lm_head is not None:  # the embeddings are another table, of which one row is read
        total += num_bytes(model.lm_head) - num_bytes(text.embed_tokens)
    if (moe := model.config.text.moe) is not None:
        experts = sum(num_bytes(module) for module in text.modules() if isinstance(module, (Experts, PackedExperts)))
        total -= experts - experts * moe.num_experts_per_tok // moe.num_experts
    return total


def packed_bits(model: Qwen3VL) -> int | None:
    """Say to how many bits a model is packed: the fewest of any layer; None where it is not."""
    widths = [packed.bits for packed in packed_weights(model.language_model.layers).values()]
    return min(widths) if widths else None


def expected_bytes(model: Qwen3VL, bits: int) -> int:
    """Count the bytes a model's weights will take when packed; shapes are enough."""
    return sum(_expected(model, bits).values())


def expected_step_bytes(model: Qwen3VL, bits: int) -> int:
    """Count what `step_bytes` will be of a model when packed; shapes are enough."""
    each = {name: size for name, size in _expected(model, bits).items() if not name.startswith("visual.")}
    if model.lm_head is not None:
        del each["language_model.embed_tokens.weight"]
    total = sum(each.values())
    if (moe := model.config.text.moe) is not None:
        experts = sum(size for name, size in each.items() if ".experts." in name)
        total -= experts - experts * moe.num_experts_per_tok // moe.num_experts
    return total


def _expected(model: Qwen3VL, bits: int) -> dict[str, int]:
    """Count the bytes of every parameter when packed."""
    out: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        chosen = width(name, bits, model.config)
        if chosen is None:
            out[name] = 4 * parameter.numel()
            continue
        shapes = [kernels.packed_shapes(rows, columns, chosen) for _, rows, columns in parts(name, tuple(parameter.shape))]
        out[name] = sum(math.prod(codes) + 2 * math.prod(scales) for codes, scales in shapes)
    return out


# ---------------------------------------------------------------- the file


def is_packed(raw: Mapping[str, Any]) -> bool:
    """Say whether a config.json is that of a packed checkpoint."""
    how = raw.get("quantization_config")
    return isinstance(how, Mapping) and how.get("quant_method") == METHOD


def file_bits(raw: Mapping[str, Any], where: str) -> int:
    """Read the width of a packed checkpoint. Raise CheckpointError for a layout this version does not know."""
    how = raw["quantization_config"]
    if how.get("bits") not in WIDTHS or how.get("group_size") != GROUP:
        raise CheckpointError(f"{where}: quantization_config is {json.dumps(how)}; 8 or 4 bits in groups of {GROUP} are known")
    return int(how["bits"])


def save_packed(model: Qwen3VL, directory: str | Path, bits: int, *, copy_from: str | Path | None = None) -> None:
    """Write a packed model as a folder that `load_model` maps. `copy_from`: the checkpoint whose other files come along."""
    directory = Path(directory)
    values: dict[str, Tensor] = {}
    for name, packed in packed_weights(model).items():
        values[f"{name}.codes"], values[f"{name}.scales"] = packed.codes, packed.scales
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear) and module.bias is not None:
            values[disk_name(f"{path}.bias")] = module.bias
    values |= {disk_name(name): p.detach() for name, p in model.named_parameters()}
    tensors = {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}
    config = replace(model.config, dtype="float32").to_dict()
    config["quantization_config"] = {"quant_method": METHOD, "bits": bits, "group_size": GROUP}
    with staged(directory, sum(value.nbytes for value in values.values())) as stage:
        if copy_from is not None:
            copy_companions(Path(copy_from), stage)
        metadata = {"format": "pt", "foveal": "packed 1"}
        write_weights(stage, tensors, lambda name: [values[name]], float("inf"), metadata)
        write_json(stage / "config.json", config)


def fill_packed(model: Qwen3VL, bits: int, path: Path) -> None:
    """Fill a skeleton from a packed file, mapped. Raise CheckpointError that lists what does not fit."""
    file = TensorFile(path)
    try:
        found, wanted = set(file.entries), set()
        problems: list[str] = []

        def take(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
            wanted.add(name)
            entry = file.entries.get(name)
            if entry is None or entry.dtype != dtype or entry.shape != shape:
                what = "is missing" if entry is None else f"is {entry.dtype} {list(entry.shape)}"
                problems.append(f"{name} {what}, expected {dtype} {list(shape)}")
                return torch.empty(shape, dtype=dtype)
            mapped = file.mapped(name)
            return file.read(name) if mapped is None else mapped

        def packed(name: str, rows: int, columns: int, bits: int) -> Packed:
            codes, scales = kernels.packed_shapes(rows, columns, bits)
            values = take(f"{name}.codes", torch.uint8, codes), take(f"{name}.scales", torch.float16, scales)
            return Packed(bits, rows, columns, *values)

        done: dict[str, list[Packed]] = {}
        for name, parameter in list(model.named_parameters()):
            chosen, shape = width(name, bits, model.config), tuple(parameter.shape)
            if chosen is None:
                path_of_module, _, leaf = name.rpartition(".")
                value = nn.Parameter(take(disk_name(name), torch.float32, shape), requires_grad=False)
                setattr(model.get_submodule(path_of_module), leaf, value)
            else:
                done[name] = [packed(disk_name(part), n, k, chosen) for part, n, k in parts(name, shape)]
        problems += [f"{name} is unexpected" for name in sorted(found - wanted)]
        if problems:
            more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise CheckpointError(f"{path} does not match its config.json: {'; '.join(problems[:8])}{more}; pack it again")
        for name, weights in done.items():
            place(model, name, weights)  # biases are filled by now
        fuse(model)
        prefix = disk_name("visual.")
        model.rest_encoder = file.give_back(name for name in file.entries if name.startswith(prefix))
    finally:
        file.close()

"""Low-rank adapters on Linears, in PEFT's file format: put on by name, saved, loaded, merged.

y = W x + scale * B A x, with A (r, in) random and B (out, r) zero, so that training starts from the model as it is. Adapters
are float32 whatever the model is in: small steps on bfloat16 weights round to nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from foveal.errors import CheckpointError, ConfigError
from foveal.finetune.settings import LoraSettings
from foveal.model import Qwen3VL
from foveal.model.checkpoint import disk_name
from foveal.model.moe import Experts, Product

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_INNER = ".base_layer"
_EXPERTS = re.compile(r"\.experts(\.base_layer)?$")
# What would change the numbers, and the value at which it does not.
_INERT: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []), "fan_in_fan_out": (False, None),
    "layer_replication": (None,), "lora_bias": (False, None), "alora_invocation_tokens": (None,),
    # All others write the base's weights, which are not in the adapter.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}  # fmt: skip


class LoraLinear(nn.Module):
    """A frozen Linear and its adapter, two Linears in float32: lora_A (r, in), lora_B (out, r)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer, self.scale = base.requires_grad_(False), scale
        self.dropout = nn.Dropout(dropout)
        a = torch.empty(rank, base.in_features).uniform_(-1, 1, generator=generator) / math.sqrt(base.in_features)
        self.lora_A = _linear(a.to(base.weight.device))
        self.lora_B = _linear(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the type of the base's result."""
        out: Tensor = self.base_layer(x)
        change = self.lora_B(self.lora_A(self.dropout(x.float())))
        return out + (self.scale * change).to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Add the adapter to the base's weight, computed in float32, and return the base."""
        weight = self.base_layer.weight
        weight.copy_(weight.float() + self.scale * (self.lora_B.weight @ self.lora_A.weight))
        return self.base_layer


class LoraExperts(nn.Module):
    """Frozen experts and the adapter of one of their two weights, in PEFT's layout: E pairs in two Linears, in float32.

    lora_A: (r * E, in), an expert's r rows together; lora_B: (out, r * E), an expert's columns E apart. To adapt both weights,
    one of these wraps another, the one of gate_up_proj inside.
    """

    def __init__(self, base: Experts | LoraExperts, leaf: str, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer, self.leaf, self.scale, self.rank = base.requires_grad_(False), leaf, scale, rank
        weight = self.experts.get_parameter(leaf)
        self.num_experts, inputs, outputs = weight.shape
        a = torch.empty(rank * self.num_experts, inputs).uniform_(-1, 1, generator=generator) / math.sqrt(inputs)
        self.lora_A = _linear(a.to(weight.device))
        self.lora_B = _linear(torch.zeros(outputs, rank * self.num_experts, device=weight.device))

    @property
    def experts(self) -> Experts:
        """The experts themselves."""
        base = self.base_layer
        return base.experts if isinstance(base, LoraExperts) else base

    def forward(self, x: Tensor, weights: Tensor, index: Tensor, product: Product | None = None) -> Tensor:
        """Sum each token's K experts, as Experts does."""
        out: Tensor = self.base_layer(x, weights, index, product or self.product)
        return out

    def product(self, leaf: str, x: Tensor, ends: Tensor) -> Tensor:
        """Multiply rows, sorted by expert and ending at `ends`, by the weight of this name and its adapter."""
        out: Tensor = self.base_layer.product(leaf, x, ends)
        if leaf != self.leaf:
            return out
        a, b = self.factors()
        empty = -self.rank % 4  # a grouped product wants rows of whole 16 bytes
        a, b = F.pad(a, (0, empty)).contiguous(), F.pad(b, (0, 0, 0, empty)).contiguous()
        change = F.grouped_mm(F.grouped_mm(x.float(), a, offs=ends), b, offs=ends)
        return out + (self.scale * change).to(out.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the adapter by expert, (E, in, r) and (E, r, out)."""
        a = self.lora_A.weight.unflatten(0, (self.num_experts, self.rank)).transpose(1, 2)
        return a, self.lora_B.weight.unflatten(1, (self.rank, self.num_experts)).permute(2, 1, 0)

    @torch.no_grad()
    def merged(self) -> Experts:
        """Add this adapter, and one inside, to the experts' weights, computed in float32, and return the experts."""
        if isinstance(self.base_layer, LoraExperts):
            self.base_layer.merged()
        a, b = self.factors()
        for weight, one, two in zip(self.experts.get_parameter(self.leaf), a, b, strict=True):
            weight.copy_(weight.float() + self.scale * (one @ two))
        return self.experts


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = nn.Parameter(weight)
    linear.out_features, linear.in_features = weight.shape
    return linear


def is_adapter(name: str) -> bool:
    """Tell whether a parameter is an adapter's."""
    return ".lora_" in name


def is_target(name: str, target: str | tuple[str, ...]) -> bool:
    """Tell whether a Linear is meant: a pattern matches its whole name, a list its name or what follows a dot (as in PEFT)."""
    if target == "all-linear":
        return not name.endswith("lm_head")
    if isinstance(target, str):
        try:
            return re.fullmatch(target, name) is not None
        except re.error as error:
            raise ConfigError(f"lora.target {target!r} is no valid pattern: {error}") from None
    return any(name == end or name.endswith(f".{end}") for end in target)


def adapt(model: Qwen3VL, settings: LoraSettings, allowed: Callable[[str], bool], seed: int = 0) -> list[str]:
    """Put adapters on the Linears and experts that are meant and allowed; return their names. Raise ConfigError for none.

    Names are the released ones, such as model.language_model.layers.0.self_attn.q_proj.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linears if allowed(name) and is_target(disk_name(name), settings.target)]
    packed = _chosen_experts(model, settings, allowed)
    if not chosen and not packed:
        among = sorted({name.rpartition(".")[2] for name in linears if allowed(name)})
        whole = "; a pattern must match a whole name, as '.*q_proj' does" if isinstance(settings.target, str) else ""
        raise ConfigError(
            f"lora.target {settings.target!r} names no Linear of a part that learns; they end in {', '.join(among)}{whole}"
        )
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        adapter = LoraLinear(base, settings.rank, settings.scale, settings.dropout, generator)
        model.set_submodule(name, adapter.train(base.training))
    for name, leaf in packed:
        experts = model.get_submodule(name)
        assert isinstance(experts, Experts | LoraExperts)
        wrapped = LoraExperts(experts, leaf, settings.rank, settings.scale, generator)
        model.set_submodule(name, wrapped.train(experts.training))
    return chosen + [f"{name}.{leaf}" for name, leaf in packed]


def _chosen_experts(model: Qwen3VL, settings: LoraSettings, allowed: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Find the packed experts that are meant, (name, weight), gate_up_proj first. Raise ConfigError if none is."""
    if not settings.parameters:
        return []
    held = [
        (name, leaf) for name, module in model.named_modules() if isinstance(module, Experts) and allowed(name)
        for leaf in ("gate_up_proj", "down_proj")
    ]  # fmt: skip
    chosen = [(name, leaf) for name, leaf in held if is_target(disk_name(f"{name}.{leaf}"), settings.parameters)]
    if not chosen:
        among = "are experts.gate_up_proj and experts.down_proj" if held else "do not exist in this model"
        raise ConfigError(f"lora.parameters {settings.parameters!r} names no experts of a part that learns; they {among}")
    if settings.dropout:
        raise ConfigError(f"lora.dropout is {settings.dropout}, but adapters of experts have none (as in PEFT); set it to 0")
    return chosen


def adapters(model: nn.Module) -> dict[str, LoraLinear | LoraExperts]:
    """Find the adapters of a model by the names of what they wrap."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear | LoraExperts)}


def merge_adapters(model: nn.Module) -> int:
    """Merge all adapters into their Linears, in place; return how many. The model is then one without adapters."""
    found = adapters(model)
    for name, adapter in found.items():
        if not name.endswith(".base_layer"):  # one that wraps another merges both
            model.set_submodule(name, adapter.merged())
    return len(found)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name the weights of all adapters."""
    return {
        f"{name}.{part}.weight": getattr(adapter, part).weight.detach()
        for name, adapter in adapters(model).items() for part in ("lora_A", "lora_B")
    }  # fmt: skip


def adapter_files(tensors: Mapping[str, Tensor], settings: LoraSettings, base: str | None) -> dict[str, bytes]:
    """Return the two files of an adapter, by name, as PEFT writes them. tensors: as `adapter_tensors` names them."""
    names = [disk_name(name).removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    experts = {name: _leaf(name, names, settings.parameters) for name in names if _EXPERTS.search(name)}
    alpha = int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": settings.rank, "lora_alpha": alpha,
        "lora_dropout": settings.dropout, "use_rslora": settings.rslora, "use_dora": False, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "target_modules": [name for name in names if name not in experts],
        "target_parameters": [f"{name.removesuffix(_INNER)}.{leaf}" for name, leaf in experts.items()] or None,
    }  # fmt: skip
    weights = {f"{_PREFIX}{disk_name(name)}": tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), WEIGHTS: save(weights, {"format": "pt"})}


def save_adapter(tensors: Mapping[str, Tensor], folder: Path, settings: LoraSettings, base: str | None = None) -> None:
    """Write an adapter, each file replaced at once. base: what to name as the model it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in adapter_files(tensors, settings, base).items():
        part = folder / f".{name}.part"
        part.write_bytes(data)
        part.replace(folder / name)


def base_of(folder: Path) -> str | None:
    """Return the name of the model that an adapter says it was trained on; None for the embedded one. Raise CheckpointError."""
    base = _read_config(folder).get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise CheckpointError(f"{folder / CONFIG} has base_model_name_or_path = {base!r}; expected a name or a folder")
    return base or None


def load_adapter(model: Qwen3VL, folder: str | Path) -> list[str]:
    """Put the adapter of a folder on a model, ours or one that PEFT wrote; return the names of the adapted Linears.

    Raise CheckpointError for tensors that do not fit the model, and for what changes the numbers in a way not known here.
    """
    folder = Path(folder)
    config = _read_config(folder)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library raises its own, and OSError
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    for key in tensors:
        if not key.startswith(_PREFIX):
            raise CheckpointError(f"{folder / WEIGHTS} holds {key}, which is no adapter of a Linear")

    def scale(name: str, rank: int) -> float:
        alpha = _of_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

    parameters = config.get("target_parameters") or ()
    return put_on(model, {key.removeprefix(_PREFIX): value for key, value in tensors.items()}, scale, parameters)


def put_on(
    model: Qwen3VL, tensors: Mapping[str, Tensor], scale: Callable[[str, int], float], parameters: Sequence[str] = ()
) -> list[str]:
    """Put adapters of these weights on a model, frozen. tensors: by released names; scale: of a released name and a rank.

    parameters: the experts' weights that are adapted, by name or its end. Return our names of what is adapted. Raise
    CheckpointError for what does not fit.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"(.+)\.(lora_[AB])\.weight", key)
        if match is None:
            raise CheckpointError(f"the adapter holds {key}, which is no adapter of a Linear or of experts")
        pairs.setdefault(match[1], {})[match[2]] = value
    kinds = (nn.Linear, Experts)
    modules = {disk_name(name): (name, module) for name, module in model.named_modules() if isinstance(module, kinds)}
    put = []
    for name in sorted(pairs, key=lambda name: not name.endswith(_INNER)):  # what is inside comes first
        path, module = modules.get(name.removesuffix(_INNER), (name, None))
        if module is None or len(pairs[name]) != 2:
            raise CheckpointError(f"the adapter holds {' and '.join(sorted(pairs[name]))} for {name}, " + (
                "which this model does not have" if module is None else "and needs both lora_A and lora_B"))  # fmt: skip
        a, b = pairs[name]["lora_A"], pairs[name]["lora_B"]
        adapter: LoraLinear | LoraExperts
        if isinstance(module, Experts):
            leaf, rank = _leaf(name, list(pairs), parameters), len(a) // module.num_experts
            base = model.get_submodule(path)
            assert isinstance(base, Experts | LoraExperts)
            adapter = LoraExperts(base, leaf, rank, scale(f"{path}.{leaf}", rank), torch.Generator())
        else:
            assert isinstance(module, nn.Linear)
            adapter = LoraLinear(module, len(a), scale(name, len(a)), 0.0, torch.Generator())
        for part, value in ((adapter.lora_A, a), (adapter.lora_B, b)):
            if part.weight.shape != value.shape:
                raise CheckpointError(
                    f"the adapter of {name} has shapes {tuple(a.shape)} and {tuple(b.shape)}, but the model needs "
                    f"{tuple(adapter.lora_A.weight.shape)} and {tuple(adapter.lora_B.weight.shape)}"
                )
            with torch.no_grad():
                part.weight.copy_(value)
        model.set_submodule(path, adapter.requires_grad_(False).eval())
        put.append(path)
    return put


def _leaf(name: str, names: Sequence[str], parameters: Sequence[str]) -> str:
    """Say which weight of experts an adapter belongs to: of two, gate_up_proj's is inside; of one, it must be said."""
    if name.endswith(_INNER):
        return "gate_up_proj"
    if f"{name}{_INNER}" in names:
        return "down_proj"
    meant = [leaf for leaf in ("gate_up_proj", "down_proj") if is_target(f"{name}.{leaf}", tuple(parameters))]
    if len(meant) != 1:
        raise CheckpointError(
            f"the adapter of {name} is of one weight, but target_parameters names {' and '.join(meant) or 'none'}"
        )
    return meant[0]


def _of_pattern(pattern: Mapping[str, float] | None, name: str, default: float) -> float:
    """Look up a value that PEFT keys by a pattern for names' ends."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", name):
            return value
    return default


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error.strerror}; an adapter folder holds it") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise CheckpointError(f"{folder / CONFIG} describes no LoRA adapter")
    for key, values in _INERT.items():
        if config.get(key) not in values:
            hint = ""
            if key == "init_lora_weights":
                hint = "; it changed the base, so let PEFT save it as a plain LoRA (path_initial_model_for_weight_conversion)"
            raise CheckpointError(
                f"{folder / CONFIG} has {key} = {config[key]!r}, which foveal does not know how to apply{hint}"
            )
    return config

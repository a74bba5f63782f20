"""Low-rank adapters on Linears, in PEFT's file format: put on by name, saved, loaded, merged.

y = W x + scale * B A x, with A (r, in) random and B (out, r) zero, so that training starts from the model as it is. Adapters
are float32 whatever the model is in: small steps on bfloat16 weights round to nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
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

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What would change the numbers, and the value at which it does not.
_INERT: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []), "fan_in_fan_out": (False, None),
    "layer_replication": (None,), "target_parameters": (None, []), "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
}  # fmt: skip


class LoraLinear(nn.Module):
    """A frozen Linear and its adapter. lora_A: (r, in), lora_B: (out, r), float32."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer, self.scale = base.requires_grad_(False), scale
        self.dropout = nn.Dropout(dropout)
        a = torch.empty(rank, base.in_features).uniform_(-1, 1, generator=generator) / math.sqrt(base.in_features)
        device = base.weight.device
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the type of the base's result."""
        out: Tensor = self.base_layer(x)
        change = F.linear(F.linear(self.dropout(x.float()), self.lora_A), self.lora_B)
        return out + (self.scale * change).to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Add the adapter to the base's weight, computed in float32, and return the base."""
        weight = self.base_layer.weight
        weight.copy_(weight.float() + self.scale * (self.lora_B @ self.lora_A))
        return self.base_layer


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
    """Put adapters on the Linears that are meant and allowed; return their names. Raise ConfigError if there are none.

    Names are the released ones, such as model.language_model.layers.0.self_attn.q_proj.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linears if allowed(name) and is_target(disk_name(name), settings.target)]
    if not chosen:
        among = sorted({name.rpartition(".")[2] for name in linears if allowed(name)})
        raise ConfigError(
            f"lora.target {settings.target!r} names no Linear of a part that learns; they end in {', '.join(among)}"
        )
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        adapter = LoraLinear(base, settings.rank, settings.scale, settings.dropout, generator)
        model.set_submodule(name, adapter.train(base.training))
    return chosen


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """Find the adapters of a model by the names of their Linears."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def merge_adapters(model: nn.Module) -> int:
    """Merge all adapters into their Linears, in place; return how many. The model is then one without adapters."""
    found = adapters(model)
    for name, adapter in found.items():
        model.set_submodule(name, adapter.merged())
    return len(found)


def adapter_files(model: nn.Module, settings: LoraSettings, base: str | None) -> dict[str, bytes]:
    """Return the two files of an adapter, by name, as PEFT writes them."""
    tensors, names = {}, []
    for name, adapter in adapters(model).items():
        names.append(disk_name(name))
        for part in ("lora_A", "lora_B"):
            tensors[f"{_PREFIX}{names[-1]}.{part}.weight"] = getattr(adapter, part).detach().cpu().contiguous()
    alpha = int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": settings.rank, "lora_alpha": alpha,
        "lora_dropout": settings.dropout, "use_rslora": settings.rslora, "use_dora": False, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "target_modules": names,
    }  # fmt: skip
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), WEIGHTS: save(tensors, {"format": "pt"})}


def save_adapter(model: nn.Module, folder: Path, settings: LoraSettings, base: str | None = None) -> None:
    """Write an adapter, each file replaced at once. base: what to name as the model it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in adapter_files(model, settings, base).items():
        part = folder / f".{name}.part"
        part.write_bytes(data)
        part.replace(folder / name)


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
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.(lora_[AB])\.weight", key)
        if match is None:
            raise CheckpointError(f"{folder / WEIGHTS} holds {key}, which is no adapter of a Linear")
        pairs.setdefault(match[1], {})[match[2]] = value
    modules = {disk_name(name): (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, pair in pairs.items():
        _put_on(model, name, pair, modules.get(name), config)
    return [modules[name][0] for name in pairs]


def _put_on(
    model: Qwen3VL, name: str, pair: Mapping[str, Tensor], found: tuple[str, nn.Linear] | None, config: Mapping[str, Any]
) -> None:
    if found is None or len(pair) != 2:
        raise CheckpointError(f"the adapter holds {' and '.join(sorted(pair))} for {name}, " + (
            "which is no Linear of this model" if found is None else "and needs both lora_A and lora_B"))  # fmt: skip
    a, b = pair["lora_A"], pair["lora_B"]
    path, base = found
    if a.shape != (len(a), base.in_features) or b.shape != (base.out_features, len(a)):
        raise CheckpointError(
            f"the adapter of {name} has shapes {tuple(a.shape)} and {tuple(b.shape)}, but the Linear is "
            f"{base.out_features} x {base.in_features}"
        )
    alpha = _of_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    scale = alpha / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
    adapter = LoraLinear(base, len(a), scale, 0.0, torch.Generator())
    with torch.no_grad():
        adapter.lora_A.copy_(a)
        adapter.lora_B.copy_(b)
    model.set_submodule(path, adapter.requires_grad_(False).eval())


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
            raise CheckpointError(f"{folder / CONFIG} has {key} = {config[key]!r}, which foveal does not know how to apply")
    return config

"""A frozen base in 8 bits, for adapters to learn on (as QLoRA does): a quarter of float32's memory, gradients through it.

Weights are kept in groups of GROUP inputs, each with a float16 scale, and made float again where they are multiplied, one
layer at a time: nothing float outlives a product, since the backward pass makes it again. Plain torch, on any device; packed
weights of the native kernels (model/quantize.py) answer faster, but let no gradient through.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.errors import ConfigError
from foveal.finetune.lora import is_adapter
from foveal.kernels.oracle import GROUP
from foveal.model import Qwen3VL
from foveal.model.moe import Experts
from foveal.model.quantize import width
from foveal.model.store import quantise


class Int8Weight(nn.Module):
    """A weight (..., N, K) in 8 bits. codes: (..., N, K / 32, 32) int8, K rounded up; scales: (..., N, K / 32) float16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.columns = weight.shape[-1]
        weight = weight.detach()
        if weight.ndim == 2:
            codes, scales = _quantise(weight)
        else:  # one expert at a time: all of them in float32 are what there may be no room for
            codes, scales = (torch.stack(part) for part in zip(*map(_quantise, weight), strict=True))
        # Parameters rather than buffers, so that FSDP2 gives every process a part of them.
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as floats, (..., N, K)."""
        return dequantise(self.codes, self.scales, self.columns, dtype)


def _quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of a matrix."""
    codes, scales = quantise(F.pad(weight, (0, -weight.shape[-1] % GROUP)))
    if not scales.isfinite().all():
        raise ConfigError("a weight is not finite, or too large for 8 bits with float16 scales; leave bits out")
    return codes.unflatten(-1, (-1, GROUP)), scales


def dequantise(codes: Tensor, scales: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Make a weight of codes and scales, multiplied in float32."""
    return (codes * scales.float()[..., None]).flatten(-2)[..., :columns].to(dtype)


class _Product(torch.autograd.Function):
    """x (T, K) times a weight in 8 bits, (N, K), or (E, N, K) of experts whose rows end at `ends`. Only x gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, columns: int, ends: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales, ends)
        ctx.columns = columns
        weight = dequantise(codes, scales, columns, x.dtype)
        return F.linear(x, weight) if ends is None else F.grouped_mm(x, weight.transpose(-2, -1), offs=ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        codes, scales, ends = ctx.saved_tensors
        weight = dequantise(codes, scales, ctx.columns, grad.dtype)
        back = grad @ weight if ends is None else F.grouped_mm(grad.contiguous(), weight, offs=ends)
        return back, None, None, None, None


def _product(x: Tensor, weight: Int8Weight, ends: Tensor | None = None) -> Tensor:
    out: Tensor = _Product.apply(x, weight.codes, weight.scales, weight.columns, ends)
    return out


class Int8Linear(nn.Module):
    """A frozen Linear in 8 bits; its bias stays as it is."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = Int8Weight(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        out = _product(x, self.weight)
        return out if self.bias is None else out + self.bias


class Int8Experts(Experts):
    """Frozen experts in 8 bits, in groups along the inputs of each product."""

    def __init__(self, experts: Experts) -> None:
        nn.Module.__init__(self)
        self.num_experts = experts.num_experts
        self.weights = nn.ModuleDict(
            {leaf: Int8Weight(experts.get_parameter(leaf).transpose(1, 2)) for leaf in ("gate_up_proj", "down_proj")}
        )

    def product(self, leaf: str, x: Tensor, ends: Tensor) -> Tensor:
        weight = self.weights[leaf]
        assert isinstance(weight, Int8Weight)
        return _product(x, weight, ends)


def keep_in_8_bits(model: Qwen3VL, dtype: torch.dtype) -> int:
    """Quantise what is frozen, in place, of the weights that packing quantises too (model/quantize.py); return how many.

    All other weights become `dtype`. Embeddings are among them: they are looked up, and the head may be tied to them.
    """
    changed = 0
    for name, module in list(model.named_modules()):
        plain = name.replace(".base_layer", "")
        if isinstance(module, nn.Linear) and width(f"{plain}.weight", 8, model.config) and not module.weight.requires_grad:
            model.set_submodule(name, Int8Linear(module))
        elif type(module) is Experts and not any(p.requires_grad for p in module.parameters()):
            model.set_submodule(name, Int8Experts(module))
        else:
            continue
        changed += 1
    if not changed:
        raise ConfigError("bits is 8, but no weight is frozen that could be kept so; learn by adapters ([lora])")
    held = {id(p) for module in model.modules() if isinstance(module, Int8Weight) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in held and not is_adapter(name):
            parameter.data = parameter.data.to(dtype)
    return changed

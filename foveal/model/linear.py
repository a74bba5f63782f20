"""Linear layers whose weights are block-quantised: modules that stand where a model's own stood, on the native kernels.

They hold no parameters: nothing here is trained, moved to a GPU or cast. Inputs and outputs are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal import kernels
from foveal.kernels import Activations, Packed
from foveal.model.rms_norm import RMSNorm
from foveal.model.rope import rotate


class PackedLinear(nn.Module):
    """A Linear with a packed weight (N, K)."""

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = packed
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor | Activations) -> Tensor:
        """Multiply (..., K) float32, or rows that are quantised already. Return (..., N) float32."""
        if isinstance(x, Activations):
            return _product(x, self.packed, self.bias)
        return _product(x.reshape(-1, x.shape[-1]), self.packed, self.bias).view(*x.shape[:-1], self.packed.rows)


class PackedEmbedding(nn.Module):
    """An embedding that stays packed, and the head tied to it."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows (T,). Return (T, D) float32."""
        return kernels.take_rows(self.packed, ids)

    def score(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary for hidden states (O, D). Return (O, R)."""
        return _product(hidden, self.packed, None)


class PackedExperts(nn.Module):
    """E SwiGLU MLPs; gate and up (F, D), down (D, F) of each."""

    def __init__(self, gate: Sequence[Packed], up: Sequence[Packed], down: Sequence[Packed]) -> None:
        super().__init__()
        self.gate, self.up, self.down = list(gate), list(up), list(down)

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """Sum each token's K experts, visiting those that anybody chose. x: (T, D); weights, index: (T, K)."""
        out = torch.zeros_like(x)
        for e in index.unique().tolist():
            rows, place = (index == e).nonzero(as_tuple=True)
            inner = kernels.swiglu(x[rows], self.gate[e], self.up[e])
            out.index_add_(0, rows, _product(inner, self.down[e], None) * weights[rows, place, None])
        return out


class QuantisingNorm(nn.Module):
    """An RMSNorm whose rows are on their way to packed linears: it hands them over quantised."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Activations:
        """Norm and quantise rows (T, D) float32."""
        return kernels.rms_quantise(x, self.weight, self.eps)


class TurningNorm(nn.Module):
    """The norm of queries or keys, together with the turn that follows it."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Norm and turn heads (T, N, H) float32 by tables (T, H/2)."""
        out: Tensor = kernels.turn(x, self.weight, self.eps, cos, sin)
        return out


def turned(norm: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm heads (T, N, H), then turn them by tables (T, H/2); in one pass where the norm can."""
    out: Tensor = norm(x, cos, sin) if isinstance(norm, TurningNorm) else rotate(norm(x), cos, sin)
    return out


def _product(x: Tensor | Activations, packed: Packed, bias: Tensor | None) -> Tensor:
    out: Tensor = kernels.matmul(x, packed, bias)
    return out


def gelu(x: Tensor, linear: nn.Module) -> Tensor:
    """Return GELU, in its tanh form, of linear(x) for rows (T, K); of a packed linear in one pass."""
    if isinstance(linear, PackedLinear):
        out: Tensor = kernels.matmul(x, linear.packed, linear.bias, gelu=True)
        return out
    return F.gelu(linear(x), approximate="tanh")


def swiglu(x: Tensor | Activations, gate: nn.Module, up: nn.Module) -> Tensor:
    """Return silu(gate(x)) * up(x) for rows (T, K); of packed linears in one pass, with nothing in between stored."""
    if isinstance(gate, PackedLinear) and isinstance(up, PackedLinear):
        out: Tensor = kernels.swiglu(x, gate.packed, up.packed)
        return out
    assert isinstance(x, Tensor)  # only packed linears are given quantised rows
    return F.silu(gate(x)) * up(x)

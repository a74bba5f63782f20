"""Packing that knows what a linear is given: errors are weighed by the inputs' squares and made up for in later columns.

Rounding a weight errs. Where inputs go together, the columns still to be rounded can make up for most of what an error does
to the output (GPTQ, Frantar et al. 2022). What goes together is measured on some prompts with their answers, within blocks of
BLOCK columns only: of the 2B that fits in half a gigabyte, and a few thousand tokens can tell it. Rows of a matrix do not
see one another, so it may come in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from foveal import kernels
from foveal.batch import Batch
from foveal.errors import ConfigError
from foveal.kernels import Packed, oracle
from foveal.model import Qwen3VL
from foveal.patches import Patches
from foveal.sequence import Sequence as Ids

BLOCK = 256  # columns, a multiple of the group
DAMPING = 0.01  # of the inputs' mean square, added to each: no use is made of directions that hardly occurred
LEAST = 1e-4  # importance of a column beside the mean one


class Moments:
    """Second moments of rows (T, K) within blocks of columns: sums (blocks, BLOCK, BLOCK) float32, K filled up with zeros."""

    def __init__(self, columns: int) -> None:
        self.columns, self.count = columns, 0
        self.sums = torch.zeros(-(-columns // BLOCK), BLOCK, BLOCK)

    def add(self, x: Tensor) -> None:
        """Add rows (..., K)."""
        rows = x.reshape(-1, self.columns).float()
        blocks = nn.functional.pad(rows, (0, -self.columns % BLOCK)).view(len(rows), -1, BLOCK).transpose(0, 1)
        self.sums.baddbmm_(blocks.transpose(1, 2), blocks)
        self.count += len(rows)


@torch.inference_mode()
def gather(model: Qwen3VL, prompts: Iterable[tuple[Ids, Sequence[Patches]]]) -> dict[str, Moments]:
    """Run conversations, each with the patches of its pictures and clips, through a plain model.

    Return the moments of what each linear of the decoder's layers and the head was given, by the name of its weight: of tied
    embeddings, as the head. Raise ConfigError where there are no conversations.
    """
    layers = model.language_model.layers.named_modules(prefix="language_model.layers")
    linears = {f"{path}.weight": module for path, module in layers if isinstance(module, nn.Linear)}
    found = {name: Moments(linear.in_features) for name, linear in linears.items()}
    hooks = [linears[name].register_forward_pre_hook(_adds_to(moments)) for name, moments in found.items()]
    # Every row counts for the head, which itself is only given those that are asked for.
    head = found["language_model.embed_tokens.weight" if model.lm_head is None else "lm_head.weight"] = Moments(
        model.config.text.hidden_size
    )
    hooks.append(model.language_model.norm.register_forward_hook(lambda _module, _given, out: head.add(out)))
    try:
        for sequence, patches in prompts:
            vision = [model.encode(patches)] if patches else [None]
            model.hidden(Batch.pack([sequence], vision, output="last", device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    if not all(moments.count for moments in found.values()):
        raise ConfigError("there is nothing to calibrate with; give some conversations that are like those to come")
    return found


def _adds_to(moments: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        moments.add(given[0])

    return hook


class Feedback:
    """How one matrix is packed: made from its moments, used for each piece of its rows."""

    def __init__(self, moments: Moments) -> None:
        squares = moments.sums.diagonal(dim1=1, dim2=2)
        mean = (squares.sum() / moments.columns).clamp(min=1e-30)
        self.importance = (squares.reshape(-1)[: moments.columns] / mean).clamp(min=LEAST).contiguous()
        damped = moments.sums.double() + DAMPING * mean.double() * torch.eye(BLOCK, dtype=torch.float64)
        # U of each block, upper, U^T U the inverse of the moments: row j, divided by its diagonal, says by how much the
        # columns behind j must change to make up for an error of one in column j.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.remedies = torch.linalg.cholesky(inverse, upper=True).float()

    def pack(self, weight: Tensor, bits: int, *, out: Packed | None = None) -> Packed:
        """Pack rows (N, K) as `kernels.pack` does: scales by importance, then codes column by column."""
        packed: Packed = kernels.pack(weight, bits, importance=self.importance, out=out)
        rows, columns = weight.shape
        scales = packed.scales.float().transpose(1, 2).reshape(-1, packed.scales.shape[1])[:rows].T.contiguous()
        inverse = torch.where(scales == 0, 0.0, 1 / scales)
        bottom, top = (-127, 127) if bits == 8 else (-8, 7)
        wanted = weight.T.to(torch.float32, copy=True).contiguous()  # (K, N), so that a column is dense
        codes = torch.zeros(packed.codes.shape[1] * oracle.GROUP, packed.codes.shape[0] * oracle.LANES, dtype=torch.int8)
        for first in range(0, columns, oracle.GROUP):
            stop, end = min(first + oracle.GROUP, columns), min((first // BLOCK + 1) * BLOCK, columns)
            remedy = self.remedies[first // BLOCK]
            start = first // BLOCK * BLOCK
            errors = torch.empty(stop - first, rows)
            for k in range(first, stop):
                code = (wanted[k] * inverse[first // oracle.GROUP]).round_().clamp_(bottom, top)
                codes[k, :rows] = code
                error = (wanted[k] - code * scales[first // oracle.GROUP]) / remedy[k - start, k - start]
                wanted[k + 1 : stop].addr_(remedy[k - start, k + 1 - start : stop - start], error, alpha=-1)
                errors[k - first] = error
            wanted[stop:end].addmm_(remedy[first - start : stop - start, stop - start : end - start].T, errors, alpha=-1)
        q = codes.T.contiguous().view(codes.shape[1], -1, oracle.GROUP)
        packed.codes.copy_(torch.from_numpy(oracle.arrange(q.numpy(), bits)))
        return packed

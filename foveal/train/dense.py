"""Dense supervision of the vision encoder: what is seen in every patch, read off the vision tokens and each tap.

Plain question answering from random weights spends hours on learning to see. Linear heads that name the thing and the colour
under every patch, the character under every quarter of one, and the box of the thing under every token, teach that in
minutes. They are thrown away.

What a token shows of a thing is boxed twice: in numbers, which compare well, and in one of 32 intervals for each end, from
which a decoder can read digits without arithmetic. Only the part inside the token, since that is seen there; the ends of the
whole thing are in the tokens that are marked as its ends. One token, that of the middle, is marked for things to be counted by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.batch import VisionTokens
from foveal.train.cells import NO_BOX, QUARTERS, CellTargets
from foveal.world import CHAR_CLASSES, COLOUR_CLASSES, KIND_CLASSES

BACKGROUND_WEIGHTS = (0.15, 0.15, 0.05)  # of kind, colour and character: most patches show nothing
MARKS = (4.0, 1.0, 1.0, 1.0, 1.0)  # weights of the marks: counts need every middle
INTERVALS = 32
CLASSES = (len(KIND_CLASSES), len(COLOUR_CLASSES), len(CHAR_CLASSES))


def class_weights() -> list[Tensor]:
    """Make the loss weights of kinds, colours and characters: one, and less for the background."""
    weights = [torch.ones(n) for n in CLASSES]
    for weight, background in zip(weights, BACKGROUND_WEIGHTS, strict=True):
        weight[0] = background
    return weights


class DenseHeads(nn.Module):
    """A linear head on the merged tokens and on each tap: `levels` of them, for tokens of `width` channels."""

    def __init__(self, width: int, levels: int, patches_per_token: int) -> None:
        super().__init__()
        kinds, colours, chars = CLASSES
        self.patches = patches_per_token
        self.sizes = (patches_per_token * (kinds + colours), patches_per_token * QUARTERS * chars, 4, 4 * INTERVALS, 5)
        self.heads = nn.ModuleList(nn.Linear(width, sum(self.sizes)) for _ in range(levels))
        self.weights = class_weights()

    def forward(self, tokens: VisionTokens, targets: Sequence[CellTargets]) -> tuple[Tensor, dict[str, float]]:
        """Return the mean loss over levels, and on the merged tokens the share of patches with a thing named right."""
        classes = torch.from_numpy(np.concatenate([t.classes for t in targets])).flatten(0, 1)
        chars = torch.from_numpy(np.concatenate([t.chars for t in targets])).flatten()
        boxes = torch.from_numpy(np.concatenate([t.boxes for t in targets]))
        marks = torch.from_numpy(np.concatenate([t.marks for t in targets]))
        mark_weights = marks.new_tensor(MARKS)
        has_box = boxes[:, 0] != NO_BOX
        wanted = {"kind": classes[:, 0], "colour": classes[:, 1], "char": chars}
        loss, right = tokens.embeddings.new_zeros((), dtype=torch.float32), {}
        for level, head in enumerate(self.heads):
            rows = tokens.embeddings if level == 0 else tokens.taps[level - 1]
            # Scale-free: what the decoder sees is normed too.
            things, letters, ends, intervals, marked = head(F.rms_norm(rows.float(), rows.shape[-1:])).split(self.sizes, dim=-1)
            kind, colour = things.reshape(len(rows) * self.patches, -1).split(CLASSES[:2], dim=-1)
            scores = {"kind": kind, "colour": colour, "char": letters.reshape(-1, CLASSES[2])}
            for (name, said), weight in zip(scores.items(), self.weights, strict=True):
                truth = wanted[name]
                loss = loss + F.cross_entropy(said, truth, weight=weight)
                if level == 0 and bool((shown := truth > 0).any()):
                    right[f"cell_{name}"] = (said.detach().argmax(-1) == truth)[shown].float().mean().item()
            loss = loss + 2 * F.binary_cross_entropy_with_logits(marked, marks, weight=mark_weights)
            if bool(has_box.any()):
                # Nearly the plain distance: a square stops pushing while a box is still a tenth of the picture off.
                loss = loss + 8 * F.smooth_l1_loss(ends[has_box], boxes[has_box], beta=0.02)
                wanted_ends = (boxes[has_box] * INTERVALS).long().clamp(max=INTERVALS - 1)
                said_ends = intervals[has_box].view(-1, 4, INTERVALS)
                loss = loss + 0.5 * F.cross_entropy(said_ends.flatten(0, 1), wanted_ends.flatten())
                if level == 0:
                    off = (said_ends.detach().argmax(-1) - wanted_ends).abs()
                    right["cell_box"] = (off <= 1).all(-1).float().mean().item()
                    right["cell_end"] = (ends.detach()[has_box] - boxes[has_box]).abs().mean().item()
        return loss / len(self.heads), right

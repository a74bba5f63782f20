"""Dense supervision of the vision encoder: what is seen in every patch, read off the vision tokens and each tap.

Plain question answering from random weights spends hours on learning to see. Linear heads that name the thing, colour and
character under every patch, and the box of the thing under every token, teach that in minutes. They are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.batch import VisionTokens
from foveal.train.data import NO_BOX, CellTargets

BACKGROUND_WEIGHTS = (0.15, 0.15, 0.03)  # most patches show nothing, and hardly any a character


class DenseHeads(nn.Module):
    """A linear head on the merged tokens and on each tap. classes: how many kinds, colours and characters there are."""

    def __init__(self, width: int, levels: int, patches_per_token: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.patches, self.classes = patches_per_token, tuple(classes)
        out = patches_per_token * sum(classes) + 4
        self.heads = nn.ModuleList(nn.Linear(width, out) for _ in range(levels))
        for i, n in enumerate(classes):
            weight = torch.ones(n)
            weight[0] = BACKGROUND_WEIGHTS[i]
            self.register_buffer(f"weight{i}", weight, persistent=False)

    def forward(self, tokens: VisionTokens, targets: Sequence[CellTargets]) -> tuple[Tensor, dict[str, float]]:
        """Return the mean loss over levels, and on the merged tokens the share of patches with a thing named right."""
        classes = torch.from_numpy(np.concatenate([t.classes for t in targets]))
        boxes = torch.from_numpy(np.concatenate([t.boxes for t in targets]))
        has_box = boxes[:, 0] != NO_BOX
        loss, right = tokens.embeddings.new_zeros((), dtype=torch.float32), {}
        for level, head in enumerate(self.heads):
            rows = tokens.embeddings if level == 0 else tokens.taps[level - 1]
            # Scale-free: what the decoder sees is normed too.
            out = head(F.rms_norm(rows.float(), rows.shape[-1:]))
            logits = out[:, :-4].view(len(rows), self.patches, -1).split(self.classes, dim=-1)
            for i, (name, scores) in enumerate(zip(("kind", "colour", "char"), logits, strict=True)):
                wanted = classes[..., i].flatten()
                loss = loss + F.cross_entropy(scores.flatten(0, 1), wanted, weight=getattr(self, f"weight{i}"))
                if level == 0 and bool((wanted > 0).any()):
                    hit = scores.detach().flatten(0, 1).argmax(-1) == wanted
                    right[f"cell_{name}"] = hit[wanted > 0].float().mean().item()
            if bool(has_box.any()):
                loss = loss + 4 * F.smooth_l1_loss(out[has_box, -4:], boxes[has_box], beta=0.1)
        return loss / len(self.heads), right

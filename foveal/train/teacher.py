"""A small convolutional network that sees for the vision encoder while that one cannot yet.

A transformer must learn every shape anew for each place within a patch; a convolution need not, and names shapes after
minutes that the encoder, left to labels alone, had not told apart after half an hour. So the network learns first, from the
same labels, and the encoder's blocks then learn to say what its layers say (a teacher without patches, as in DeiT; hints in
the middle, as in FitNets). It is used in training only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.model.vision import VisionModel
from foveal.train import checkpoint
from foveal.train.data import Example
from foveal.train.dense import CLASSES, class_weights
from foveal.train.listen import Listener

FILE, LOG, LOG_EVERY = "teacher.safetensors", "teacher.jsonl", 20
LOW, HIGH = 128, 256  # channels at half a patch, and at a patch


def _layer(inside: int, out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class Teacher(nn.Module):
    """Pictures to features at half a patch (8 px), where characters are named, and at a patch, where things are."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(
            *_layer(3, 32, 5, 2), *_layer(32, 64, 3, 2), *_layer(64, 96, 3, 2), *_layer(96, LOW), *_layer(LOW, LOW)
        )
        self.high = nn.Sequential(*_layer(LOW, HIGH, 3, 2), *_layer(HIGH, HIGH))
        self.thing, self.char = nn.Conv2d(HIGH, sum(CLASSES[:2]), 1), nn.Conv2d(LOW, CLASSES[2], 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Look at (N, 3, H, W) in -1..1. Return features (N, LOW, H/8, W/8) and (N, HIGH, H/16, W/16)."""
        low = self.low(pictures)
        return low, self.high(low)


def pictures(examples: Sequence[Example], patch: int) -> Tensor:
    """Put the patches of still pictures of one size together again. Return (N, 3, H, W) float32 in -1..1."""
    rows, columns = examples[0].patches.grids[0]
    out = torch.empty(len(examples), rows, columns, 3, patch, patch)
    at, coords = _places(examples)
    pixels = torch.from_numpy(np.stack([e.patches.pixels for e in examples]))
    out[at, coords[..., 1], coords[..., 2]] = pixels.view(len(examples), -1, 3, patch, patch).float() / 127.5 - 1
    return out.permute(0, 3, 1, 4, 2, 5).reshape(len(examples), 3, rows * patch, columns * patch)


def _places(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    coords = torch.from_numpy(np.stack([e.patches.coords for e in examples])).long()
    return torch.arange(len(examples))[:, None], coords


def by_patch(features: Tensor, examples: Sequence[Example], per_side: int) -> Tensor:
    """Read a map (N, C, rows*s, columns*s) at every patch, in the patches' own order. Return (P, s*s, C)."""
    at, coords = _places(examples)
    n, c, height, width = features.shape
    s = per_side
    grid = features.reshape(n, c, height // s, s, width // s, s).permute(0, 2, 4, 3, 5, 1)
    return grid[at, coords[..., 1], coords[..., 2]].flatten(0, 1).reshape(-1, s * s, c)


def trained_teacher(
    folder: Path, batches: Iterable[list[Example]], patch: int, steps: int, *, dtype: torch.dtype, seed: int, lr: float = 2e-3
) -> Teacher | None:  # fmt: skip
    """Return the teacher a run keeps in its folder, trained first, with products in `dtype`, if it is not there.

    teacher.jsonl beside it logs the training. None where the batches end before the steps do: then nothing is kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = Teacher()
    if (folder / FILE).is_file():
        teacher.load_state_dict(checkpoint.load(folder, FILE)[0])
        return teacher.eval().requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.15)
    weights, step = class_weights(), 0
    for step, examples in zip(range(1, steps + 1), batches, strict=False):
        loss, metrics = _label_loss(teacher, examples, patch, dtype, weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % LOG_EVERY == 0:
            with (folder / LOG).open("a") as f:
                f.write(json.dumps({"step": step, "loss": round(loss.item(), 4)} | metrics) + "\n")
            if sys.stderr.isatty():
                print(f"\rteacher {step / steps:6.1%} loss {loss.item():.3f} ", end="", file=sys.stderr)
    if step < steps:
        return None
    checkpoint.save(folder, teacher.state_dict(), {"steps": steps, "seed": seed}, FILE)
    return teacher.eval().requires_grad_(False)


def _label_loss(
    teacher: Teacher, examples: Sequence[Example], patch: int, dtype: torch.dtype, weights: Sequence[Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss on kinds, colours and characters, and the shares of those shown that are named right."""
    seen = pictures(examples, patch).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        low, high = teacher(seen)
        thing, char = teacher.thing(high).float(), teacher.char(low).float()
    kind, colour = by_patch(thing, examples, 1)[:, 0].split(CLASSES[:2], dim=-1)
    classes = torch.from_numpy(np.concatenate([e.cells.classes for e in examples])).flatten(0, 1)
    chars = torch.from_numpy(np.concatenate([e.cells.chars for e in examples])).flatten()
    scores = {"kind": kind, "colour": colour, "char": by_patch(char, examples, 2).flatten(0, 1)}
    loss, right = torch.zeros(()), {}
    for (name, said), truth, weight in zip(scores.items(), (*classes.unbind(-1), chars), weights, strict=True):
        loss = loss + F.cross_entropy(said, truth, weight=weight)
        if bool((shown := truth > 0).any()):
            right[name] = round((said.detach().argmax(-1) == truth)[shown].float().mean().item(), 4)
    return loss, right


class Lessons(nn.Module):
    """Linear maps from chosen blocks of the encoder to the teacher's features; their error is what the blocks learn from."""

    def __init__(self, vision: VisionModel) -> None:
        super().__init__()
        depth, width = vision.config.depth, vision.config.hidden_size
        self.low = nn.Linear(width, 4 * LOW)
        self.high = nn.ModuleList(nn.Linear(width, HIGH) for _ in range(2))
        # An early block says what is at hand, a middle one and the last what it belongs to.
        self.blocks = (depth // 8, depth // 2, depth - 1)
        self.listener = Listener({i: vision.blocks[i] for i in self.blocks})

    def forward(self, teacher: Teacher, examples: Sequence[Example], patch: int) -> Tensor:
        """Return the mean squared error over the teacher's variance, summed over blocks, for what was just encoded.

        Only the still pictures count, which come first among the examples: the teacher knows no clips.
        """
        heard = self.listener.take()
        stills = [e for e in examples if e.patches.kind == "image"]
        loss, rows = torch.zeros(()), sum(len(e.patches.pixels) for e in stills)
        if not rows:
            return loss
        with torch.no_grad():
            low, high = teacher(pictures(stills, patch))
            targets = by_patch(low, stills, 2).flatten(1), by_patch(high, stills, 1)[:, 0]
        for i, head, target in zip(self.blocks, (self.low, *self.high), (targets[0], targets[1], targets[1]), strict=True):
            said = heard[i][1][:rows].float()
            out = head(F.layer_norm(said, said.shape[-1:]))
            loss = loss + F.mse_loss(out, target) / target.var()
        return loss

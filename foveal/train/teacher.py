"""A small convolutional network that sees for the vision encoder while that one cannot yet.

A transformer must learn every shape anew for each place within a patch; a convolution need not, and names shapes after
minutes that the encoder, left to labels alone, had not told apart after half an hour. So the network learns first, from the
same labels, and the encoder's blocks then learn to say what its layers say (a teacher without patches, as in DeiT; hints in
the middle, as in FitNets). It is used in training only.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.model.vision import VisionModel
from foveal.patches import Patches
from foveal.train import checkpoint
from foveal.train.data import Example
from foveal.train.dense import CLASSES, class_weights
from foveal.train.listen import Listener

FILE, LOG, LOG_EVERY = "teacher.safetensors", "teacher.jsonl", 20
LOW, HIGH = 128, 256  # channels at half a patch, and at a patch
CROP, CROPS = 10, 4  # patches a side of what it learns from, and how many of one picture


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


def pictures(stills: Sequence[Patches]) -> Tensor:
    """Put the patches of N pictures of one size together again. Return (N, 3, H, W) float32 in -1..1."""
    (rows, columns), patch = stills[0].grids[0], math.isqrt(stills[0].pixels.shape[1] // 3)
    out = torch.empty(len(stills), rows, columns, 3, patch, patch)
    at, coords = _places(stills)
    pixels = torch.from_numpy(np.stack([still.pixels for still in stills]))
    out[at, coords[..., 1], coords[..., 2]] = pixels.view(len(stills), -1, 3, patch, patch).float() / 127.5 - 1
    out = out.permute(0, 3, 1, 4, 2, 5).reshape(len(stills), 3, rows * patch, columns * patch)
    return out.contiguous(memory_format=torch.channels_last)


def _places(stills: Sequence[Patches]) -> tuple[Tensor, Tensor]:
    coords = torch.from_numpy(np.stack([still.coords for still in stills])).long()
    return torch.arange(len(stills))[:, None], coords


def by_patch(features: Tensor, stills: Sequence[Patches], per_side: int) -> Tensor:
    """Read a map (N, C, rows*s, columns*s) at every patch, in the patches' own order. Return (P, s*s, C)."""
    at, coords = _places(stills)
    n, c, height, width = features.shape
    s = per_side
    grid = features.reshape(n, c, height // s, s, width // s, s).permute(0, 2, 4, 3, 5, 1)
    return grid[at, coords[..., 1], coords[..., 2]].flatten(0, 1).reshape(-1, s * s, c)


class Crop(NamedTuple):
    """A window of a picture, S patches a side: pixels (3, S*p, S*p), kinds and colours (S, S), characters (2S, 2S)."""

    pixels: Tensor
    kinds: Tensor
    colours: Tensor
    chars: Tensor


def crops(examples: Sequence[Example]) -> list[Crop]:
    """Cut windows of one size out of all pictures: of each, up to CROPS that show most of things and characters.

    Pictures differ in size, and a batch is of one; what is cut at an edge is half seen, and whole in another window.
    """
    stills = [(patches, cells) for e in examples for patches, cells in zip(e.media, e.cells_by_medium(), strict=True)]
    stills = [(patches, cells) for patches, cells in stills if patches.kind == "image"]
    side = min(CROP, *(min(patches.grids[0]) for patches, _ in stills))
    found = []
    for patches, cells in stills:
        (pixels,) = pictures([patches])
        patch = pixels.shape[1] // patches.grids[0][0]
        rows, columns = patches.coords[:, 1], patches.coords[:, 2]
        classes = np.empty((*patches.grids[0], 2), np.int64)
        classes[rows, columns] = cells.classes.reshape(len(rows), 2)
        quarters = np.empty((*patches.grids[0], 2, 2), np.int64)
        quarters[rows, columns] = cells.chars.reshape(len(rows), 2, 2)
        chars = quarters.transpose(0, 2, 1, 3).reshape(2 * classes.shape[0], 2 * classes.shape[1])
        shown = (classes[..., 0] > 0) + (quarters > 0).sum((2, 3))
        corners = [(y, x) for y in _starts(classes.shape[0], side) for x in _starts(classes.shape[1], side)]
        corners.sort(key=lambda corner: -shown[corner[0] : corner[0] + side, corner[1] : corner[1] + side].sum())
        for y, x in corners[:CROPS]:
            window = slice(y, y + side), slice(x, x + side)
            finer = slice(2 * y, 2 * (y + side)), slice(2 * x, 2 * (x + side))
            seen = pixels[:, y * patch : (y + side) * patch, x * patch : (x + side) * patch]
            named = (torch.from_numpy(part) for part in (*np.moveaxis(classes[window], 2, 0), chars[finer]))
            found.append(Crop(seen, *named))
    return found


def _starts(length: int, side: int) -> list[int]:
    """Place as many windows as are needed to cover a length, evenly."""
    return np.linspace(0, length - side, -(-length // side)).round().astype(int).tolist()


def trained_teacher(
    folder: Path, batches: Iterable[list[Example]], steps: int, *, dtype: torch.dtype, seed: int, lr: float = 2e-3
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
        loss, metrics = _label_loss(teacher, examples, dtype, weights)
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
    teacher: Teacher, examples: Sequence[Example], dtype: torch.dtype, weights: Sequence[Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss on kinds, colours and characters, and the shares of those shown that are named right."""
    pixels, *truths = (torch.stack(part) for part in zip(*crops(examples), strict=True))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        low, high = teacher(pixels.contiguous(memory_format=torch.channels_last))
        kind, colour = teacher.thing(high).float().split(CLASSES[:2], dim=1)
        char = teacher.char(low).float()
    loss, right = torch.zeros(()), {}
    for name, said, truth, weight in zip(("kind", "colour", "char"), (kind, colour, char), truths, weights, strict=True):
        loss = loss + F.cross_entropy(said, truth, weight=weight)
        if bool((shown := truth > 0).any()):
            right[name] = round((said.detach().argmax(1) == truth)[shown].float().mean().item(), 4)
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

    def forward(self, teacher: Teacher, examples: Sequence[Example]) -> Tensor:
        """Return the mean squared error over the teacher's variance, summed over blocks, for what was just encoded.

        Only the still pictures count, which come first among the examples: the teacher knows no clips.
        """
        heard = self.listener.take()
        stills = [patches for e in examples for patches in e.media if patches.kind == "image"]
        loss, rows = torch.zeros(()), sum(len(patches.pixels) for patches in stills)
        if not rows:
            return loss
        lows, highs = [], []
        with torch.no_grad():
            for _, group in itertools.groupby(stills, key=lambda patches: patches.grids):
                alike = list(group)
                low, high = teacher(pictures(alike))
                lows.append(by_patch(low, alike, 2).flatten(1))
                highs.append(by_patch(high, alike, 1)[:, 0])
            low, high = torch.cat(lows), torch.cat(highs)
        for i, head, target in zip(self.blocks, (self.low, *self.high), (low, high, high), strict=True):
            said = heard[i][1][:rows].float()
            out = head(F.layer_norm(said, said.shape[-1:]))
            loss = loss + F.mse_loss(out, target) / target.var()
        return loss

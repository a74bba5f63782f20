"""Dense targets on the patch grid: what every patch and every vision token of an item shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from foveal.config import VisionConfig
from foveal.patches import Patches
from foveal.world import Item, cell_labels

NO_BOX = -1.0
QUARTERS = 4  # characters are named at half a patch


@dataclass(frozen=True)
class CellTargets:
    """Dense targets of vision tokens.

    classes: (V, merge*merge, 2) int64, kind and colour of every patch of a token;
    chars: (V, merge*merge, QUARTERS) int64, the character in every quarter of a patch (digits are narrower than a patch);
    boxes: (V, 4) float32, x1 y1 x2 y2 in 0..1 of the picture: the part, inside the token, of the thing that covers most of
    it, NO_BOX where there is none; marks: (V, 5) float32, 1 where the middle of a thing, its left end, top, right end, bottom
    lies in the token.
    """

    classes: np.ndarray
    chars: np.ndarray
    boxes: np.ndarray
    marks: np.ndarray

    @classmethod
    def cat(cls, parts: Sequence[CellTargets]) -> CellTargets:
        """Put those of several pictures behind one another."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, first: int, last: int) -> CellTargets:
        """Keep those of tokens first..last, the last one out."""
        return type(self)(*(getattr(self, field.name)[first:last] for field in fields(self)))


def cell_targets(item: Item, patches: Patches, vision: VisionConfig) -> CellTargets:
    """Make the targets of a picture or a clip."""
    per = 1 if item.kind == "image" else vision.temporal_patch_size
    block = vision.spatial_merge_size**2
    classes = np.zeros((len(patches.pixels), 2), np.int64)
    chars = np.zeros((len(patches.pixels), QUARTERS), np.int64)
    boxes = np.full((len(patches.pixels) // block, 4), NO_BOX, np.float32)
    marks = np.zeros((len(boxes), 5), np.float32)
    tokens = patches.coords[::block]
    for t, (rows, columns) in enumerate(patches.grids):
        size = rows * vision.patch_size, columns * vision.patch_size
        # A frame pair is named after its last frame: what has appeared by then counts.
        frame = min(t * per + per - 1, len(item.pixels) - 1)
        found = cell_labels(item, size, cell=vision.patch_size, frame=frame)
        mine = patches.coords[:, 0] == t
        at = patches.coords[mine, 1], patches.coords[mine, 2]
        classes[mine] = np.stack([found.kind[at], found.colour[at]], axis=1)
        fine = cell_labels(item, size, cell=vision.patch_size // 2, frame=frame).char
        chars[mine] = fine.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(rows, columns, QUARTERS)[at]
        here = tokens[:, 0] == t
        places = tokens[here, 1:] // vision.spatial_merge_size
        counts = np.array([rows, columns]) // vision.spatial_merge_size
        boxes[here], marks[here] = _parts(item.object_map[frame], places, counts)
    return CellTargets(classes.reshape(-1, block, 2), chars.reshape(-1, block, QUARTERS), boxes, marks)


def _parts(objects: np.ndarray, places: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure, for tokens at rows and columns `places` (n, 2) of a grid of `counts`, what they show of the objects (H, W).

    Return boxes (n, 4) and marks (n, 5) as in CellTargets.
    """
    size = np.array(objects.shape)
    low, high = (places * size / counts).round().astype(int), ((places + 1) * size / counts).round().astype(int)
    boxes, marks = np.full((len(places), 4), NO_BOX, np.float32), np.zeros((len(places), 5), np.float32)
    shown = np.full(len(places), -1)
    for i, ((y1, x1), (y2, x2)) in enumerate(zip(low, high, strict=True)):
        inside = objects[y1:y2, x1:x2]
        things = inside[inside >= 0]
        if len(things):
            shown[i] = np.bincount(things).argmax()
            ys, xs = np.nonzero(inside == shown[i])
            boxes[i] = x1 + xs.min(), y1 + ys.min(), x1 + xs.max() + 1, y1 + ys.max() + 1
    for thing in np.unique(shown[shown >= 0]):
        mine = shown == thing
        ends = np.concatenate([boxes[mine, :2].min(0), boxes[mine, 2:].max(0)])
        marks[mine, 1:] = np.abs(boxes[mine] - ends) <= 2  # pixels
        middle = ((ends[1] + ends[3]) / 2, (ends[0] + ends[2]) / 2)
        marks[((low <= middle) & (middle < high)).all(1), 0] = 1
    boxes[shown >= 0] /= np.tile(size[::-1], 2)
    return boxes, marks

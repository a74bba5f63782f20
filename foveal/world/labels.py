"""Dense labels on the patch grid, for warming up a vision encoder before it is asked anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveal.world.difficulty import COLOUR_CLASSES, KIND_CLASSES
from foveal.world.items import Item

_POINTS = 4  # a cell is looked at on 4 x 4 points
_KIND = {name: index for index, name in enumerate(KIND_CLASSES)}
_COLOUR = {name: index for index, name in enumerate(COLOUR_CLASSES)}


@dataclass(frozen=True, eq=False)  # arrays inside: equal means the same one
class CellLabels:
    """Classes of every cell, each (rows, columns) int64: indices into KIND_CLASSES, COLOUR_CLASSES and CHAR_CLASSES.

    `cover` (rows, columns) float32 is the share of the cell that belongs to the thing it is named after.
    """

    kind: np.ndarray
    colour: np.ndarray
    char: np.ndarray
    cover: np.ndarray


def _vote(votes: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Per cell (R, C, points) of values 0..classes-1, 0 meaning none: the commonest value but 0, and how many have it."""
    counts = np.stack([(votes == value).sum(axis=-1) for value in range(1, classes)], axis=-1)
    return counts.argmax(axis=-1) + 1, counts.max(axis=-1)


def cell_labels(
    item: Item, size: tuple[int, int] | None = None, *, cell: int = 16, frame: int = 0, min_cover: float = 0.2
) -> CellLabels:
    """Label the cells of one frame after it is resized to `size`.

    A cell is named after the thing that covers most of it, if that covers at least `min_cover` of the cell; its
    character likewise (characters are narrow, so half of `min_cover` is enough for them).

    Args:
        size: (height, width) fed to the model, multiples of `cell`; None keeps the frame's own, cut to whole cells.
        cell: side of a cell in pixels of the resized frame: the patch size, or patch size times merge.
    """
    object_map, char_map = item.object_map[frame], item.char_map[frame]
    height, width = object_map.shape
    target = size if size is not None else (height // cell * cell, width // cell * cell)
    rows, columns = target[0] // cell, target[1] // cell
    span_y, span_x = (height, width) if size is not None else target
    ys = ((np.arange(rows * _POINTS) + 0.5) * span_y / (rows * _POINTS)).astype(int)
    xs = ((np.arange(columns * _POINTS) + 0.5) * span_x / (columns * _POINTS)).astype(int)

    def cells(values: np.ndarray) -> np.ndarray:
        looked = values[ys[:, None], xs[None, :]].astype(np.int64)
        return looked.reshape(rows, _POINTS, columns, _POINTS).transpose(0, 2, 1, 3).reshape(rows, columns, -1)

    points = _POINTS * _POINTS
    things = item.things
    winner, count = _vote(cells(object_map) + 1, max(2, len(things) + 1))
    winner = np.where(count >= min_cover * points, winner, 0)
    kinds = np.array([0, *(_KIND.get(thing.kind, 0) for thing in things)])  # a panel is of no kind
    colours = np.array([0, *(_COLOUR.get(thing.colour, 0) for thing in things)])  # nor is paper one of the colours
    looked = cells(char_map)
    if looked.any():
        present = np.unique(looked)
        lookup = np.concatenate([[0], present[present > 0]])
        char, char_count = _vote(np.searchsorted(lookup, looked), len(lookup))
        char = np.where(char_count >= min_cover / 2 * points, lookup[char], 0)
    else:
        char = np.zeros((rows, columns), dtype=np.int64)
    cover = np.where(winner > 0, count / points, 0).astype(np.float32)
    return CellLabels(kinds[winner], colours[winner], char, cover)

"""What is shown, as the model gets it: which rows of a sequence show a place of a picture or a clip."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from foveal.patches import Patches
from foveal.sequence import Sequence
from foveal.tokenizer import Tokenizer
from foveal.world import Item, Question
from foveal.world.scene import Box


class Place(NamedTuple):
    """A frame of one of the pictures or clips, and a box in it, in pixels."""

    medium: int
    frame: int
    box: Box


@dataclass(frozen=True)
class View:
    """Pictures or clips as the model gets them, and the sequence they are in. pair: frames of a clip in a step of its grid."""

    items: SequenceOf[Item]
    media: SequenceOf[Patches]
    sequence: Sequence
    tokenizer: Tokenizer
    pair: int

    @cached_property
    def slots(self) -> np.ndarray:
        """The rows of all vision tokens, (V,)."""
        return np.flatnonzero(self.sequence.vision_rows >= 0)

    @cached_property
    def coords(self) -> np.ndarray:
        """The step, row and column of all vision tokens within their medium, (V, 3)."""
        return np.concatenate([m.coords[:: m.merge**2] // (1, m.merge, m.merge) for m in self.media])

    @cached_property
    def medium(self) -> np.ndarray:
        """The number of the medium of all vision tokens, (V,)."""
        return np.repeat(np.arange(len(self.media)), [m.num_tokens for m in self.media])

    def places(self, question: Question) -> list[Place]:
        """List where a question's boxes are."""
        none = (0,) * len(question.boxes)
        where = zip(question.pictures or none, question.frames or none, question.boxes, strict=True)
        return [Place(*each) for each in where]

    def stamp(self, place: Place) -> np.ndarray:
        """Find the rows of the timestamp before the part of a clip that holds a place: <, digits, seconds>."""
        row = int(self._cover(place._replace(box=(0, 0, 1, 1)))[0][0]) - 2  # before the vision start mark
        rows = [row]
        while b"<" not in self.tokenizer.token_bytes(int(self.sequence.token_ids[rows[-1]])):
            rows.append(rows[-1] - 1)
        return np.array(rows[::-1])

    def showing(self, place: Place) -> np.ndarray:
        """Find the rows whose token the box covers well, and in any case the one that shows most of it."""
        rows, covered, whole = self._cover(place)
        return rows[covered >= min(0.2 * whole, covered.max())]

    def centre(self, place: Place) -> np.ndarray:
        """Find the one row whose token holds the box's centre."""
        x1, y1, x2, y2 = place.box
        middle = ((x1 + x2) // 2, (y1 + y2) // 2)
        rows, covered, _ = self._cover(place._replace(box=(*middle, middle[0] + 1, middle[1] + 1)))
        return rows[[covered.argmax()]]

    def share(self, place: Place) -> tuple[float, float, float, float]:
        """Say where a box lies in 0..1 of its frame."""
        height, width = self.items[place.medium].pixels.shape[1:3]
        x1, y1, x2, y2 = place.box
        return x1 / width, y1 / height, x2 / width, y2 / height

    def middle(self, place: Place) -> tuple[float, float]:
        """Return x and y of the middle of a place, in 0..1 of the frame."""
        x1, y1, x2, y2 = self.share(place)
        return (x1 + x2) / 2, (y1 + y2) / 2

    def ends(self, place: Place) -> list[np.ndarray]:
        """Find the rows that show the left end, top, right end and bottom of the thing that has this box in a picture."""
        item, patches = self.items[place.medium], self.media[place.medium]
        x1, y1, x2, y2 = place.box
        height, width = item.pixels.shape[1:3]
        rows, columns = (n // patches.merge for n in patches.grids[0])
        inside = item.object_map[0, y1:y2, x1:x2]
        thing = [thing.box for thing in item.things].index(place.box)
        ys, xs = np.nonzero(inside == thing)
        tokens = (ys + y1) * rows // height, (xs + x1) * columns // width
        here = self.medium == place.medium
        slots, coords = self.slots[here], self.coords[here]
        found = []
        for at_end in (xs == xs.min(), ys == ys.min(), xs == xs.max(), ys == ys.max()):
            seen = np.stack([part[at_end] for part in tokens], axis=1)
            found.append(slots[(coords[:, None, 1:] == seen[None]).all(-1).any(-1)])
        return found

    def _cover(self, place: Place) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the rows of the place's frame (n,), how many pixels of the box each shows (n,), and a token's pixels."""
        item, patches = self.items[place.medium], self.media[place.medium]
        x1, y1, x2, y2 = place.box
        t = place.frame // (1 if item.kind == "image" else self.pair)
        here = np.flatnonzero((self.medium == place.medium) & (self.coords[:, 0] == t))
        size = np.array(item.pixels.shape[1:3]) * patches.merge / np.array(patches.grids[t])  # of a token, in pixels
        at = self.coords[here, 1:]
        low, high = np.maximum(at * size, (y1, x1)), np.minimum((at + 1) * size, (y2, x2))
        return self.slots[here], np.clip(high - low, 0, None).prod(axis=1), float(size.prod())

"""One training or test item: pixels, what was asked about them, and the ground truth behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from foveal.world.clip_questions import ask_about_clip
from foveal.world.clips import Clip, paint_clip, sample_clip
from foveal.world.difficulty import Difficulty
from foveal.world.draw import paint, paint_background
from foveal.world.questions import Question, ask_about_scene
from foveal.world.scene import Scene, Thing, generator, sample_scene


@dataclass(frozen=True, eq=False)  # arrays inside: equal means the same one
class Item:
    """A picture (one frame at 0.0 s) or a clip with its questions.

    Attributes:
        pixels: (N, H, W, 3) uint8 RGB.
        times_s: (N,) float64.
        object_map: (N, H, W) int16, an index into `things`, -1 for background.
        char_map: (N, H, W) uint8, an index into CHAR_CLASSES.
    """

    kind: Literal["image", "video"]
    pixels: np.ndarray
    times_s: np.ndarray
    questions: tuple[Question, ...]
    object_map: np.ndarray
    char_map: np.ndarray
    truth: Scene | Clip

    @property
    def things(self) -> tuple[Thing, ...]:
        """All things, in the order the object map numbers them."""
        if isinstance(self.truth, Clip):
            return tuple(actor.thing for actor in self.truth.actors)
        return self.truth.things


def picture_item(seed: int, difficulty: Difficulty, split: str = "train") -> Item:
    """Make the picture of a seed. Equal arguments give equal items; no two splits share a random stream."""
    rng = generator(seed, split, "picture")
    scene = sample_scene(rng, difficulty)
    layers = paint(paint_background(scene.background, scene.size), list(enumerate(scene.things)))
    questions = ask_about_scene(scene, rng, difficulty)
    pixels, object_map, char_map = (layer[None] for layer in layers)
    return Item("image", pixels, np.zeros(1), questions, object_map, char_map, scene)


def clip_item(seed: int, difficulty: Difficulty, split: str = "train") -> Item:
    """Make the clip of a seed; see `picture_item`."""
    rng = generator(seed, split, "clip")
    clip = sample_clip(rng, difficulty)
    pixels, object_map, char_map = (np.stack(layer) for layer in zip(*paint_clip(clip), strict=True))
    questions = ask_about_clip(clip, rng, difficulty)
    return Item("video", pixels, clip.times_s, questions, object_map, char_map, clip)

"""Short clips in which things appear, move and vanish at known times: Actor, Clip, and their sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from foveal.errors import MissingDependency
from foveal.world.difficulty import Difficulty
from foveal.world.draw import paint, paint_background
from foveal.world.scene import (
    Background,
    Box,
    Idea,
    Thing,
    find_room,
    make_stamp,
    sample_background,
    sample_idea,
    sample_size,
    shade,
)

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Actor:
    """A thing seen in frames appear..vanish-1 that travels `distance_px` in `direction` meanwhile ("" stands still).

    The thing's own x and y are where it appears.
    """

    thing: Thing
    appear: int
    vanish: int
    direction: str = ""
    distance_px: int = 0

    def at(self, frame: int) -> Thing | None:
        """Return the thing where it is in a frame, or None while it is not there."""
        if not self.appear <= frame < self.vanish:
            return None
        if not self.direction:
            return self.thing
        travelled = round(self.distance_px * (frame - self.appear) / (self.vanish - 1 - self.appear))
        dx, dy = DIRECTIONS[self.direction]
        return replace(self.thing, x=self.thing.x + dx * travelled, y=self.thing.y + dy * travelled)

    def box(self, frame: int) -> Box:
        """The box in a frame in which the actor is seen."""
        thing = self.at(frame)
        if thing is None:
            raise ValueError(f"not in frame {frame}: seen in {self.appear}..{self.vanish - 1}")
        return thing.box


@dataclass(frozen=True)
class Clip:
    """A clip before it is drawn. Frame i is shown at i / fps seconds."""

    size: tuple[int, int]
    background: Background
    actors: tuple[Actor, ...]
    num_frames: int
    fps: float

    @property
    def times_s(self) -> np.ndarray:
        """(N,) float64 presentation times."""
        return np.arange(self.num_frames) / self.fps

    def appear_s(self, actor: Actor) -> float:
        """The time of the first frame that shows the actor."""
        return actor.appear / self.fps

    def vanish_s(self, actor: Actor) -> float | None:
        """The time of the first frame that no longer shows the actor, or None if it stays to the end."""
        return actor.vanish / self.fps if actor.vanish < self.num_frames else None


def _sample_span(rng: np.random.Generator, frames: int, step: int) -> tuple[int, int]:
    """Draw (appear, vanish): some are there from the start, some stay to the end; every one is seen for two frames."""
    instants = np.arange(step, frames - 1, step)
    appear = 0 if not len(instants) or rng.random() < 0.25 else int(rng.choice(instants))
    ends = np.arange(step, frames, step)
    ends = ends[ends >= appear + max(2, step)]
    vanish = frames if not len(ends) or rng.random() < 0.5 else int(rng.choice(ends))
    return appear, vanish


Draw = Callable[[np.random.Generator, Difficulty, Sequence[str], Sequence[Idea]], Idea]


def sample_clip(rng: np.random.Generator, level: Difficulty, draw: Draw = sample_idea) -> Clip:
    """Draw a clip of things that `draw` thinks of. No two ever touch, wherever they travel, and no two names are the same."""
    size = level.size or sample_size(rng, *level.clip_side, level.max_ratio)
    background, colours = sample_background(rng, level.plain_background, level.colours)
    frames = int(rng.integers(level.clip_frames[0], level.clip_frames[1] + 1))
    fps = float(rng.choice(level.clip_fps))
    wanted = int(rng.integers(level.clip_objects[0], level.clip_objects[1] + 1))
    cap = min(0.38 * min(size), math.sqrt(0.3 * size[0] * size[1] / wanted))
    actors: list[Actor] = []
    ideas: list[Idea] = []
    swept: list[Box] = []
    for attempt in range(40):
        if len(actors) == wanted:
            break
        idea = draw(rng, level, colours, ideas)
        if any((idea.kind, idea.colour) == (other.kind, other.colour) for other in ideas):
            continue
        stamp = make_stamp(rng, idea, max(12.0, cap * 0.95**attempt), size, level)
        appear, vanish = _sample_span(rng, frames, level.event_step)
        direction, distance = "", 0
        if vanish - appear >= 3 and rng.random() < 0.6:
            direction = list(DIRECTIONS)[int(rng.integers(4))]
            distance = int(rng.uniform(0.25, 0.55) * min(size))
        dx, dy = DIRECTIONS.get(direction, (0, 0))
        h, w = stamp.size
        extent = (h + abs(dy) * distance, w + abs(dx) * distance)
        place = find_room(rng, extent, size, swept)
        if place is None:
            continue
        x, y = place
        swept.append((x, y, x + extent[1], y + extent[0]))
        start = (x + distance * (dx < 0), y + distance * (dy < 0))
        thing = Thing(idea.family, idea.kind, idea.colour, shade(rng, idea.colour), stamp, *start, idea.text)
        ideas.append(idea)
        actors.append(Actor(thing, appear, vanish, direction, distance))
    return Clip(size, background, tuple(actors), frames, fps)


def paint_clip(clip: Clip, canvases: Sequence[np.ndarray] | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pixels, object map and character map of every frame; see `draw.paint`.

    Every frame is painted on the clip's background, or on the canvas of its own if they are given.
    """
    if canvases is None:
        canvases = [paint_background(clip.background, clip.size)] * clip.num_frames
    for frame, canvas in enumerate(canvases):
        shown = [(number, actor.at(frame)) for number, actor in enumerate(clip.actors)]
        yield paint(canvas, [(number, thing) for number, thing in shown if thing is not None])


def save_clip(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames (N, H, W, 3) uint8 as an H.264 file; an odd side loses its last row or column."""
    try:
        import av
    except ImportError as error:
        raise MissingDependency("av", "video", "writing a clip") from error
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "12", "preset": "slow"}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

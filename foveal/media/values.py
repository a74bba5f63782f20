"""What media.py hands on, and what bounds it: Frames, Probe, Limits, and the clock of one load."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foveal.errors import ConfigError, MediaError

Fit = Callable[[int, int, int], tuple[int, int]]
"""(number of frames, height, width) to the (height, width) every frame is resized to as it is decoded."""


@dataclass(frozen=True, eq=False)
class Frames:
    """A decoded picture (one frame) or clip, upright and in RGB.

    pixels: (N, H, W, 3) uint8. times_s: (N,) float64, each frame's presentation time counted from the clip's first
    frame, strictly increasing; a picture has [0.0]. source_size: (height, width) in the file, after rotation and before
    any fit. name: what to call the source in messages; never a full address.
    """

    pixels: np.ndarray
    times_s: np.ndarray
    kind: Literal["image", "video"]
    source_size: tuple[int, int]
    name: str


@dataclass(frozen=True, eq=False)
class Probe:
    """What `Frames` of a source would be, the pixels aside; the fields are those of `Frames`."""

    times_s: np.ndarray
    kind: Literal["image", "video"]
    source_size: tuple[int, int]
    name: str


@dataclass(frozen=True)
class Limits:
    """What a source may cost. Everything is checked before the memory or the time is spent.

    max_bytes: a picture's file, and anything kept in memory (download, data URL, bytes).
    max_file_bytes: a local clip, which is read in place.
    max_pixels: height x width of a picture. max_frame_pixels: the same for every frame of a clip.
    max_ratio: longer side over shorter side; 200 is the model's own bound.
    max_frames, max_duration_s: of the whole clip, not of the frames chosen from it.
    max_output_bytes: of the decoded frames that are returned, after any fit.
    timeout_s: wall time of one load, download included.
    gone: set while it loads, by another thread, when nobody wants it any more: it ends early, with a MediaError.
    """

    max_bytes: int = 256 * 2**20
    max_file_bytes: int = 16 * 2**30
    max_pixels: int = 120_000_000
    max_frame_pixels: int = 8192 * 4320
    max_ratio: float = 200.0
    max_frames: int = 1_000_000
    max_duration_s: float = 6 * 3600.0
    max_output_bytes: int = 2 * 2**30
    timeout_s: float = 300.0
    gone: threading.Event | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "gone" and not value > 0:
                raise ConfigError(f"Limits.{field.name} is {value!r}; it must be greater than 0")

    def check_size(self, name: str, height: int, width: int, max_pixels: int) -> None:
        """Refuse a size that is empty, too large or too narrow for the model."""
        if height < 1 or width < 1:
            raise MediaError(f"{name}: its header gives {width} x {height} pixels; the file is damaged")
        if height * width > max_pixels:
            raise MediaError(
                f"{name}: {width} x {height} is {height * width:,} pixels, the limit is {max_pixels:,}; make it smaller first"
            )
        ratio = max(height, width) / min(height, width)
        if ratio > self.max_ratio:
            raise MediaError(
                f"{name}: {width} x {height} has a side ratio of {ratio:.0f} to 1, the limit is {self.max_ratio:g} to 1; "
                "crop it or cut it into pieces"
            )

    def check_frames(self, name: str, frames: int) -> None:
        if frames > self.max_frames:
            raise MediaError(f"{name}: has {frames:,} frames, the limit is {self.max_frames:,}; cut it into shorter clips")

    def check_duration(self, name: str, duration_s: float) -> None:
        if duration_s > self.max_duration_s:
            raise MediaError(
                f"{name}: lasts {duration_s:,.0f} s, the limit is {self.max_duration_s:,.0f} s; cut it into shorter clips"
            )

    def check_output(self, name: str, frames: int, height: int, width: int) -> None:
        needed = frames * height * width * 3
        if needed > self.max_output_bytes:
            raise MediaError(
                f"{name}: {frames} frames of {width} x {height} take {needed:,} bytes, the limit is "
                f"{self.max_output_bytes:,}; take fewer frames or a smaller token budget"
            )


class Deadline:
    """The wall clock of one load, which ends early when nobody wants it any more."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name, self._gone = name, limits.gone
        self._timeout_s = limits.timeout_s
        self._end = time.monotonic() + limits.timeout_s

    @property
    def remaining_s(self) -> float:
        return self._end - time.monotonic()

    @property
    def over(self) -> bool:
        return self.given_up or self.remaining_s <= 0

    @property
    def given_up(self) -> bool:
        return self._gone is not None and self._gone.is_set()

    def check(self) -> None:
        """Raise MediaError once the time is used up, or nobody wants it any more."""
        if self.given_up:
            raise MediaError(f"{self._name}: given up; nobody waits for it any more")
        if self.over:
            raise MediaError(
                f"{self._name}: could not be read within {self._timeout_s:g} s; use a shorter or smaller file, "
                "or raise Limits.timeout_s"
            )


def target_size(name: str, fit: Fit | None, frames: int, height: int, width: int, limits: Limits) -> tuple[int, int]:
    """Return the (height, width) the frames will have, once it is known to be affordable."""
    if fit is not None:
        height, width = fit(frames, height, width)
        if height < 1 or width < 1:
            raise ConfigError(f"fit chose {height} x {width} pixels for {name}; both must be at least 1")
    limits.check_output(name, frames, height, width)
    return height, width


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one (H, W, 3) uint8 frame to (height, width), exactly as the reference's processors do."""
    if pixels.shape[:2] == size:
        return pixels
    from foveal.patches import resize  # torch is imported in there, so only when something is resized

    return resize(pixels[None], size)[0]

"""Which frames of a clip are kept: the reference's rule by index, and its counterpart for clips without a constant rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foveal.errors import ConfigError, MediaError

DEFAULT_FPS = 2.0
# Decimal seconds given by people against exact binary times: 0.1 must include the frame at 3/30 s.
_SLACK_S = 1e-6


@dataclass(frozen=True)
class ClipSampling:
    """How to choose frames of a clip; all fields but start_s and end_s follow the released video processor.

    fps: frames wanted per second of clip; None is 2.0, and for a list of pictures every picture. num_frames: wanted in
    all, instead of fps; a clip with fewer gives all it has. min_frames and max_frames bound what fps asks for.
    start_s, end_s: only frames presented in this range, both ends included, in seconds from the clip's first frame.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and self.num_frames is not None:
            raise ConfigError(f"fps={self.fps:g} and num_frames={self.num_frames} exclude each other; give one of them")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"fps is {self.fps:g}; it must be a number greater than 0")
        if self.num_frames is not None and self.num_frames < 1:
            raise ConfigError(f"num_frames is {self.num_frames}; it must be at least 1")
        if not 1 <= self.min_frames <= self.max_frames:
            raise ConfigError(f"min_frames is {self.min_frames} and max_frames {self.max_frames}; need 1 <= min <= max")
        start, end = self.start_s or 0.0, math.inf if self.end_s is None else self.end_s
        if not (math.isfinite(start) and 0 <= start <= end):
            raise ConfigError(f"the range is {self.start_s} s to {self.end_s} s; need 0 <= start <= end")


@dataclass(frozen=True, eq=False)
class Timeline:
    """When every frame of a clip is shown: times_s (N,) float64 from 0.0 upwards; duration_s includes the last frame.

    rate_fps is None when the frames are not evenly spaced.
    """

    times_s: np.ndarray
    duration_s: float
    rate_fps: float | None


def choose(timeline: Timeline, sampling: ClipSampling, name: str) -> np.ndarray:
    """Return the indices (n,) int64 of the frames to keep, strictly increasing.

    At a constant rate: n = int(total / rate * fps) clamped, then linspace over the indices, as in transformers'
    Qwen3VLVideoProcessor.sample_frames. Otherwise the targets are evenly spaced in time, not in index, so that a slide
    shown for a minute does not lose against a second of motion; each target takes the nearest frame, once.
    """
    times = timeline.times_s
    first = 0 if sampling.start_s is None else int(np.searchsorted(times, sampling.start_s - _SLACK_S, "left"))
    stop = len(times) if sampling.end_s is None else int(np.searchsorted(times, sampling.end_s + _SLACK_S, "right"))
    total = stop - first
    if total < 1:
        end = "its end" if sampling.end_s is None else f"{sampling.end_s:g} s"
        raise MediaError(
            f"{name}: no frame between {sampling.start_s or 0:g} s and {end}; "
            f"it has {len(times)} frames from 0 to {times[-1]:g} s"
        )
    span_s = (times[stop] if stop < len(times) else timeline.duration_s) - times[first]

    if sampling.num_frames is not None:
        wanted = at_least = min(sampling.num_frames, total)
    else:
        fps = DEFAULT_FPS if sampling.fps is None else sampling.fps
        # Never more than there are, before it is made an integer: a rate may be any finite number.
        wanted = int(min(total / timeline.rate_fps * fps if timeline.rate_fps else span_s * fps, total))
        wanted = min(max(wanted, sampling.min_frames), sampling.max_frames, total)
        at_least = min(sampling.min_frames, total)
    if timeline.rate_fps is None:
        chosen = _nearest(times[first:stop], np.linspace(times[first], times[stop - 1], wanted))
        if len(chosen) >= at_least:
            return chosen + first
        wanted = at_least  # most frames lie in one short burst: even spacing by index still gives the number asked for
    return np.linspace(0, total - 1, wanted).round().astype(np.int64) + first


def _nearest(times: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the distinct indices of the times nearest to the targets, in order."""
    right = np.clip(np.searchsorted(times, targets), 1, max(len(times) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    return np.unique(np.where(targets - times[left] <= times[right] - targets, left, right))

"""Decode clips with PyAV: a scan of presentation times, then only the frames wanted, by seeking where that saves work."""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from foveal.errors import MediaError, MissingDependency
from foveal.media.kinds import CLIPS
from foveal.media.sampling import ClipSampling, Timeline, choose
from foveal.media.source import Source
from foveal.media.values import Deadline, Fit, Frames, Limits, resized, target_size


def load_video(
    source: Source, kind: str, sampling: ClipSampling, limits: Limits, fit: Fit | None, deadline: Deadline
) -> Frames:
    """Decode the frames of a video file that `sampling` chooses."""
    try:
        import av
    except ImportError:
        raise MissingDependency("PyAV", "video", "reading a clip") from None
    name = source.name
    try:
        with source.open() as file, av.open(file, format=CLIPS[kind], metadata_errors="replace") as container:
            if not container.streams.video:
                raise MediaError(f"{name}: this {kind} file holds no video stream")
            stream = container.streams.video[0]
            return _Reader(container, stream, name, limits, deadline).read(sampling, fit)
    except av.FFmpegError as e:
        raise MediaError(f"{name}: this {kind} clip is damaged or cut off ({type(e).__name__})") from e
    except (ValueError, OverflowError, IndexError, UnicodeDecodeError) as e:
        if isinstance(e, MediaError | MissingDependency):
            raise
        raise MediaError(f"{name}: this {kind} clip is damaged ({type(e).__name__})") from e


class _Reader:
    """One pass over one stream."""

    def __init__(self, container: Any, stream: Any, name: str, limits: Limits, deadline: Deadline) -> None:
        self.container, self.stream, self.name, self.limits, self.deadline = container, stream, name, limits, deadline
        stream.thread_type = "AUTO"
        self._check_header()

    def _check_header(self) -> None:
        context = self.stream.codec_context
        if context is None:
            raise MediaError(f"{self.name}: its video is in a format this PyAV cannot decode")
        if context.width and context.height:
            self.limits.check_size(self.name, context.height, context.width, self.limits.max_frame_pixels)
        if self.stream.frames:
            self.limits.check_frames(self.name, self.stream.frames)
        if self.container.duration:
            self.limits.check_duration(self.name, self.container.duration / 1_000_000)

    def read(self, sampling: ClipSampling, fit: Fit | None) -> Frames:
        pts, keys, last_duration = self._scan()
        base = self.stream.time_base or Fraction(1, 1000)
        # Exact fractions, rounded once: at a constant rate the time is index / rate to the last bit.
        times = np.array([float((p - pts[0]) * base) for p in pts])
        duration = times[-1] + float(last_duration * base)
        self.limits.check_duration(self.name, duration)
        chosen = choose(Timeline(times, duration, _rate(pts, base)), sampling, self.name)
        frames, shown, original = [], [], None
        size: tuple[int, int] | None = None
        for index, frame in self._decode([pts[i] for i in chosen], keys):
            pixels = _upright(frame)
            if original is None:
                original = pixels.shape[:2]
                self.limits.check_size(self.name, *original, self.limits.max_frame_pixels)
                size = target_size(self.name, fit, len(chosen), *original, self.limits)
            assert size is not None
            frames.append(resized(pixels, size))
            shown.append(times[chosen[index]])
        if original is None:
            raise MediaError(f"{self.name}: none of its {len(pts)} frames could be decoded; the clip is damaged")
        return Frames(np.stack(frames), np.array(shown), "video", original, self.name)

    def _scan(self) -> tuple[list[int], list[int], int]:
        """Read packet headers: presentation times in order, those of keyframes, and the last frame's duration."""
        pts: list[int] = []
        keys: list[int] = []
        duration = 0
        for count, packet in enumerate(self.container.demux(self.stream)):
            if count % 64 == 0:
                self.deadline.check()
            when = packet.pts if packet.pts is not None else packet.dts
            if when is None or not packet.size:
                continue
            pts.append(when)
            duration = packet.duration or duration
            if packet.is_keyframe:
                keys.append(when)
            self.limits.check_frames(self.name, len(pts))
        if not pts:
            raise MediaError(f"{self.name}: holds no frame of video")
        ordered = sorted(set(pts))
        return ordered, sorted(keys), duration or (ordered[-1] - ordered[-2] if len(ordered) > 1 else 0)

    def _decode(self, targets: list[int], keys: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield (index into targets, frame); a target that cannot be decoded is left out.

        Seek only when a keyframe lies between where the decoder is and the next target: otherwise going on is cheaper.
        """
        here: int | None = None
        todo = list(enumerate(targets))
        frames: Iterator[Any] | None = None
        while todo:
            target = todo[0][1]
            before = keys[max(bisect_right(keys, target) - 1, 0)] if keys else targets[0]
            if frames is None or here is None or before > here:
                frames = self._from(before)
            progress = False
            for frame in frames:
                self.deadline.check()
                if frame.pts is None:
                    continue
                here, progress = frame.pts, True
                while todo and todo[0][1] < here:
                    todo.pop(0)  # lost to damage: the decoder is past it
                if todo and todo[0][1] == here:
                    yield todo.pop(0)[0], frame
                if not todo or self._worth_seeking(todo[0][1], here, keys):
                    break
            else:
                if todo and not progress:
                    todo.pop(0)
                frames, here = None, None
                if progress and todo:
                    todo = [t for t in todo if keys and keys[max(bisect_right(keys, t[1]) - 1, 0)] > before]

    def _worth_seeking(self, target: int, here: int, keys: list[int]) -> bool:
        return bool(keys) and keys[max(bisect_right(keys, target) - 1, 0)] > here

    def _from(self, pts: int) -> Iterator[Any]:
        with contextlib.suppress(PermissionError):  # a raw stream cannot seek: it is decoded from where it is
            self.container.seek(pts, stream=self.stream, backward=True)
        import av

        for packet in self.container.demux(self.stream):
            self.deadline.check()
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                continue  # one damaged packet: later keyframes may be whole


def _rate(pts: list[int], base: Fraction) -> float | None:
    """Frames a second if they are evenly spaced, to within the rounding of the container's clock."""
    if len(pts) < 2:
        return None
    gaps = np.diff(pts)
    if gaps.max() - gaps.min() > 1:
        return None
    return float((len(pts) - 1) / ((pts[-1] - pts[0]) * base))


def _upright(frame: Any) -> np.ndarray:
    """Return (H, W, 3) uint8, turned by the file's display matrix."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns and math.isfinite(turns) else pixels

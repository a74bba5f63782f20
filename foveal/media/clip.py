"""Clips: plan which frames are where, choose some, decode only those.

When each frame is shown must be known before any is chosen. The container's index tells for the usual file; otherwise all
packets are read, without decoding. Containers and indices lie, so the plan is checked against the frames that come out, and
on a contradiction the next, more careful plan is made: index, packets, packets without seeking, counting.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from foveal.errors import MediaError
from foveal.media.boxes import check_boxes
from foveal.media.container import Container
from foveal.media.cursor import COUNTED, NO_SEEK, SEEK_BY_BYTE, Contradiction, Cursor, Plan
from foveal.media.sampling import ClipSampling, Timeline, choose
from foveal.media.source import Source
from foveal.media.values import Deadline, Fit, Frames, Limits, resized, target_size

_FALLBACK_FPS = Fraction(25)  # of a raw stream that does not tell


def load_video(
    source: Source, kind: str, sampling: ClipSampling, limits: Limits, fit: Fit | None, deadline: Deadline
) -> Frames:
    """Decode the frames of a video file that `sampling` chooses."""
    return _Clip(source, kind, limits, deadline).read(sampling, fit)


def probe_video(
    source: Source, kind: str, sampling: ClipSampling, limits: Limits, deadline: Deadline
) -> tuple[tuple[int, int], np.ndarray]:
    """Return the upright (height, width) and the times_s (n,) `load_video` would give, for the price of one frame."""
    return _Clip(source, kind, limits, deadline).probe(sampling)


class _Clip:
    """One video file; every attempt at it opens it anew."""

    def __init__(self, source: Source, kind: str, limits: Limits, deadline: Deadline) -> None:
        self._source, self._kind, self._limits, self._deadline = source, kind, limits, deadline
        self._name = source.name
        if kind == "MP4/QuickTime":
            with source.open() as file:
                check_boxes(file, source.size, self._name, limits, deadline)

    def read(self, sampling: ClipSampling, fit: Fit | None) -> Frames:
        for plan in self._plans(sampling):
            chosen = choose(plan.timeline, sampling, self._name)
            with contextlib.suppress(Contradiction), self._open() as container:
                return self._decode(container, plan, chosen, fit)
        raise self._undecodable()

    def probe(self, sampling: ClipSampling) -> tuple[tuple[int, int], np.ndarray]:
        for plan in self._plans(sampling):
            chosen = choose(plan.timeline, sampling, self._name)
            with contextlib.suppress(Contradiction), self._open() as container:
                for _, frame in Cursor(container, plan).select(chosen[:1]):
                    height, width = self._pixels(container, frame).shape[:2]
                    return (height, width), plan.timeline.times_s[chosen]
        raise self._undecodable()

    def _open(self) -> Container:
        return Container(self._source, self._kind, self._limits, self._deadline)

    def _undecodable(self, what: str = "none of its frames") -> MediaError:
        return MediaError(f"{self._name}: found {self._kind}, but {what} could be decoded; it is damaged or cut off")

    # --- planning ---------------------------------------------------------------------------------------------------

    def _plans(self, sampling: ClipSampling) -> Iterator[Plan]:
        with self._open() as container, container.guarded():
            promised = container.stream.frames or 0
            rate = container.stream.guessed_rate
            indexed = self._from_index(container)
        if indexed is not None:
            yield indexed
        with self._open() as container, container.guarded():
            scanned, found = self._from_packets(container)
        end_s = scanned.timeline.duration_s
        if self._kind == "MP4/QuickTime" and found < promised and (sampling.end_s is None or sampling.end_s > end_s):
            raise MediaError(
                f"{self._name}: is cut off: its header promises {promised} frames, {found} are there; "
                f"get the whole file, or ask for its first {end_s:.2f} s only"
            )
        yield scanned
        if scanned.stamps is not None and scanned.keys:
            yield replace(scanned, keys=[])
        if scanned.stamps is not None and self._kind in COUNTED:
            yield self._counted(len(scanned.stamps), rate)

    def _from_index(self, container: Container) -> Plan | None:
        """Infer the plan when the index lists every frame and the frames are evenly spaced; else None.

        An MP4's index holds decoding times, which are the presentation times in another order, plus a constant.
        """
        stream = container.stream
        entries = getattr(stream, "index_entries", None)  # from PyAV 17.0.1
        if not entries or len(entries) != stream.frames or stream.start_time is None or not stream.time_base:
            return None
        stamps = np.empty(len(entries), np.int64)
        keys: list[int] = []
        for i, entry in enumerate(entries):
            if entry.is_discard:
                return None
            stamps[i] = entry.timestamp
            if entry.is_keyframe:
                keys.append(i)
        steps = np.diff(stamps)
        if len(steps) == 0 or steps[0] <= 0 or (steps != steps[0]).any():
            return None
        start, step = int(stream.start_time), int(steps[0])
        timeline = self._even(len(entries), 1 / (step * stream.time_base))
        rising = range(start, start + len(entries) * step, step)
        return Plan(rising, [(i, rising[i]) for i in keys], timeline, proven=False)

    def _from_packets(self, container: Container) -> tuple[Plan, int]:
        """Read all packets without decoding. Also return how many there are, those that are not shown included."""
        stamps: list[int] = []
        keys: list[tuple[int, int]] = []
        found = last_duration = 0
        for packet in container.packets():
            if packet is None or not packet.size or packet.is_corrupt:
                continue
            found += 1
            self._limits.check_frames(self._name, found)
            if packet.pts is None or packet.is_discard:
                continue
            stamps.append(packet.pts)
            last_duration = packet.duration or last_duration
            where = packet.pos if self._kind in SEEK_BY_BYTE else packet.pts
            if packet.is_keyframe and where is not None and self._kind not in NO_SEEK:
                keys.append((packet.pts, where))
        if not found:
            raise MediaError(f"{self._name}: found {self._kind} without a single frame of video; it is cut off or damaged")
        stream = container.stream
        if not stamps or not stream.time_base:
            return self._counted(found, stream.guessed_rate), found
        rising = sorted(set(stamps))
        timeline = self._timeline(rising, last_duration, stream.time_base, (stream.average_rate, stream.guessed_rate))
        keys_by_index = [(bisect_left(rising, stamp), where) for stamp, where in sorted(keys)]
        return Plan(rising, keys_by_index, timeline, proven=True), found

    def _timeline(self, stamps: list[int], last_duration: int, base: Fraction, rates: tuple[Fraction | None, ...]) -> Timeline:
        span_s = (stamps[-1] - stamps[0]) * base
        self._limits.check_duration(self._name, float(span_s))
        rate = _constant_rate(stamps, base, rates)
        if rate is not None:
            return self._even(len(stamps), rate)
        # Stamps are exact fractions of a second; one division rounds each once.
        times = np.array([(stamp - stamps[0]) * base.numerator for stamp in stamps], np.float64) / base.denominator
        gap_s = last_duration * base or (span_s / (len(stamps) - 1) if len(stamps) > 1 else 1 / _FALLBACK_FPS)
        return Timeline(times, float(span_s + gap_s), None)

    def _even(self, frames: int, rate: Fraction) -> Timeline:
        """Give frame i the time i / rate, rounded once."""
        duration_s = float(frames / rate)
        self._limits.check_duration(self._name, duration_s)
        times = np.arange(frames, dtype=np.float64) * rate.denominator / rate.numerator
        return Timeline(times, duration_s, float(rate))

    def _counted(self, frames: int, rate: Fraction | None) -> Plan:
        return Plan(None, [], self._even(frames, rate or _FALLBACK_FPS), proven=True)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _decode(self, container: Container, plan: Plan, chosen: np.ndarray, fit: Fit | None) -> Frames:
        pixels: np.ndarray | None = None
        source_size = size = (0, 0)
        shown: list[int] = []
        for index, frame in Cursor(container, plan).select(chosen):
            rgb = self._pixels(container, frame)
            if pixels is None:
                source_size = (rgb.shape[0], rgb.shape[1])
                size = target_size(self._name, fit, len(chosen), *source_size, self._limits)
                pixels = np.empty((len(chosen), *size, 3), np.uint8)
            elif rgb.shape[:2] != source_size:
                raise MediaError(
                    f"{self._name}: its frames change from {source_size[1]} x {source_size[0]} to {rgb.shape[1]} x "
                    f"{rgb.shape[0]} pixels at {plan.timeline.times_s[index]:.2f} s; cut it there"
                )
            pixels[len(shown)] = resized(rgb, size)
            shown.append(index)
        if pixels is None or 2 * len(shown) < len(chosen):
            raise self._undecodable(f"only {len(shown)} of the {len(chosen)} frames chosen from it")
        return Frames(pixels[: len(shown)], plan.timeline.times_s[shown], "video", source_size, self._name)

    def _pixels(self, container: Container, frame: Any) -> np.ndarray:
        self._limits.check_size(self._name, frame.height, frame.width, self._limits.max_frame_pixels)
        with container.guarded():
            return _upright(frame)


def _upright(frame: Any) -> np.ndarray:
    """Return (H, W, 3) uint8, turned by the file's display matrix, whose angle counts counterclockwise."""
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _constant_rate(stamps: list[int], base: Fraction, candidates: tuple[Fraction | None, ...]) -> Fraction | None:
    """Return the rate from whose even spacing no stamp is off by more than one tick of the container's clock, if any."""
    known = [rate for rate in candidates if rate and rate > 0]
    if len(stamps) < 2:
        return next(iter(known), None)
    span = stamps[-1] - stamps[0]
    ticks = np.array([stamp - stamps[0] for stamp in stamps], np.float64)
    for rate in (*known, Fraction(len(stamps) - 1) / (span * base)):
        if np.abs(ticks - np.arange(len(stamps)) * float(1 / (rate * base))).max() <= 1.0:
            return rate
    return None

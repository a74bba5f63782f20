"""From chosen indices to decoded frames: seek where it saves work, and check what comes out against the plan."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveal.media.container import Container
from foveal.media.sampling import Timeline

# A seek throws away what the decoder's threads have begun, so going on is cheaper when the keyframe is near (measured on 720p
# H.264: 0 to 12 frames make no difference, 24 cost a fifth more).
SEEK_AHEAD = 4
# Packets of these carry no presentation time, or only the order of decoding: when in doubt, frames are told by counting.
COUNTED = ("AVI", "MPEG-1/2 video", "raw H.264", "raw HEVC")
SEEK_BY_BYTE = ("MPEG transport stream",)  # without an index: the positions of packets are exact, seeking by time guesses
NO_SEEK = ("MPEG program stream",)  # most frames have no time of their own, and get another one after a seek


@dataclass(frozen=True, eq=False)
class Plan:
    """Where the frames are.

    stamps: the presentation stamp of every frame, rising; None when frames are only counted. keys: (index of a keyframe,
    where to seek for it), rising. proven: read from the packets, not inferred from an index.
    """

    stamps: Sequence[int] | None
    keys: list[tuple[int, int]]
    timeline: Timeline
    proven: bool


class Contradiction(Exception):
    """The frames that come out are not those of the plan."""


class Cursor:
    """A walk over a clip's frames, forward only."""

    def __init__(self, container: Container, plan: Plan) -> None:
        self._container, self._plan = container, plan
        self._key_indices = [index for index, _ in plan.keys]
        self._frames = container.decoded(container.packets())
        self._position = -1  # index of the frame last decoded
        self._frame: Any = None
        self._may_count = container.kind in COUNTED and plan.stamps is not None

    def select(self, chosen: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yield (index, frame) for the chosen indices, which rise.

        In place of a frame lost to damage, the nearest one after it is yielded, or the last there is; never one twice.
        Raises Contradiction when the frames are not those of the plan.
        """
        given = -1
        for wanted in map(int, chosen):
            if self._position >= wanted:
                continue  # a later frame has taken its place
            reached = self._go_to(wanted)
            if self._position != wanted and (self._may_count or not self._plan.proven):
                raise Contradiction
            if self._position > given:
                given = self._position
                yield given, self._frame
            if not reached:
                return

    def _go_to(self, wanted: int) -> bool:
        """Decode up to the wanted frame, or the next there is; False at the end of the file."""
        key = bisect_right(self._key_indices, wanted) - 1
        if key < 0 or self._key_indices[key] <= self._position + SEEK_AHEAD:
            return self._advance(wanted)
        before = self._position
        self._seek(key, wanted)
        reached = self._advance(wanted)
        if self._position == wanted or key == 0 or self._key_indices[key - 1] <= before:
            return reached
        self._seek(key - 1, wanted)  # some keyframes only begin a refresh that takes the frames after them
        return self._advance(wanted)

    def _advance(self, wanted: int) -> bool:
        for frame in self._frames:
            index = self._index(frame)
            if index is None:
                continue
            self._position, self._frame = index, frame
            if index >= wanted:
                return True
        return False

    def _index(self, frame: Any) -> int | None:
        """Tell which frame of the plan this is; None when it is none of those after the last."""
        stamps = self._plan.stamps
        if stamps is None:
            following = self._position + 1
            return following if following < len(self._plan.timeline.times_s) else None
        index = -1 if frame.pts is None else bisect_left(stamps, frame.pts)
        known = 0 <= index < len(stamps) and stamps[index] == frame.pts
        if self._may_count and (not known or index <= self._position):
            raise Contradiction  # an unknown or earlier time: these are not presentation times
        if not known and not self._plan.proven:
            raise Contradiction
        return index if known and index > self._position else None

    def _seek(self, key: int, wanted: int) -> None:
        """Go to a keyframe, and make sure that decoding from there reaches the frame that is wanted."""
        assert self._plan.stamps is not None
        index, where = self._plan.keys[key]
        try:
            self._container.seek(where, is_byte=self._container.kind in SEEK_BY_BYTE)
        except (OSError, ValueError) as e:
            raise Contradiction from e
        packets = self._container.packets()
        first = next((packet for packet in packets if packet is None or (packet.size and packet.is_keyframe)), None)
        if first is None or first.pts is None:
            raise Contradiction
        # An index without presentation times may take a keyframe for an earlier frame than it is, and seeking may miss.
        if first.pts > self._plan.stamps[index if self._plan.proven else wanted]:
            raise Contradiction
        self._frames = self._container.decoded(itertools.chain([first], packets))
        self._position, self._frame = index - 1, None

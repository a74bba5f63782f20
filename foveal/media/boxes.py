"""A look at the boxes of an MP4 before FFmpeg opens it.

Two of its tables can announce samples without listing them: `stsz` with one size for all, and `trun` with defaults for all.
FFmpeg builds its index from the announced number, so a file of 2 KB can take gigabytes. A real table is bounded by its file.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from foveal.errors import MediaError
from foveal.media.values import Deadline, Limits

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
_MAX_DEPTH = 8
# Sound comes in more samples than pictures, and in an MP4 both count: AAC has about 47 frames a second.
_SAMPLES_PER_FRAME = 8


def check_boxes(file: BinaryIO, size: int, name: str, limits: Limits, deadline: Deadline) -> None:
    """Raise MediaError if the file announces more samples than its bytes or the limits allow."""
    _Walk(file, name, limits, deadline).children(0, size, 0)


class _Walk:
    def __init__(self, file: BinaryIO, name: str, limits: Limits, deadline: Deadline) -> None:
        self._file, self._name, self._deadline = file, name, deadline
        self._allowed = limits.max_frames * _SAMPLES_PER_FRAME
        self._announced = 0

    def children(self, start: int, end: int, depth: int) -> None:
        sample_size = samples = 0
        even_clock = False
        while start + 8 <= end:
            self._deadline.check()
            length, kind = struct.unpack(">I4s", self._read(start, 8))
            payload = start + 8
            if length == 1 and start + 16 <= end:
                length, payload = struct.unpack(">Q", self._read(payload, 8))[0], start + 16
            if length == 0:  # up to the end of what holds it
                length = end - start
            if length < payload - start:
                return  # no box: FFmpeg stops here, too
            stop = min(start + length, end)
            if kind in _PARENTS and depth < _MAX_DEPTH:
                self.children(payload, stop, depth + 1)
            elif kind == b"stsz" and stop - payload >= 12:
                sample_size, samples = struct.unpack(">II", self._read(payload + 4, 8))
            elif kind == b"stts" and stop - payload >= 16:
                even_clock = struct.unpack(">III", self._read(payload + 4, 12))[::2] == (1, 1)
            elif kind == b"trun" and stop - payload >= 8:
                self._count(struct.unpack(">I", self._read(payload + 4, 4))[0])
            start += length
        # Uncompressed sound is the honest use of one size for all (one clock tick each), and is indexed by chunk.
        if sample_size and not even_clock:
            self._count(samples)

    def _read(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size)
        return data + b"\0" * (size - len(data))

    def _count(self, samples: int) -> None:
        self._announced += samples
        if self._announced > self._allowed:
            raise MediaError(
                f"{self._name}: found an MP4 clip that announces {self._announced:,} samples without listing them, more than "
                f"the limit of {self._allowed:,}; it is damaged or hostile"
            )

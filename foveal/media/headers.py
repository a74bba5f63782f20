"""The structure of picture files, read before any decoder sees them.

One pass over a file's blocks finds its size, orientation and frame times, refuses absurd structure, and copies the blocks
that hold pixels into a file without metadata. Pillow is given that file only: text chunks, comments, profiles and EXIF are
the classic ways to make a decoder work without end, and none of them changes a pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from foveal.errors import MediaError
from foveal.media.values import Deadline

_MAX_BLOCKS = 200_000  # a PNG of 256 MB in chunks of 8 KB has 32,000; the sub-blocks of a GIF are not counted
# A progressive JPEG of a few bytes a scan costs one pass over all coefficients for each. Real files have about ten.
_MAX_SCANS = 100
_MAX_SCAN_PIXELS = 2_000_000_000
_DEFAULT_DELAY_S = Fraction(1, 10)  # what browsers take for delays of 10 ms and less


@dataclass(frozen=True)
class Header:
    """height, width: as stored. orientation: the EXIF value, 1 to 8, still to be applied.

    delays_s: how long each frame of an animated file is shown; empty for a still picture.
    first: index at which the decoder finds the animation's first frame. body: the file without its metadata.
    bits: of a grey sample wider than 8. inverted: 0 is white in such samples.
    """

    height: int
    width: int
    body: bytes
    orientation: int = 1
    delays_s: tuple[Fraction, ...] = ()
    first: int = 0
    bits: int = 16
    inverted: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) once the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read(kind: str, data: bytes, name: str, deadline: Deadline) -> Header:
    """Read the header of a picture of the given kind. Raises MediaError when there is no sense in it."""
    try:
        return _READERS[kind](data, name, deadline)
    except (struct.error, IndexError) as e:
        raise MediaError(f"{name}: found a {kind} picture that ends inside its header; the file is truncated") from e


def _damaged(kind: str, name: str, what: str) -> MediaError:
    return MediaError(f"{name}: found a damaged {kind} picture ({what})")


def _count(blocks: int, kind: str, name: str, deadline: Deadline) -> None:
    if blocks > _MAX_BLOCKS:
        raise _damaged(kind, name, f"more than {_MAX_BLOCKS:,} blocks")
    if blocks % 4096 == 0:
        deadline.check()


# --- PNG --------------------------------------------------------------------------------------------------------------


def _read_png(data: bytes, name: str, deadline: Deadline) -> Header:
    if data[12:16] != b"IHDR":
        raise _damaged("PNG", name, "no IHDR chunk")
    width, height = struct.unpack_from(">II", data, 16)
    view = memoryview(data)
    still, moving = [view[:8]], [view[:8]]
    delays: list[Fraction] = []
    announced = orientation = blocks = 0
    pixels_begun = separate_still = False
    position = 8
    while position + 8 <= len(data):
        blocks += 1
        _count(blocks, "PNG", name, deadline)
        length, chunk = struct.unpack_from(">I4s", data, position)
        block = view[position : position + 12 + length]
        if chunk in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            separate_still |= chunk == b"IDAT" and not delays
            pixels_begun |= chunk == b"IDAT"
            still.append(block)
            moving.append(block)
        elif chunk == b"acTL" and not pixels_begun and not announced and length == 8:
            announced = struct.unpack_from(">I", data, position + 8)[0]
            moving.append(block)
        elif chunk == b"fcTL" and announced and length == 26:
            numerator, denominator = struct.unpack_from(">HH", data, position + 28)
            delays.append(_delay(Fraction(numerator, denominator or 100)))
            moving.append(block)
        elif chunk == b"fdAT" and announced:
            moving.append(block)
        elif chunk == b"eXIf" and not orientation:
            orientation = _exif_orientation(bytes(block[8:-4]))
        if chunk == b"IEND":
            break
        position += 12 + length
    if len(delays) > 1 and len(delays) == announced:
        body = b"".join(moving)
        return Header(height, width, body, orientation or 1, tuple(delays), first=int(separate_still))
    return Header(height, width, b"".join(still), orientation or 1)


def _delay(seconds: Fraction) -> Fraction:
    return seconds if seconds > Fraction(1, 100) else _DEFAULT_DELAY_S


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _read_jpeg(data: bytes, name: str, deadline: Deadline) -> Header:
    view = memoryview(data)
    kept = [view[:2]]
    width = height = orientation = blocks = 0
    position = 2
    while True:
        blocks += 1
        _count(blocks, "JPEG", name, deadline)
        position = data.find(b"\xff", position)
        if position < 0:
            raise MediaError(f"{name}: found a JPEG picture that ends before its pixels; the file is truncated")
        marker = data[position + 1]
        if marker in (0xDA, 0xD9):  # start of scan, end of image
            kept.append(view[position:])
            break
        if marker == 0xFF:
            position += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # no length follows
            position += 2
            continue
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
        if marker == 0xE1 and not orientation and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : end])
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in (0xE0, 0xEE):
            kept.append(view[position:end])  # of the application's segments, JFIF and Adobe tell the colour space
        position = max(end, position + 2)
    scans = data.count(b"\xff\xda", position)  # never part of coded data, where a zero follows each FF
    if scans > _MAX_SCANS or (scans > 16 and scans * height * width > _MAX_SCAN_PIXELS):
        raise MediaError(f"{name}: found a JPEG picture of {scans} scans; real ones have about 10, so it is not decoded")
    return Header(height, width, b"".join(kept), orientation or 1)


# --- GIF --------------------------------------------------------------------------------------------------------------


def _read_gif(data: bytes, name: str, deadline: Deadline) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    view = memoryview(data)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept, delays = [view[:position]], []
    delay = Fraction(0)
    while position < len(data) and data[position] != 0x3B:
        _count(len(kept), "GIF", name, deadline)
        start = position
        if data[start] == 0x21:
            position = _skip_sub_blocks(data, start + 2, deadline)
            if data[start + 1] != 0xF9:  # everything but the graphic control: comments, application data, plain text
                continue
            delay = _delay(Fraction(struct.unpack_from("<H", data, start + 4)[0], 100))
        elif data[start] == 0x2C:
            left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, start + 1)
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            table = 3 << (flags & 7) + 1 if flags & 0x80 else 0
            position = _skip_sub_blocks(data, start + 11 + table, deadline)
            delays.append(delay or _DEFAULT_DELAY_S)
            delay = Fraction(0)
        else:
            position += 1  # stray bytes between blocks, which decoders pass over
            continue
        kept.append(view[start:position])
    if not delays:
        raise _damaged("GIF", name, "no frame in it")
    return Header(height, width, b"".join([*kept, b";"]) if position < len(data) else b"".join(kept), delays_s=tuple(delays))


def _skip_sub_blocks(data: bytes, position: int, deadline: Deadline) -> int:
    """Return the position after the sub-blocks that begin there, or the end of a truncated file."""
    steps = 0
    while position < len(data) and data[position]:
        position += data[position] + 1
        steps += 1
        if steps % 65536 == 0:
            deadline.check()
    return min(position + 1, len(data))


# --- WebP, BMP --------------------------------------------------------------------------------------------------------


def _read_webp(data: bytes, name: str, deadline: Deadline) -> Header:
    form = data[12:16]
    if form == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif form == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif form == b"VP8X":
        flags, low, high = struct.unpack_from("<IIH", data, 20)[0], *struct.unpack_from("<IH", data, 24)
        width, height = (low & 0xFFFFFF) + 1, (low >> 24 | high << 8) + 1
        return _read_webp_chunks(data, name, deadline, width, height, animated=bool(flags & 2))
    else:
        raise _damaged("WebP", name, "no VP8 chunk")
    return Header(height, width, data)


def _read_webp_chunks(data: bytes, name: str, deadline: Deadline, width: int, height: int, *, animated: bool) -> Header:
    delays: list[Fraction] = []
    orientation, position, blocks = 1, 12, 0
    while position + 8 <= len(data):
        blocks += 1
        _count(blocks, "WebP", name, deadline)
        chunk, length = struct.unpack_from("<4sI", data, position)
        if chunk == b"ANMF" and animated:
            duration = struct.unpack_from("<I", data, position + 20)[0] & 0xFFFFFF
            delays.append(_delay(Fraction(duration, 1000)))
        elif chunk == b"EXIF":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")) or 1
        position += 8 + length + length % 2
    return Header(height, width, data, orientation, tuple(delays) if len(delays) > 1 else ())


def _read_bmp(data: bytes, name: str, deadline: Deadline) -> Header:
    size = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return Header(abs(height), width, data)  # a negative height: rows from top to bottom


# --- TIFF, and EXIF, which is TIFF without pixels -----------------------------------------------------------------------

_ORIENTATION = 274
# The tags a decoder needs: size, samples, compression and its parameters, strips, tiles, palette, colour sampling.
_PIXEL_TAGS = {
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347,
    512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
}  # fmt: skip
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MAX_EXIF_TAGS = 1000


@dataclass(frozen=True)
class _Tag:
    raw: bytes
    first: int  # the first value of a tag of integers, else 0
    stored_bytes: int  # outside the entry itself


def _read_directory(data: bytes, max_tags: int = 65535) -> tuple[dict[int, _Tag], str, bool]:
    """Read the first directory. Returns its tags, the byte order and whether offsets have 64 bits."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset_format, count_format, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    position = struct.unpack_from(order + offset_format, data, 8 if big else 4)[0]
    count = struct.unpack_from(order + count_format, data, position)[0]
    position += struct.calcsize(order + count_format)
    tags: dict[int, _Tag] = {}
    for start in range(position, position + min(count, max_tags) * entry_bytes, entry_bytes):
        tag, kind, values = struct.unpack_from(order + "HH" + offset_format, data, start)
        inline = start + 4 + struct.calcsize(order + offset_format)
        total = values * _TYPE_BYTES.get(kind, 1)
        outside = total > start + entry_bytes - inline
        where = struct.unpack_from(order + offset_format, data, inline)[0] if outside else inline
        integer = {3: "H", 4: "I", 16: "Q"}.get(kind)
        first = struct.unpack_from(order + integer, data, where)[0] if integer and values else 0
        tags.setdefault(tag, _Tag(data[start : start + entry_bytes], first, total if outside else 0))
    return tags, order, big


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation, or 0 when there is none to be read: broken EXIF does not make a picture unreadable."""
    try:
        tag = _read_directory(exif, _MAX_EXIF_TAGS)[0].get(_ORIENTATION)
    except (struct.error, IndexError, OverflowError):
        return 0
    return tag.first if tag is not None and 1 <= tag.first <= 8 else 0


def _read_tiff(data: bytes, name: str, deadline: Deadline) -> Header:
    try:
        tags, order, big = _read_directory(data)
    except OverflowError as e:
        raise _damaged("TIFF", name, "a directory outside the file") from e

    def value(tag: int, default: int) -> int:
        return tags[tag].first if tag in tags else default

    width, height, tile_width, tile_height = value(256, 0), value(257, 0), value(322, 1), value(323, 1)
    if tile_width * tile_height > max(4 * width * height, 1 << 20):
        raise _damaged("TIFF", name, f"tiles of {tile_width} x {tile_height} pixels for {width} x {height}")
    kept = sorted((tag, entry) for tag, entry in tags.items() if tag in _PIXEL_TAGS)
    if sum(entry.stored_bytes for _, entry in kept) > len(data):
        raise _damaged("TIFF", name, "its tags overlap")
    # The same file with a new directory at its end: pixels and values stay where they were.
    start = len(data) + len(data) % 2
    count, none = ("Q", "Q") if big else ("H", "I")
    directory = b"".join(
        [struct.pack(order + count, len(kept)), *(entry.raw for _, entry in kept), struct.pack(order + none, 0)]
    )
    pointer = struct.pack(order + ("Q" if big else "I"), start)
    at = 8 if big else 4
    body = b"".join([data[:at], pointer, data[at + len(pointer) :], b"\0" * (start - len(data)), directory])
    orientation = value(_ORIENTATION, 1)
    return Header(
        height,
        width,
        body,
        orientation if 1 <= orientation <= 8 else 1,
        bits=min(max(value(258, 16), 8), 16),
        inverted=value(262, 1) == 0,
    )


_READERS: dict[str, Callable[[bytes, str, Deadline], Header]] = {
    "PNG": _read_png,
    "JPEG": _read_jpeg,
    "GIF": _read_gif,
    "WEBP": _read_webp,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
}

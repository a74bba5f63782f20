"""What a file is, by its first bytes: the allow-list of formats, and names for what is not on it."""

from __future__ import annotations

from foveal.errors import MediaError

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ANIMATED = ("PNG", "WEBP", "GIF")  # picture formats that may hold a clip
# What is found, and the one FFmpeg demuxer that may read it. Letting FFmpeg probe would also admit playlists
# and scripts (HLS, concat) that make it open other files and addresses.
CLIPS = {
    "MP4/QuickTime": "mov",
    "Matroska/WebM": "matroska",
    "AVI": "avi",
    "MPEG transport stream": "mpegts",
    "MPEG program stream": "mpeg",
    "MPEG-1/2 video": "mpegvideo",
    "Flash video": "flv",
    "Ogg": "ogg",
    "ASF/WMV": "asf",
    "IVF": "ivf",
    "YUV4MPEG2": "yuv4mpegpipe",
    "raw H.264": "h264",
    "raw HEVC": "hevc",
}
# FFmpeg's decoders that may run. It has hundreds more, for formats nobody records in and few people test.
CODECS = (
    "h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "theora", "prores", "dnxhd",
    "ffv1", "h263", "flv", "msmpeg4", "msmpeg4v2", "wmv1", "wmv2", "wmv3", "vc1", "rawvideo", "huffyuv", "ffvhuff", "qtrle",
    "png",
)  # fmt: skip
READABLE = (
    "foveal reads PNG, JPEG, WebP, GIF, BMP and TIFF pictures, and MP4, MOV, WebM, MKV, AVI, MPEG, FLV, Ogg and WMV clips"
)

_PREFIXES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\x1aE\xdf\xa3", "Matroska/WebM"),
    (b"\0\0\x01\xba", "MPEG program stream"),
    (b"\0\0\x01\xb3", "MPEG-1/2 video"),
    (b"FLV\x01", "Flash video"),
    (b"OggS", "Ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF/WMV"),
    (b"DKIF", "IVF"),
    (b"YUV4MPEG2 ", "YUV4MPEG2"),
)
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"jxs ")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof")
_OTHERS = (
    (b"%PDF", "a PDF document"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\x01\0", "an icon file"),
    (b"qoif", "a QOI picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"\x1f\x8b", "gzip data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"ID3", "an MP3 sound file"),
    (b"fLaC", "a FLAC sound file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run git lfs pull)"),
    (b"#EXTM3U", "a playlist"),
    (b"\x7fELF", "a program"),
)


def identify(head: bytes, name: str) -> str:
    """Return which of PICTURES or CLIPS the bytes begin as; the name plays no part. Raises MediaError for anything else."""
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"AVI "):
        return "WEBP" if head[8:12] == b"WEBP" else "AVI"
    if head[4:8] in _MP4_BOXES and head[8:12] not in _STILL_BRANDS:
        return "MP4/QuickTime"
    if _is_transport_stream(head):
        return "MPEG transport stream"
    if raw := _raw_stream(head):
        return raw
    raise MediaError(f"{name}: found {_describe(head)}; {READABLE}")


def _is_transport_stream(head: bytes) -> bool:
    """188-byte packets that begin with 0x47; on discs each has 4 bytes of time before it."""
    for start, step in ((0, 188), (4, 192)):
        marks = head[start : start + 5 * step : step]
        if len(marks) >= 2 and set(marks) == {0x47}:
            return True
    return False


def _raw_stream(head: bytes) -> str | None:
    """H.264 or HEVC without a container begins with a start code and a parameter set or a delimiter."""
    start = 4 if head.startswith(b"\0\0\0\x01") else 3 if head.startswith(b"\0\0\x01") else 0
    if not start or len(head) < start + 2:
        return None
    first, second = head[start], head[start + 1]
    if first & 0x80 == 0 and first & 0x1F in (7, 9):
        return "raw H.264"
    if first & 0x81 == 0 and first >> 1 in (32, 33, 35) and second == 1:
        return "raw HEVC"
    return None


def _describe(head: bytes) -> str:
    for prefix, what in _OTHERS:
        if head.startswith(prefix):
            return what
    if head[4:8] == b"ftyp":
        return "an AVIF or HEIC picture (convert it to JPEG or PNG)"
    if head[:4] == b"RIFF":
        return "a WAV sound file" if head[8:12] == b"WAVE" else "a RIFF file of another kind"
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page (is the address that of a page instead of the picture on it?)"
    if text.startswith((b"<svg", b"<?xml")):
        return "SVG or XML text (render it to PNG)"
    if head.isascii() and not any(byte < 9 for byte in head):
        return "plain text"
    return f"unknown data beginning with the bytes {head[:8].hex(' ')}"

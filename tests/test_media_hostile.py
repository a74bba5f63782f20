"""Files and servers made to crash, hang or swallow memory: refused in time, before the memory is spent."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import os
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.errors import MediaError
from foveal.media import ClipSampling, Limits, load, load_clip, load_image, probe
from tests.media_files import animation, barcode, clip, encode, gradient, read_barcodes


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(tags: list[tuple[int, int, int, int]], data: bytes, next_directory: int = 0) -> bytes:
    """A little-endian TIFF: 8 bytes of header, the data, one directory."""
    data += b"\0" * (len(data) % 2)
    directory = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + directory
        + struct.pack("<I", next_directory)
    )


def grey_tiff(width: int, height: int, bits: int, data: bytes, photometric: int = 1, *more: tuple[int, int, int, int]) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data))]
    return tiff([*tags, *more], data)


def refused(data: bytes, match: str) -> None:
    """The source is refused by both ways in, quickly, and with little memory of Python's."""
    for way in (load, probe):
        begun = time.monotonic()
        tracemalloc.start()
        with pytest.raises(MediaError, match=match):
            way(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.monotonic() - begun < 5 and peak < 4 * len(data) + 2**25


def jpeg_segments(data: bytes, extra: bytes) -> bytes:
    return data[:2] + extra + data[2:]


# --- sizes in headers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000, 8, 2, b""),
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0",
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 60_000, -60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        grey_tiff(60_000, 60_000, 8, b"abc"),
        b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\x00\xff\xff\x00" + b"\0" * 80,
    ],
    ids=["png", "png-max", "jpeg", "gif", "bmp", "tiff", "webp"],
)
def test_sizes_are_refused_before_they_are_decoded(data: bytes) -> None:
    with pytest.raises(MediaError, match="the limit is 120,000,000"):
        load(data)
    with pytest.raises(MediaError, match="the limit is"):
        probe(data)


def test_a_large_header_within_the_limit_is_no_warning() -> None:
    """Pillow warns from 89 million pixels on, and warnings are errors here; the limit is ours."""
    assert probe(png(10_000, 9_500, 8, 0, b"")).source_size == (9_500, 10_000)


def test_zero_and_narrow() -> None:
    refused(png(0, 5, 8, 2, b""), "0 x 5 pixels")
    refused(png(201, 1, 8, 0, b"\0" * 202), "side ratio of 201 to 1")


# --- metadata --------------------------------------------------------------------------------------------------------


def test_text_chunks_are_not_read() -> None:
    """One of 60 MB when inflated, and more of them than Pillow tolerates: the pixels are fine."""
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 60_000_000))
    rows = b"".join(b"\0" + row.tobytes() for row in gradient())
    data = png(
        20,
        12,
        8,
        2,
        rows,
        before=bomb + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"b" * 9_000_000)) + 5000 * chunk(b"tEXt", b"a\0b"),
    )
    tracemalloc.start()
    assert np.array_equal(load(data).pixels[0], gradient())
    assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    tracemalloc.stop()


def test_too_many_blocks() -> None:
    data = png(4, 4, 8, 0, b"\0" * 20, before=chunk(b"tEXt", b"") * 200_001)
    begun = time.monotonic()
    with pytest.raises(MediaError, match="more than 200,000 blocks"):
        load(data)
    assert time.monotonic() - begun < 5


def exif_segment(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 8) + b"Exif\0\0" + body


@pytest.mark.parametrize(
    "body",
    [
        b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"MM\0+\0\x08\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        # 5,000 tags that all claim the same 60 kB
        b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + b"".join(struct.pack("<HHII", i, 7, 60_000, 8) for i in range(5000)),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 99),
    ],
)  # fmt: skip
def test_broken_exif_leaves_the_picture(body: bytes) -> None:
    plain = encode(gradient(), "JPEG", quality=90)
    assert np.array_equal(load(jpeg_segments(plain, exif_segment(body))).pixels, load(plain).pixels)


def test_tiff_directories() -> None:
    good = grey_tiff(3, 2, 8, b"abcdef")
    assert load(good).pixels[0, :, :, 0].tobytes() == b"abcdef"
    loop = good[:-4] + struct.pack("<I", struct.unpack_from("<I", good, 4)[0])  # the next directory is this one
    assert np.array_equal(load(loop).pixels, load(good).pixels)
    # What Pillow would read into memory for each tag; unknown ones are dropped, and known ones must fit the file.
    many = [(40_000 + i, 7, len(good), 0) for i in range(2000)]
    assert np.array_equal(load(grey_tiff(3, 2, 8, b"abcdef", 1, *many)).pixels, load(good).pixels)
    refused(grey_tiff(3, 2, 8, b"abcdef", 1, (320, 7, 10**9, 0), (347, 7, 10**9, 0)), "tags overlap")
    refused(grey_tiff(3, 2, 8, b"abcdef", 1, (322, 4, 1, 2**20), (323, 4, 1, 2**20)), "tiles of 1048576 x 1048576")
    refused(b"II*\0" + struct.pack("<I", 2**32 - 1) + b"\0" * 50, "ends inside its header")


def test_many_scans() -> None:
    data = encode(gradient(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    refused(data[:scan] + data[scan:-2] * 200 + data[-2:], "JPEG picture of 2.. scans")


# --- animations ------------------------------------------------------------------------------------------------------


def test_animations_of_many_frames() -> None:
    data = animation([20] * 3, "GIF", (2, 10))
    frame = data.rindex(b"!\xf9")
    long = data[:frame] + data[frame:-1] * 3000 + b";"
    assert load_image(long).pixels.shape == (1, 2, 10, 3)
    assert len(load_clip(long, sampling=ClipSampling(num_frames=5)).times_s) == 5
    with pytest.raises(MediaError, match="has 3,002 frames, the limit is 3,000"):
        load_clip(long, limits=Limits(max_frames=3000))
    with pytest.raises(MediaError, match="lasts 60 s, the limit is 59 s"):
        load_clip(long, limits=Limits(max_duration_s=59))
    with pytest.raises(MediaError, match=r"could not be read within 1e-06 s"):
        load_clip(long, limits=Limits(timeout_s=1e-6))


def test_comments_do_not_count() -> None:
    data = encode(Image.fromarray(gradient()).convert("P"), "GIF")
    image = data.rindex(b",", 0, len(data) - 200)
    noisy = data[:image] + b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0" + data[image:]
    begun = time.monotonic()
    assert np.array_equal(load(noisy).pixels, load(data).pixels)
    assert time.monotonic() - begun < 2


# --- clips -----------------------------------------------------------------------------------------------------------


def with_box(data: bytes, kind: bytes, offset: int, value: int) -> bytes:
    at = data.index(kind) + 4 + offset
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


def test_mp4_tables_that_announce_samples_they_do_not_list() -> None:
    plain = clip(6)
    for count in (2**31 - 1, 80_000_000):  # FFmpeg would take 3 GB for the latter
        data = with_box(with_box(with_box(plain, b"stsz", 4, 1), b"stsz", 8, count), b"stsc", 12, 2**31 - 1)
        with pytest.raises(MediaError, match=f"announces {count:,} samples"):
            load(data)
    fragments = clip(6, container_options={"movflags": "frag_keyframe+empty_moov"})
    with pytest.raises(MediaError, match="announces"):
        load(with_box(fragments, b"trun", 4, 2**26))


def test_playlists_are_no_clips() -> None:
    """FFmpeg would open the files and addresses named in them."""
    for text in (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"):
        refused(text, "found (a playlist|plain text)")
        with pytest.raises(MediaError):
            load(clip(2)[:4] + b"ftyp" + text * 20)


def test_a_clip_that_is_cut_off(tmp_path: Path) -> None:
    import av

    file = tmp_path / "front.mp4"  # the header first: all of it is there
    with av.open(str(file), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 80, 32, "yuv420p"
        stream.codec_context.gop_size = 15
        for i in range(90):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(barcode(i), format="rgb24")))
        out.mux(stream.encode())
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(MediaError, match=r"promises 90 frames, \d\d are there; .* its first 1\.\d\d s only"):
        load(file)
    assert read_barcodes(load(file, sampling=ClipSampling(num_frames=3, end_s=1)).pixels) == [0, 15, 30]


def test_a_damaged_middle_costs_its_frames_only() -> None:
    data = bytearray(clip(90, container="matroska", gop=15))
    data[len(data) * 4 // 10 : len(data) * 5 // 10] = bytes(len(data) * 5 // 10 - len(data) * 4 // 10)
    frames = load_clip(bytes(data), sampling=ClipSampling(num_frames=10))
    assert 5 <= len(frames.times_s) <= 10
    # In an undamaged part, number and time belong together.
    assert read_barcodes(frames.pixels)[:3] == np.round(frames.times_s[:3] * 30).astype(int).tolist()


def test_sound_alone() -> None:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    refused(buffer.getvalue(), r"without a video stream \(sound only\)")


def test_a_codec_that_is_not_listed() -> None:
    with pytest.raises(MediaError, match="coded as cinepak, which is not decoded"):
        load(clip(2, container="avi", codec="cinepak", pixel_format="rgb24"))


# --- sources ---------------------------------------------------------------------------------------------------------


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    for source, match in (
        (tmp_path / "pipe.png", "pipe, device or socket"),
        (Path("/dev/zero"), "pipe, device or socket"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.png", "no such file"),
        ("a\0b", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        ("file://elsewhere/a.png", "another host"),
        ("ftp://host/a.png", "found a ftp:// address"),
        (tmp_path / ("n\n" * 100), "no such file"),
    ):
        with pytest.raises(MediaError, match=match) as caught:
            load(source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    (tmp_path / "page.png").write_text("<!DOCTYPE html><title>Not found</title>")
    with pytest.raises(MediaError, match=r"^page\.png: found a web page"):
        load(tmp_path / "page.png")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"%PDF-1.7", "a PDF document"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 20, "AVIF or HEIC"), (b"PK\x03\x04" + b"\0" * 30, "ZIP"),
        (b"<svg xmlns=''>", "SVG"), (b"hello", "plain text"), (b"\x01\x02\x03\x04\x05", "01 02 03 04 05"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"RIFF\0\0\0\0WAVEfmt ", "WAV"), (b"", "is empty"),
    ],
)  # fmt: skip
def test_what_was_found_is_named(data: bytes, found: str) -> None:
    refused(data, found)


@pytest.mark.parametrize("tail", ["", ";base64"])
def test_data_urls(tail: str) -> None:
    data = encode(gradient(), "PNG")
    if tail:
        text = base64.b64encode(data).decode()
        texts = [
            text,
            text.rstrip("="),
            text.replace("+", "%2B"),
            text.replace("+", "-").replace("/", "_"),
            text[:9] + "\n " + text[9:],
        ]
    else:
        texts = ["".join(f"%{byte:02x}" for byte in data)]
    for text in texts:
        assert np.array_equal(load(f"data:image/png{tail},{text}").pixels[0], gradient())
        with pytest.raises(MediaError, match="limit of 20 bytes"):
            load(f"data:image/png{tail},{text}", limits=Limits(max_bytes=20))
    for bad in ("data:image/png;base64", "data:image/png;base64,!!!!", "data:,"):
        with pytest.raises(MediaError, match="data URL"):
            load(bad)


# --- http ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # the client has had enough
                getattr(self, self.path.strip("/").partition("?")[0].replace("-", "_"))()
            self.close_connection = True

        def start(self, code: int, **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def endless(self) -> None:
            self.start(200)
            while True:
                self.wfile.write(b"\x89PNG" * 4096)

        def announced(self) -> None:
            self.start(200, Content_Length=str(10**12))

        def drip(self) -> None:
            self.start(200)
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)

        def drip_headers(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)

        def silent(self) -> None:
            time.sleep(3)

        def circle(self) -> None:
            self.start(302, Location="/circle")

        def to_file(self) -> None:
            self.start(302, Location="file:///etc/passwd")

        def endless_redirect(self) -> None:
            self.start(302, Location="/picture")
            while True:
                self.wfile.write(b"a" * 65536)

        def picture(self) -> None:
            data = encode(gradient(), "PNG")
            self.start(200, Content_Length=str(len(data)))
            self.wfile.write(data)

        def garbage(self) -> None:
            self.wfile.write(b"\0\1\2 nothing of HTTP\r\n\r\n")

        def secret(self) -> None:
            self.start(500, Content_Length="21")
            self.wfile.write(b"password=hunter2 10.1")

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("endless", "larger than the limit of 1,000,000"), ("announced", "larger than the limit of 1,000,000"),
        ("drip", "within 0.4 s"), ("drip-headers", "within 0.4 s"), ("silent", "within 0.4 s"),
        ("circle", "redirects more than 3 times"), ("to-file", "redirects from http to file, which is not followed"),
        ("garbage", "could not be downloaded"), ("secret", "the server answered 500"),
    ],
)  # fmt: skip
def test_servers(server: str, path: str, match: str) -> None:
    begun = time.monotonic()
    with pytest.raises(MediaError, match=match) as caught:
        load(f"{server}/{path}?token=sesame", limits=Limits(max_bytes=1_000_000, timeout_s=0.4 if "0.4" in match else 5))
    assert time.monotonic() - begun < 4
    assert "sesame" not in str(caught.value) and "hunter2" not in str(caught.value)


def test_redirects_are_followed_without_their_body(server: str) -> None:
    assert np.array_equal(load(f"{server}/endless-redirect", limits=Limits(timeout_s=5)).pixels[0], gradient())


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://", "no host"), ("http://user:pass@localhost/a.png", "user name or password"),
        ("http://localhost:1/a.png", "refused"),
        ("http://local host/", "could not be downloaded"), ("http://[::1/a.png", "could not be downloaded"),
        ("https://127.0.0.1:99999/", "could not be downloaded"),
    ],
)  # fmt: skip
def test_urls(url: str, match: str) -> None:
    with pytest.raises(MediaError, match=match) as caught:
        load(url)
    assert "pass@" not in str(caught.value)


# --- samples wider than 8 bits -----------------------------------------------------------------------------------------


def test_wide_samples() -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], "<u2")
    grey = [0, 0, 1, 0x12, 0xFF]
    assert load(grey_tiff(5, 1, 16, values.tobytes())).pixels[0, 0, :, 0].tolist() == grey
    assert load(grey_tiff(5, 1, 16, values.tobytes(), 0)).pixels[0, 0, :, 0].tolist() == [255 - v for v in grey]
    assert load(png(5, 1, 16, 0, b"\0" + values.astype(">u2").tobytes())).pixels[0, 0, :, 2].tolist() == grey
    # 12 bits, two samples in three bytes
    assert load(grey_tiff(4, 1, 12, bytes([0x12, 0x34, 0x56, 0xFF, 0xF0, 0x00]))).pixels[0, 0, :, 0].tolist() == [
        0x12,
        0x45,
        0xFF,
        0,
    ]
    assert load(values).pixels[0, 0, :, 0].tolist() == grey
    assert load(Image.fromarray(values.astype(np.uint16))).pixels[0, 0, :, 0].tolist() == grey
    rgb = struct.pack(">6H", 0xFFFF, 0x0100, 0x1234, 1, 2, 3)
    assert load(png(2, 1, 16, 2, b"\0" + rgb)).pixels[0, 0].tolist() == [[0xFF, 1, 0x12], [0, 0, 0]]
    with pytest.raises(MediaError, match="32-bit integer samples"):
        load(Image.fromarray(np.zeros((2, 2), np.int32)))
    with pytest.raises(MediaError, match=r"array of shape \(2, 2\) and type float64"):
        load(np.zeros((2, 2)))


def test_transparent_colours() -> None:
    """tRNS names one colour in the file's own depth."""
    key16 = chunk(b"tRNS", struct.pack(">H", 100))
    assert load(png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 100, 101, 0x8000), before=key16)).pixels[0, 0, :, 0].tolist() == [
        255,
        0,
        128,
    ]
    key8 = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    assert load(png(2, 1, 8, 2, b"\0\1\2\3\1\2\4", before=key8)).pixels[0, 0].tolist() == [[255] * 3, [1, 2, 4]]
    rgb16 = chunk(b"tRNS", struct.pack(">3H", 0xFFFF, 0, 0x0102))
    row = b"\0" + struct.pack(">6H", 0xFFFF, 0, 0x0102, 0xFFFF, 0, 0x0202)
    assert load(png(2, 1, 16, 2, row, before=rgb16)).pixels[0, 0].tolist() == [[255] * 3, [255, 0, 2]]

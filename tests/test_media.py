"""What `foveal.media` makes of pictures and clips, against what was put into the files."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.errors import MediaError
from foveal.media import ClipSampling, Limits, load, load_clip, load_image
from tests.media_files import animation, barcode, clip, encode, gradient, read_barcodes, rotate_mp4

ALL = ClipSampling(num_frames=1000)
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_pictures_are_exact(kind: str) -> None:
    frames = load(encode(gradient(), kind, **LOSSLESS[kind]))
    assert np.array_equal(frames.pixels[0], gradient())
    assert (frames.kind, frames.source_size, frames.times_s.tolist(), frames.name) == ("image", (12, 20), [0.0], "bytes")


def test_jpeg_is_close() -> None:
    found = load(encode(gradient(), "JPEG", quality=95, subsampling=0)).pixels[0].astype(int)
    assert np.abs(found - gradient()).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    turns = [lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1], lambda a: a.swapaxes(0, 1),
             lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).swapaxes(0, 1), lambda a: np.rot90(a, 1)]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    frames = load(encode(gradient(), "PNG", exif=exif))
    assert np.array_equal(frames.pixels[0], turns[orientation - 1](gradient()))
    assert frames.source_size == ((12, 20) if orientation < 5 else (20, 12))


def test_modes() -> None:
    grey = gradient()[:, :, 0]
    assert np.array_equal(load(encode(grey, "PNG")).pixels[0], np.repeat(grey[:, :, None], 3, 2))
    assert np.array_equal(load(encode(grey.astype(np.uint16) * 256 + 7, "PNG")).pixels[0, :, :, 1], grey)
    palette = Image.fromarray(gradient()).quantize(32)
    assert np.array_equal(load(encode(palette, "PNG")).pixels[0], np.array(palette.convert("RGB")))
    cmyk = load(encode(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "TIFF")).pixels[0]
    assert cmyk.shape == (6, 8, 3) and cmyk[0, 0].tolist() == [255, 0, 0]


def test_alpha_is_flattened_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[1, :, 3] = 255
    for source in (encode(rgba, "PNG"), rgba, Image.fromarray(rgba)):
        assert load(source).pixels[0, :, 0, 0].tolist() == [255, 0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_as_picture_and_as_clip(kind: str) -> None:
    data = animation([100, 200, 300, 50, 50], kind)
    assert load(data).kind == "image" and read_barcodes(load(data).pixels) == [0]
    frames = load_clip(data, sampling=ALL)
    assert read_barcodes(frames.pixels) == [0, 1, 2, 3, 4]
    assert np.allclose(frames.times_s, [0, 0.1, 0.3, 0.6, 0.65])


def test_every_way_in(tmp_path: Path) -> None:
    data = encode(gradient(), "PNG")
    path = tmp_path / "mislabelled.jpg"
    path.write_bytes(data)
    url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), path.as_uri(), data, bytearray(data), memoryview(data), url, gradient()):
        assert np.array_equal(load(source).pixels[0], gradient())
    assert load(path).name == "mislabelled.jpg"


def test_bad_sources(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    png = encode(gradient(), "PNG")
    broken: tuple[Any, ...] = (
        b"",
        empty,
        tmp_path,
        tmp_path / "none",
        png[:60],
        b"hello",
        clip(3)[:200],
        [],
        "ftp://a/b",
        " ",
        "data:x",
        3,
    )
    for source in broken:
        with pytest.raises(MediaError):
            load(source)
    with pytest.raises(MediaError, match="picture was expected"):
        load_image(clip(2))
    with pytest.raises(MediaError, match="clip was expected"):
        load_clip(encode(gradient(), "JPEG"))


def test_limits() -> None:
    png, mp4 = encode(gradient(), "PNG"), clip(30)
    for source, limits in (
        (png, Limits(max_bytes=50)), (png, Limits(max_pixels=239)), (encode(np.zeros((1, 201, 3), np.uint8), "PNG"), Limits()),
        (mp4, Limits(max_frames=29)), (mp4, Limits(max_duration_s=0.9)), (mp4, Limits(max_frame_pixels=2559)),
        (mp4, Limits(max_output_bytes=1000)),
    ):  # fmt: skip
        with pytest.raises(MediaError, match="limit"):
            load(source, limits=limits)
    assert load(encode(np.zeros((1, 200, 3), np.uint8), "PNG")).source_size == (1, 200)


def test_list_of_pictures() -> None:
    frames = load_clip([barcode(i) for i in range(5)], sample_fps=4)
    assert read_barcodes(frames.pixels) == list(range(5)) and frames.times_s.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(MediaError, match="share one size"):
        load_clip([barcode(0), gradient()])


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = encode(gradient(), "PNG")
            self.send_response({"/moved": 302, "/none": 404}.get(self.path, 200))
            if self.path == "/moved":
                self.send_header("Location", "/a.png")
            self.send_header("Content-Length", str(len(data) + (self.path == "/short")))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_http(server: str) -> None:
    for path in ("/a.png?secret=1", "/moved"):
        assert np.array_equal(load(server + path).pixels[0], gradient())
    for path in ("/none", "/short"):
        with pytest.raises(MediaError):
            load(server + path)
    with pytest.raises(MediaError, match="limit"):
        load(server + "/a.png", limits=Limits(max_bytes=50))


CONTAINERS = [
    ("mp4", "libx264"),
    ("matroska", "libx264"),
    ("mpegts", "libx264"),
    ("avi", "mpeg4"),
    ("mpeg", "mpeg2video"),
    ("avi", "libx264"),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
def test_every_frame_of_every_container(container: str, codec: str, b_frames: int) -> None:
    data = clip(45, fps=25, container=container, codec=codec, gop=15, b_frames=b_frames)
    frames = load_clip(data, sampling=ALL, limits=Limits(timeout_s=10))
    assert read_barcodes(frames.pixels) == list(range(45))
    assert np.allclose(frames.times_s, np.arange(45) / 25, atol=1e-3)


@pytest.mark.parametrize("gop", [30, 250])
@pytest.mark.parametrize(("count", "fps"), [(300, 2.0), (299, 1.0), (61, 0.1), (2, 2.0), (1, 2.0)])
def test_frames_chosen_as_the_reference_does(count: int, fps: float, gop: int) -> None:
    frames = load_clip(clip(count, gop=gop, b_frames=2), sampling=ClipSampling(fps=fps))
    wanted = min(max(int(count / 30 * fps), 4), count)
    expected = np.linspace(0, count - 1, wanted).round().astype(int)
    assert read_barcodes(frames.pixels) == expected.tolist()
    assert np.allclose(frames.times_s, expected / 30, atol=1e-9)


def test_range_uneven_times_and_odd_sizes() -> None:
    part = load_clip(clip(90), sampling=ClipSampling(num_frames=100, start_s=1, end_s=2))
    assert read_barcodes(part.pixels) == list(range(30, 61))
    stamps = [0, 1, 2, 30, 31, 90, 200, 201, 202, 260]
    uneven = load_clip(clip(10, stamps=stamps), sampling=ClipSampling(num_frames=4))
    assert set(read_barcodes(uneven.pixels)) == {0, 5, 6, 9}  # targets are even in time: 0, 86.7, 173.3 and 260
    assert load_clip(clip(3, size=(33, 81), pixel_format="yuv444p")).pixels.shape == (3, 33, 81, 3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_of_the_display_matrix(degrees: int) -> None:
    frames = load_clip(rotate_mp4(clip(2), degrees))
    upright = np.rot90(frames.pixels, degrees // 90, axes=(1, 2))  # np turns against the clock: back again
    assert read_barcodes(upright) == [0, 1]
    assert frames.source_size == ((32, 80) if degrees == 180 else (80, 32))

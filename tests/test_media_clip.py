"""Which frames of a clip are decoded, when they are shown, and what that costs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from PIL import Image, ImageSequence

from foveal.errors import ConfigError, MediaError, MissingDependency
from foveal.media import ClipSampling, Limits, load, load_clip, load_image, probe
from foveal.media.container import Container
from foveal.media.sampling import Timeline, choose
from foveal.patches import resize
from tests.media_files import barcode, clip, encode, gradient, read_barcodes

EVERY = ClipSampling(num_frames=10_000)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The presentation stamps of all frames that are decoded, in order."""
    stamps: list[Any] = []
    plain = Container.decoded

    def counting(self: Container, packets: Iterator[Any]) -> Iterator[Any]:
        for frame in plain(self, packets):
            stamps.append(frame.pts)
            yield frame

    monkeypatch.setattr(Container, "decoded", counting)
    yield stamps


# --- the frames chosen -----------------------------------------------------------------------------------------------


def reference(total: int, video_fps: float, fps: float, min_frames: int = 4, max_frames: int = 768) -> list[int]:
    """Qwen3VLVideoProcessor.sample_frames of transformers 5.23."""
    frames = min(max(int(total / video_fps * fps), min_frames), max_frames, total)
    return np.linspace(0, total - 1, frames).round().astype(int).tolist()


@pytest.mark.parametrize(
    "rate", [Fraction(30), Fraction(25), Fraction(30000, 1001), Fraction(10), Fraction(1, 2), Fraction(240)]
)
def test_choice_at_a_constant_rate(rate: Fraction) -> None:
    for total in (1, 2, 3, 4, 5, 7, 29, 30, 31, 299, 300, 1000, 9000, 100_000):
        times = np.arange(total) * rate.denominator / rate.numerator
        timeline = Timeline(times, float(total / rate), float(rate))
        for fps in (0.25, 1.0, 2.0, 5.0, 30.0):
            assert choose(timeline, ClipSampling(fps=fps), "clip").tolist() == reference(total, float(rate), fps)
        assert choose(timeline, ClipSampling(fps=1e308), "clip").tolist() == reference(total, 1.0, 1.0)
        assert choose(timeline, ClipSampling(), "clip").tolist() == reference(total, float(rate), 2.0)
        assert choose(timeline, ClipSampling(min_frames=1, max_frames=6), "clip").tolist() == reference(
            total, float(rate), 2.0, 1, 6
        )


def test_goldens_of_the_reference() -> None:
    def at_30(total: int) -> list[int]:
        return choose(Timeline(np.arange(total) / 30, total / 30, 30.0), ClipSampling(), "clip").tolist()

    assert len(at_30(300)) == 20 and at_30(300)[:4] == [0, 16, 31, 47] and at_30(300)[-1] == 299
    assert at_30(30) == [0, 10, 19, 29]
    assert at_30(3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(1.0, 2.0, [30, 40, 50, 60]), (2.9, None, [87, 88, 89]), (None, 0.05, [0, 1]), (1.0, 1.0, [30]), (0.1, 0.1, [3])],
)
def test_range(start: float | None, end: float | None, expected: list[int]) -> None:
    frames = load_clip(clip(90), sampling=ClipSampling(start_s=start, end_s=end))
    assert read_barcodes(frames.pixels) == expected
    assert np.array_equal(frames.times_s, np.array(expected) / 30)  # of the clip, not of the range


def test_empty_range() -> None:
    with pytest.raises(MediaError, match=r"no frame between 3 s and 4 s; it has 90 frames from 0 to 2\.96667 s"):
        load_clip(clip(90), sampling=ClipSampling(start_s=3.0, end_s=4.0))


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 0}, {"fps": float("nan")}, {"fps": 1.0, "num_frames": 2}, {"num_frames": 0}, {"min_frames": 0},
        {"min_frames": 9, "max_frames": 8}, {"start_s": -1}, {"start_s": 2, "end_s": 1}, {"start_s": float("inf")},
    ],
)  # fmt: skip
def test_sampling_that_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ClipSampling(**options)


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(24000, 1001), Fraction(12), Fraction(50)])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_times_at_a_constant_rate_are_exact(rate: Fraction, container: str) -> None:
    """Also where the container rounds them to milliseconds."""
    frames = load_clip(clip(40, fps=rate, container=container, b_frames=2), sampling=EVERY)
    assert frames.times_s.tolist() == [float(i / rate) for i in range(40)]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_uneven_times(container: str) -> None:
    """A slide shown for two seconds, then a burst; presentation times decide, and B-frames do not disturb them."""
    stamps = [0, 2000, 2040, 2080, 2120, 2160, 2200, 3000, 3010, 4500]
    data = clip(10, stamps=stamps, clock=Fraction(1, 1000), container=container, b_frames=2)
    frames = load_clip(data, sampling=EVERY)
    assert read_barcodes(frames.pixels) == list(range(10))
    assert np.allclose(frames.times_s, np.array(stamps) / 1000, atol=1e-3)
    # 2 a second: targets every 0.56 s; each takes the nearest frame, once
    assert read_barcodes(load_clip(data, sampling=ClipSampling(fps=2)).pixels) == [0, 1, 6, 7, 8, 9]
    assert read_barcodes(load_clip(data, sampling=ClipSampling(fps=2, start_s=2.05, end_s=2.9)).pixels) == [3, 4, 5, 6]


def test_a_burst_still_gives_the_number_asked_for() -> None:
    data = clip(21, stamps=[*range(20), 9000], clock=Fraction(1, 1000))
    assert read_barcodes(load_clip(data, sampling=ClipSampling(num_frames=7)).pixels) == [0, 3, 7, 10, 13, 17, 20]


def test_frames_before_the_beginning_are_not_shown() -> None:
    """An edit list: the first ten are decoded, but presented before zero."""
    frames = load_clip(clip(30, stamps=range(-10, 20), clock=Fraction(1, 30)), sampling=EVERY)
    assert read_barcodes(frames.pixels) == list(range(10, 30))
    assert frames.times_s[0] == 0


def test_a_late_start_counts_from_its_first_frame() -> None:
    frames = load_clip(clip(30, stamps=range(100, 130), clock=Fraction(1, 30), container="matroska"), sampling=EVERY)
    assert read_barcodes(frames.pixels) == list(range(30)) and frames.times_s[0] == 0


# --- seeking ---------------------------------------------------------------------------------------------------------

SEEKABLE = [
    ("mp4", "libx264"),
    ("matroska", "libx264"),
    ("mpegts", "libx264"),
    ("avi", "mpeg4"),
    ("webm", "libvpx"),
]
OTHERS = [
    ("mpeg", "mpeg2video"),
    ("mpeg2video", "mpeg2video"),
    ("avi", "libx264"),
    ("h264", "libx264"),
    ("hevc", "libx265"),
    ("ivf", "libvpx"),
]
NO_B_FRAMES = ("libvpx", "flv", "wmv2")


@pytest.mark.parametrize(("container", "codec"), SEEKABLE)
def test_seeking_saves_work(container: str, codec: str, decoded: list[Any]) -> None:
    data = clip(300, fps=25, gop=20, container=container, codec=codec, b_frames=2 if codec == "libx264" else 0)
    wanted = [0, 75, 150, 224, 299]
    assert read_barcodes(load_clip(data, sampling=ClipSampling(num_frames=5)).pixels) == wanted
    assert len(decoded) <= sum(i % 20 + 1 for i in wanted) + 20  # from the keyframe before each, and little more


def test_no_seek_without_a_keyframe_between(decoded: list[Any]) -> None:
    load_clip(clip(300, gop=250), sampling=ClipSampling(num_frames=7))
    assert len(decoded) == len(set(decoded)) == 300


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_open_groups(container: str, codec: str) -> None:
    """Frames shown before a keyframe but coded after it need the group before."""
    name = "x264-params" if codec == "libx264" else "x265-params"
    data = clip(
        120, gop=20, b_frames=3, container=container, codec=codec,
        options={name: "open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=3:b-adapt=0:log-level=none"},
    )  # fmt: skip
    for frames in (5, 9, 40, 120):
        expected = np.linspace(0, 119, frames).round().astype(int).tolist()
        assert read_barcodes(load_clip(data, sampling=ClipSampling(num_frames=frames)).pixels) == expected


@pytest.mark.parametrize(
    ("container", "codec", "b_frames"),
    [
        (*c, b)
        for c in [*SEEKABLE, *OTHERS, ("flv", "flv"), ("asf", "wmv2")]
        for b in (0, 2)
        if not b or c[1] not in NO_B_FRAMES
    ],
)
def test_some_frames_of_every_container(container: str, codec: str, b_frames: int) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else None
    data = clip(90, fps=25, gop=15, b_frames=b_frames, container=container, codec=codec, options=options)
    for frames in (1, 4, 13):
        found = load_clip(data, sampling=ClipSampling(num_frames=frames))
        expected = np.linspace(0, 89, frames).round().astype(int)
        assert read_barcodes(found.pixels) == expected.tolist()
        assert np.allclose(found.times_s, expected / 25, atol=1e-9)
        assert np.array_equal(probe(data, sampling=ClipSampling(num_frames=frames)).times_s, found.times_s)


def test_fragments() -> None:
    data = clip(60, gop=10, b_frames=2, container_options={"movflags": "frag_keyframe+empty_moov"})
    assert read_barcodes(load_clip(data, sampling=ClipSampling(num_frames=7)).pixels) == [0, 10, 20, 30, 39, 49, 59]


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(33, 81), (17, 41), (2, 40)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert load_clip(clip(3, size=size, codec="ffv1", container="matroska", pixel_format="yuv444p")).source_size == size


def test_fit_is_asked_once_and_applied_to_every_frame() -> None:
    asked: list[tuple[int, int, int]] = []

    def fit(frames: int, height: int, width: int) -> tuple[int, int]:
        asked.append((frames, height, width))
        return 64, 96

    data = clip(30)
    for source in (data, [barcode(i) for i in range(4)]):
        plain, fitted = load_clip(source), load_clip(source, fit=fit)
        assert asked.pop() == (4, 32, 80) and not asked
        assert np.array_equal(fitted.pixels, resize(plain.pixels, (64, 96)))
        assert fitted.source_size == (32, 80)
    with pytest.raises(ConfigError, match="fit chose 0 x 5"):
        load_clip(data, fit=lambda n, h, w: (0, 5))
    with pytest.raises(MediaError, match=r"4 frames of 40000 x 20000 take 9,600,000,000 bytes"):
        load_clip(data, fit=lambda n, h, w: (20000, 40000))


def test_lists_of_pictures() -> None:
    pictures = [encode(barcode(i), "PNG") for i in range(10)]
    frames = load_clip(pictures, sample_fps=5)
    assert read_barcodes(frames.pixels) == list(range(10)) and frames.times_s.tolist() == [i / 5 for i in range(10)]
    assert read_barcodes(load(pictures, sampling=ClipSampling(num_frames=3)).pixels) == [0, 4, 9]
    assert read_barcodes(load_clip(pictures, sample_fps=5, sampling=ClipSampling(fps=2)).pixels) == [0, 3, 6, 9]
    assert read_barcodes(load_clip(pictures, sample_fps=5, sampling=ClipSampling(start_s=1.0)).pixels) == [5, 6, 7, 8, 9]
    assert load(np.stack([barcode(i) for i in range(3)])).kind == "video"
    for bad in ([], [pictures[0], b"junk"], [pictures[0], clip(2)]):
        with pytest.raises(MediaError):
            load_clip(bad)
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(MediaError, match="sample_fps"):
            load_clip(pictures, sample_fps=rate)


# --- real pictures ---------------------------------------------------------------------------------------------------

FOLDER = Path(skimage.__file__).parent / "data"
FLOATS = "multipage_rgb.tif"  # 64-bit floating point
PICTURES = sorted(p for p in FOLDER.iterdir() if p.suffix in (".png", ".jpg", ".gif", ".tif") and p.name != FLOATS)


def test_there_are_real_pictures() -> None:
    assert len(PICTURES) >= 20


@pytest.mark.parametrize("path", PICTURES, ids=lambda p: p.name)
def test_real_pictures(path: Path) -> None:
    frames = load_image(path)
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        expected = np.array(Image.alpha_composite(white, rgba).convert("RGB")).astype(int)
    assert frames.name == path.name and frames.source_size == expected.shape[:2] == probe(path).source_size
    assert np.abs(frames.pixels[0] - expected).max() <= 1  # the two ways to flatten round differently


def test_a_picture_of_numbers_is_refused() -> None:
    with pytest.raises(MediaError, match="found a TIFF picture, but it cannot be decoded"):
        load(FOLDER / FLOATS)


def test_a_real_animation() -> None:
    path = next(p for p in PICTURES if p.suffix == ".gif")
    with Image.open(path) as image:
        expected = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    frames = load_clip(path, sampling=EVERY)
    assert np.array_equal(frames.pixels, np.stack(expected))
    assert frames.times_s[0] == 0 and (np.diff(frames.times_s) > 0).all()


def test_a_still_picture_before_the_animation() -> None:
    """A PNG may show another picture where animations are not played: it is the picture, and no frame of the clip."""
    frames = [Image.fromarray(barcode(i)) for i in range(4)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50, default_image=True)
    assert read_barcodes(load_image(data).pixels) == [0]
    assert read_barcodes(load_clip(data, sampling=EVERY).pixels) == [1, 2, 3]


# --- around ----------------------------------------------------------------------------------------------------------


def test_threads() -> None:
    sources = [
        clip(60, gop=10, b_frames=2),
        encode(gradient(), "JPEG"),
        encode(gradient(), "WEBP"),
        clip(30, container="matroska"),
    ]
    expected = [load(source).pixels for source in sources]
    with ThreadPoolExecutor(8) as pool:
        for found, pixels in zip(pool.map(load, sources * 10), expected * 10, strict=True):
            assert np.array_equal(found.pixels, pixels)


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependency, match=r'needs PyAV, which is not installed; run: pip install -e "\.\[video\]"'):
        load(data)
    assert load(encode(gradient(), "PNG")).kind == "image"


def test_the_clock_is_watched() -> None:
    with pytest.raises(MediaError, match=r"could not be read within 0\.001 s"):
        load_clip(clip(200, size=(64, 160)), sampling=EVERY, limits=Limits(timeout_s=0.001))

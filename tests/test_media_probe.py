"""What `probe` says of a file before anything is decoded is what `load` then gives."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from foveal.errors import MediaError, PromptError
from foveal.media import ClipSampling, Limits, load, probe


def picture(kind: str, orientation: int | None = None) -> bytes:
    out = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (48, 20), (9, 99, 200)).save(out, kind, exif=exif)
    return out.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(37):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_pictures(kind: str, orientation: int | None) -> None:
    data = picture(kind, orientation)
    found, loaded = probe(data), load(data)
    assert found.source_size == loaded.source_size == loaded.pixels.shape[1:3]
    assert (found.kind, found.times_s.tolist()) == (loaded.kind, loaded.times_s.tolist())
    assert (found.source_size == (48, 20)) == (orientation in (5, 6, 7, 8))


@pytest.mark.parametrize(
    "sampling", [ClipSampling(), ClipSampling(fps=5), ClipSampling(num_frames=3), ClipSampling(start_s=1.0, end_s=2.2)]
)
def test_clips(clip: Path, sampling: ClipSampling) -> None:
    found, loaded = probe(clip, sampling=sampling), load(clip, sampling=sampling)
    assert (found.kind, found.source_size, found.name) == (loaded.kind, loaded.source_size, loaded.name)
    assert found.times_s.tolist() == loaded.times_s.tolist()


def test_a_clip_costs_one_frame(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveal.media import clip as module

    turned = []
    upright = module._upright
    monkeypatch.setattr(module, "_upright", lambda frame: turned.append(frame) or upright(frame))
    assert len(probe(clip, sampling=ClipSampling(fps=10)).times_s) == 37
    assert len(turned) == 1


def test_limits_and_damage_are_found(clip: Path) -> None:
    with pytest.raises(MediaError, match="the limit is 10"):
        probe(picture("PNG"), limits=Limits(max_pixels=10))
    with pytest.raises(MediaError, match="no frame between"):
        probe(clip, sampling=ClipSampling(start_s=60.0))
    with pytest.raises(MediaError, match="damaged"):
        probe(clip.read_bytes()[:300])


def test_a_fit_that_refuses_is_heard(clip: Path) -> None:
    """Its own words, not "the clip is damaged"."""

    def fit(n: int, h: int, w: int) -> tuple[int, int]:
        raise PromptError("too many tokens")

    with pytest.raises(PromptError, match="too many tokens"):
        load(clip, fit=fit)

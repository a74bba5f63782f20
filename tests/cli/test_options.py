"""Ranges of tokens, and what shows numbers to people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foveal.cli import show
from foveal.cli.options import MediaOptions, SamplingOptions, parse_range
from foveal.errors import ConfigError
from foveal.patches import Budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (64, 1000)), ("4..16", (4, 16)), ("4..", (4, 1000)), ("..16", (16, 16)), ("..500", (64, 500)),
        ("2000..", (2000, 2000)), (" 8..9 ", (8, 9)), ("256", (256, 256)),
    ],
)  # fmt: skip
def test_ranges(text: str | None, expected: tuple[int, int]) -> None:
    assert parse_range("--image-tokens", text, (64, 1000)) == expected


@pytest.mark.parametrize("text", ["", "..", "a..b", "9..8", "0..5", "1...5", "-3", "1.5..2", "-3", "8-9"])
def test_bad_ranges_name_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match="--x is"):
        parse_range("--x", text, (1, 9))


def test_options_change_only_what_they_name() -> None:
    default = Budget(image=(64, 16384), clip=(2, 12288))
    assert MediaOptions().budget(default) == default
    capped = replace(default, frame=(3, 9), single=7)  # a checkpoint's own `cap_pixels_per_frame`
    assert MediaOptions().budget(capped) == capped
    assert MediaOptions(clip_tokens="..64").budget(capped) == replace(capped, clip=(2, 64))
    changed = MediaOptions(image_tokens="4..64", frame_tokens="..256").budget(default)
    assert changed == Budget(image=(4, 64), clip=(2, 12288), frame=(128, 256))
    assert SamplingOptions().chosen() == {}
    assert SamplingOptions(temperature=0.0, system="s", stop=["x"]).chosen() == {"temperature": 0.0, "stop": ("x",)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (4_260_000_000, "4.26 GB"),
        (42_600, "42.6 kB"),
        (426_000, "426 kB"),
        (1e21, "1000 EB"),
    ],
)
def test_bytes_for_people(value: float, text: str) -> None:
    assert show.num_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2e-5, "20 µs"), (0.0123, "12.3 ms"), (0.5, "500 ms"), (4.561, "4.56 s"), (120.0, "120 s")]
)
def test_seconds_for_people(value: float, text: str) -> None:
    assert show.seconds(value) == text

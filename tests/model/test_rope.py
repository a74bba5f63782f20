"""Rotary positions: the numbers of facts section 5 and 3i, and the two ways to share frequencies among the axes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from foveal.config import preset
from foveal.model.rope import axis_of_frequency, inverse_frequencies, rotate, text_tables, vision_tables

RELEASED = preset("8B").text.rope
YARN = replace(RELEASED, rope_type="yarn", original_max_position_embeddings=262144)


def _ratio(factor: float) -> tuple[torch.Tensor, float]:
    plain, one = inverse_frequencies(RELEASED, 128)
    assert one == 1.0
    stretched, scale = inverse_frequencies(replace(YARN, factor=factor), 128)
    return stretched / plain, scale


@pytest.mark.parametrize(
    ("factor", "expected", "attention"),
    [
        (3.0, {0: 1, 29: 1, 30: 0.9583, 33: 0.8333, 37: 0.6667, 40: 0.5417, 44: 0.375, 45: 0.3333, 63: 0.3333}, 1.1098612),
        (2.0, {0: 1, 29: 1, 30: 0.9687, 37: 0.75, 45: 0.5, 63: 0.5}, 1.0693147),
        (4.0, {0: 1, 29: 1, 45: 0.25, 63: 0.25}, 1.1386294),
    ],
)
def test_yarn(factor: float, expected: dict[int, float], attention: float) -> None:
    ratio, scale = _ratio(factor)
    for index, value in expected.items():
        assert ratio[index].item() == pytest.approx(value, abs=6e-5), index
    assert scale == pytest.approx(attention, abs=1e-7)


def test_yarn_of_factor_one_changes_nothing() -> None:
    ratio, scale = _ratio(1.0)
    assert torch.allclose(ratio, torch.ones(64))
    assert scale == 1.0


def test_a_given_attention_factor_wins() -> None:
    assert inverse_frequencies(replace(YARN, factor=3.0, attention_factor=1.5), 128)[1] == 1.5


def test_interleaved_frequencies_of_released_models() -> None:
    """facts 3i: THW twenty times, then TTTT; 24, 20 and 20 of each."""
    owner = axis_of_frequency((24, 20, 20), interleaved=True).tolist()
    assert owner == [0, 1, 2] * 20 + [0] * 4


def test_blocked_frequencies_of_older_models() -> None:
    owner = axis_of_frequency((16, 24, 24), interleaved=False).tolist()
    assert owner == [0] * 16 + [1] * 24 + [2] * 24


@pytest.mark.parametrize("section", [(24, 20, 20), (6, 3, 3), (4, 4, 4)])
def test_both_layouts_give_every_axis_its_share(section: tuple[int, int, int]) -> None:
    for interleaved in (True, False):
        owner = axis_of_frequency(section, interleaved)
        assert torch.bincount(owner, minlength=3).tolist() == list(section)


def test_layouts_agree_on_text_and_differ_on_pictures() -> None:
    """Text moves all axes alike, so sharing is invisible there; a checkpoint run with the other layout fails on pictures."""
    inv_freq, scale = inverse_frequencies(RELEASED, 128)
    text = torch.arange(50).expand(3, -1)
    picture = torch.stack([torch.full((50,), 7), 7 + torch.arange(50) // 10, 7 + torch.arange(50) % 10])
    tables = {
        (layout, kind): text_tables(positions, inv_freq, axis_of_frequency((24, 20, 20), layout), scale)[0]
        for layout in (True, False)
        for kind, positions in (("text", text), ("picture", picture))
    }
    assert torch.equal(tables[True, "text"], tables[False, "text"])
    assert float((tables[True, "picture"] - tables[False, "picture"]).abs().max()) > 0.5


@pytest.mark.parametrize("interleaved", [True, False])
def test_each_frequency_turns_with_its_own_axis(interleaved: bool) -> None:
    inv_freq, _ = inverse_frequencies(RELEASED, 128)
    owner = axis_of_frequency((24, 20, 20), interleaved)
    positions = torch.tensor([[5], [11], [2]])
    cos, sin = text_tables(positions, inv_freq, owner, 1.25)
    for index in range(64):
        angle = positions[owner[index], 0].item() * inv_freq[index].item()
        assert cos[0, index].item() == pytest.approx(1.25 * math.cos(angle), abs=1e-6)
        assert sin[0, index].item() == pytest.approx(1.25 * math.sin(angle), abs=1e-6)


def test_rotation_is_a_complex_product() -> None:
    x, angle = torch.randn(7, 3, 10, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    turned = torch.complex(x[..., :5], x[..., 5:]) * torch.exp(1j * angle)[:, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, angle.cos(), angle.sin()), expected)


def test_scores_depend_on_distance_only() -> None:
    """Moving both patches by the same step leaves the product of a query and a key unchanged, on each axis."""
    q, k = torch.randn(1, 1, 24, dtype=torch.float64), torch.randn(1, 1, 24, dtype=torch.float64)

    def score(a: tuple[int, int], b: tuple[int, int]) -> float:
        cos, sin = (t.double() for t in vision_tables(torch.tensor([a, b]), 24, 10000.0))
        return float((rotate(q, cos[:1], sin[:1]) * rotate(k, cos[1:], sin[1:])).sum())

    assert score((3, 4), (5, 9)) == pytest.approx(score((10, 24), (12, 29)), abs=1e-4)
    assert score((3, 4), (5, 9)) != pytest.approx(score((3, 4), (9, 5)), abs=1e-4)

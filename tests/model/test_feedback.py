"""Packing with feedback: nearer to the outputs than plain packing, exact where it should be, the same in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveal import kernels
from foveal.errors import ConfigError
from foveal.model.feedback import BLOCK, Feedback, Moments, gather
from foveal.model.load import load_model, save_model
from foveal.model.quantize import packed_weights, quantize
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")


def inputs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Rows whose columns go together, some of them large."""
    mixed = torch.randn(rows, columns // 16, generator=generator) @ torch.randn(columns // 16, columns, generator=generator)
    return (mixed + 0.3 * torch.randn(rows, columns, generator=generator)) * torch.logspace(0, 1, columns)


def moments_of(x: Tensor) -> Moments:
    moments = Moments(x.shape[1])
    for part in x.split(300):
        moments.add(part)
    return moments


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("columns", [40, BLOCK, 2 * BLOCK + 33])
def test_outputs_err_much_less(bits: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    seen, fresh = inputs(1600, columns, generator).split([1500, 100])
    weight = torch.randn(37, columns, generator=generator)
    plain, fed = kernels.pack(weight, bits), Feedback(moments_of(seen)).pack(weight, bits)
    errors = [float((fresh @ (kernels.unpack(p) - weight).T).norm()) for p in (plain, fed)]
    assert errors[1] < 0.75 * errors[0]


def test_without_anything_in_common_nothing_is_made_up_for() -> None:
    weight = torch.randn(20, 100)
    moments = Moments(100)
    moments.add(torch.eye(100))
    plain, fed = kernels.pack(weight, 4), Feedback(moments).pack(weight, 4)
    assert torch.equal(kernels.unpack(plain), kernels.unpack(fed))
    assert torch.equal(plain.codes, fed.codes) and torch.equal(plain.scales, fed.scales)


def test_moments_are_those_of_all_rows_within_blocks() -> None:
    x = torch.randn(70, BLOCK + 9)
    sums = moments_of(x).sums
    torch.testing.assert_close(sums[0], x[:, :BLOCK].T @ x[:, :BLOCK])
    torch.testing.assert_close(sums[1][:9, :9], x[:, BLOCK:].T @ x[:, BLOCK:])
    assert not sums[1][9:].any()


@pytest.mark.parametrize("name", ["dense-tied", "moe-mixed"])
def test_a_checkpoint_packs_on_the_way_as_in_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model(CONFIGS[name])
    save_model(model, tmp_path)
    media = new_media(model.config.vision, SCENES["mixed"])
    sequence = new_sequence(media, model.config.vision.spatial_merge_size)
    moments = gather(model, [(sequence, media), (sequence, media)])
    assert all(found.count == 2 * len(sequence) for found in moments.values())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    monkeypatch.setattr("foveal.model.checkpoint.PIECE_BYTES", 4000)
    loaded = packed_weights(load_model(tmp_path, bits=4, moments=moments))
    fed, plain = packed_weights(quantize(new_model(CONFIGS[name]), 4, moments)), packed_weights(quantize(model, 4))
    assert all(torch.equal(loaded[name].codes, packed.codes) for name, packed in fed.items())
    changed = {name for name, packed in plain.items() if not torch.equal(packed.codes, loaded[name].codes)}
    assert any(".layers." in name for name in changed) and not any("visual" in name for name in changed)
    assert ("lm_head.weight" if model.lm_head is not None else "model.language_model.embed_tokens.weight") in changed


def test_nothing_to_calibrate_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to calibrate with"):
        gather(new_model(CONFIGS["dense-tied"]), [])

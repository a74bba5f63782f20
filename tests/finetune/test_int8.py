"""A base in 8 bits: the numbers of the oracle, gradients through it, a quarter of the memory, nearly the same loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.errors import ConfigError
from foveal.finetune.int8 import Int8Experts, Int8Linear, Int8Weight, keep_in_8_bits
from foveal.finetune.lora import adapt
from foveal.finetune.run import new_tuner, write_result
from foveal.finetune.settings import LoraSettings, TuneSettings
from foveal.kernels.oracle import pack, unpack
from foveal.model.load import load_model
from tests.finetune.conftest import Write, mixed
from tests.tiny import CONFIGS, new_model


def test_the_values_are_those_of_packed_weights() -> None:
    weight = torch.randn(48, 70)
    weight[:, 40] = 0
    weight[3] = 0
    expected = unpack(*pack(weight.numpy(), 8), 48, 70)
    assert torch.equal(Int8Weight(weight)(torch.float32), torch.from_numpy(expected))


def test_a_linear_takes_a_quarter_and_lets_gradients_through() -> None:
    linear = nn.Linear(256, 64).requires_grad_(False)
    small = Int8Linear(linear)
    size = sum(p.nbytes for p in small.parameters())
    assert size < 0.28 * sum(p.nbytes for p in linear.parameters())
    x = torch.randn(5, 256, requires_grad=True)
    weight = small.weight(torch.float32)
    out, expected = small(x), F.linear(x, weight, linear.bias)
    torch.testing.assert_close(out, expected)
    assert (out - linear(x)).abs().max() < 0.02 * out.abs().max()
    seed = torch.randn(5, 64)
    (grad,) = torch.autograd.grad(out, x, seed)
    torch.testing.assert_close(grad, seed @ weight)
    assert all(not p.requires_grad for p in small.parameters())


def test_experts() -> None:
    model = new_model(CONFIGS["moe"])
    mlp = model.language_model.layers[0].mlp
    small = Int8Experts(mlp.experts)
    assert sum(p.nbytes for p in small.parameters()) < 0.5 * sum(p.nbytes for p in mlp.experts.parameters())  # 24 of 32 used
    x = torch.randn(9, 40, requires_grad=True)
    chosen = mlp.gate(x.detach())
    wide = new_model(CONFIGS["moe"]).language_model.layers[0].mlp.experts
    with torch.no_grad():
        for leaf in ("gate_up_proj", "down_proj"):
            wide.get_parameter(leaf).copy_(small.weights[leaf](torch.float32).transpose(1, 2))
    seed = torch.randn(9, 40)
    results = [(out, *torch.autograd.grad(out, x, seed)) for out in (small(x, *chosen), wide(x, *chosen))]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_only_what_is_frozen_and_packed_is_quantised() -> None:
    model = new_model(CONFIGS["moe-mixed"])
    model.requires_grad_(False)
    adapt(model, LoraSettings(4, target=("q_proj", "linear_fc1")), lambda name: name.startswith("language_model"))
    model.visual.merger.requires_grad_(True)
    before = {name for name, _ in model.named_parameters()}
    keep_in_8_bits(model, torch.bfloat16)
    gone = before - {name for name, _ in model.named_parameters()}
    assert "language_model.layers.0.self_attn.q_proj.base_layer.weight" in gone
    assert "visual.blocks.0.attn.qkv.weight" in gone and any("experts" in name for name in gone)
    assert not any("merger.linear" in name and "deepstack" not in name for name in gone)
    assert not any("embed" in name or "norm" in name or "lora" in name or ".gate." in name for name in gone)
    assert model.dtype == torch.bfloat16
    assert model.language_model.layers[0].self_attn.q_proj.lora_A.weight.dtype == torch.float32
    with pytest.raises(ConfigError, match="bits is 8, but no weight is frozen"):
        keep_in_8_bits(new_model(CONFIGS["dense-tied"]).requires_grad_(True), torch.float32)


def test_a_run_on_8_bits_is_nearly_one_on_floats(checkpoint: Path, write: Write, tmp_path: Path) -> None:
    file = write(mixed(8))
    logs = []
    for bits in (None, 8):
        changes: dict[str, Any] = {"lora": LoraSettings(2, target="all-linear"), "merger": 1e-3, "merge": True, "bits": bits}
        settings = TuneSettings(
            output=tmp_path / str(bits), data=(str(file),), model=str(checkpoint), steps=3, batch_tokens=150, window=8,
            language=1e-3, plot=False, **changes,
        )  # fmt: skip
        tuner = new_tuner(settings)
        assert tuner.run()
        write_result(tuner)
        logs.append([json.loads(line)["loss"] for line in tuner.log.file.read_text().splitlines()])
    assert logs[0] != logs[1] and logs[1] == pytest.approx(logs[0], rel=0.03)  # 0.004 before anything is learned, then 0.015
    original, merged = load_model(checkpoint), load_model(tmp_path / "8" / "model")
    for name, weight in merged.named_parameters():  # the adapters are added to the weights as they were, not as rounded
        moved = (weight - original.get_parameter(name)).abs().max().item()
        assert moved < 0.05, name
        adapted = name.endswith("weight") and ("proj" in name if "language" in name else "merger" in name and "linear" in name)
        assert (moved > 0) == adapted, name


def test_what_8_bits_do_not_go_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bits is 8, and weights in 8 bits cannot be divided; set tensor_parallel = 1"):
        TuneSettings(output=tmp_path, data=("x",), bits=8, tensor_parallel=2)

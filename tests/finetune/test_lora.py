"""Adapters: the same numbers as PEFT's, in its files, both ways; merging changes nothing but float error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.batch import Batch
from foveal.errors import CheckpointError, ConfigError
from foveal.finetune.lora import (
    CONFIG,
    LoraLinear,
    adapt,
    adapter_tensors,
    adapters,
    base_of,
    is_target,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from foveal.finetune.settings import LoraSettings
from foveal.model import Qwen3VL
from tests.parity.reference import model_inputs, new_reference, transformers
from tests.parity.runs import request
from tests.tiny import CONFIGS, new_model

TARGET = ("q_proj", "down_proj", "qkv", "merger.linear_fc1", "deepstack_merger_list.1.linear_fc2")
# Between peft and transformers: nothing of ours to mend.
THEIRS = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CHOICES = [LoraSettings(4, 8.0, target=TARGET), LoraSettings(3, 5.0, rslora=True, target=TARGET)]


def _peft() -> Any:
    """Import peft behind transformers, which needs its operators registered first."""
    transformers()
    import peft

    return peft


def _adapted(settings: LoraSettings, config: str = "dense-tied") -> Qwen3VL:
    """Make a model whose adapters do something."""
    model = new_model(CONFIGS[config])
    adapt(model, settings, lambda name: True)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.lora_B.weight.normal_(0, 0.1, generator=generator)
    return model


@torch.no_grad()
def _logits(model: Qwen3VL) -> torch.Tensor:
    media, sequence = request(model.config, "mixed")
    return model(Batch.pack([sequence], [model.encode(media)]))


@torch.no_grad()
def _reference_logits(theirs: Any, ours: Qwen3VL) -> torch.Tensor:
    media, sequence = request(ours.config, "mixed")
    logits: torch.Tensor = theirs(**model_inputs(sequence, media, ours.config)).logits[0]
    return logits


@THEIRS
@pytest.mark.parametrize("settings", CHOICES, ids=["lora", "rslora"])
def test_peft_reads_ours(settings: LoraSettings, tmp_path: Path) -> None:
    PeftModel = _peft().PeftModel

    ours, plain = _adapted(settings), new_model(CONFIGS["dense-tied"])
    save_adapter(adapter_tensors(ours), tmp_path, settings, "some/base")
    theirs = PeftModel.from_pretrained(new_reference(plain), tmp_path)
    found, expected = _logits(ours), _reference_logits(theirs, plain)
    assert (expected - _logits(plain)).abs().max() > 0.1  # the adapter does something
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    wrapped = {name for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == {f"base_model.model.{name}" for name in json.loads((tmp_path / CONFIG).read_text())["target_modules"]}


@THEIRS
@pytest.mark.parametrize("settings", CHOICES, ids=["lora", "rslora"])
def test_ours_reads_peft(settings: LoraSettings, tmp_path: Path) -> None:
    peft = _peft()

    plain = new_model(CONFIGS["dense-tied"])
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=int(settings.alpha), use_rslora=settings.rslora, target_modules=list(TARGET),
        alpha_pattern={"layers.1.self_attn.q_proj": 20}, init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(new_reference(plain), config).eval()
    expected = _reference_logits(theirs, plain)
    theirs.save_pretrained(tmp_path)
    ours = new_model(CONFIGS["dense-tied"])
    names = load_adapter(ours, tmp_path)
    assert len(names) == 5 + 5 + 5 + 1 + 1 and (expected - _logits(plain)).abs().max() > 0.1
    assert (_logits(ours) - expected).abs().max() <= 1e-4 * expected.abs().max()


@THEIRS
def test_files_are_those_that_peft_writes(tmp_path: Path) -> None:
    """A second adapter, read from our files by PEFT and written again, has our names, shapes and values."""
    PeftModel = _peft().PeftModel
    from safetensors.torch import load_file

    ours = _adapted(CHOICES[0])
    save_adapter(adapter_tensors(ours), tmp_path / "a", CHOICES[0])
    PeftModel.from_pretrained(new_reference(new_model(CONFIGS["dense-tied"])), tmp_path / "a").save_pretrained(tmp_path / "b")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


BOTH = ("experts.gate_up_proj", "experts.down_proj")


@THEIRS
@pytest.mark.parametrize("parameters", [BOTH, BOTH[1:]], ids=["both", "one"])
def test_experts_are_adapted_as_in_peft(parameters: tuple[str, ...], tmp_path: Path) -> None:
    peft = _peft()
    settings = LoraSettings(3, 6.0, target=("q_proj",), parameters=parameters)
    ours, plain = _adapted(settings, "moe"), new_model(CONFIGS["moe"])
    save_adapter(adapter_tensors(ours), tmp_path / "ours", settings)
    theirs = peft.PeftModel.from_pretrained(new_reference(plain), tmp_path / "ours")
    found, expected = _logits(ours), _reference_logits(theirs, plain)
    assert (expected - _logits(plain)).abs().max() > 0.1
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=list(parameters), init_lora_weights=False
    )
    theirs = peft.get_peft_model(new_reference(plain), config).eval()
    expected = _reference_logits(theirs, plain)
    theirs.save_pretrained(tmp_path / "theirs")
    again = new_model(CONFIGS["moe"])
    assert len(load_adapter(again, tmp_path / "theirs")) == 5 + 5 * len(parameters)
    assert (_logits(again) - expected).abs().max() <= 1e-4 * expected.abs().max()
    merge_adapters(again)
    assert not adapters(again) and (_logits(again) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_experts_that_cannot_be_adapted(tmp_path: Path) -> None:
    everywhere = LoraSettings(2, target=(), parameters=("experts.up_proj",))
    with pytest.raises(ConfigError, match=r"names no experts of a part that learns; they are experts\.gate_up_proj and"):
        adapt(new_model(CONFIGS["moe"]), everywhere, lambda name: True)
    with pytest.raises(ConfigError, match="they do not exist in this model"):
        adapt(new_model(CONFIGS["dense-tied"]), everywhere, lambda name: True)
    with pytest.raises(ConfigError, match=r"lora\.dropout is 0\.5, but adapters of experts have none"):
        adapt(new_model(CONFIGS["moe"]), LoraSettings(2, dropout=0.5, parameters=BOTH), lambda name: True)
    settings = LoraSettings(2, target=(), parameters=BOTH[1:])
    save_adapter(adapter_tensors(_adapted(settings, "moe")), tmp_path, settings)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"target_parameters": None}))
    with pytest.raises(CheckpointError, match="is of one weight, but target_parameters names none"):
        load_adapter(new_model(CONFIGS["moe"]), tmp_path)


def test_save_load_merge(tmp_path: Path) -> None:
    ours = _adapted(CHOICES[1])
    expected = _logits(ours)
    save_adapter(adapter_tensors(ours), tmp_path, CHOICES[1])
    again = new_model(CONFIGS["dense-tied"])
    load_adapter(again, tmp_path)
    assert torch.equal(_logits(again), expected)
    assert merge_adapters(again) == 17 and not adapters(again)
    assert (_logits(again) - expected).abs().max() <= 1e-5 * expected.abs().max()
    fresh = new_model(CONFIGS["dense-tied"])
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in fresh.named_parameters()]


def test_a_new_adapter_changes_nothing_and_its_base_is_frozen() -> None:
    model = new_model(CONFIGS["dense-tied"])
    expected = _logits(model)
    adapt(model, LoraSettings(target=("v_proj",), dropout=0.5), lambda name: "layers.0" not in name)
    assert torch.equal(_logits(model), expected) and len(adapters(model)) == 4
    assert all(not adapter.base_layer.weight.requires_grad for adapter in adapters(model).values())


def test_dropout_is_for_training_only() -> None:
    model = _adapted(LoraSettings(4, 8.0, 0.5, target=("q_proj",)))
    calm = _logits(model)
    model.train()
    assert not torch.equal(_logits(model), calm)
    assert torch.equal(_logits(model.eval()), calm)


@pytest.mark.parametrize(
    ("target", "name", "yes"),
    [
        (("q_proj",), "model.language_model.layers.0.self_attn.q_proj", True),
        (("proj",), "model.language_model.layers.0.self_attn.q_proj", False),
        (("attn.proj",), "model.visual.blocks.0.attn.proj", True),
        (r"model\.visual\..*", "model.visual.blocks.0.attn.proj", True),
        (r"visual", "model.visual.blocks.0.attn.proj", False),
        ("all-linear", "model.visual.merger.linear_fc1", True),
        ("all-linear", "lm_head", False),
        (("lm_head",), "lm_head", True),
    ],
)
def test_targets(target: Any, name: str, yes: bool) -> None:
    assert is_target(name, target) == yes


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    model = new_model(CONFIGS["dense-tied"])
    with pytest.raises(ConfigError, match=r"names no Linear of a part that learns; they end in .*down_proj.*qkv"):
        adapt(model, LoraSettings(target=("nothing",)), lambda name: True)
    with pytest.raises(ConfigError, match="is no valid pattern"):
        adapt(model, LoraSettings(target="("), lambda name: True)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
        load_adapter(model, tmp_path)
    save_adapter(adapter_tensors(_adapted(CHOICES[0])), tmp_path, CHOICES[0])
    other = new_model(CONFIGS["released-heads"])
    with pytest.raises(CheckpointError, match=r"has shapes .* but the model needs"):
        load_adapter(other, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    for kind in ("gaussian", "eva", "orthogonal", False):
        (tmp_path / CONFIG).write_text(json.dumps(config | {"init_lora_weights": kind}))
        assert base_of(tmp_path) == config["base_model_name_or_path"]
    for kind in ("pissa", "pissa_niter_4", "olora", "corda", "loftq"):
        (tmp_path / CONFIG).write_text(json.dumps(config | {"init_lora_weights": kind}))
        with pytest.raises(CheckpointError, match=f"has init_lora_weights = '{kind}', .*; it changed the base, so let PEFT"):
            base_of(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="has use_dora = True, which foveal does not know"):
        load_adapter(new_model(CONFIGS["dense-tied"]), tmp_path)


def test_a_bfloat16_model_keeps_float32_adapters() -> None:
    model = new_model(CONFIGS["dense-tied"], dtype=torch.bfloat16)
    adapt(model, LoraSettings(target=("q_proj",)), lambda name: True)
    adapter = next(iter(adapters(model).values()))
    assert isinstance(adapter, LoraLinear) and adapter.lora_A.weight.dtype == torch.float32
    assert _logits(model).dtype == torch.bfloat16

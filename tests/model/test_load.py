"""Checkpoints: strict, in every layout in circulation, exchanged with transformers, within the memory that was promised."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.batch import Batch
from foveal.config import MoeConfig
from foveal.errors import CheckpointError, FovealError
from foveal.model import Qwen3VL
from foveal.model.load import INDEX, SINGLE, disk_name, load_model, save_model
from foveal.standin import new_checkpoint
from tests.checkpoints import with_room
from tests.parity.reference import model_inputs, new_reference, transformers
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"


@torch.no_grad()
def _logits(model: Qwen3VL, scene: str = "mixed") -> Tensor:
    media = new_media(model.config.vision, SCENES[scene])
    sequence = new_sequence(media, model.config.vision.spatial_merge_size)
    return model(Batch.pack([sequence], [model.encode(media)]))


def _same(a: Qwen3VL, b: Qwen3VL) -> bool:
    theirs = dict(b.named_parameters())
    ours = dict(a.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(p, theirs[n]) for n, p in ours.items())


def _edit(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(directory / SINGLE)
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors)
    save_file(tensors, directory / SINGLE)


def _drop(tensors: dict[str, Tensor], *names: str) -> None:
    for name in names:
        del tensors[name]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Qwen3VL, Path]:
    model = new_model(CONFIGS["dense-tied"])
    save_model(model, tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_loads_the_same_and_saves_the_same_bytes(name: str, tmp_path: Path) -> None:
    model = new_model(CONFIGS[name])
    save_model(model, tmp_path / "a")
    again = load_model(tmp_path / "a")
    assert again.config == model.config and _same(model, again) and not again.training
    assert torch.equal(_logits(again), _logits(model))
    save_model(again, tmp_path / "b")
    for file in (SINGLE, "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_saving_over_the_folder_a_model_is_mapped_from(saved: tuple[Qwen3VL, Path]) -> None:
    model, directory = saved
    again = load_model(directory)
    save_model(again, directory)
    assert _same(model, again) and _same(model, load_model(directory))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype, saved: tuple[Qwen3VL, Path]) -> None:
    model, directory = saved
    loaded = load_model(directory, dtype=dtype)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(dtype)), name
    # The rotary tables stay exact whatever the weights are.
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, loaded.get_buffer(name)), name
    save_model(model, directory / "half", dtype=dtype)
    assert load_model(directory / "half").dtype == dtype


def test_shards(tmp_path: Path) -> None:
    model = new_model(CONFIGS["moe"])
    save_model(model, tmp_path / "one")
    save_model(model, tmp_path, max_shard_bytes=100_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert _same(load_model(tmp_path), model)
    (tmp_path / files[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of {len(files)} shards: {files[1]}"):
        load_model(tmp_path)


def test_saving_leaves_no_other_layout_beside_it(tmp_path: Path) -> None:
    """Readers look for one file first: an older one beside new shards would be loaded instead."""
    first, second = new_model(CONFIGS["dense-tied"], 1), new_model(CONFIGS["dense-tied"], 2)
    save_model(first, tmp_path)
    save_model(second, tmp_path, max_shard_bytes=100_000)
    assert not (tmp_path / SINGLE).exists() and _same(load_model(tmp_path), second)
    save_model(first, tmp_path)
    assert not (tmp_path / INDEX).exists() and _same(load_model(tmp_path), first)


def test_everything_that_does_not_match_is_listed(saved: tuple[Qwen3VL, Path]) -> None:
    _, directory = saved

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.language_model.norm.weight"]
        tensors["model.surprise"] = torch.zeros(2)
        name = "model.visual.pos_embed.weight"
        tensors[name] = tensors[name][1:].clone()

    _edit(directory, change)
    with pytest.raises(CheckpointError) as error:
        load_model(directory)
    text = str(error.value)
    assert "1 tensors are missing: model.language_model.norm.weight" in text
    assert "1 are unexpected: model.surprise" in text
    assert "model.visual.pos_embed.weight is [48, 48], expected [49, 48]" in text


def test_long_lists_are_cut(saved: tuple[Qwen3VL, Path]) -> None:
    _, directory = saved
    _edit(directory, lambda tensors: _drop(tensors, *(n for n in tensors if ".layers." in n)))
    with pytest.raises(CheckpointError, match=r"tensors are missing: .* and \d+ more"):
        load_model(directory)


def test_a_transposed_linear_is_misshapen(saved: tuple[Qwen3VL, Path]) -> None:
    _, directory = saved
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    _edit(directory, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    with pytest.raises(CheckpointError, match=r"down_proj\.weight is \[56, 40\], expected \[40, 56\]"):
        load_model(directory)


def test_a_tied_head_written_twice(saved: tuple[Qwen3VL, Path]) -> None:
    model, directory = saved
    _edit(directory, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS].clone()}))
    assert _same(load_model(directory), model)
    _edit(directory, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS] + 1}))
    with pytest.raises(CheckpointError, match="differs from"):
        load_model(directory)


def test_an_untied_head_is_required(tmp_path: Path) -> None:
    save_model(new_model(CONFIGS["moe"]), tmp_path)
    _edit(tmp_path, lambda tensors: _drop(tensors, HEAD))
    with pytest.raises(CheckpointError, match=r"missing.*: lm_head\.weight"):
        load_model(tmp_path)


def _flip_experts(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        if ".experts." in name:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()


@pytest.mark.parametrize("intermediate", [24, 20, 40])
def test_experts_in_either_orientation(intermediate: int, tmp_path: Path) -> None:
    """A width of 20 makes the first matrix of an expert square, 40 the second: its siblings tell how it lies."""
    config = CONFIGS["moe"]
    model = new_model(replace(config, text=replace(config.text, moe=MoeConfig(8, 3, intermediate))))
    save_model(model, tmp_path)
    name = next(name for name in load_file(tmp_path / SINGLE) if name.endswith("experts.gate_up_proj"))
    assert load_file(tmp_path / SINGLE)[name].shape == (8, 40, 2 * intermediate)
    _edit(tmp_path, _flip_experts)
    assert load_file(tmp_path / SINGLE)[name].shape == (8, 2 * intermediate, 40)
    assert _same(load_model(tmp_path), model)


# ---- FP8


def _quantize(directory: Path, block: tuple[int, int], *, scale_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Store the decoder's matrices as e4m3 with a scale a block; return what they mean, block by block."""
    tensors = {name: value.clone() for name, value in load_file(directory / SINGLE).items()}
    meant: dict[str, Tensor] = {}
    for name, value in list(tensors.items()):
        if ".layers." not in name or value.ndim < 2 or ".gate.weight" in name:
            continue
        rows, columns = value.shape[-2:]
        grid = (*value.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
        scales, stored, mean = torch.empty(grid), torch.empty(value.shape, dtype=torch.float8_e4m3fn), torch.empty(value.shape)
        for i in range(grid[-2]):
            for j in range(grid[-1]):
                at = (..., slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
                part = value[at]
                scale = (part.abs().amax(dim=(-2, -1)) / 448).to(scale_dtype).float()
                scales[..., i, j] = scale
                stored[at] = (part / scale[..., None, None]).to(torch.float8_e4m3fn)
                mean[at] = stored[at].float() * scale[..., None, None]
        tensors[name], tensors[f"{name}_scale_inv"], meant[name] = stored, scales.to(scale_dtype), mean
    save_file(tensors, directory / SINGLE)
    raw = json.loads((directory / "config.json").read_text())
    raw["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block),
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(raw))
    return meant


@pytest.mark.parametrize("name", ["dense-tied", "moe"])
@pytest.mark.parametrize("block", [(128, 128), (16, 16), (32, 24)])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_fp8(name: str, block: tuple[int, int], scale_dtype: torch.dtype, tmp_path: Path) -> None:
    """Sides of 40, 48, 56, 96 and 144: most blocks stick out of an edge."""
    model = new_model(CONFIGS[name])
    save_model(model, tmp_path)
    meant = _quantize(tmp_path, block, scale_dtype=scale_dtype)
    assert len(meant) >= 30 and any("experts" in n for n in meant) == (name == "moe")
    loaded = load_model(tmp_path)
    assert loaded.dtype == torch.float32
    for own, parameter in loaded.named_parameters():
        original = model.get_parameter(own)
        assert torch.equal(parameter, meant.get(disk_name(own), original)), own
        # e4m3 has three bits of mantissa: a sixteenth of a value, or the smallest step of its block.
        assert bool(((parameter - original).abs() <= original.abs() / 15 + original.abs().max() / 400).all()), own
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_fp8_of_transposed_experts(tmp_path: Path) -> None:
    save_model(new_model(CONFIGS["moe"]), tmp_path)
    _edit(tmp_path, _flip_experts)
    meant = _quantize(tmp_path, (32, 24))
    for own, parameter in load_model(tmp_path).named_parameters():
        if ".experts." in own:
            assert torch.equal(parameter, meant[disk_name(own)].transpose(1, 2)), own


def test_fp8_without_its_scales_or_of_another_kind(tmp_path: Path) -> None:
    save_model(new_model(CONFIGS["dense-tied"]), tmp_path)
    _quantize(tmp_path, (16, 16))
    name = "model.language_model.layers.0.mlp.up_proj.weight_scale_inv"
    whole = load_file(tmp_path / SINGLE)[name].clone()
    _edit(tmp_path, lambda tensors: tensors.update({name: whole[:, 1:].clone()}))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight_scale_inv is \[4, 2\], expected \[4, 3\]"):
        load_model(tmp_path)
    _edit(tmp_path, lambda tensors: _drop(tensors, name))
    with pytest.raises(CheckpointError, match=rf"1 tensors are missing: {re.escape(name)} \[4, 3\]"):
        load_model(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"quant_method": "awq"}, "quantized with 'awq'"),
        ({"fmt": "e5m2"}, "fmt 'e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme is 'static'"),
        ({"weight_block_size": [128]}, r"weight_block_size is \[128\]"),
    ]
    for change, says in changes:
        quantization = {**raw["quantization_config"], **change}
        (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": quantization}))
        with pytest.raises(CheckpointError, match=says):
            load_model(tmp_path)


# ---- files that are missing, cut or hostile


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "model.bin", ".."])
def test_an_index_cannot_lead_out_of_its_folder(target: str, saved: tuple[Qwen3VL, Path]) -> None:
    _, directory = saved
    (directory / SINGLE).rename(directory.parent / "outside.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {HEAD: target}}))
    with pytest.raises(CheckpointError, match=r"a shard is a \.safetensors file of the same folder"):
        load_model(directory)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "{"])
def test_an_index_without_a_map(content: str, saved: tuple[Qwen3VL, Path]) -> None:
    _, directory = saved
    (directory / SINGLE).unlink()
    (directory / INDEX).write_text(content)
    with pytest.raises(FovealError, match=re.escape(INDEX)):
        load_model(directory)


def test_files_that_are_missing_or_cut(saved: tuple[Qwen3VL, Path]) -> None:
    _, directory = saved
    whole = (directory / SINGLE).read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (directory / SINGLE).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_model(directory)
    (directory / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="has neither"):
        load_model(directory)
    (directory / "config.json").unlink()
    with pytest.raises(FovealError, match=r"config\.json"):
        load_model(directory)


def test_a_folder_that_cannot_be_written(saved: tuple[Qwen3VL, Path]) -> None:
    model, directory = saved
    (directory / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_model(model, directory / "file")


# ---- transformers

LAYOUTS = ["dense-tied", "dense-yarn", "moe"]  # tied, untied, mixture of experts


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_transformers_loads_what_foveal_saves(name: str, tmp_path: Path) -> None:
    hf, model = transformers(), new_model(CONFIGS[name])
    save_model(model, tmp_path, max_shard_bytes=200_000)
    kind = hf.Qwen3VLMoeForConditionalGeneration if "moe" in name else hf.Qwen3VLForConditionalGeneration
    theirs, report = kind.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    # Bit for bit what the reference computes with these weights put into it by hand, and so foveal's own logits within
    # the bound of the parity tests.
    media = new_media(model.config.vision, SCENES["mixed"])
    inputs = model_inputs(new_sequence(media, model.config.vision.spatial_merge_size), media, model.config)
    logits = theirs.eval()(**inputs).logits[0]
    assert torch.equal(logits, new_reference(model)(**inputs).logits[0])
    assert float((logits - _logits(model)).abs().max() / logits.abs().max()) < 1e-4


@pytest.mark.parametrize("name", LAYOUTS)
def test_foveal_loads_what_transformers_saves(name: str, tmp_path: Path) -> None:
    model = new_model(CONFIGS[name])
    new_reference(model).save_pretrained(tmp_path, max_shard_size="200KB")
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert _same(loaded, model)
    assert torch.equal(_logits(loaded), _logits(model))


# ---- random checkpoints


@pytest.mark.parametrize("name", ["dense-tied", "moe"])
def test_a_new_checkpoint_is_complete(name: str, tmp_path: Path) -> None:
    from foveal.generate import Pipeline
    from foveal.sampler import Sampling

    new_checkpoint(with_room(name), tmp_path / "new", seed=3, dtype="bfloat16")
    pipeline = Pipeline.load(tmp_path / "new")
    assert pipeline.model.dtype == torch.float32 and pipeline.processor.config.dtype == "bfloat16"
    answer = pipeline.ask("What?", torch.zeros(40, 50, 3, dtype=torch.uint8).numpy(), sampling=Sampling(max_tokens=3)).answer
    assert answer.stats.image_tokens > 0 and 1 <= len(answer.token_ids) <= 3
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        new_checkpoint(with_room(name), tmp_path / "new")


def test_new_checkpoints_depend_on_the_seed_and_no_two_layers_are_equal(tmp_path: Path) -> None:
    config = with_room("dense-tied")
    config = replace(config, text=replace(config.text, num_hidden_layers=22))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        new_checkpoint(config, tmp_path / name, seed=seed)
    a, b, c = (load_model(tmp_path / name) for name in "abc")
    assert _same(a, b) and not _same(a, c)
    weights = [a.get_parameter(f"language_model.layers.{i}.mlp.down_proj.weight") for i in range(22)]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(22) for j in range(i))


def test_a_disk_too_small_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"needs [\d,]+ bytes and the disk has 1 free"):
        new_checkpoint(with_room("dense-tied"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- memory

PEAK = """
import sys, threading, torch
from foveal.model.load import load_model
torch.set_num_threads(1)
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))
load_model(sys.argv[1])  # everything that loading imports and caches once, on a small checkpoint
before = status("VmRSS")
model = load_model(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
with torch.no_grad():
    for p in model.parameters():
        p.view(-1).view(torch.uint8)[::4096].sum()  # touch every page: what is mapped counts as well
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(weights, status("VmHWM") - before, status("RssAnon"), status("RssFile"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_under_1_2_of_the_weights(tmp_path: Path) -> None:
    """The peak of resident memory, private and mapped, in a process of its own: as stored (mapped) and converted."""
    base = with_room("dense-tied")
    small, large = tmp_path / "small", tmp_path / "large"
    new_checkpoint(base, small)
    text = replace(base.text, hidden_size=1024, intermediate_size=4096, num_hidden_layers=10)
    vision = replace(base.vision, out_hidden_size=1024)
    config = replace(base, text=text, vision=vision)
    new_checkpoint(config, large, dtype="bfloat16")
    ratios = {}
    for dtype in ("bfloat16", "float32"):
        done = subprocess.run([sys.executable, "-c", PEAK, str(small), str(large), dtype], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        weights, peak, *_ = map(int, done.stdout.split())
        assert weights == config.weight_bytes(dtype) > 250e6
        ratios[dtype] = peak / weights
    print("peak / weights:", ratios)
    assert all(0.9 < ratio < 1.2 for ratio in ratios.values()), ratios

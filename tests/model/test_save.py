"""Saving: all or nothing, with everything the weights need, and nothing a loader would refuse; the less usual folders."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.config import MoeConfig
from foveal.errors import CheckpointError, ConfigError
from foveal.model import Qwen3VL, save
from foveal.model.checkpoint import EMBEDDINGS, INDEX, SINGLE, disk_name, to_dtype
from foveal.model.load import load_model
from foveal.model.save import save_model, write_json
from foveal.model.tensorfile import write_tensors
from tests.checkpoints import with_room
from tests.model.test_load import PEAK
from tests.tiny import CONFIGS, new_model

PREPROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}


@pytest.fixture(scope="module")
def model() -> Qwen3VL:
    return new_model(CONFIGS["dense-tied"])


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _edit_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((directory / "config.json").read_text())
    change(raw)
    write_json(directory / "config.json", raw)


# ---- all or nothing


def _full_after(files: int) -> Callable[..., None]:
    """Write so many weight files, half of another, and then find the disk full."""
    left = files

    def write(path: Path, tensors: Any, pieces: Callable[[str], Iterable[Tensor]], metadata: Mapping[str, str]) -> None:
        nonlocal left
        write_tensors(path, tensors, pieces, metadata)
        left -= 1
        if left < 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    return write


def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    model: Qwen3VL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path, max_shard_bytes=100_000)
    (tmp_path / "notes.md").write_text("mine")
    before = _contents(tmp_path)
    monkeypatch.setattr(save, "write_tensors", _full_after(2))
    with pytest.raises(CheckpointError, match="the disk is full; what was there before is unchanged"):
        save_model(new_model(CONFIGS["dense-tied"], 1), tmp_path, max_shard_bytes=90_000)
    assert _contents(tmp_path) == before
    with pytest.raises(CheckpointError, match="the disk is full"):
        save_model(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_kill_while_writing_leaves_the_checkpoint_that_was_there(
    model: Qwen3VL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path)
    before = _contents(tmp_path)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "write_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path)
    assert _contents(tmp_path) == before


def test_files_that_cannot_be_moved_into_place_are_not_said_to_be_unchanged(model: Qwen3VL, tmp_path: Path) -> None:
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(CheckpointError, match=r"Is a directory; some of its files may be new"):
        save_model(model, tmp_path)


def test_too_little_room_is_noticed_before_writing(model: Qwen3VL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "MARGIN_BYTES", 10**18)
    with pytest.raises(CheckpointError, match=r"needs 1,000,\S+ bytes and the disk has \S+ free"):
        save_model(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shard_sizes_must_make_sense(model: Qwen3VL, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_shard_bytes is 0"):
        save_model(model, tmp_path / "new", max_shard_bytes=0)
    save_model(model, tmp_path, max_shard_bytes=1)  # a shard a tensor
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert len(set(weight_map.values())) == len(weight_map) == len(list(model.parameters()))


# ---- what belongs to the weights


def test_other_files_come_along(model: Qwen3VL, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    save_model(model, source)
    carried = {"tokenizer.json": "{}", "chat_template.jinja": "é", "merges.txt": "a b", "generation_config.json": "{}"}
    left = {"pytorch_model.bin": "", "run.py": "", "config.json": '{"not": "copied"}', INDEX: "{}"}
    for name, text in (carried | left).items():
        (source / name).write_text(text)
    save_model(model, out, copy_from=source)
    assert set(_contents(out)) == {*carried, "config.json", SINGLE}
    assert all((out / name).read_text() == text for name, text in carried.items())
    load_model(out)
    save_model(model, out, copy_from=out)  # in place: they stay
    assert set(_contents(out)) == {*carried, "config.json", SINGLE}
    with pytest.raises(CheckpointError, match="copy_from takes a checkpoint folder"):
        save_model(model, out, copy_from=tmp_path / "none")


def test_weights_are_not_parted_from_their_pixel_normalisation(tmp_path: Path) -> None:
    """It is a file beside them, and without it a reader would take the released values."""
    source = tmp_path / "source"
    save_model(new_model(CONFIGS["dense-tied"]), source)
    write_json(source / "preprocessor_config.json", PREPROCESSOR)
    loaded = load_model(source)
    assert loaded.config.vision.image_mean == (0.4, 0.5, 0.6) and loaded.config.vision.image_std == (0.2, 0.3, 0.25)
    with pytest.raises(CheckpointError, match=r"mean \[0\.5, 0\.5, 0\.5\].* but the model was made for \[0\.4, 0\.5, 0\.6\]"):
        save_model(loaded, tmp_path / "bare")
    assert not (tmp_path / "bare").exists()
    save_model(loaded, tmp_path / "out", copy_from=source)
    assert load_model(tmp_path / "out").config == loaded.config
    save_model(loaded, tmp_path / "out")  # over a folder that has it
    (source / "preprocessor_config.json").unlink()
    write_json(source / "processor_config.json", {"image_processor": PREPROCESSOR})  # as transformers 5 saves it
    save_model(loaded, tmp_path / "nested", copy_from=source)
    assert load_model(tmp_path / "nested").config == loaded.config


def test_only_the_configuration_s_own_tensors_are_saved(tmp_path: Path) -> None:
    model = new_model(CONFIGS["dense-tied"])
    model.adapter = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"model\.adapter\.bias, model\.adapter\.weight; merge or remove"):
        save_model(model, tmp_path / "a")
    with torch.device("meta"):
        empty = Qwen3VL(CONFIGS["dense-tied"])
    with pytest.raises(CheckpointError, match="hold no values yet"):
        save_model(empty, tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ---- dtypes


def test_the_checkpoint_s_own_dtype_is_that_of_its_embeddings(model: Qwen3VL, tmp_path: Path) -> None:
    """Whatever config.json says: some lack the key, and some were edited."""
    save_model(model, tmp_path, dtype="bfloat16")
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda raw: raw.pop("torch_dtype"), lambda raw: raw.update(dtype="float16"),
    ]  # fmt: skip
    for change in changes:
        _edit_config(tmp_path, change)
        loaded = load_model(tmp_path)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16} and loaded.config.dtype == "bfloat16"


def test_a_mixed_checkpoint_loads_in_one_dtype(model: Qwen3VL, tmp_path: Path) -> None:
    save_model(model, tmp_path, dtype="bfloat16")
    tensors = load_file(tmp_path / SINGLE)
    norms = {name: value.float() + 1e-3 for name, value in tensors.items() if "norm" in name}
    save_file({**tensors, **norms}, tmp_path / SINGLE)
    loaded = load_model(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.language_model.norm.weight, norms["model.language_model.norm.weight"].bfloat16())


def test_dtypes_by_name() -> None:
    assert [to_dtype(d) for d in ("float32", "bfloat16", torch.float16)] == [torch.float32, torch.bfloat16, torch.float16]
    for wrong in ("int8", "fp16", torch.float64):
        with pytest.raises(ConfigError, match="weights are kept in one of float32, bfloat16, float16"):
            to_dtype(wrong)


def test_integers_are_not_weights(model: Qwen3VL, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    tensors = load_file(tmp_path / SINGLE)
    save_file({**tensors, name: tensors[name].to(torch.int8)}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight is in int8, expected float32 or bfloat16 or float16"):
        load_model(tmp_path)


def test_8_bit_weights_need_their_block_size_and_embeddings_are_never_8_bit(model: Qwen3VL, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    tensors = load_file(tmp_path / SINGLE)
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight is in float8_e4m3fn, but config\.json has no quantization_config"
    ):
        load_model(tmp_path)
    _edit_config(tmp_path, lambda raw: raw.update(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}))
    assert load_model(tmp_path).dtype == torch.float32
    tensors |= {EMBEDDINGS: tensors[EMBEDDINGS].to(torch.float8_e4m3fn), f"{EMBEDDINGS}_scale_inv": torch.ones(2, 1)}
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is in float8_e4m3fn, expected float32"):
        load_model(tmp_path)


# ---- folders


def test_one_file_is_read_before_an_index_as_in_transformers(model: Qwen3VL, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    write_json(tmp_path / INDEX, {"weight_map": {EMBEDDINGS: "model-00001-of-00002.safetensors"}})
    load_model(tmp_path)


def test_shards_that_disagree_with_their_index(model: Qwen3VL, tmp_path: Path) -> None:
    save_model(model, tmp_path, max_shard_bytes=300_000)
    index = json.loads((tmp_path / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    for changed in ({**index["weight_map"], "model.more": first}, {**index["weight_map"], EMBEDDINGS: first}):
        write_json(tmp_path / INDEX, {"weight_map": changed})
        if changed.get("model.more") or index["weight_map"][EMBEDDINGS] != first:
            with pytest.raises(CheckpointError, match="names tensors that its files do not hold"):
                load_model(tmp_path)
    write_json(tmp_path / INDEX, index)
    name = next(n for n, file in index["weight_map"].items() if file == first)
    save_file({**load_file(tmp_path / second), name: load_file(tmp_path / first)[name]}, tmp_path / second)
    with pytest.raises(CheckpointError, match=rf"{first} and .*{second} both hold {name}"):
        load_model(tmp_path)


def test_a_folder_of_pickles_says_what_is_needed(model: Qwen3VL, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    (tmp_path / SINGLE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds pytorch_model\.bin but no model\.safetensors"):
        load_model(tmp_path)


# ---- memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_of_8_bit_experts_stored_the_other_way_round(tmp_path: Path) -> None:
    """The hardest load: every value is read, widened, scaled, narrowed and transposed."""
    base, block = with_room("moe"), 128
    text = replace(base.text, hidden_size=512, num_hidden_layers=6, moe=MoeConfig(16, 3, 896))
    config = replace(base, text=text, vision=replace(base.vision, out_hidden_size=512), dtype="bfloat16")
    small, large = tmp_path / "small", tmp_path / "large"
    save_model(new_model(base), small)
    with torch.device("meta"):
        shapes = {disk_name(name): tuple(p.shape) for name, p in Qwen3VL(config).named_parameters()}
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if ".experts." in name:
            e, a, b = shape
            tensors[name] = (torch.float8_e4m3fn, (e, b, a))
            tensors[f"{name}_scale_inv"] = (torch.bfloat16, (e, -(-b // block), -(-a // block)))
        else:
            tensors[name] = (torch.bfloat16, shape)

    def ones(name: str) -> Iterator[Tensor]:
        dtype, shape = tensors[name]
        yield torch.ones(shape).to(dtype)

    large.mkdir()
    write_tensors(large / SINGLE, tensors, ones, {})
    quantization = {"quant_method": "fp8", "weight_block_size": [block, block]}
    write_json(large / "config.json", {**config.to_dict(), "quantization_config": quantization})
    done = subprocess.run([sys.executable, "-c", PEAK, str(small), str(large), "bfloat16"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights, peak, *_ = map(int, done.stdout.split())
    assert weights == config.weight_bytes() > 250e6
    assert 0.9 < peak / weights < 1.2, peak / weights

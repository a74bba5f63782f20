"""Reading config.json: both spellings, nothing guessed, nothing ignored without being known to be inert."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from foveal.config import PRESETS, ModelConfig, RopeConfig, preset, read_json
from foveal.errors import CheckpointError, ConfigError
from tests.tiny import CONFIGS

ALL = {**CONFIGS, **PRESETS}

# The config.json of Qwen3-VL-2B as it circulates (facts section 1), key for key, in the 4.57 spelling.
RELEASED_2B: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 6144, "max_position_embeddings": 262144, "model_type": "qwen3_vl_text",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "tie_word_embeddings": True, "use_cache": True, "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 4096, "model_type": "qwen3_vl", "num_heads": 16,
        "num_position_embeddings": 2304, "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}  # fmt: skip


def _moe() -> dict[str, Any]:
    return preset("30B-A3B").to_dict()


def _changed(change: Callable[[dict[str, Any]], object], base: dict[str, Any] | None = None) -> dict[str, Any]:
    raw = copy.deepcopy(RELEASED_2B if base is None else base)
    change(raw)
    return raw


def _text(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw["text_config"].update(values)


def _vision(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw["vision_config"].update(values)


def _rope(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw["text_config"]["rope_scaling"].update(values)


def test_a_released_file_is_the_preset() -> None:
    assert ModelConfig.from_dict(RELEASED_2B) == preset("2B")


def test_the_newer_spelling_means_the_same() -> None:
    def rename(raw: dict[str, Any]) -> None:
        text = raw["text_config"]
        text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), **text.pop("rope_scaling")}
        raw["vision_config"]["model_type"] = "qwen3_vl_vision"
        raw["vision_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
        raw["dtype"] = raw["text_config"].pop("dtype")

    assert ModelConfig.from_dict(_changed(rename)) == preset("2B")


@pytest.mark.parametrize("kind", ["mrope", "default"])
def test_the_oldest_spelling_of_the_rope_type(kind: str) -> None:
    def rename(raw: dict[str, Any]) -> None:
        del raw["text_config"]["rope_scaling"]["rope_type"]
        raw["text_config"]["rope_scaling"]["type"] = kind

    assert ModelConfig.from_dict(_changed(rename)) == preset("2B")


@pytest.mark.parametrize("spelling", ["4.57", "5"])
@pytest.mark.parametrize("name", list(ALL))
def test_round_trip(name: str, spelling: Literal["4.57", "5"]) -> None:
    written = json.loads(json.dumps(ALL[name].to_dict(spelling)))
    assert ModelConfig.from_dict(written) == ALL[name]


def test_yarn_keeps_all_its_numbers() -> None:
    rope = RopeConfig(
        theta=5e6, mrope_section=(24, 20, 20), rope_type="yarn", factor=3.0, original_max_position_embeddings=262144,
        beta_fast=16.0, beta_slow=2.0, attention_factor=1.2,
    )  # fmt: skip
    config = replace(preset("8B"), text=replace(preset("8B").text, rope=rope))
    for spelling in ("4.57", "5"):
        assert ModelConfig.from_dict(config.to_dict(spelling)).text.rope == rope  # type: ignore[arg-type]


def test_the_documented_yarn_block() -> None:
    """facts section 5, as the model's own documentation gives it."""
    raw = _changed(_rope(rope_type="yarn", factor=3.0, original_max_position_embeddings=262144))
    raw["text_config"]["max_position_embeddings"] = 1_000_000
    rope = ModelConfig.from_dict(raw).text.rope
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 3.0, 262144)
    assert (rope.beta_fast, rope.beta_slow, rope.attention_factor) == (32.0, 1.0, None)


@pytest.mark.parametrize("section", [None, "text_config", "vision_config", "rope"])
def test_an_unknown_key_raises(section: str | None) -> None:
    def add(raw: dict[str, Any]) -> None:
        target = raw["text_config"]["rope_scaling"] if section == "rope" else raw if section is None else raw[section]
        target["window_pattern"] = 4

    with pytest.raises(ConfigError, match="window_pattern"):
        ModelConfig.from_dict(_changed(add))


INERT = {
    None: {"architectures": ["X"], "transformers_version": "9", "torch_dtype": "bfloat16", "pad_token_id": None,
           "use_cache": False, "_name_or_path": "/somewhere"},
    "text_config": {"use_cache": False, "initializer_range": 0.5, "pad_token_id": 3, "sliding_window": None,
                    "tie_word_embeddings": False, "router_aux_loss_coef": 0.1},
    "vision_config": {"initializer_range": 0.5, "dtype": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("section", list(INERT))
def test_inert_keys_change_nothing(section: str | None) -> None:
    raw = _changed(lambda raw: (raw if section is None else raw[section]).update(INERT[section]))
    assert ModelConfig.from_dict(raw) == preset("2B")


REQUIRED = [
    *(("", key) for key in ("model_type", "text_config", "vision_config", "image_token_id", "video_token_id",
                            "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")),
    *(("text_config", key) for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
                                       "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
                                       "rms_norm_eps", "attention_bias", "hidden_act", "rope_theta", "rope_scaling")),
    *(("vision_config", key) for key in ("depth", "hidden_size", "num_heads", "intermediate_size", "patch_size",
                                         "temporal_patch_size", "spatial_merge_size", "in_channels", "out_hidden_size",
                                         "num_position_embeddings", "deepstack_visual_indexes", "hidden_act")),
]  # fmt: skip


@pytest.mark.parametrize(("section", "key"), REQUIRED)
def test_a_missing_key_raises(section: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"lacks {key}"):
        ModelConfig.from_dict(_changed(lambda raw: (raw[section] if section else raw).pop(key)))


@pytest.mark.parametrize("key", ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"])
def test_a_missing_key_of_the_experts_raises(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"lacks {key}"):
        ModelConfig.from_dict(_changed(lambda raw: raw["text_config"].pop(key), _moe()))


def test_experts_may_be_counted_under_either_name() -> None:
    def rename(raw: dict[str, Any]) -> None:
        raw["text_config"]["num_local_experts"] = raw["text_config"].pop("num_experts")

    assert ModelConfig.from_dict(_changed(rename, _moe())) == preset("30B-A3B")


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda raw: raw.update(model_type="qwen2_5_vl"), "foveal runs qwen3_vl and qwen3_vl_moe"),
    (lambda raw: raw.update(text_config=None), "expected dict"),
    (lambda raw: raw.update(tie_word_embeddings=1), "expected bool"),
    (lambda raw: raw.update(image_token_id="151655"), "expected int"),
    (lambda raw: raw.update(dtype="float8_e4m3fn"), "expected one of"),
    (lambda raw: raw.update(timestamp_format="clock"), "expected text or tokens"),
    (_text(hidden_size=True), "expected int"),
    (_text(hidden_size=2048.0), "expected int"),
    (_text(model_type="qwen3_vl_moe_text"), "expected qwen3_vl_text"),
    (_text(hidden_act="gelu"), "silu"),
    (_text(attention_dropout=0.1), "attention_dropout"),
    (_text(num_key_value_heads=3), "not a multiple"),
    (_text(head_dim=120), "must sum to head_dim / 2"),
    (_text(hidden_size=1024), "out_hidden_size must equal hidden_size"),
    (_text(num_hidden_layers=2), "there are layers 0..1"),
    (_rope(rope_type="linear"), "default and yarn"),
    (_rope(rope_type="yarn", factor=2.0), "original_max_position_embeddings"),
    (_rope(mrope_section=[32, 32]), "three counts"),
    (_rope(mrope_section=[24.0, 20, 20]), "three counts of frequencies"),
    (_rope(mrope_section=[72, 20, -28]), "three counts of frequencies"),
    (_rope(mrope_section=[16, 24, 24]), "cannot be interleaved"),
    (_rope(factor=0.0), "factor is 0.0"),
    (_text(rope_theta=-5.0), "rope_theta is -5.0"),
    (_text(num_key_value_heads=0), "num_key_value_heads is 0"),
    (_text(num_hidden_layers=-1), "num_hidden_layers is -1"),
    (_vision(num_heads=0), "num_heads is 0"),
    (_vision(patch_size=0), "patch_size is 0"),
    (lambda raw: raw.update(video_token_id=151655), "four different ids"),
    (lambda raw: raw.update(video_token_id=200000), "four different ids"),
    (_rope(mrope_section=[24, 20, 21]), "must sum to head_dim / 2"),
    (_vision(model_type="siglip"), "vision_config.model_type"),
    (_vision(hidden_act="gelu"), "gelu_pytorch_tanh"),
    (_vision(deepstack_visual_indexes=[5, 11, 24]), "blocks of 0..23"),
    (_vision(deepstack_visual_indexes=[11, 5, 17]), "ascending"),
    (_vision(deepstack_decoder_layers=[0, 1]), "as many different decoder layers"),
    (_vision(deepstack_decoder_layers=[0, 1, 1]), "as many different decoder layers"),
    (_vision(deepstack_decoder_layers=[0, 1, 28]), "layers 0..27"),
    (_vision(num_position_embeddings=2300), "not a square"),
    (_vision(num_heads=15), "divisible by 4"),
    (_vision(out_hidden_size=4096), "out_hidden_size must equal hidden_size"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_contradictory_values_raise(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(_changed(change), where="some/config.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("some/config.json")
    assert str(caught.value).count("some/config.json") == 1


def test_a_router_that_does_not_renormalise_is_refused() -> None:
    with pytest.raises(ConfigError, match="norm_topk_prob"):
        ModelConfig.from_dict(_changed(_text(norm_topk_prob=False), _moe()))


@pytest.mark.parametrize(("key", "value"), [("num_experts", 0), ("decoder_sparse_step", 0), ("num_experts_per_tok", 129)])
def test_impossible_experts_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{key} is 0|visits 129 experts"):
        ModelConfig.from_dict(_changed(_text(**{key: value}), _moe()))


def test_a_dense_model_with_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_experts"):
        ModelConfig.from_dict(_changed(_text(num_experts=8)))


def test_tap_layers_of_ones_own() -> None:
    config = ModelConfig.from_dict(_changed(_vision(deepstack_decoder_layers=[0, 8, 16])))
    assert config.vision.tap_layers == (0, 8, 16)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_without_the_key_the_layout_is_blocked_as_in_older_models() -> None:
    raw = _changed(lambda raw: raw["text_config"]["rope_scaling"].pop("mrope_interleaved"))
    assert ModelConfig.from_dict(raw).text.rope.interleaved is False


def test_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist.*config\.json"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_2B))
    assert ModelConfig.from_file(tmp_path) == ModelConfig.from_file(tmp_path / "config.json") == preset("2B")
    (tmp_path / "config.json").write_text(json.dumps(_changed(lambda raw: raw.pop("text_config"))))
    with pytest.raises(ConfigError, match=r"config\.json lacks text_config"):
        ModelConfig.from_file(tmp_path)


def test_presets_by_any_case() -> None:
    assert preset("30b-a3b") is PRESETS["30B-A3B"]
    with pytest.raises(ConfigError, match=r"2B, 4B.*overview"):
        preset("7B")

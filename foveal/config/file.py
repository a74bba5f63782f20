"""config.json to the shape of a model and back.

A checkpoint's file is the only source: no key is guessed from a class default, an unknown key raises because it may change
the architecture, and keys known to change nothing at inference are listed in the INERT tables below. Both spellings in
circulation are read: `rope_theta` + `rope_scaling` (transformers 4.57) and `rope_parameters` (transformers 5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from foveal.config.shape import DTYPE_BYTES, ModelConfig, MoeConfig, RopeConfig, TextConfig, VisionConfig
from foveal.errors import CheckpointError, ConfigError

# Keys that occur in released or re-saved configs and do not change what the model computes at inference.
INERT_TOP = {"architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "bos_token_id",
             "eos_token_id", "pad_token_id", "id2label", "label2id", "output_attentions", "output_hidden_states",
             "return_dict", "hidden_size", "initializer_range"}  # fmt: skip
INERT_TEXT = {"model_type", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
              "attention_dropout", "initializer_range", "output_router_logits", "router_aux_loss_coef",
              "sliding_window", "tie_word_embeddings", "_name_or_path", "architectures", "norm_topk_prob"}  # fmt: skip
INERT_VISION = {"model_type", "dtype", "torch_dtype", "initializer_range", "_name_or_path", "architectures",
                "rope_parameters"}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raise CheckpointError with the file's name if it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a checkpoint folder needs {path.name}") from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable JSON: {e}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; a JSON object was expected")
    return value


class _Reader:
    """Takes keys out of one section and complains about what is missing or left over."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{where} is a {type(raw).__name__}; an object was expected")
        self.raw, self.where, self.seen = raw, where, set[str]()

    def __call__(self, key: str, kind: type, *alternatives: str) -> Any:
        for name in (key, *alternatives):
            if name in self.raw:
                return self._checked(name, kind)
        raise ConfigError(f"{self.where} lacks {key}; class defaults never stand in for a missing key")

    def get(self, key: str, kind: type, default: Any) -> Any:
        if self.raw.get(key) is None:
            self.seen.add(key)
            return default
        return self._checked(key, kind)

    def _checked(self, name: str, kind: type) -> Any:
        self.seen.add(name)
        value = self.raw[name]
        right = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not right or (kind in (int, float) and isinstance(value, bool)):
            raise ConfigError(f"{self.where}: {name} is {value!r}; expected {kind.__name__}")
        return tuple(value) if kind is list else value

    def finish(self, inert: set[str]) -> None:
        unknown = sorted(set(self.raw) - self.seen - inert)
        if unknown:
            raise ConfigError(
                f"{self.where} has unknown keys {unknown}; they may change the architecture, so foveal does not ignore them"
            )


def _read_rope(read: _Reader) -> RopeConfig:
    where = read.where
    if "rope_parameters" in read.raw:
        rope = _Reader(read("rope_parameters", dict), f"{where}.rope_parameters")
        theta = rope("rope_theta", float)
    else:
        theta = read("rope_theta", float)
        rope = _Reader(read("rope_scaling", dict), f"{where}.rope_scaling")
    # Checkpoints of the 4.5x era may spell the type "type", with "mrope" for the default.
    kind = rope("rope_type", str, "type")
    rope.seen |= {"type", "rope_type"}
    if kind not in ("default", "mrope", "yarn"):
        raise ConfigError(f"{where}: rope_type is {kind!r}; foveal knows default and yarn")
    section = rope("mrope_section", list)
    if len(section) != 3:
        raise ConfigError(f"{where}: mrope_section is {list(section)}; three counts (time, height, width) were expected")
    config = RopeConfig(
        theta=float(theta),
        mrope_section=(section[0], section[1], section[2]),
        # Only Qwen3-VL interleaves, and always says so; transformers 5 interleaves whatever the key says.
        interleaved=rope.get("mrope_interleaved", bool, False),
        rope_type="yarn" if kind == "yarn" else "default",
        factor=float(rope.get("factor", float, 1.0)),
        original_max_position_embeddings=rope.get("original_max_position_embeddings", int, None),
        beta_fast=float(rope.get("beta_fast", float, 32.0)),
        beta_slow=float(rope.get("beta_slow", float, 1.0)),
        attention_factor=rope.get("attention_factor", float, None),
    )
    rope.finish(set())
    return config


def _read_text(raw: Mapping[str, Any], where: str, sparse: bool) -> TextConfig:
    read = _Reader(raw, where)
    act = read("hidden_act", str)
    if act != "silu":
        raise ConfigError(f"{where}: hidden_act is {act!r}; Qwen3-VL uses silu")
    if raw.get("attention_dropout"):
        raise ConfigError(f"{where}: attention_dropout is {raw['attention_dropout']!r}; Qwen3-VL uses 0.0")
    moe = None
    if sparse:
        moe = MoeConfig(
            num_experts=read("num_experts", int, "num_local_experts"),
            num_experts_per_tok=read("num_experts_per_tok", int),
            moe_intermediate_size=read("moe_intermediate_size", int),
            decoder_sparse_step=read("decoder_sparse_step", int),
            mlp_only_layers=read.get("mlp_only_layers", list, ()),
        )
        if raw.get("norm_topk_prob") is False:
            raise ConfigError(f"{where}: norm_topk_prob is false; the reference router always renormalises")
    config = TextConfig(
        vocab_size=read("vocab_size", int),
        hidden_size=read("hidden_size", int),
        intermediate_size=read("intermediate_size", int),
        num_hidden_layers=read("num_hidden_layers", int),
        num_attention_heads=read("num_attention_heads", int),
        num_key_value_heads=read("num_key_value_heads", int),
        head_dim=read("head_dim", int),
        max_position_embeddings=read("max_position_embeddings", int),
        rope=_read_rope(read),
        rms_norm_eps=float(read("rms_norm_eps", float)),
        attention_bias=read("attention_bias", bool),
        moe=moe,
    )
    read.finish(INERT_TEXT)
    return config


def _read_vision(raw: Mapping[str, Any], where: str) -> VisionConfig:
    read = _Reader(raw, where)
    act = read("hidden_act", str)
    if act != "gelu_pytorch_tanh":
        raise ConfigError(f"{where}: hidden_act is {act!r}; Qwen3-VL uses gelu_pytorch_tanh")
    taps = read("deepstack_visual_indexes", list)
    rope = raw.get("rope_parameters") or {}
    config = VisionConfig(
        depth=read("depth", int),
        hidden_size=read("hidden_size", int),
        num_heads=read("num_heads", int),
        intermediate_size=read("intermediate_size", int),
        patch_size=read("patch_size", int),
        temporal_patch_size=read("temporal_patch_size", int),
        spatial_merge_size=read("spatial_merge_size", int),
        in_channels=read("in_channels", int),
        num_position_embeddings=read("num_position_embeddings", int),
        out_hidden_size=read("out_hidden_size", int),
        taps=taps,
        # foveal's own key; released models add tap j after decoder layer j.
        tap_layers=read.get("deepstack_decoder_layers", list, tuple(range(len(taps)))),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
    )
    read.finish(INERT_VISION)
    return config


def read_model(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Read a parsed config.json; `where` names it in messages. Raise ConfigError, see `ModelConfig.from_dict`."""
    read = _Reader(raw, where)
    kind = read("model_type", str)
    if kind not in ("qwen3_vl", "qwen3_vl_moe"):
        raise ConfigError(f"{where}: model_type is {kind!r}; foveal runs qwen3_vl and qwen3_vl_moe")
    text_raw, vision_raw = read("text_config", dict), read("vision_config", dict)
    if (vision_kind := vision_raw.get("model_type")) not in (None, kind, f"{kind}_vision", "qwen3_vl", "qwen3_vl_vision"):
        raise ConfigError(f"{where}: vision_config.model_type is {vision_kind!r}; expected {kind} or {kind}_vision")
    if (text_kind := text_raw.get("model_type")) not in (None, f"{kind}_text"):
        raise ConfigError(f"{where}: text_config.model_type is {text_kind!r}; expected {kind}_text")
    timestamps = read.get("timestamp_format", str, "text")
    if timestamps not in ("text", "tokens"):
        raise ConfigError(f"{where}: timestamp_format is {timestamps!r}; expected text or tokens")
    dtype = raw.get("dtype") or raw.get("torch_dtype") or text_raw.get("dtype") or text_raw.get("torch_dtype") or "float32"
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"{where}: dtype is {dtype!r}; expected one of {sorted(DTYPE_BYTES)}")
    read.seen.add("quantization_config")  # read by model/load.py, which knows what it can undo
    config = ModelConfig(
        vision=_read_vision(vision_raw, f"{where}: vision_config"),
        text=_read_text(text_raw, f"{where}: text_config", sparse=kind == "qwen3_vl_moe"),
        image_token_id=read("image_token_id", int),
        video_token_id=read("video_token_id", int),
        vision_start_token_id=read("vision_start_token_id", int),
        vision_end_token_id=read("vision_end_token_id", int),
        tie_word_embeddings=read("tie_word_embeddings", bool),
        timestamps=timestamps,
        dtype=dtype,
    )
    read.finish(INERT_TOP)
    return config


def write_model(config: ModelConfig, spelling: Literal["4.57", "5"]) -> dict[str, Any]:
    """Write a config.json in the spelling of transformers 4.57 or 5."""
    text, vision, rope, moe = config.text, config.vision, config.text.rope, config.text.moe
    kind = "qwen3_vl" if moe is None else "qwen3_vl_moe"
    scaling: dict[str, Any] = {
        "rope_type": rope.rope_type,
        "mrope_interleaved": rope.interleaved,
        "mrope_section": list(rope.mrope_section),
    }
    if rope.rope_type == "yarn":
        scaling |= {
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
        }
        if rope.attention_factor is not None:
            scaling["attention_factor"] = rope.attention_factor
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias")  # fmt: skip
    text_out: dict[str, Any] = {"model_type": f"{kind}_text", "hidden_act": "silu", "attention_dropout": 0.0}
    text_out |= {name: getattr(text, name) for name in fields}
    if spelling == "4.57":
        text_out |= {"rope_theta": rope.theta, "rope_scaling": scaling}
    else:
        text_out["rope_parameters"] = {"rope_theta": rope.theta, **scaling}
    if moe is not None:
        text_out |= {
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.num_experts_per_tok,
            "moe_intermediate_size": moe.moe_intermediate_size,
            "decoder_sparse_step": moe.decoder_sparse_step,
            "mlp_only_layers": list(moe.mlp_only_layers),
            "norm_topk_prob": True,
        }
    fields = ("depth", "hidden_size", "num_heads", "intermediate_size", "patch_size", "temporal_patch_size",
              "spatial_merge_size", "in_channels", "num_position_embeddings", "out_hidden_size")  # fmt: skip
    vision_out: dict[str, Any] = {"model_type": kind if spelling == "4.57" else f"{kind}_vision"}
    vision_out |= {"hidden_act": "gelu_pytorch_tanh", "deepstack_visual_indexes": list(vision.taps)}
    vision_out |= {name: getattr(vision, name) for name in fields}
    if vision.tap_layers != tuple(range(len(vision.taps))):
        vision_out["deepstack_decoder_layers"] = list(vision.tap_layers)
    out: dict[str, Any] = {
        "architectures": ["Qwen3VLForConditionalGeneration" if moe is None else "Qwen3VLMoeForConditionalGeneration"],
        "model_type": kind,
        "torch_dtype" if spelling == "4.57" else "dtype": config.dtype,
        "tie_word_embeddings": config.tie_word_embeddings,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "text_config": text_out,
        "vision_config": vision_out,
    }
    if config.timestamps != "text":
        out["timestamp_format"] = config.timestamps
    return out

"""The shape of a model: frozen dataclasses read from a checkpoint's own config.json.

A checkpoint's file is the only source: no key is guessed from a class default, an unknown key raises because it may change
the architecture, and keys known to change nothing at inference are listed in the INERT tables below. Both spellings in
circulation are read: `rope_theta` + `rope_scaling` (transformers 4.57) and `rope_parameters` (transformers 5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from foveal.errors import CheckpointError, ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Keys that occur in released or re-saved configs and do not change what the model computes at inference.
INERT_TOP = {"architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "bos_token_id",
             "eos_token_id", "pad_token_id", "id2label", "label2id", "output_attentions", "output_hidden_states",
             "return_dict", "hidden_size", "initializer_range"}  # fmt: skip
INERT_TEXT = {"model_type", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
              "attention_dropout", "initializer_range", "output_router_logits", "router_aux_loss_coef",
              "sliding_window", "tie_word_embeddings", "_name_or_path", "architectures", "norm_topk_prob"}  # fmt: skip
INERT_VISION = {"model_type", "dtype", "torch_dtype", "initializer_range", "_name_or_path", "architectures",
                "rope_parameters"}  # fmt: skip


def _require_positive(what: str, values: Mapping[str, float]) -> None:
    """Raise ConfigError for a count or size that is zero or less."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{what}: {name} is {value!r}; it must be greater than 0")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions of the decoder.

    `mrope_section` counts the frequencies of the (time, height, width) axes; their sum is head_dim / 2. Interleaved deals
    them out in turn (Qwen3-VL); blocked gives each axis a run of neighbours (Qwen2-VL, Qwen2.5-VL). `rope_type` "yarn"
    stretches a context of `original_max_position_embeddings` by `factor` (beta_fast, beta_slow and the attention factor
    as in transformers' `_compute_yarn_parameters`).
    """

    theta: float
    mrope_section: tuple[int, int, int]
    interleaved: bool = True
    rope_type: Literal["default", "yarn"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _require_positive("rope", {"rope_theta": self.theta, "factor": self.factor})
        t, h, w = self.mrope_section
        if min(t, h, w) < 0 or any(not isinstance(n, int) for n in self.mrope_section):
            raise ConfigError(f"mrope_section {list(self.mrope_section)} must be three counts of frequencies")
        if self.interleaved and max(3 * h - 2, 3 * w - 1) >= t + h + w:
            raise ConfigError(
                f"mrope_section {list(self.mrope_section)} cannot be interleaved: every third frequency of {t + h + w} is too "
                "few for height or width"
            )
        if self.rope_type == "yarn" and self.original_max_position_embeddings is None:
            raise ConfigError("yarn needs original_max_position_embeddings (262144 for released models)")


@dataclass(frozen=True)
class MoeConfig:
    """Experts in place of the MLP of a decoder layer."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
        _require_positive("experts", {name: getattr(self, name) for name in sizes})
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(f"a token visits {self.num_experts_per_tok} experts, but there are {self.num_experts}")

    def is_sparse(self, layer: int) -> bool:
        """Tell whether decoder layer `layer` (0-based) has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeConfig
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    moe: MoeConfig | None = None

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
        _require_positive("decoder", {name: getattr(self, name) for name in sizes})
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2 or sum(self.rope.mrope_section) != self.head_dim // 2:
            raise ConfigError(
                f"mrope_section {list(self.rope.mrope_section)} sums to {sum(self.rope.mrope_section)}; "
                f"it must sum to head_dim / 2 = {self.head_dim / 2:g}"
            )

    @property
    def num_parameters(self) -> int:
        """Weights of the decoder with its embeddings, without the head."""
        return (
            self.vocab_size * self.hidden_size
            + self.hidden_size
            + sum(self._layer_parameters(i, active=False) for i in range(self.num_hidden_layers))
        )

    def _layer_parameters(self, layer: int, *, active: bool) -> int:
        d, n, g, h = self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim
        attention = 2 * n * h * d + 2 * g * h * d + 2 * h
        if self.attention_bias:
            attention += n * h + 2 * g * h + d
        return attention + 2 * d + self.mlp_parameters(layer, active=active)

    def mlp_parameters(self, layer: int, *, active: bool = False) -> int:
        """Weights of one layer's MLP; `active` counts the router and only the experts one token visits."""
        if self.moe is None or not self.moe.is_sparse(layer):
            return 3 * self.hidden_size * self.intermediate_size
        experts = self.moe.num_experts_per_tok if active else self.moe.num_experts
        return self.moe.num_experts * self.hidden_size + experts * 3 * self.hidden_size * self.moe.moe_intermediate_size

    @property
    def num_active_parameters(self) -> int:
        """Weights one token passes through in the layers (no embeddings, no head)."""
        return sum(self._layer_parameters(i, active=True) for i in range(self.num_hidden_layers))

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Bytes one token occupies in the key-value cache."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * DTYPE_BYTES[dtype]


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder and its mergers.

    `taps` are the blocks (0-based, output of the block) whose features leave through a merger of their own;
    `tap_layers` are the decoder layers after which they are added, 0, 1, 2, ... in released models. `image_mean` and
    `image_std` come from the checkpoint's preprocessor file: normalisation is part of the patch embedding here.
    """

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int
    num_position_embeddings: int
    out_hidden_size: int
    taps: tuple[int, ...]
    tap_layers: tuple[int, ...]
    rope_theta: float = 10000.0
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        sizes = ("depth", "hidden_size", "num_heads", "intermediate_size", "patch_size", "temporal_patch_size",
                 "spatial_merge_size", "in_channels", "num_position_embeddings", "out_hidden_size", "rope_theta")  # fmt: skip
        _require_positive("vision encoder", {name: getattr(self, name) for name in sizes})
        if len(self.taps) != len(set(self.tap_layers)) or len(self.taps) != len(self.tap_layers):
            raise ConfigError(
                f"{len(self.taps)} taps {list(self.taps)} need as many different decoder layers, not {list(self.tap_layers)}"
            )
        if list(self.taps) != sorted(set(self.taps)) or any(not 0 <= b < self.depth for b in self.taps):
            raise ConfigError(f"taps {list(self.taps)} must be ascending blocks of 0..{self.depth - 1}")
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise ConfigError(
                f"vision hidden_size {self.hidden_size} over {self.num_heads} heads must give a width divisible by 4"
            )
        if round(self.num_position_embeddings**0.5) ** 2 != self.num_position_embeddings:
            raise ConfigError(f"num_position_embeddings {self.num_position_embeddings} is not a square")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def factor(self) -> int:
        """Side of one vision token in pixels; both sides of a resized picture are multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @property
    def position_side(self) -> int:
        """Side of the square table of learned positions."""
        return round(self.num_position_embeddings**0.5)

    @property
    def merger_parameters(self) -> int:
        """Weights of the main merger and of the taps' mergers."""
        wide = self.hidden_size * self.spatial_merge_size**2
        mlp = wide * wide + wide + wide * self.out_hidden_size + self.out_hidden_size
        return (mlp + 2 * self.hidden_size) + len(self.taps) * (mlp + 2 * wide)

    @property
    def block_parameters(self) -> int:
        """Weights of one block."""
        c, f = self.hidden_size, self.intermediate_size
        return 4 * c * c + 4 * c + 2 * c * f + f + c + 4 * c

    @property
    def num_parameters(self) -> int:
        """Weights of the encoder with its mergers."""
        patch = self.in_channels * self.temporal_patch_size * self.patch_size**2
        embed = patch * self.hidden_size + self.hidden_size + self.num_position_embeddings * self.hidden_size
        return embed + self.depth * self.block_parameters + self.merger_parameters


@dataclass(frozen=True)
class ModelConfig:
    """A whole Qwen3-VL: vision encoder, decoder, and the token ids that join them.

    `timestamps`: "text" writes `<3.0 seconds>` before each frame pair (released models); "tokens" writes learnable
    tokens such as `<t_3m27s>`. `dtype` is the checkpoint's own.
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tie_word_embeddings: bool
    timestamps: Literal["text", "tokens"] = "text"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ConfigError(
                f"the vision encoder gives rows of {self.vision.out_hidden_size} but the decoder takes "
                f"{self.text.hidden_size}; out_hidden_size must equal hidden_size"
            )
        ids = (self.image_token_id, self.video_token_id, self.vision_start_token_id, self.vision_end_token_id)
        if len(set(ids)) < len(ids) or any(not 0 <= token < self.text.vocab_size for token in ids):
            raise ConfigError(
                f"image, video, vision start and vision end have the token ids {list(ids)}; four different ids below "
                f"vocab_size {self.text.vocab_size} were expected"
            )
        if any(not 0 <= layer < self.text.num_hidden_layers for layer in self.vision.tap_layers):
            raise ConfigError(
                f"taps are added after decoder layers {list(self.vision.tap_layers)}, "
                f"but there are layers 0..{self.text.num_hidden_layers - 1}"
            )

    @property
    def num_parameters(self) -> int:
        """All weights, a tied head counted once."""
        head = 0 if self.tie_word_embeddings else self.text.vocab_size * self.text.hidden_size
        return self.vision.num_parameters + self.text.num_parameters + head

    @property
    def num_active_parameters(self) -> int:
        """Weights a decoded token passes through: the layers, the final norm and the head."""
        return self.text.num_active_parameters + self.text.hidden_size * (self.text.vocab_size + 1)

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Bytes of all weights in `dtype` (the checkpoint's own by default)."""
        return self.num_parameters * DTYPE_BYTES[dtype or self.dtype]

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read `config.json`, or the folder that holds it."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        return cls.from_dict(read_json(file), where=str(file))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config") -> ModelConfig:
        """Read a parsed config.json. Raise ConfigError for missing, unknown or contradictory keys."""
        try:
            return _read_model(raw, where)
        except ConfigError as e:
            # What the dataclasses find contradictory does not know the file it came from.
            raise (e if str(e).startswith(where) else ConfigError(f"{where}: {e}")) from None

    def to_dict(self, spelling: Literal["4.57", "5"] = "4.57") -> dict[str, Any]:
        """Write the config.json of a released model; both spellings load in transformers."""
        return _write_model(self, spelling)


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


def _read_model(raw: Mapping[str, Any], where: str) -> ModelConfig:
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


def _write_model(config: ModelConfig, spelling: Literal["4.57", "5"]) -> dict[str, Any]:
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


def _released(
    layers: int,
    hidden: int,
    heads: tuple[int, int],
    intermediate: int,
    *,
    tied: bool,
    small_vision: bool,
    moe: MoeConfig | None = None,
) -> ModelConfig:
    """Build a released size from facts/qwen3-vl.md section 1."""
    depth, width, inner = (24, 1024, 4096) if small_vision else (27, 1152, 4304)
    taps = (5, 11, 17) if small_vision else (8, 16, 24)
    vision = VisionConfig(
        depth=depth, hidden_size=width, num_heads=16, intermediate_size=inner, patch_size=16, temporal_patch_size=2,
        spatial_merge_size=2, in_channels=3, num_position_embeddings=2304, out_hidden_size=hidden, taps=taps,
        tap_layers=(0, 1, 2),
    )  # fmt: skip
    text = TextConfig(
        vocab_size=151936, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=128, max_position_embeddings=262144,
        rope=RopeConfig(theta=5e6, mrope_section=(24, 20, 20)), moe=moe,
    )  # fmt: skip
    return ModelConfig(
        vision=vision, text=text, image_token_id=151655, video_token_id=151656, vision_start_token_id=151652,
        vision_end_token_id=151653, tie_word_embeddings=tied,
    )  # fmt: skip


def _overview() -> ModelConfig:
    """The geometry that circulates in overviews: four taps spread over both stacks, timestamps as learnable tokens."""
    base = _released(36, 4096, (32, 8), 12288, tied=False, small_vision=False)
    vision = replace(base.vision, depth=25, taps=(6, 12, 18, 24), tap_layers=(0, 8, 16, 24))
    return replace(base, vision=vision, timestamps="tokens")


PRESETS: dict[str, ModelConfig] = {
    "2B": _released(28, 2048, (16, 8), 6144, tied=True, small_vision=True),
    "4B": _released(36, 2560, (32, 8), 9728, tied=True, small_vision=True),
    "8B": _released(36, 4096, (32, 8), 12288, tied=False, small_vision=False),
    "32B": _released(64, 5120, (64, 8), 25600, tied=False, small_vision=False),
    "30B-A3B": _released(48, 2048, (32, 4), 6144, tied=False, small_vision=False, moe=MoeConfig(128, 8, 768)),
    "235B-A22B": _released(94, 4096, (64, 4), 12288, tied=False, small_vision=False, moe=MoeConfig(128, 8, 1536)),
    "overview": _overview(),
}


def preset(name: str) -> ModelConfig:
    """Return the configuration of a released size, case-insensitively. Raise ConfigError with the names that exist."""
    for key, config in PRESETS.items():
        if key.lower() == name.lower():
            return config
    raise ConfigError(f"there is no preset {name!r}; presets are {', '.join(PRESETS)}")

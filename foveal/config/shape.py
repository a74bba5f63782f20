"""The shape of a model as frozen dataclasses, which check themselves and count their own weights and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foveal.errors import ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CACHE_DTYPES = ("float32", "bfloat16", "int8")  # what a key-value cache can be told to hold


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
        """Bytes one token occupies in the key-value cache; in int8 every 32 numbers of a head have a float16 scale."""
        head = self.head_dim + 2 * -(-self.head_dim // 32) if dtype == "int8" else self.head_dim * DTYPE_BYTES[dtype]
        return 2 * self.num_hidden_layers * self.num_key_value_heads * head


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
        from foveal.config.file import read_json

        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        return cls.from_dict(read_json(file), where=str(file))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config") -> ModelConfig:
        """Read a parsed config.json. Raise ConfigError for missing, unknown or contradictory keys."""
        from foveal.config.file import read_model

        try:
            return read_model(raw, where)
        except ConfigError as e:
            # What the dataclasses find contradictory does not know the file it came from.
            raise (e if str(e).startswith(where) else ConfigError(f"{where}: {e}")) from None

    def to_dict(self, spelling: Literal["4.57", "5"] = "4.57") -> dict[str, Any]:
        """Write the config.json of a released model; both spellings load in transformers."""
        from foveal.config.file import write_model

        return write_model(self, spelling)

"""Packed models: the same as a float32 model of the unpacked weights, from memory, from a checkpoint, from a packed file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foveal import kernels
from foveal.batch import Batch, VisionTokens
from foveal.errors import CheckpointError, ConfigError
from foveal.kernels import oracle
from foveal.model import Qwen3VL, attention
from foveal.model.linear import PackedEmbedding, PackedExperts, PackedLinear
from foveal.model.load import load_model, save_model
from foveal.model.moe import Experts, SparseMLP
from foveal.model.quantize import (
    check_bits,
    expected_bytes,
    expected_step_bytes,
    num_bytes,
    packed_weights,
    quantize,
    save_packed,
    step_bytes,
    width,
)
from foveal.model.vision import VisionAttention
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")


def logits(model: Qwen3VL, scene: str = "mixed", seen: VisionTokens | None = None) -> Tensor:
    """Return the logits of all rows, of what the model sees by itself or of given vision tokens."""
    media = new_media(model.config.vision, SCENES[scene])
    sequence = new_sequence(media, model.config.vision.spatial_merge_size)
    with torch.inference_mode():
        out: Tensor = model(Batch.pack([sequence], seen or model.encode(media)))
    return out


def vision_tokens(model: Qwen3VL, scene: str = "mixed") -> VisionTokens:
    with torch.inference_mode():
        return model.encode(new_media(model.config.vision, SCENES[scene]))


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Return how far rows (..., K) of `a` are from those of `b`, relative to these."""
    return (a - b).norm(dim=-1) / b.norm(dim=-1)


def to_8_bits(x: Tensor) -> Tensor:
    """Round rows (..., K) as the kernels round activations."""
    rows = x.reshape(-1, x.shape[-1]).numpy()
    codes, scales, _ = oracle.quantise(rows)
    return torch.from_numpy((codes * scales[..., None]).reshape(len(rows), -1)[:, : x.shape[-1]]).view(x.shape)


class RoundedExperts(nn.Module):
    """Experts over rounded weights that round what they are given."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, (gate_up, down) in enumerate(zip(self.experts.gate_up_proj, self.experts.down_proj, strict=True)):
            gate, up = (to_8_bits(x) @ gate_up).chunk(2, dim=-1)
            share = (weights * (index == e)).sum(dim=1, keepdim=True)
            out += to_8_bits(nn.functional.silu(gate) * up) @ down * share
        return out


def attend_alike(attn: VisionAttention, x: Tensor, tables: tuple[Tensor, Tensor], lengths: tuple[int, ...]) -> Tensor:
    """Attend inside frames as the NumPy oracle does, which rounds where the kernels round."""
    seen = oracle.frames(attn.qkv(x).numpy(), lengths, attn.num_heads, *(table.numpy() for table in tables))
    out: Tensor = attn.proj(torch.from_numpy(seen))
    return out


def rounded(model: Qwen3VL, bits: int) -> Qwen3VL:
    """A float32 model with weights and activations rounded as packing rounds them: the plain oracle of a packed one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            chosen = width(name, bits, model.config)
            if chosen and parameter.ndim == 2:
                parameter.copy_(kernels.unpack(kernels.pack(parameter.detach(), chosen)))
            elif chosen:
                halves = 2 if name.endswith("gate_up_proj") else 1
                for expert in parameter:
                    for part in expert.chunk(halves, dim=1):
                        part.copy_(kernels.unpack(kernels.pack(part.T.contiguous(), chosen)).T)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _m, inputs: (to_8_bits(inputs[0]),))
        elif isinstance(module, SparseMLP):
            module.experts = RoundedExperts(module.experts)
    for block in model.visual.blocks:
        block.attn.forward = partial(attend_alike, block.attn)
    if model.lm_head is None:
        model.language_model.norm.register_forward_hook(lambda _m, _x, out: to_8_bits(out))
    return model


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_as_a_float_model_that_rounds_alike(name: str, bits: int) -> None:
    plain, packed = rounded(new_model(CONFIGS[name]), bits), quantize(new_model(CONFIGS[name]), bits)
    # What is left is the order of sums, until it decides how a value is rounded; from there on all rows see the difference.
    # Experts make much of it, where it decides who is asked, so both decoders are shown the same.
    theirs, ours = vision_tokens(plain), vision_tokens(packed)
    for here, there in ((ours.embeddings, theirs.embeddings), *zip(ours.taps, theirs.taps, strict=True)):
        assert apart(here, there).max() < 0.03
    assert apart(ours.taps[0], theirs.taps[0]).min() < 1e-5
    off = apart(logits(packed, seen=ours), logits(plain, seen=ours))
    assert off[:3].max() < 1e-5 and off.median() < 0.03


def test_four_bits_keep_the_ends_wide() -> None:
    config = CONFIGS["dense-tied"]
    widths = {name: width(name, 4, config) for name, _ in new_model(config).named_parameters()}
    assert widths["language_model.layers.0.mlp.up_proj.weight"] == 8
    assert widths["language_model.layers.1.self_attn.q_proj.weight"] == 4
    assert widths["language_model.layers.4.mlp.down_proj.weight"] == 8
    assert widths["visual.blocks.2.attn.qkv.weight"] == 8
    assert widths["language_model.embed_tokens.weight"] == 8
    for name, bits in widths.items():
        if "norm" in name or "patch_embed" in name or "pos_embed" in name or name.endswith("bias"):
            assert bits is None, name
    assert {width(name, 8, config) for name in widths} == {None, 8}


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_packs_on_the_way_as_in_memory(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = new_model(CONFIGS[name]).to(dtype)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, bits=4)
    assert torch.equal(logits(loaded), logits(quantize(model, 4)))
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["dense-yarn", "moe-mixed"])
def test_a_packed_folder_is_mapped(name: str, bits: int, tmp_path: Path) -> None:
    model = quantize(new_model(CONFIGS[name]), bits)
    save_packed(model, tmp_path, bits)
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.rest_encoder is not None
    loaded.rest_encoder()
    assert torch.equal(logits(loaded), logits(model))
    assert packed_weights(loaded).keys() == packed_weights(model).keys()
    assert num_bytes(loaded) == num_bytes(model) == expected_bytes(new_model(CONFIGS[name]), bits)
    assert torch.equal(logits(load_model(tmp_path, bits=bits)), logits(model))
    with pytest.raises(ConfigError, match=f"packed to {bits} bits"):
        load_model(tmp_path, bits=12 - bits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_what_a_token_will_read_is_known_from_shapes(name: str, bits: int) -> None:
    assert expected_step_bytes(new_model(CONFIGS[name]), bits) == step_bytes(quantize(new_model(CONFIGS[name]), bits))


def test_pieces_of_a_large_matrix_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model(CONFIGS["dense-tied"])
    save_model(model, tmp_path)
    whole = logits(load_model(tmp_path, bits=8))
    monkeypatch.setattr("foveal.model.checkpoint.PIECE_BYTES", 4000)
    assert torch.equal(logits(load_model(tmp_path, bits=8)), whole)


def test_a_packed_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    save_packed(quantize(new_model(CONFIGS["dense-tied"]), 8), tmp_path, 8)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layers\.4\.\S+ is unexpected"):
        load_model(tmp_path)
    config["text_config"]["num_hidden_layers"] = 6
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layers\.5\.\S+ is missing"):
        load_model(tmp_path)
    config["quantization_config"]["group_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="groups of 32"):
        load_model(tmp_path)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(new_model(CONFIGS["dense-tied"]), tmp_path)
    with pytest.raises(ConfigError, match="8 or 4 bits"):
        load_model(tmp_path, bits=3)
    with pytest.raises(ConfigError, match="not on meta"):
        load_model(tmp_path, bits=8, device="meta")
    with pytest.raises(ConfigError, match="bfloat16, but"):
        load_model(tmp_path, bits=8, dtype="bfloat16")
    monkeypatch.setattr(kernels, "available", lambda: False)
    with pytest.raises(ConfigError, match="native kernels"):
        check_bits(8)


@pytest.mark.parametrize("name", ["dense-tied", "moe-mixed"])
def test_a_packed_model_is_not_saved_as_a_plain_one(name: str, tmp_path: Path) -> None:
    model = quantize(new_model(CONFIGS[name]), 8)
    with pytest.raises(CheckpointError, match=r"are packed.*save_packed.*foveal pack"):
        save_model(model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    save_packed(model, tmp_path / "packed", 8)
    assert packed_weights(load_model(tmp_path / "packed")).keys() == packed_weights(model).keys()


def test_modules_alone() -> None:
    weight, bias, x = torch.randn(40, 70), torch.randn(40), torch.randn(2, 3, 70)
    packed = kernels.pack(weight, 8)
    linear = nn.Linear(70, 40)
    linear.weight.data, linear.bias.data = kernels.unpack(packed), bias
    assert torch.allclose(PackedLinear(packed, bias)(x), linear(x), atol=0.3)
    assert torch.equal(PackedLinear(packed, bias)(x)[1], PackedLinear(packed, bias)(x[1]))
    table = PackedEmbedding(packed)
    ids = torch.tensor([3, 0, 39, 3])
    assert torch.equal(table(ids), kernels.unpack(packed)[ids])
    assert torch.equal(table.score(x[0]), PackedLinear(packed)(x[0]))
    empty = PackedExperts([packed], [packed], [kernels.pack(torch.randn(70, 40), 8)])
    rows = torch.empty(0, 70)
    assert empty(rows, torch.empty(0, 1), torch.empty(0, 1, dtype=torch.long)).shape == (0, 70)


@pytest.mark.parametrize("in_integers", [False, True])
@pytest.mark.parametrize("name", ["dense-tied", "released-heads"])
def test_cached_as_fresh(name: str, in_integers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is bfloat16: chunks and single steps see the same rounded keys, so they agree with one another closely.

    Where 40 rows attend in integers, and windows of fewer do not, some activation is rounded the other way from the start.
    """
    monkeypatch.setattr(attention, "WINDOW", 32 if in_integers else 100)
    model = quantize(new_model(CONFIGS[name]), 8)
    ids, places = torch.randint(0, 200, (40,)), torch.arange(40).expand(3, -1)
    none = torch.empty(0, dtype=torch.long)

    def run(*stops: int) -> Tensor:
        cache, out, start = model.new_cache(8), [], 0
        assert cache.num_bytes == 8 * model.config.text.kv_bytes_per_token("bfloat16")
        for stop in stops:
            batch = Batch(ids[start:stop], places[:, start:stop], (stop - start,), none)
            with torch.inference_mode():
                out.append(model(batch, [cache]))
            start = stop
        return torch.cat(out)

    whole, windows, steps = run(40), run(17, 40), run(*range(1, 41))
    for other in (windows, steps):
        off = (whole - other).norm(dim=-1) / whole.norm(dim=-1)
        assert off[:3].max() < (0.1 if in_integers else 1e-3) and off.median() < 0.1

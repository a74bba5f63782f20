"""FLOPs in closed form against torch's own counter, which watches the matrix products of a real forward pass."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from foveal.batch import Batch
from foveal.config import PRESETS, ModelConfig, MoeConfig, RopeConfig, TextConfig, VisionConfig, preset
from foveal.cost import Cost, decoder_flops, encode_flops, estimate
from foveal.errors import PromptError
from foveal.model import Qwen3VL
from foveal.patches import Patches, merge_block_coords
from foveal.sequence import Segment, TextSegment, VisionSegment, build

VISION = VisionConfig(
    depth=3, hidden_size=24, num_heads=2, intermediate_size=40, patch_size=4, temporal_patch_size=2, spatial_merge_size=2,
    in_channels=3, num_position_embeddings=16, out_hidden_size=20, taps=(0, 2), tap_layers=(0, 2),
)  # fmt: skip
TEXT = TextConfig(
    vocab_size=50, hidden_size=20, intermediate_size=28, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=512, rope=RopeConfig(theta=1e4, mrope_section=(2, 1, 1)),
)  # fmt: skip
MOE = replace(TEXT, moe=MoeConfig(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12, mlp_only_layers=(1,)))


def config(text: TextConfig = TEXT, *, tied: bool = False) -> ModelConfig:
    return ModelConfig(
        vision=VISION, text=text, image_token_id=45, video_token_id=46, vision_start_token_id=47, vision_end_token_id=48,
        tie_word_embeddings=tied, dtype="float32",
    )  # fmt: skip


def model(cfg: ModelConfig) -> Qwen3VL:
    built = Qwen3VL(cfg).eval()
    built.init_weights(seed=1)
    return built


def patches(kind: str, frames: int, h: int, w: int) -> Patches:
    coords = merge_block_coords(frames, h, w, VISION.spatial_merge_size)
    width = 3 * VISION.patch_size**2 * (1 if kind == "image" else VISION.temporal_patch_size)
    pixels = np.random.default_rng(h * w).integers(0, 256, (len(coords), width), np.uint8)
    return Patches(pixels, coords, ((h, w),) * frames, tuple(map(float, range(frames))), kind, 2, (h * 4, w * 4))  # type: ignore[arg-type]


MEDIA = [patches("image", 1, 4, 6), patches("video", 3, 2, 8), patches("image", 1, 8, 2)]
SHAPES: list[tuple[Any, list[int]]] = [(m.kind, m.lengths()) for m in MEDIA]


def _sdpa(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    # The formula torch registers for its other attention kernels; grouped keys count once a query head.
    return sdpa_flop_count(q, (q[0], q[1], *k[2:]), (q[0], q[1], *v[2:]))


def _grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[-1]


def counted(run: Any) -> int:
    """FLOPs that torch counts; its CPU attention and grouped product have no formula of their own there."""
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa, torch.ops.aten._grouped_mm: _grouped}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


def test_encode_equals_the_counter() -> None:
    m = model(config())
    flops = encode_flops(VISION, SHAPES)
    assert flops.total == counted(lambda: m.encode(MEDIA)) > 0
    assert min(flops.patch_embedding, flops.blocks, flops.attention, flops.mergers) > 0


@pytest.mark.parametrize("text", [TEXT, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_decoding_token_by_token_equals_the_counter(text: TextConfig, tied: bool) -> None:
    """One token at a time computes exactly the positions in view, so the sums of both must agree to the last FLOP."""
    m = model(config(text, tied=tied))
    cache = m.new_cache()
    total = 0
    for i in range(7):
        step = counted(lambda i=i: m(Batch.step([3 + i], [i]), [cache]))
        assert step == decoder_flops(text, 1, cached=i).total
        total += step
    assert total == decoder_flops(text, 7, outputs=7).total


@pytest.mark.parametrize("text", [TEXT, MOE], ids=["dense", "moe"])
def test_prefill_equals_the_counter_but_for_the_half_of_attention_nobody_sees(text: TextConfig) -> None:
    cfg = config(text)
    m = model(cfg)
    segments: list[Segment] = [TextSegment((1, 2, 3))]
    segments += [VisionSegment(i, t) for i, item in enumerate(MEDIA) for t in range(len(item.grids))]
    sequence = build(
        [*segments, TextSegment((4, 5))], [p.grids for p in MEDIA], image_token_id=45, video_token_id=46,
        kinds=[p.kind for p in MEDIA], merge=2,
    )  # fmt: skip
    with torch.no_grad():
        vision = m.encode(MEDIA)
    batch = Batch.pack([sequence], vision, output="last")
    t = len(sequence)
    flops = decoder_flops(text, t)
    unseen = 4 * (t * t - t * (t + 1) // 2) * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    assert flops.total + unseen == counted(lambda: m(batch, [m.new_cache()]))
    cost = estimate(cfg, SHAPES, t, new_tokens=5)
    assert cost.prefill == flops
    assert cost.vision_tokens == sequence.num_vision_tokens == len(vision)
    assert cost.prompt_flops == cost.encode.total + flops.total
    assert cost.decode == decoder_flops(text, 1, cached=t)
    assert cost.answer.total == sum(decoder_flops(text, 1, cached=t + i).total for i in range(4))


def test_chunks_add_up_to_the_whole() -> None:
    parts = [decoder_flops(MOE, n, cached=c, outputs=o) for n, c, o in ((5, 0, 0), (6, 5, 0), (2, 11, 1))]
    whole = decoder_flops(MOE, 13)
    assert [sum(getattr(p, f) for p in parts) for f in ("layers", "attention", "head")] == [
        whole.layers, whole.attention, whole.head,
    ]  # fmt: skip


def test_bytes_equal_those_of_the_tensors() -> None:
    cfg = config(MOE)
    m = model(cfg)
    cost = estimate(cfg, [], 10, new_tokens=6)
    assert cost.weight_bytes == sum(p.nbytes for p in m.parameters())
    assert cost.kv_bytes == m.new_cache(capacity=16).num_bytes
    assert estimate(cfg, [], 10, new_tokens=6, dtype="float16").kv_bytes * 2 == cost.kv_bytes
    m.kv_cache = torch.int8
    small = estimate(cfg, [], 10, new_tokens=6, kv_cache="int8")
    assert small.kv_bytes == m.new_cache(capacity=16).num_bytes and small.weight_bytes == cost.weight_bytes
    assert 16 * (cost.decode_read_bytes - small.decode_read_bytes) == 10 * (cost.kv_bytes - small.kv_bytes)


def test_only_visited_experts_count() -> None:
    more = replace(MOE, moe=replace(MOE.moe, num_experts=50))  # type: ignore[type-var]
    few, many = estimate(config(MOE), [], 9), estimate(config(more), [], 9)
    router = 2 * 9 * 45 * MOE.hidden_size * 2  # two sparse layers, 45 more scores a token
    assert many.prefill.total - few.prefill.total == router
    experts = 2 * 45 * 3 * MOE.hidden_size * 12 * 4
    routers = 2 * 45 * MOE.hidden_size * 4
    assert many.weight_bytes - few.weight_bytes == experts + routers
    assert many.decode_read_bytes - few.decode_read_bytes == routers


@pytest.mark.parametrize("name", PRESETS)
def test_two_flops_a_weight_a_token(name: str) -> None:
    """The rule of thumb, as a check of scale: the linears of a decoded token are twice the weights it passes through."""
    cfg = preset(name)
    decode = decoder_flops(cfg.text, 1, cached=0)
    assert (decode.layers + decode.head) / (2 * cfg.num_active_parameters) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("tokens", "media"), [(0, []), (9, SHAPES)])
def test_impossible_prompts_are_refused(tokens: int, media: list[Any]) -> None:
    with pytest.raises(PromptError, match="cannot hold"):
        estimate(config(), media, tokens)
    with pytest.raises(PromptError, match="int4"):
        estimate(config(), [], 5, dtype="int4")


def test_values_are_plain() -> None:
    cost = estimate(config(), SHAPES, 40)
    assert isinstance(cost, Cost)
    assert all(isinstance(n, int) for n in (cost.prompt_flops, cost.kv_bytes, cost.decode_read_bytes))


def test_no_torch_and_no_numpy() -> None:
    code = "import sys, foveal.cost; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

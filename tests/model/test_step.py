"""A step of decoding in one call gives the bits of the layers called one by one, whatever the cache, the batch, the threads."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveal import kernels
from foveal.batch import Batch
from foveal.errors import FovealError
from foveal.kernels.step import Cached, Step
from foveal.model import KVCache, Qwen3VL
from foveal.model.paged import KVPool, PagedCache, PagedCaches
from foveal.model.quantize import quantize
from foveal.model.step import DecodeStep, decode_step
from foveal.sequence import Window
from tests.kernel_paths import each_path
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

pytestmark = each_path
DENSE = [name for name, config in CONFIGS.items() if config.text.moe is None]


def decoded(model: Qwen3VL, dtype: torch.dtype = torch.bfloat16, steps: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Prefill three requests, then decode them together and alone; return all logits, and what the caches hold."""
    text = model.config.text
    caches, sequences, outs = [], [], []
    for seed, scene in enumerate(("mixed", "text", "picture")):
        media = new_media(model.config.vision, SCENES[scene], seed)
        sequence = new_sequence(media, model.config.vision.spatial_merge_size, seed)
        cache = KVCache(text.num_hidden_layers, text.num_key_value_heads, text.head_dim, dtype=dtype, device="cpu", capacity=4)
        model(Batch.pack([sequence], [model.encode(media)] if media else None), [cache])
        caches.append(cache)
        sequences.append(sequence)
    for step in range(steps):
        tokens, places = [7 + step, 11, 5], [s.next_position + step for s in sequences]
        if step % 2:
            outs += [model(Batch.step(tokens[i : i + 1], places[i : i + 1]), caches[i : i + 1]) for i in range(3)]
        else:
            outs.append(model(Batch.step(tokens, places), caches))
    return torch.cat(outs), [part[:, :, : cache.length] for cache in caches for part in cache.views() or ()]


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.bfloat16), (4, torch.bfloat16), (8, torch.int8)])
@pytest.mark.parametrize("name", DENSE)
@torch.inference_mode()
def test_one_call_is_layer_by_layer(name: str, bits: int, dtype: torch.dtype) -> None:
    model = quantize(new_model(CONFIGS[name]), bits)
    logits, held = decoded(model, dtype)
    kernels.set_threads(1)
    for same, also in zip([logits, *held], [(again := decoded(model, dtype))[0], *again[1]], strict=True):
        assert torch.equal(same, also)
    assert model.language_model.step is not None
    model.language_model.step = None
    plain, plain_held = decoded(model, dtype)
    assert torch.equal(logits, plain)
    assert all(torch.equal(a, b) for a, b in zip(held, plain_held, strict=True))


@pytest.mark.parametrize("bits", [8, 4])
@torch.inference_mode()
def test_several_tokens_at_once_are_one_after_another(bits: int) -> None:
    """What speculation reads, beside other sequences: the same bits as token by token, logits and cache."""
    model = quantize(new_model(CONFIGS["dense-tied"]), bits)
    ids, places = torch.arange(20, 31), torch.arange(11).expand(3, -1)
    one, other, together = (model.new_cache(4) for _ in range(3))
    plain = [model(Batch.step([int(i)], [at]), [one])[0] for at, i in enumerate(ids)]
    model(Batch.step([9], [0]), [other])
    first = model(Batch.step([int(ids[0])], [0]), [together])
    batch = Batch(torch.cat([ids[1:5], ids[:1]]), torch.cat([places[:, 1:5], places[:, 1:2]], 1), (4, 1), torch.empty(0).long())
    second = model(batch, [together, other])
    rest = model(Batch(ids[5:], places[:, 5:], (6,), torch.empty(0).long()), [together])
    assert torch.equal(torch.cat([first, second[:4], rest]), torch.stack(plain))
    assert one.length == together.length == 11 and other.length == 2
    for a, b in zip(one.views() or (), together.views() or (), strict=True):
        assert torch.equal(a[:, :, :11], b[:, :, :11])


@pytest.mark.parametrize("size", [1, 5, 16])
@torch.inference_mode()
def test_chunks_with_pictures_beside_another_sequence(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt in chunks that end inside pictures, taps and all, beside one that decodes: as row by row and layer by layer."""
    model = quantize(new_model(CONFIGS["dense-tied"]), 8)
    assert model.config.vision.taps
    media = new_media(model.config.vision, SCENES["mixed"])
    sequence, tokens = new_sequence(media, model.config.vision.spatial_merge_size), model.encode(media)
    talk = new_sequence([], model.config.vision.spatial_merge_size)

    def read(size: int) -> torch.Tensor:
        chunked, other = model.new_cache(), model.new_cache()
        model(Batch.pack([talk]), [other])
        outs = []
        for i, window in enumerate(sequence.windows(size)):
            said = Window(len(talk) + i, np.array([5]), np.full((3, 1), talk.next_position + i), np.array([-1]))
            outs.append(model(Batch.pack([window, said], [tokens, None]), [chunked, other])[:-1])
        return torch.cat(outs)

    calls, step = list[bool](), model.language_model.step
    assert step is not None

    def watched(*given: Any) -> bool:
        calls.append(step(*given))
        return calls[-1]

    monkeypatch.setattr(model.language_model, "step", watched)
    ours = read(size)
    assert len(calls) == -(-len(sequence) // size) and all(calls)
    model.language_model.step = None
    assert torch.equal(ours, read(1))


@torch.inference_mode()
def test_biases_and_a_float32_cache() -> None:
    config = CONFIGS["dense-tied"]
    model = quantize(new_model(replace(config, text=replace(config.text, attention_bias=True))), 8)
    logits, _ = decoded(model, torch.float32)
    model.language_model.step = None
    # torch attends over a float32 cache, in another order of additions
    torch.testing.assert_close(logits, decoded(model, torch.float32)[0], atol=2e-2, rtol=0.0)


@torch.inference_mode()
def test_a_copy_of_a_model_owns_its_memory() -> None:
    model = quantize(new_model(CONFIGS["dense-tied"]), 4)
    expected, _ = decoded(model)
    other = copy.deepcopy(model)
    del model
    assert torch.equal(decoded(other)[0], expected)


@torch.inference_mode()
def test_watched_layers_are_called_one_by_one() -> None:
    model = quantize(new_model(CONFIGS["dense-tied"]), 8)
    expected, _ = decoded(model)
    seen: list[int] = []
    handle = model.language_model.layers[1].register_forward_hook(lambda _m, _x, out: seen.append(len(out)))
    assert torch.equal(decoded(model)[0], expected)
    assert seen[3:] == [3, 1, 1, 1, 3]
    handle.remove()
    seen.clear()
    decoded(model)
    assert len(seen) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("blocks", [(3, 4, 5), (4, 0, 2)])
@torch.inference_mode()
def test_over_a_pool_of_blocks(blocks: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks in a row are a view and take one call; scattered ones go layer by layer; both say what a plain cache says."""
    model = quantize(new_model(CONFIGS["dense-tied"]), 8)
    text, sequence = model.config.text, new_sequence([], model.config.vision.spatial_merge_size)
    shape = (text.num_hidden_layers, text.num_key_value_heads, text.head_dim)
    pool = KVPool(*shape, num_blocks=8, block_size=16, dtype=dtype, device="cpu")
    paged, plain = PagedCache(pool, blocks), KVCache(*shape, dtype=dtype, device="cpu")
    length = len(sequence)
    assert length + 3 <= paged.capacity
    did: list[bool] = []
    step = model.language_model.step
    assert step is not None

    def watched(*args: Any) -> bool:
        did.append(step(*args))
        return did[-1]

    monkeypatch.setattr(model.language_model, "step", watched)
    assert torch.equal(model(Batch.pack([sequence]), PagedCaches([paged], [length])), model(Batch.pack([sequence]), [plain]))
    for i in range(3):
        batch = Batch.step([5 + i], [sequence.next_position + i])
        assert torch.equal(model(batch, PagedCaches([paged], [1])), model(batch, [plain]))
    assert did == [blocks == (3, 4, 5), True] * 3


@torch.inference_mode()
def test_an_8_bit_cache() -> None:
    """One layer over a filled int8 cache, against the same kernels called one by one."""
    model = quantize(new_model(CONFIGS["dense-tied"]), 8)
    assert isinstance(model.language_model.step, DecodeStep)
    layer, config = model.language_model.step.weights[1], model.config.text
    heads, groups, dim, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.hidden_size
    step = Step([layer], heads=heads, kv_heads=groups, head_dim=dim, eps=1e-6)
    lengths = (5, 70)
    kept = []
    for length in lengths:
        keys, key_scales = kernels.quantise_cache(torch.randn(1, groups, length + 1, dim))
        values, value_scales = kernels.quantise_cache(torch.randn(1, groups, length + 1, dim))
        kept.append((keys, values, key_scales, value_scales))
    x, angle = torch.randn(2, size), torch.rand(2, dim // 2)
    cos, sin = angle.cos(), angle.sin()
    expected, stores = x.clone(), [tuple(part.clone() for part in parts) for parts in kept]
    a = kernels.rms_quantise(x, layer.input_norm, 1e-6)
    q = kernels.turn(kernels.matmul(a, layer.q).view(2, heads, dim), layer.q_norm, 1e-6, cos, sin)
    k = kernels.turn(kernels.matmul(a, layer.k).view(2, groups, dim), layer.k_norm, 1e-6, cos, sin)
    v = kernels.matmul(a, layer.v).view(2, groups, dim)
    seen = []
    for i, (length, (keys, values, key_scales, value_scales)) in enumerate(zip(lengths, stores, strict=True)):
        for codes, scales, new in ((keys, key_scales, k[i]), (values, value_scales, v[i])):
            codes[0, :, length], scales[0, :, length] = kernels.quantise_cache(new.contiguous())
        seen.append(kernels.attend(q[i], keys[0], values[0], key_scales=key_scales[0], value_scales=value_scales[0]).flatten())
    expected = kernels.matmul(torch.stack(seen), layer.o) + expected
    inner = kernels.swiglu(kernels.rms_quantise(expected, layer.post_norm, 1e-6), layer.gate, layer.up)
    expected = kernels.matmul(inner, layer.down) + expected

    step(x, cos, sin, [Cached(*parts[:2], length, *parts[2:]) for parts, length in zip(kept, lengths, strict=True)])
    assert torch.equal(x, expected)
    for ours, theirs in zip(kept, stores, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_mixture_of_experts_has_no_step() -> None:
    assert quantize(new_model(CONFIGS["moe"]), 8).language_model.step is None
    assert decode_step(new_model(CONFIGS["dense-tied"]).language_model) is None


@torch.inference_mode()
def test_what_does_not_fit_is_refused() -> None:
    model = quantize(new_model(CONFIGS["dense-tied"]), 8)
    text = model.language_model
    assert isinstance(text.step, DecodeStep)
    layers = text.step.weights
    config = model.config.text
    heads = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads, "head_dim": config.head_dim}
    with pytest.raises(ValueError, match="one layer or more"):
        Step([], **heads, eps=1e-6)
    with pytest.raises(ValueError, match=r"q is \d+ x \d+; \d+ x \d+ is needed"):
        Step(layers, heads=heads["kv_heads"], kv_heads=heads["kv_heads"], head_dim=heads["head_dim"], eps=1e-6)
    with pytest.raises(ValueError, match="gate has 8 bits, up 4"):
        up = kernels.pack(kernels.unpack(layers[0].up), 4)
        Step([replace(layers[0], up=up)], **heads, eps=1e-6)
    step = Step(layers, **heads, eps=1e-6)
    x, table = torch.zeros(1, config.hidden_size), torch.zeros(1, config.head_dim // 2)
    keys = torch.zeros(len(layers), heads["kv_heads"], 4, config.head_dim, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="a cache of 4 positions holds 4; one more must fit"):
        step(x, table, table, [Cached(keys, keys, 4)])
    with pytest.raises(ValueError, match="int8 cache needs key_scales"):
        step(x, table, table, [Cached(keys.to(torch.int8), keys.to(torch.int8), 1)])
    with pytest.raises(ValueError, match="keys and values have strides"):
        step(x, table, table, [Cached(keys, torch.cat([keys, keys], dim=1)[:, ::2], 1)])
    with pytest.raises(FovealError, match="NaN"):
        step(torch.full_like(x, torch.nan), table, table, [Cached(keys, keys.clone(), 1)])

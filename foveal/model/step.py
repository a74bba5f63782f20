"""The fast path of a packed decoder: one new token, or a few, of each of some sequences through all its layers in one call.

Where rows of pictures are among them the call is cut in as many as there are taps to be added.

The layers as modules, called one by one, give the same bits: they are what this is tested against, and what runs where it
cannot: in prefill, with a mixture of experts, over a scattered cache, and when somebody watches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from foveal.kernels import Packed
from foveal.kernels.step import Cached, Layer, Step
from foveal.model.attention import KVCache
from foveal.model.linear import PackedLinear, QuantisingNorm, TurningNorm
from foveal.model.store import Kept
from foveal.model.text import After, Attention, Tables, TextModel

_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class DecodeStep:
    """All layers of a dense packed decoder, ready to be called."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        attention = layers[0].get_submodule("self_attn")
        assert isinstance(attention, Attention)
        head_dim, eps = attention.head_dim, _norm(layers[0], "input_layernorm").eps
        heads, kv_heads = (_packed(attention, name).rows // head_dim for name in ("q_proj", "k_proj"))
        self.weights = [_weights(layer) for layer in layers]
        self._run_of = functools.partial(Step, heads=heads, kv_heads=kv_heads, head_dim=head_dim, eps=eps)
        self._runs: dict[tuple[int, int], Step] = {}
        self._known: WeakKeyDictionary[KVCache, tuple[Kept, Cached]] = WeakKeyDictionary()
        self._run(slice(0, len(layers)))  # raises now what does not fit

    def __call__(
        self, x: Tensor, tables: Tables, caches: Sequence[KVCache], lengths: Sequence[int], after: After,
    ) -> bool:  # fmt: skip
        """Run x (T, D) in place, so many rows of each cache, which it fills. Return False, with nothing done, if it cannot.

        after: what else is done to x behind a layer; each costs a call more.
        """
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in self._layers):
            return False
        cached = []
        for cache in caches:
            views = cache.views()
            if views is None:
                return False
            cached.append(self._cached(cache, views).at(cache.length))
        start = 0
        for stop in sorted({*(layer + 1 for layer in after), len(self._layers)}):
            layers = slice(start, stop)
            own = [one.of(layers) for one in cached] if stop - start < len(self._layers) else cached
            self._run(layers)(x, *tables, own, lengths)
            if stop - 1 in after:
                after[stop - 1]()
            start = stop
        return True

    def _cached(self, cache: KVCache, views: Kept) -> Cached:
        """Describe what a cache keeps; the same as the last time where that lies where it lay."""
        known = self._known.get(cache)
        if known is None or known[0] is not views:
            key_scales, value_scales = views[2:] or (None, None)
            known = self._known[cache] = views, Cached(views[0], views[1], cache.length, key_scales, value_scales)
        return known[1]

    def _run(self, layers: slice) -> Step:
        """Return some layers behind one another, ready to be called."""
        key = layers.start, layers.stop
        if key not in self._runs:
            self._runs[key] = self._run_of(self.weights[layers])
        return self._runs[key]

    def __reduce__(self) -> tuple[Callable[..., DecodeStep], tuple[Any, ...]]:
        return DecodeStep, (self._layers,)  # addresses are worked out anew


def decode_step(text: TextModel) -> DecodeStep | None:
    """Prepare a packed decoder; None for one that is not dense and packed in every layer."""
    paths = [*(f"self_attn.{name}" for name in _ATTENTION), *(f"mlp.{name}" for name in _MLP)]
    modules = [dict(layer.named_modules()).get(path) for layer in text.layers for path in paths]
    return DecodeStep(list(text.layers)) if all(isinstance(module, PackedLinear) for module in modules) else None


def _packed(parent: nn.Module, name: str) -> Packed:
    module = parent.get_submodule(name)
    assert isinstance(module, PackedLinear)
    return module.packed


def _norm(parent: nn.Module, name: str) -> QuantisingNorm | TurningNorm:
    module = parent.get_submodule(name)
    assert isinstance(module, (QuantisingNorm, TurningNorm))
    return module


def _weights(layer: nn.Module) -> Layer:
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    q, k, v, o = (_packed(attention, name) for name in _ATTENTION)
    gate, up, down = (_packed(mlp, name) for name in _MLP)
    biases = tuple(attention.get_submodule(name).bias for name in _ATTENTION)
    return Layer(
        _norm(layer, "input_layernorm").weight.detach(), _norm(layer, "post_attention_layernorm").weight.detach(),
        _norm(attention, "q_norm").weight.detach(), _norm(attention, "k_norm").weight.detach(),
        q, k, v, o, gate, up, down, biases,
    )  # fmt: skip

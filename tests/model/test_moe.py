"""The grouped experts equal the plain loop over all experts, forwards and backwards, however tokens are spread."""

from __future__ import annotations

import pytest
import torch

from foveal.config import MoeConfig
from foveal.model import Qwen3VL
from foveal.model.moe import Experts, Router, SparseMLP
from foveal.model.text import MLP
from tests.tiny import CONFIGS


def _experts(experts: int, top_k: int, width: int = 16, inner: int = 24, dtype: torch.dtype = torch.float32) -> Experts:
    module = Experts(MoeConfig(experts, top_k, inner), width)
    with torch.no_grad():
        module.gate_up_proj.normal_(std=width**-0.5)
        module.down_proj.normal_(std=inner**-0.5)
    return module.to(dtype)


def _route(tokens: int, experts: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k)
    return weights / weights.sum(dim=1, keepdim=True), index


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 1), (1, 8, 8), (50, 8, 3), (3, 128, 8), (200, 5, 2)])
@torch.no_grad()
def test_grouped_equals_the_loop(tokens: int, experts: int, top_k: int) -> None:
    """Including experts that no token visits: 3 tokens cannot reach more than 24 of 128."""
    module, x = _experts(experts, top_k), torch.randn(tokens, 16)
    weights, index = _route(tokens, experts, top_k)
    if tokens == 3:
        assert len(index.unique()) < experts
    torch.testing.assert_close(module(x, weights, index), module.forward_loop(x, weights, index), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("only", [0, 3, 7])
@torch.no_grad()
def test_all_tokens_at_one_expert(only: int) -> None:
    module, x = _experts(8, 1), torch.randn(20, 16)
    index = torch.full((20, 1), only)
    torch.testing.assert_close(module(x, torch.ones(20, 1), index), module.forward_loop(x, torch.ones(20, 1), index))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_grouped_in_half_precision(dtype: torch.dtype) -> None:
    module, x = _experts(8, 3, dtype=dtype), torch.randn(40, 16).to(dtype)
    weights, index = _route(40, 8, 3)
    exact = module.float().forward_loop(x.float(), weights, index)
    rounded = module.to(dtype)(x, weights.to(dtype), index)
    assert rounded.dtype == dtype
    assert float((rounded.float() - exact).abs().max() / exact.abs().max()) < 0.02


def test_gradients_of_grouped_equal_the_loop() -> None:
    module, x = _experts(6, 2), torch.randn(30, 16)
    weights, index = _route(30, 6, 2)
    index[index == 4] = 5  # expert 4 gets no token, and so no gradient
    index[:, 1] = (index[:, 0] + 1) % 4  # no token may name an expert twice
    results = []
    for forward in (module.forward, module.forward_loop):
        inputs = x.clone().requires_grad_(), weights.clone().requires_grad_()
        module.zero_grad()
        forward(*inputs, index).square().sum().backward()
        results.append([i.grad for i in inputs] + [p.grad for p in module.parameters()])
    for grouped, loop in zip(*results, strict=True):
        torch.testing.assert_close(grouped, loop, atol=1e-4, rtol=1e-4)
    assert not module.gate_up_proj.grad[4].any()


@torch.no_grad()
def test_router_weights_sum_to_one_and_take_the_largest() -> None:
    router = Router(MoeConfig(8, 3, 24), 16)
    router.weight.normal_()
    x = torch.randn(20, 16)
    weights, index = router(x)
    assert torch.allclose(weights.sum(dim=1), torch.ones(20))
    best = (x @ router.weight.T).topk(3)
    assert torch.equal(index, best.indices)
    assert torch.allclose(weights[:, 0] / weights[:, 2], (best.values[:, 0] - best.values[:, 2]).exp(), rtol=1e-4)


def test_sparse_step_and_exceptions_choose_the_layers() -> None:
    """decoder_sparse_step 2 makes layers 1, 3 and 5 sparse; mlp_only_layers takes 3 out again."""
    layers = Qwen3VL(CONFIGS["moe-mixed"]).language_model.layers
    assert [isinstance(layer.mlp, SparseMLP) for layer in layers] == [False, True, False, False, False, True]
    assert all(isinstance(layer.mlp, (SparseMLP, MLP)) for layer in layers)

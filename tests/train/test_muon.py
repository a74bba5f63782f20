"""Muon against torch's own."""

from __future__ import annotations

import torch

from foveal.train.muon import Muon, orthogonal


def test_as_torchs() -> None:
    torch.manual_seed(0)
    shapes = [(24, 40), (24, 40), (40, 24), (32, 32)]
    ours = [torch.randn(shape) for shape in shapes]
    theirs = [p.clone() for p in ours]
    one = Muon([{"params": ours}], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=2e-3), (p - q).abs().max()


def test_singular_values_are_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 20, 50), (2, 50, 20)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.5

"""Vision tokens can be kept, dropped and merged as values: keeping all is the identity, dropping moves nothing else."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.batch import Batch, VisionTokens
from foveal.model import Qwen3VL, text, vision
from foveal.patches import Patches
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

SEEN = [scene for scene in SCENES if scene != "text"]
every_model = pytest.mark.parametrize("name", list(CONFIGS))
every_view = pytest.mark.parametrize("scene", SEEN)
CLOSE = {"atol": 3e-4, "rtol": 0.0}  # of logits near 10; measured worst 3.7e-5


def _some(media: list[Patches], seed: int = 0) -> list[list[int]]:
    """Choose about half of every medium's vision tokens, in order; at least one."""
    rng = np.random.default_rng(seed)
    return [sorted(rng.choice(m.num_tokens, max(1, m.num_tokens // 2), replace=False).tolist()) for m in media]


def _rows(media: list[Patches], keep: list[list[int]]) -> Tensor:
    """Number the kept tokens among all tokens of the request."""
    first = np.cumsum([0, *(m.num_tokens for m in media)])
    return torch.tensor([first[i] + token for i, kept in enumerate(keep) for token in kept])


@every_model
@every_view
@torch.no_grad()
def test_taking_all_is_the_identity(name: str, scene: str) -> None:
    """Bit for bit: patches before the encoder, vision tokens after it, and the logits of both."""
    model = new_model(CONFIGS[name])
    media = new_media(model.config.vision, SCENES[scene])
    tokens = model.encode(media)
    again = model.encode([m.take(np.arange(m.num_tokens)) for m in media])
    taken = tokens.take(torch.arange(len(tokens)))
    merge = model.config.vision.spatial_merge_size
    logits = model(Batch.pack([new_sequence(media, merge)], [tokens]))
    keep = [list(range(m.num_tokens)) for m in media]
    for other in (again, taken):
        assert torch.equal(other.embeddings, tokens.embeddings)
        assert torch.equal(other.taps, tokens.taps)
        assert torch.equal(other.coords, tokens.coords)
        assert torch.equal(model(Batch.pack([new_sequence(media, merge, keep=keep)], [other])), logits)


@every_model
@torch.no_grad()
def test_merging_every_token_alone_is_the_identity(name: str) -> None:
    model = new_model(CONFIGS[name])
    tokens = model.encode(new_media(model.config.vision, SCENES["mixed"]))
    merged = tokens.merge(torch.arange(len(tokens)), len(tokens))
    assert torch.equal(merged.embeddings, tokens.embeddings)
    assert torch.equal(merged.taps, tokens.taps)
    assert torch.equal(merged.coords, tokens.coords)


@every_view
def test_dropping_tokens_moves_no_other_position(scene: str) -> None:
    merge = CONFIGS["dense-tied"].vision.spatial_merge_size
    media = new_media(CONFIGS["dense-tied"].vision, SCENES[scene])
    whole, keep = new_sequence(media, merge), _some(media)
    sliced = new_sequence(media, merge, keep=keep)
    stays = np.isin(whole.vision_rows, [-1, *_rows(media, keep).tolist()])
    assert np.array_equal(sliced.position_ids, whole.position_ids[:, stays])
    assert np.array_equal(sliced.token_ids, whole.token_ids[stays])
    assert sliced.next_position == whole.next_position
    assert 0 < len(sliced) < len(whole)


@every_model
@every_view
@torch.no_grad()
def test_masking_dropped_rows_is_slicing_them_out(name: str, scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the decoder: a row nobody may look at, and a row that is not there, are the same to all others."""
    model = new_model(CONFIGS[name])
    merge = model.config.vision.spatial_merge_size
    media = new_media(model.config.vision, SCENES[scene])
    tokens, keep = model.encode(media), _some(media)
    rows = _rows(media, keep)
    sliced = model(Batch.pack([new_sequence(media, merge, keep=keep)], [tokens.take(rows)]))

    whole = new_sequence(media, merge)
    stays = torch.from_numpy(np.isin(whole.vision_rows, [-1, *rows.tolist()]))
    seen = torch.ones(len(whole), len(whole), dtype=torch.bool).tril() & (stays | torch.eye(len(whole), dtype=torch.bool))

    def masked(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)

    monkeypatch.setattr(text, "attend", masked)
    torch.testing.assert_close(model(Batch.pack([whole], [tokens]))[stays], sliced, **CLOSE)


@every_model
@every_view
@torch.no_grad()
def test_masking_dropped_patches_is_not_encoding_them(name: str, scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the encoder, with dropped patches invisible to the rest of their frame. Frames may lose all of their patches."""
    model = new_model(CONFIGS[name])
    media = new_media(model.config.vision, SCENES[scene])
    keep = _some(media, seed=1)
    subset = model.encode([m.take(kept) for m, kept in zip(media, keep, strict=True)])
    rows = _rows(media, keep)
    stays = torch.isin(torch.arange(sum(m.num_tokens for m in media)), rows)
    stays = stays.repeat_interleave(model.config.vision.spatial_merge_size**2)

    def masked(q: Tensor, k: Tensor, v: Tensor, lengths: Seq[int]) -> Tensor:
        frame = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        seen = (frame[:, None] == frame) & (stays | torch.eye(len(stays), dtype=torch.bool))
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen)[0].transpose(0, 1)

    monkeypatch.setattr(vision, "attend_frames", masked)
    whole = model.encode(media).take(rows)
    torch.testing.assert_close(subset.embeddings, whole.embeddings, **CLOSE)
    torch.testing.assert_close(subset.taps, whole.taps, **CLOSE)
    assert torch.equal(subset.coords, whole.coords)


@torch.no_grad()
def test_every_token_counts() -> None:
    """The laws above would hold for a model that ignores pictures; this one does not."""
    model = new_model(CONFIGS["dense-tied"])
    media = new_media(model.config.vision, SCENES["picture"])
    sequence, tokens = new_sequence(media, 2), model.encode(media)
    logits = _last(model, sequence, tokens)
    for row in range(len(tokens)):
        changed = VisionTokens(tokens.embeddings.clone(), tokens.taps.clone(), tokens.coords)
        changed.embeddings[row] += 1
        assert float((_last(model, sequence, changed) - logits).abs().max()) > 1e-3
        changed = VisionTokens(tokens.embeddings, tokens.taps.clone(), tokens.coords)
        changed.taps[:, row] += 1
        assert float((_last(model, sequence, changed) - logits).abs().max()) > 1e-3


def _last(model: Qwen3VL, sequence: object, tokens: VisionTokens) -> Tensor:
    return model(Batch.pack([sequence], [tokens], output="last"))  # type: ignore[list-item]

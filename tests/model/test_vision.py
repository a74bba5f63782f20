"""The encoder: folded normalisation, pictures as clips that stand still, and frames of any mixture of resolutions."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal import kernels
from foveal.batch import PatchBatch, VisionTokens
from foveal.config import preset
from foveal.errors import PromptError
from foveal.model import pieces as pieces_module
from foveal.model.attention import attend_frames
from foveal.model.pieces import Piece
from foveal.model.quantize import quantize
from foveal.model.vision import PatchProjection, VisionBlock
from foveal.patches import Patches
from tests.tiny import CONFIGS, SCENES, new_media, new_model

CLOSE = {"atol": 1e-5, "rtol": 0.0}


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", ["2B", "8B"])
@torch.no_grad()
def test_folded_normalisation(name: str, frames: int) -> None:
    """At released sizes, within 1e-5 of the scale of normalising first; measured worst 1.8e-6."""
    vision = replace(preset(name).vision, image_mean=(0.5, 0.4, 0.3), image_std=(0.5, 0.25, 0.2))
    projection = PatchProjection(vision)
    projection.weight.normal_(std=0.02)
    projection.bias.normal_(std=0.1)
    pixels = torch.randint(0, 256, (64, 3, frames, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1, 1) for values in (vision.image_mean, vision.image_std))
    normal = ((pixels.float() / 255 - mean) / std).expand(-1, -1, 2, -1, -1)
    unfolded = F.conv3d(normal, projection.weight, projection.bias, stride=(2, 16, 16)).flatten(1)
    folded = projection(pixels.flatten(1), frames)
    assert float((folded - unfolded).abs().max() / unfolded.abs().max()) < 1e-5


@torch.no_grad()
def test_gradients_pass_through_the_folding() -> None:
    vision = CONFIGS["dense-tied"].vision
    projection = PatchProjection(vision)
    projection.weight.normal_()
    projection.bias.zero_()
    pixels = torch.randint(0, 256, (5, 3 * 4 * 4), dtype=torch.uint8)
    with torch.enable_grad():
        projection(pixels, 1).square().sum().backward()
        folded = [p.grad.clone() for p in projection.parameters()]
        projection.zero_grad()
        normal = ((pixels.float() - 127.5) / 127.5).view(5, 3, 1, 4, 4).expand(-1, -1, 2, -1, -1)
        F.conv3d(normal, projection.weight, projection.bias).square().sum().backward()
    for ours, plain in zip(folded, projection.parameters(), strict=True):
        torch.testing.assert_close(ours, plain.grad, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_a_picture_is_a_clip_that_stands_still() -> None:
    model = new_model(CONFIGS["dense-tied"])
    (picture,) = new_media(model.config.vision, SCENES["picture"])
    rows = picture.pixels.reshape(len(picture.pixels), 3, 1, -1).repeat(2, axis=2)
    clip = replace(picture, pixels=rows.reshape(len(rows), -1), kind="video")
    still, moving = model.encode([picture]), model.encode([clip])
    torch.testing.assert_close(still.embeddings, moving.embeddings, **CLOSE)
    torch.testing.assert_close(still.taps, moving.taps, **CLOSE)


def _together(frames: list[Patches]) -> Patches:
    """Make one clip of frames whose grids differ."""
    coords = [part.coords + np.array([t, 0, 0], np.int32) for t, part in enumerate(frames)]
    return Patches(
        pixels=np.concatenate([part.pixels for part in frames]), coords=np.concatenate(coords),
        grids=tuple(part.grids[0] for part in frames), times_s=tuple(range(len(frames))), kind="video",
        merge=frames[0].merge, source_size=frames[0].source_size,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_frames_of_different_resolutions_in_one_clip(name: str) -> None:
    """Encoded together they equal each frame encoded alone; one of them has lost half of its patches."""
    model = new_model(CONFIGS[name])
    frames = new_media(model.config.vision, (("video", 1, 2, 3), ("video", 1, 4, 2), ("video", 1, 4, 2), ("video", 1, 1, 5)))
    frames[2] = frames[2].take([0, 3, 4, 7])
    clip = _together(frames)
    assert clip.lengths() == [len(part.pixels) for part in frames]
    together = model.encode([clip])
    alone = VisionTokens.cat([model.encode([part]) for part in frames])
    torch.testing.assert_close(together.embeddings, alone.embeddings, **CLOSE)
    torch.testing.assert_close(together.taps, alone.taps, **CLOSE)
    merge = model.config.vision.spatial_merge_size
    assert together.coords.tolist() == (clip.coords[:: merge**2] // [1, merge, merge]).tolist()


@torch.no_grad()
def test_the_order_of_tokens_within_a_frame_is_free() -> None:
    model = new_model(CONFIGS["dense-tied"])
    (picture,) = new_media(model.config.vision, SCENES["picture"])
    order = np.random.default_rng(0).permutation(picture.num_tokens)
    shuffled, straight = model.encode([picture.take(order)]), model.encode([picture]).take(torch.from_numpy(order))
    torch.testing.assert_close(shuffled.embeddings, straight.embeddings, **CLOSE)
    assert torch.equal(shuffled.coords, straight.coords)


def test_frames_out_of_order_are_refused() -> None:
    (clip,) = new_media(CONFIGS["dense-tied"].vision, SCENES["clip"])
    with pytest.raises(PromptError, match="in order"):
        PatchBatch.pack([clip.take([7, 1])], CONFIGS["dense-tied"].vision)


@torch.no_grad()
def test_a_model_without_taps() -> None:
    config = CONFIGS["dense-tied"]
    config = replace(config, vision=replace(config.vision, taps=(), tap_layers=()))
    tokens = new_model(config).encode(new_media(config.vision, SCENES["mixed"]))
    assert tokens.taps.shape == (0, *tokens.embeddings.shape)
    assert tokens.take(torch.tensor([2, 0])).taps.shape == (0, 2, config.text.hidden_size)


def in_pieces(pieces: Generator[Piece, int, VisionTokens], rows: int) -> tuple[list[Piece], VisionTokens]:
    """Take so many rows at a time; return what was announced, and the tokens."""
    announced = [next(pieces)]
    while True:
        try:
            announced.append(pieces.send(rows))
        except StopIteration as ended:
            return announced, ended.value


@pytest.mark.parametrize("name", ["dense-tied", "moe-mixed"])
@torch.inference_mode()
def test_encoding_in_pieces_is_encoding_at_once(name: str) -> None:
    """Stills and clips mixed; no layer of a block sees more rows at a time than was asked for, and no merger more tokens."""
    model = new_model(CONFIGS[name])
    media = new_media(model.config.vision, SCENES["mixed"])
    whole, seen, merged = model.encode(media), list[int](), list[int]()
    for path, layer in model.visual.named_modules():
        if isinstance(layer, torch.nn.Linear):
            into = merged if "merger" in path else seen
            layer.register_forward_pre_hook(lambda _, given, into=into: into.append(len(given[0])))
    for rows in (1, 20, 10_000):
        seen.clear()
        merged.clear()
        announced, tokens = in_pieces(model.encode_in_pieces(media), rows)
        torch.testing.assert_close(tokens.embeddings, whole.embeddings, **CLOSE)
        torch.testing.assert_close(tokens.taps, whole.taps, **CLOSE)
        assert tokens.coords.equal(whole.coords)
        patches = sum(len(m.pixels) for m in media)
        assert max(seen) == min(rows, patches) and max(merged) == min(rows, len(whole))
        assert all(piece.rows > 0 for piece in announced)


@torch.inference_mode()
def test_a_piece_of_attention_weighs_what_it_sees() -> None:
    """Rows of a frame cost as many keys as the frame has; everything else costs the same for every row."""
    model = new_model(CONFIGS["dense-tied"])
    media = new_media(model.config.vision, SCENES["mixed"])
    announced, _ = in_pieces(model.encode_in_pieces(media), 10_000)
    frames = [float(n) for m in media for n in m.lengths()]
    weights = [piece.weight for piece in announced if piece.kind == "attend"]
    assert weights == frames * len(model.visual.blocks)
    assert {piece.weight for piece in announced if piece.kind != "attend"} == {1.0}


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
@torch.inference_mode()
def test_a_packed_block_attends_in_integers_and_its_pieces_are_the_same_bits() -> None:
    """Near what torch's attention makes of the same queries, keys and values; and cut anywhere, the very same."""
    model = quantize(new_model(CONFIGS["dense-tied"]), 8)
    visual, config = model.visual, model.config.vision
    block, lengths = visual.blocks[0], (150, 8, 0, 33)
    assert isinstance(block, VisionBlock) and block.attn.in_integers
    x = torch.randn(sum(lengths), config.hidden_size, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(x.shape[0] * config.head_dim // 2).view(x.shape[0], -1) / 7
    tables = angles.cos(), angles.sin()
    whole = block(x, tables, lengths)
    normed = block.norm1(x)
    near = block.attn.proj(attend_frames(*block.attn.heads(normed, tables), lengths).flatten(1))
    off = (block.attn(normed, tables, lengths) - near).norm() / near.norm()
    assert off < 5e-3  # rows that are rounded to 8 bits behind it fall to the other side here and there
    for most in (1, 20, 10_000):
        rows, heads = x.clone(), x.new_empty(3 * x.numel())
        kinds, work = [], pieces_module._through(block, rows, tables, lengths, heads, torch.empty_like(x))
        with pytest.raises(StopIteration):
            kinds.append(next(work).kind)
            while True:
                kinds.append(work.send(most).kind)
        assert rows.equal(whole) and list(dict.fromkeys(kinds)) == ["project", "pack", "attend", "mlp"]

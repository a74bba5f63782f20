"""What travels to the device: patches in the order of the request, sequences packed, vision rows found where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.batch import Batch, PatchBatch, VisionTokens
from foveal.errors import PromptError
from tests.tiny import CONFIGS, END, IMAGE, SCENES, START, VIDEO, new_media, new_sequence

VISION = CONFIGS["dense-tied"].vision


def _tokens(count: int, taps: int = 2, width: int = 3) -> VisionTokens:
    """Make vision tokens that carry their own number in every value."""
    rows = torch.arange(count, dtype=torch.float32)
    coords = torch.stack([torch.zeros(count), rows, rows], dim=1).int()
    return VisionTokens(rows[:, None].expand(-1, width), rows[None, :, None].expand(taps, -1, width) + 100, coords)


def _media(scene: str = "mixed") -> list:
    return new_media(VISION, SCENES[scene])


def test_patches_stay_bytes_and_pictures_single() -> None:
    media = _media()
    batch = PatchBatch.pack(media, VISION)
    stills, pairs = ([m for m in media if m.kind == kind] for kind in ("image", "video"))
    assert batch.stills.dtype == batch.pairs.dtype == torch.uint8
    assert batch.stills.shape == (sum(len(m.pixels) for m in stills), 3 * 16)
    assert batch.pairs.shape == (sum(len(m.pixels) for m in pairs), 3 * 2 * 16)
    assert batch.lengths == tuple(n for m in media for n in m.lengths())


def test_order_brings_stills_and_pairs_back_together() -> None:
    media = _media()
    batch = PatchBatch.pack(media, VISION)
    assert batch.order is not None
    # The first byte of every row tells where it came from.
    marks = torch.cat([batch.stills[:, 0], batch.pairs[:, 0]])[batch.order]
    assert marks.tolist() == [int(row[0]) for m in media for row in m.pixels]


@pytest.mark.parametrize("scene", ["pictures", "clip"])
def test_one_kind_needs_no_order(scene: str) -> None:
    batch = PatchBatch.pack(_media(scene), VISION)
    assert batch.order is None
    assert (len(batch.stills) == 0) == (scene == "clip")


def test_token_coordinates_are_in_merged_units() -> None:
    batch = PatchBatch.pack(_media("clip"), VISION)  # 3 frame pairs of 2 x 3 tokens
    assert batch.token_coords.tolist() == [[t, r, c] for t in range(3) for r in range(2) for c in range(3)]


def test_nothing_to_encode() -> None:
    with pytest.raises(PromptError, match="nothing to encode"):
        PatchBatch.pack([], VISION)


def test_position_weights_sum_to_one_and_corners_align() -> None:
    batch = PatchBatch.pack(_media("picture"), VISION)
    assert torch.allclose(batch.position_weight.sum(dim=1), torch.ones(len(batch.position_weight)))
    assert int(batch.position_index.min()) >= 0 and int(batch.position_index.max()) < VISION.num_position_embeddings
    corners = {tuple(rc): i for i, rc in enumerate(batch.rows_columns.tolist())}
    side = VISION.position_side
    for place, entry in (((0, 0), 0), ((0, 9), side - 1), ((5, 0), side * (side - 1)), ((5, 9), side * side - 1)):
        row = corners[place]
        share = batch.position_weight[row][batch.position_index[row] == entry].sum()
        assert share.item() == pytest.approx(1.0, abs=1e-6)


def test_packing_sequences() -> None:
    sequences = [new_sequence(_media(scene), 2, seed) for seed, scene in enumerate(("mixed", "text", "picture"))]
    vision = [_tokens(s.num_vision_tokens) if s.num_vision_tokens else None for s in sequences]
    batch = Batch.pack(sequences, vision)
    assert batch.token_ids.tolist() == np.concatenate([s.token_ids for s in sequences]).tolist()
    assert batch.position_ids.shape == (3, len(batch.token_ids))
    assert batch.lengths == tuple(len(s) for s in sequences)
    assert batch.output_rows is None
    assert batch.vision is not None and len(batch.vision) == len(batch.vision_slots)
    assert set(batch.token_ids[batch.vision_slots].tolist()) == {IMAGE, VIDEO}
    text = np.setdiff1d(np.arange(len(batch.token_ids)), batch.vision_slots.numpy())
    assert not {IMAGE, VIDEO} & set(batch.token_ids[text].tolist())
    last = Batch.pack(sequences, vision, output="last").output_rows
    assert last is not None
    assert last.tolist() == (np.cumsum(batch.lengths) - 1).tolist()


def test_every_slot_gets_the_row_its_sequence_names() -> None:
    """Also when windows of unlike sequences are packed, each with vision tokens of its own."""
    sequences = [new_sequence(_media(scene), 2, seed) for seed, scene in enumerate(("mixed", "picture"))]
    vision = [_tokens(s.num_vision_tokens) for s in sequences]
    windows = [sequences[0].window(15, 40), sequences[1].window(4, 12)]
    batch = Batch.pack(windows, vision)
    assert batch.vision is not None
    named = np.concatenate([w.vision_rows for w in windows])
    assert batch.vision.embeddings[:, 0].tolist() == named[named >= 0].tolist()
    assert batch.vision.taps[1, :, 0].tolist() == (100 + named[named >= 0]).tolist()
    assert batch.vision_slots.tolist() == np.flatnonzero(named >= 0).tolist()


def test_one_value_may_hold_the_vision_tokens_of_all_sequences() -> None:
    sequences = [new_sequence(_media(scene), 2, seed) for seed, scene in enumerate(("pictures", "clip"))]
    counts = [s.num_vision_tokens for s in sequences]
    batch = Batch.pack(sequences, _tokens(sum(counts)))
    assert batch.vision is not None
    assert batch.vision.embeddings[:, 0].tolist() == list(range(sum(counts)))
    with pytest.raises(PromptError, match=rf"{sum(counts) + 1} vision rows in all were expected, but {sum(counts)}"):
        Batch.pack(sequences, _tokens(sum(counts) + 1))
    with pytest.raises(PromptError, match="its own vision tokens"):
        Batch.pack([sequences[0].window(9, 20)], _tokens(counts[0]))


def test_missing_vision_tokens_are_refused_with_both_counts() -> None:
    sequence = new_sequence(_media("picture"), 2)
    with pytest.raises(PromptError, match="hold 15 vision rows but no vision tokens"):
        Batch.pack([sequence])
    with pytest.raises(PromptError, match="names vision row 14 but 0 vision tokens"):
        Batch.pack([sequence], [None])
    with pytest.raises(PromptError, match="names vision row 14 but 9 vision tokens"):
        Batch.pack([sequence], [_tokens(9)])


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'all' or 'last'.*'first'"):
        Batch.pack([new_sequence([], 2)], output="first")  # type: ignore[arg-type]


def test_a_step_moves_all_three_axes() -> None:
    batch = Batch.step([5, 6, 7], [10, 3, 8])
    assert batch.position_ids.tolist() == [[10, 3, 8]] * 3
    assert batch.lengths == (1, 1, 1)
    assert batch.vision is None and len(batch.vision_slots) == 0


def test_take_and_cat() -> None:
    tokens = _tokens(6)
    front, back = tokens.take(slice(0, 2)), tokens.take(torch.tensor([5, 2]))
    both = VisionTokens.cat([front, back])
    assert both.embeddings[:, 0].tolist() == [0, 1, 5, 2]
    assert both.taps[:, :, 0].tolist() == [[100, 101, 105, 102]] * 2
    assert both.coords[:, 1].tolist() == [0, 1, 5, 2]


def test_merge_averages_embeddings_and_taps_alike() -> None:
    merged = _tokens(5).merge(torch.tensor([1, 0, 1, 2, 1]), 3)
    assert merged.embeddings[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert merged.taps[0, :, 0].tolist() == [101.0, 102.0, 103.0]
    assert merged.coords[:, 1].tolist() == [1, 0, 3]  # of the first row of each group


@pytest.mark.parametrize("groups", [[0, 1, 3], [0, 1, 4], [-1, 0, 1]])
def test_merge_needs_a_row_in_every_group(groups: list[int]) -> None:
    with pytest.raises(PromptError, match="every one of the 4 groups needs at least one row, and every row a group of 0 to 3"):
        _tokens(3).merge(torch.tensor(groups), 4)


def test_merge_needs_a_group_for_every_row() -> None:
    with pytest.raises(PromptError, match="2 rows have a group, but there are 3 vision tokens"):
        _tokens(3).merge(torch.tensor([0, 1]), 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_merge_never_waits_for_the_device(device: str) -> None:
    """A meta tensor has no values to look at, so that looking raises. Groups made by the host are moved along."""
    here = _tokens(5)
    there = VisionTokens(here.embeddings.to("meta"), here.taps.to("meta"), here.coords.to("meta"))
    merged = there.merge(torch.tensor([1, 0, 1, 2, 1], device=device, dtype=torch.int32), 3)
    assert (merged.embeddings.shape, merged.taps.shape, merged.coords.shape) == ((3, 3), (2, 3, 3), (3, 3))


def test_merging_nothing() -> None:
    assert len(_tokens(0).merge(torch.empty(0, dtype=torch.long), 0)) == 0


def test_markers_stand_around_every_block() -> None:
    """What the helpers of these tests promise: the released layout, a vision block of its own for every frame."""
    sequence = new_sequence(_media("clip"), 2)
    ids = sequence.token_ids.tolist()
    assert ids.count(START) == ids.count(END) == 3
    assert ids.count(VIDEO) == sequence.num_vision_tokens == 18

"""Positions equal the reference's rope index exactly, for layouts nobody would choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.batch import PatchBatch
from foveal.config import VisionConfig
from tests.parity.reference import model_inputs, same, transformers
from tests.parity.runs import pair
from tests.tiny import CONFIGS, Medium, new_media, new_sequence


def _layout(rng: np.random.Generator) -> tuple[Medium, ...]:
    """Draw up to six pictures and clips in any order."""
    media: list[Medium] = []
    for _ in range(rng.integers(0, 7)):
        rows, columns = (int(side) for side in rng.integers(1, 9, 2))
        clip = rng.random() < 0.5
        media.append(("video", int(rng.integers(1, 6)), rows, columns) if clip else ("image", 1, rows, columns))
    return tuple(media)


@pytest.mark.parametrize("name", ["dense-tied", "moe-mixed"])
def test_100_layouts(name: str) -> None:
    both = pair(name)
    rng = np.random.default_rng(0)
    kinds = set()
    for seed in range(100):
        layout = _layout(rng)
        kinds.add(tuple(sorted({m[0] for m in layout})))
        media = new_media(both.config.vision, layout)
        sequence = new_sequence(media, both.config.vision.spatial_merge_size, seed)
        inputs = model_inputs(sequence, media, both.config)
        positions, deltas = both.theirs.get_submodule("model").get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
        )
        assert same(sequence.position_ids, positions[:, 0]), layout
        assert sequence.next_position - len(sequence) == int(deltas), layout
    assert kinds == {(), ("image",), ("video",), ("image", "video")}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_patch_positions_and_table_weights(name: str) -> None:
    """Rows and columns equal exactly; the bilinear weights, spread over the whole table, within float32 rounding."""
    transformers()
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    vision = CONFIGS[name].vision
    rng = np.random.default_rng(0)
    for _ in range(30):
        media = new_media(vision, (("video", int(rng.integers(1, 4)), *(int(i) for i in rng.integers(1, 12, 2))),))
        batch = PatchBatch.pack(media, vision)
        grid = torch.tensor([[len(media[0].grids), *media[0].grids[0]]])
        positions = get_vision_position_ids(grid, vision.spatial_merge_size)
        assert torch.equal(batch.rows_columns.long(), positions.long())
        index, weight = get_vision_interpolation_indices_and_weights(
            grid, vision.position_side, align_corners=True, spatial_merge_size=vision.spatial_merge_size
        )
        ours, theirs = (
            torch.zeros(len(i), vision.num_position_embeddings).scatter_add(1, i, w)
            for i, w in ((batch.position_index, batch.position_weight), (index, weight))
        )
        assert float((ours - theirs).abs().max()) < 1e-5
        assert torch.allclose(ours.sum(dim=1), torch.ones(len(ours)))


def test_sides_of_one_patch() -> None:
    """Without merging a side may be a single patch; it sits on the table's first entry, as in the reference."""
    transformers()
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    vision: VisionConfig = CONFIGS["dense-tied"].vision
    vision = VisionConfig(**{**vision.__dict__, "spatial_merge_size": 1})
    for rows, columns in ((1, 1), (1, 7), (5, 1)):
        batch = PatchBatch.pack(new_media(vision, (("image", 1, rows, columns),)), vision)
        index, weight = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, rows, columns]]), vision.position_side, align_corners=True
        )
        ours, theirs = (
            torch.zeros(len(i), vision.num_position_embeddings).scatter_add(1, i, w)
            for i, w in ((batch.position_index, batch.position_weight), (index, weight))
        )
        assert float((ours - theirs).abs().max()) < 1e-6

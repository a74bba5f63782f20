"""The teacher: it looks at what the encoder looks at, place by place, and its lessons reach the blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.batch import PatchBatch
from foveal.config import ModelConfig
from foveal.model import Qwen3VL
from foveal.train.data import Example, ExampleMaker
from foveal.train.initial import ACROSS, BESIDE, know_places, look_nearby
from foveal.train.teacher import CROPS, FILE, LOG, Lessons, Teacher, by_patch, crops, pictures, trained_teacher
from foveal.world import Difficulty, make, picture_item

Tiny = tuple[ModelConfig, ExampleMaker]
LEVEL = Difficulty(size=(96, 128), max_questions=1)


def _examples(maker: ExampleMaker, count: int, first: int = 0) -> list[Example]:
    return [maker(picture_item(seed, LEVEL)) for seed in range(first, first + count)]


def test_pictures_are_the_patches_put_together(tiny: Tiny) -> None:
    _, maker = tiny
    items = [picture_item(seed, LEVEL) for seed in range(3)]
    seen = pictures([maker(item).patches for item in items])
    truth = np.stack([item.pixels[0] for item in items]).transpose(0, 3, 1, 2)  # 96 x 128 needs no resizing
    assert torch.equal(seen, torch.from_numpy(truth).float() / 127.5 - 1)


@pytest.mark.parametrize("per_side", [1, 2])
def test_by_patch_reads_where_the_patch_lies(tiny: Tiny, per_side: int) -> None:
    _, maker = tiny
    examples = _examples(maker, 2)
    rows, columns = examples[0].patches.grids[0]
    y, x = torch.meshgrid(torch.arange(rows * per_side), torch.arange(columns * per_side), indexing="ij")
    maps = torch.stack([torch.stack([y, x]), torch.stack([y, x]) + 100])
    read = by_patch(maps, [e.patches for e in examples], per_side).view(2, rows * columns, per_side, per_side, 2)
    for i, example in enumerate(examples):
        corner = torch.from_numpy(example.patches.coords[:, 1:]) * per_side + 100 * i
        assert torch.equal(read[i, :, 0, 0].long(), corner.long())
        assert torch.equal(read[i, :, -1, -1].long(), corner.long() + per_side - 1)


def test_crops_are_windows_of_their_pictures_with_what_they_show(tiny: Tiny) -> None:
    """Every window is found in its picture, and its labels are those of the patches there."""
    _, maker = tiny
    examples = [maker(make("needle", 0)), maker(make("pictures", 1)), *_examples(maker, 1)]
    media = [(patches, cells) for e in examples for patches, cells in zip(e.media, e.cells_by_medium(), strict=True)]
    found = crops(examples)
    side = found[0].kinds.shape[0]
    assert side == min(10, min(min(patches.grids[0]) for patches, _ in media)) and len(found) <= CROPS * len(media)
    shown = set()
    for crop in found:
        places = [
            (patches, cells, y, x)
            for patches, cells in media
            for y in range(patches.grids[0][0] - side + 1)
            for x in range(patches.grids[0][1] - side + 1)
            if torch.equal(pictures([patches])[0, :, 16 * y : 16 * (y + side), 16 * x : 16 * (x + side)], crop.pixels)
        ]
        assert len(places) == 1
        patches, cells, y, x = places[0]
        shown.add(id(patches))
        for (_, row, column), classes, chars in zip(
            patches.coords - (0, y, x), cells.classes.reshape(-1, 2), cells.chars.reshape(-1, 2, 2), strict=True
        ):
            if 0 <= row < side and 0 <= column < side:
                assert (crop.kinds[row, column], crop.colours[row, column]) == tuple(classes)
                assert torch.equal(crop.chars[2 * row : 2 * row + 2, 2 * column : 2 * column + 2], torch.from_numpy(chars))
    assert len(shown) == len(media)
    assert any((crop.chars > 0).any() for crop in found)


class Says(torch.nn.Module):
    def __init__(self, said: torch.Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) == len(self.said)
        return self.said


def test_lessons_are_in_the_order_of_the_patches(tiny: Tiny) -> None:
    """Blocks that say what the teacher says, picture by picture of any size, have nothing left to learn."""
    config, maker = tiny
    examples = [*_examples(maker, 2), maker(make("pictures", 1)), maker(make("event", 0))]
    model = Qwen3VL(config)
    lessons, teacher = Lessons(model.visual), Teacher().eval()
    lows, highs = [], []
    with torch.no_grad():
        for patches in (patches for e in examples[:3] for patches in e.media):
            low, high = teacher(pictures([patches]))
            lows.append(by_patch(low, [patches], 2).flatten(1))
            highs.append(by_patch(high, [patches], 1)[:, 0])
    low, high = torch.cat(lows), torch.cat(highs)
    lessons.low, lessons.high = Says(low), torch.nn.ModuleList([Says(high), Says(high)])
    lessons.listener.on = True
    with torch.no_grad():
        model.encode(PatchBatch.pack([m for e in examples for m in e.media], config.vision))
        assert lessons(teacher, examples) < 1e-8
        lessons.high[1].said = high.flip(0)
        lessons.listener.on = True
        model.encode(PatchBatch.pack([m for e in examples for m in e.media], config.vision))
        assert lessons(teacher, examples) > 0.1


def test_a_teacher_is_trained_once_and_kept(tiny: Tiny, tmp_path: Path) -> None:
    _, maker = tiny
    batches = [_examples(maker, 4, first) for first in range(0, 12, 4)]
    first = trained_teacher(tmp_path, iter(batches), 3, dtype=torch.float32, seed=0)
    assert (tmp_path / FILE).is_file()
    again = trained_teacher(tmp_path, iter([]), 3, dtype=torch.float32, seed=1)
    assert first is not None and again is not None
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not any(p.requires_grad for p in again.parameters()) and not again.training


def test_half_a_teacher_is_none(tiny: Tiny, tmp_path: Path) -> None:
    _, maker = tiny
    assert trained_teacher(tmp_path, iter([_examples(maker, 2)]), 3, dtype=torch.float32, seed=0) is None
    assert not (tmp_path / FILE).exists()


def test_a_teacher_learns_and_is_decided_by_its_seed(tiny: Tiny, tmp_path: Path) -> None:
    _, maker = tiny
    batch = _examples(maker, 6)
    one, two = (
        trained_teacher(tmp_path / name, iter([batch] * 40), 40, dtype=torch.float32, seed=0) for name in ("one", "two")
    )
    assert one is not None and two is not None
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "one" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[1]["loss"] < 0.6 * lines[0]["loss"]


def test_lessons_reach_the_blocks(tiny: Tiny) -> None:
    config, maker = tiny
    model = Qwen3VL(config)
    model.init_weights(0)
    lessons, examples = Lessons(model.visual), _examples(maker, 2)
    lessons.listener.on = True
    model.encode(PatchBatch.pack([e.patches for e in examples], config.vision))
    lessons(Teacher().eval(), examples).backward()
    for name, p in model.visual.blocks.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_heads_start_by_looking_at_a_neighbour_each(tiny: Tiny) -> None:
    config, _ = tiny
    model = Qwen3VL(config)
    model.init_weights(0)
    look_nearby(model.visual)
    from foveal.model.rope import rotate, vision_tables

    side, vision = 9, config.vision
    where = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    tables = vision_tables(where, vision.head_dim, vision.rope_theta)
    for i, block in enumerate(model.visual.blocks):
        q, k, _ = block.attn.qkv.bias.view(3, 1, vision.num_heads, -1).expand(-1, side * side, -1, -1)
        scores = torch.einsum("qhd,khd->hqk", rotate(q, *tables), rotate(k, *tables))
        middle = side * side // 2
        far = 1 + i // ((vision.depth + 1) // 2)
        for head in range(vision.num_heads):
            gaze = where[scores[head, middle].argmax()] - where[middle]
            assert gaze.tolist() == [far * d for d in (BESIDE, ACROSS)[i % 2][head]]


def test_a_place_can_be_read_off_the_table(tiny: tuple[ModelConfig, ExampleMaker]) -> None:
    model = Qwen3VL(tiny[0])
    know_places(model.visual, 0.7)
    table = model.visual.pos_embed.weight.detach()
    assert table.pow(2).mean().sqrt().item() == pytest.approx(0.7, rel=1e-4)
    side = tiny[0].vision.position_side
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)) / (side - 1)
    table = torch.cat([table, torch.ones(len(table), 1)], dim=1)
    fit = torch.linalg.lstsq(table, places, driver="gelsd").solution
    assert (table @ fit - places).abs().max() < 1e-2

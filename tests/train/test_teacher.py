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
from foveal.train.teacher import FILE, LOG, Lessons, Teacher, by_patch, pictures, trained_teacher
from foveal.world import Difficulty, picture_item

Tiny = tuple[ModelConfig, ExampleMaker]
LEVEL = Difficulty(size=(96, 128), max_questions=1)


def _examples(maker: ExampleMaker, count: int, first: int = 0) -> list[Example]:
    return [maker(picture_item(seed, LEVEL)) for seed in range(first, first + count)]


def test_pictures_are_the_patches_put_together(tiny: Tiny) -> None:
    _, maker = tiny
    items = [picture_item(seed, LEVEL) for seed in range(3)]
    seen = pictures([maker(item) for item in items], 16)
    truth = np.stack([item.pixels[0] for item in items]).transpose(0, 3, 1, 2)  # 96 x 128 needs no resizing
    assert torch.equal(seen, torch.from_numpy(truth).float() / 127.5 - 1)


@pytest.mark.parametrize("per_side", [1, 2])
def test_by_patch_reads_where_the_patch_lies(tiny: Tiny, per_side: int) -> None:
    _, maker = tiny
    examples = _examples(maker, 2)
    rows, columns = examples[0].patches.grids[0]
    y, x = torch.meshgrid(torch.arange(rows * per_side), torch.arange(columns * per_side), indexing="ij")
    maps = torch.stack([torch.stack([y, x]), torch.stack([y, x]) + 100])
    read = by_patch(maps, examples, per_side).view(2, rows * columns, per_side, per_side, 2)
    for i, example in enumerate(examples):
        corner = torch.from_numpy(example.patches.coords[:, 1:]) * per_side + 100 * i
        assert torch.equal(read[i, :, 0, 0].long(), corner.long())
        assert torch.equal(read[i, :, -1, -1].long(), corner.long() + per_side - 1)


def test_a_teacher_is_trained_once_and_kept(tiny: Tiny, tmp_path: Path) -> None:
    _, maker = tiny
    batches = [_examples(maker, 4, first) for first in range(0, 12, 4)]
    first = trained_teacher(tmp_path, iter(batches), 16, 3, dtype=torch.float32, seed=0)
    assert (tmp_path / FILE).is_file()
    again = trained_teacher(tmp_path, iter([]), 16, 3, dtype=torch.float32, seed=1)
    assert first is not None and again is not None
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not any(p.requires_grad for p in again.parameters()) and not again.training


def test_half_a_teacher_is_none(tiny: Tiny, tmp_path: Path) -> None:
    _, maker = tiny
    assert trained_teacher(tmp_path, iter([_examples(maker, 2)]), 16, 3, dtype=torch.float32, seed=0) is None
    assert not (tmp_path / FILE).exists()


def test_a_teacher_learns_and_is_decided_by_its_seed(tiny: Tiny, tmp_path: Path) -> None:
    _, maker = tiny
    batch = _examples(maker, 6)
    one, two = (
        trained_teacher(tmp_path / name, iter([batch] * 40), 16, 40, dtype=torch.float32, seed=0) for name in ("one", "two")
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
    lessons(Teacher().eval(), examples, 16).backward()
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

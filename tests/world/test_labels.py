"""Cell labels at known places."""

from __future__ import annotations

import numpy as np

from foveal.world import (
    CHAR_CLASSES,
    COLOUR_CLASSES,
    KIND_CLASSES,
    Difficulty,
    Item,
    cell_labels,
    clip_item,
    make,
    picture_item,
)
from foveal.world.draw import paint
from foveal.world.emoji import EMOJI
from foveal.world.scene import Background, Scene, Thing
from foveal.world.stamps import outline_stamp, text_stamp

WHITE = Background(((255, 255, 255), (255, 255, 255)), 0.0, 0.0, 0)


def page(size: tuple[int, int], *things: Thing) -> Item:
    pixels, object_map, char_map = paint(np.full((*size, 3), 255, dtype=np.uint8), list(enumerate(things)))
    return Item("image", pixels[None], np.zeros(1), (), object_map[None], char_map[None], Scene(size, WHITE, things))


def square(x: int, y: int, side: int = 32, colour: str = "red") -> Thing:
    return Thing("shape", "square", colour, (218, 28, 36), outline_stamp("square", side, 0), x, y)


def test_class_lists_start_with_none_and_repeat_nothing() -> None:
    for names in (KIND_CLASSES, COLOUR_CLASSES, CHAR_CLASSES):
        assert names[0] == "none" and len(set(names)) == len(names)
    assert len(KIND_CLASSES) == 1 + 11 + 12 + 2 + len(EMOJI) and len(COLOUR_CLASSES) == 13 and len(CHAR_CLASSES) == 37


def test_a_square_names_exactly_its_cells() -> None:
    labels = cell_labels(page((64, 96), square(32, 16)))
    wanted = np.zeros((4, 6), dtype=int)
    wanted[1:3, 2:4] = KIND_CLASSES.index("square")
    assert np.array_equal(labels.kind, wanted)
    assert np.array_equal(labels.colour > 0, wanted > 0)
    assert COLOUR_CLASSES[labels.colour[1, 2]] == "red"
    assert not labels.char.any()
    assert np.array_equal(labels.cover, (wanted > 0).astype(np.float32))


def test_labels_follow_a_resize() -> None:
    item = page((64, 96), square(32, 16))
    doubled = cell_labels(item, (128, 192))
    assert doubled.kind.shape == (8, 12)
    assert np.argwhere(doubled.kind).min(axis=0).tolist() == [2, 4] and (doubled.kind > 0).sum() == 16
    merged = cell_labels(item, (128, 192), cell=32)
    assert np.array_equal(merged.kind, cell_labels(item).kind)
    squeezed = cell_labels(item, (32, 96))
    assert squeezed.kind.shape == (2, 6)


def test_the_larger_share_of_a_cell_wins_and_slivers_do_not() -> None:
    item = page((32, 32), square(0, 0, 12, "red"), square(13, 0, 16, "blue"))
    labels = cell_labels(item)
    assert COLOUR_CLASSES[labels.colour[0, 0]] == "red"
    assert COLOUR_CLASSES[labels.colour[0, 1]] == "blue"
    assert not cell_labels(page((32, 32), square(13, 13, 6))).kind.any()


def test_characters_are_read_from_left_to_right() -> None:
    stamp = text_stamp("4071", "DejaVuSans", 32)
    labels = cell_labels(page((64, 128), Thing("number", "number", "black", (0, 0, 0), stamp, 16, 16, "4071")), cell=8)
    row = [CHAR_CLASSES[index] for index in labels.char[4] if index]
    runs = [character for i, character in enumerate(row) if i == 0 or row[i - 1] != character]
    assert runs == ["4", "0", "7", "1"]
    assert set(labels.kind.ravel().tolist()) == {0, KIND_CLASSES.index("number")}


def test_character_cells_meet_in_the_gaps_between_glyphs() -> None:
    for font in ("DejaVuSans", "DejaVuSansMono", "STIXGeneral", "cmr10"):
        stamp = text_stamp("4071", font, 36)
        assert stamp.chars is not None
        columns = stamp.chars[0]
        assert (stamp.chars == columns).all()
        edges = np.flatnonzero(np.diff(columns)) + 1
        assert len(edges) == 3
        for edge in edges.tolist():
            assert stamp.alpha[:, edge - 2 : edge + 2].max(axis=0).min() < 48, (font, edge)


def test_labels_of_random_pictures_agree_with_their_boxes() -> None:
    for seed in range(60):
        item = picture_item(seed, Difficulty(max_side=192))
        height, width = item.pixels.shape[1:3]
        size = (-(-height // 32) * 32, -(-width // 32) * 32)
        labels = cell_labels(item, size)
        assert labels.kind.shape == labels.colour.shape == labels.char.shape == (size[0] // 16, size[1] // 16)
        assert np.array_equal(labels.kind > 0, labels.colour > 0)
        for row, column in np.argwhere(labels.kind > 0):
            x1, x2 = column * 16 * width / size[1], (column + 1) * 16 * width / size[1]
            y1, y2 = row * 16 * height / size[0], (row + 1) * 16 * height / size[0]
            touching = [t for t in item.things if t.box[0] < x2 and t.box[2] > x1 and t.box[1] < y2 and t.box[3] > y1]
            names = [(KIND_CLASSES.index(t.kind), COLOUR_CLASSES.index(t.colour)) for t in touching]
            assert (labels.kind[row, column], labels.colour[row, column]) in names
        for thing in item.things:
            assert KIND_CLASSES.index(thing.kind) in labels.kind or max(thing.stamp.size) < 32


def test_labels_of_a_clip_change_with_the_frame() -> None:
    for seed in range(20):
        item = clip_item(seed, Difficulty())
        for frame in range(len(item.pixels)):
            shown = {item.things[n].kind for n in np.unique(item.object_map[frame]) if n >= 0}
            labelled = {KIND_CLASSES[k] for k in np.unique(cell_labels(item, frame=frame).kind) if k}
            assert labelled <= shown


def test_pages_name_characters_and_no_kinds_of_panels() -> None:
    for kind in ("screen", "chart", "emoji"):
        (item,) = make(kind, 0).items
        found = cell_labels(item, cell=8)
        shown = {thing.kind for thing in item.things} & set(KIND_CLASSES) | {"none"}
        assert {KIND_CLASSES[i] for i in np.unique(found.kind)} <= shown
        inks = {thing.colour for thing in item.things} | {"none"}
        assert {COLOUR_CLASSES[i] for i in np.unique(found.colour)} <= inks
        assert (found.char > 0).any() == (kind != "emoji")


def test_an_emoji_is_named_where_it_is() -> None:
    for seed in range(4):
        (item,) = make("emoji", seed).items
        labels = cell_labels(item)
        drawn = {thing.kind for thing in item.things if thing.kind in EMOJI}
        assert drawn and {KIND_CLASSES[k] for k in np.unique(labels.kind) if k} == drawn

"""Pictures: reproducible, exactly boxed, and asked about in ways that what is drawn confirms."""

from __future__ import annotations

import re
import time
from collections import Counter

import numpy as np
import pytest

from foveal.errors import ConfigError
from foveal.world import EASY, Difficulty, Item, Question, picture_item, score
from foveal.world.colours import COLOURS, PALETTE, lab
from foveal.world.difficulty import ICON_KINDS, SHAPE_KINDS, WORDS
from foveal.world.phrases import plural
from foveal.world.questions import reading_order
from foveal.world.scene import Scene, Thing
from foveal.world.score import parse_boxes
from foveal.world.stamps import CHAR_CLASSES, FONTS, outline_stamp, text_stamp

EVERYTHING = Difficulty(max_questions=60)
ITEMS = [picture_item(seed, EVERYTHING, "test") for seed in range(250)]


def asked(kind: str) -> list[tuple[Item, Question]]:
    found = [(item, question) for item in ITEMS for question in item.questions if question.kind == kind]
    assert len(found) > 30, f"too few {kind} questions to test anything"
    return found


def scene_of(item: Item) -> Scene:
    assert isinstance(item.truth, Scene)
    return item.truth


def named(item: Item, phrase: str) -> Thing:
    """Resolve a phrase such as "red star", "star", "number 374" by what it says; exactly one thing must fit."""
    words = phrase.split()
    fitting = [
        (number, thing)
        for number, thing in enumerate(item.things)
        if all(word in (thing.colour, thing.kind, thing.text.lower()) for word in words)
    ]
    assert len(fitting) == 1, f"{phrase!r} fits {[thing.name for _, thing in fitting]}"
    return fitting[0][1]


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_same_seed_same_item() -> None:
    for seed in range(10):
        one, two = picture_item(seed, EVERYTHING), picture_item(seed, EVERYTHING)
        assert np.array_equal(one.pixels, two.pixels)
        assert np.array_equal(one.object_map, two.object_map)
        assert one.questions == two.questions


def test_splits_and_seeds_share_nothing() -> None:
    level = Difficulty(min_side=96, max_side=96)
    seen = {picture_item(seed, level, split).pixels.tobytes() for seed in range(100) for split in ("train", "test", "dev")}
    assert len(seen) == 300


def test_boxes_are_the_bounds_of_what_is_drawn() -> None:
    for item in ITEMS:
        for number, thing in enumerate(item.things):
            assert bounds(item.object_map[0] == number) == thing.box


def test_boxes_hold_the_ink_that_differs_from_the_background() -> None:
    flat = Difficulty(plain_background=1.0)
    for seed in range(60):
        item = picture_item(seed, flat)
        background = scene_of(item).background
        assert background.noise == 0 and background.colours[0] == background.colours[1]
        gap = np.abs(item.pixels[0].astype(int) - np.array(background.colours[0])).max(axis=-1)
        inside = np.zeros(gap.shape, dtype=bool)
        for thing in item.things:
            x1, y1, x2, y2 = thing.box
            inside[y1:y2, x1:x2] = True
            full = np.abs(np.array(thing.rgb) - np.array(background.colours[0])).max()
            ink_x1, ink_y1, ink_x2, ink_y2 = bounds(gap[y1:y2, x1:x2] >= 0.3 * full)
            assert (ink_x1, ink_y1, ink_x2, ink_y2) == (0, 0, x2 - x1, y2 - y1)
        assert not gap[~inside].any(), "ink outside every box"


def test_things_do_not_touch_and_stay_inside() -> None:
    for item in ITEMS:
        height, width = item.pixels.shape[1:3]
        boxes = [thing.box for thing in item.things]
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            assert x1 >= 1 and y1 >= 1 and x2 < width and y2 < height
            for a1, b1, a2, b2 in boxes[i + 1 :]:
                assert x2 + 2 < a1 or a2 + 2 < x1 or y2 + 2 < b1 or b2 + 2 < y1


def test_drawn_colour_is_nearest_to_its_name() -> None:
    palette = lab(np.array(list(PALETTE.values())))
    for item in ITEMS:
        for number, thing in enumerate(item.things):
            if thing.text:
                continue
            drawn = np.median(item.pixels[0][item.object_map[0] == number], axis=0)
            nearest = COLOURS[int(np.linalg.norm(palette - lab(drawn), axis=-1).argmin())]
            assert nearest == thing.colour


def test_things_stand_out_from_the_background() -> None:
    for item in ITEMS:
        ends = lab(np.array(scene_of(item).background.colours))
        for thing in item.things:
            assert np.linalg.norm(ends - lab(np.array(thing.rgb)), axis=-1).min() > 35


def test_sizes_cover_the_range_and_keep_the_ratio() -> None:
    sizes = np.array([item.pixels.shape[1:3] for item in ITEMS])
    assert sizes.min() >= 96 and sizes.max() <= 288
    ratios = sizes[:, 0] / sizes[:, 1]
    assert ratios.min() >= 0.5 and ratios.max() <= 2.0
    assert ratios.min() < 0.6 and ratios.max() > 1.7
    assert len({tuple(size) for size in sizes.tolist()}) > 200
    assert {picture_item(seed, EASY).pixels.shape for seed in range(20)} == {(1, 96, 96, 3)}


def test_colour_answers() -> None:
    for item, question in asked("colour"):
        name = re.search(r"(?:Which colour does|is|of) the (?!colour)(.+?)(?: have)?[?.]$", question.question)
        assert name is not None, question.question
        assert question.answer == named(item, name[1]).colour


def test_shape_and_icon_answers() -> None:
    for kind, names in (("shape", SHAPE_KINDS), ("icon", ICON_KINDS)):
        for item, question in asked(kind):
            colours = [colour for colour in COLOURS if f" {colour}" in question.question]
            things = [thing for thing in item.things if thing.family == kind]
            if colours:
                things = [thing for thing in item.things if thing.colour == colours[0]]
            assert len(things) == 1
            assert question.answer == things[0].kind and question.answer in names


def test_count_answers() -> None:
    for item, question in asked("count"):
        what = re.search(r"(?:How many|Count the) (.+?)(?: are there| do you see| are in the picture)?[?.]$", question.question)
        assert what is not None, question.question
        first = what[1].split()[0]
        groups = {
            **{plural(thing.kind): thing.kind for thing in item.things},
            **{plural(thing.family): thing.family for thing in item.things},
        }
        if what[1] in ("objects", "things"):
            number = len(item.things)
        elif first in COLOURS:
            number = sum(thing.colour == first for thing in item.things)
        else:
            number = sum(groups[what[1]] in (thing.kind, thing.family) for thing in item.things)
        assert question.answer == str(number) and number == len(question.boxes)


def test_box_answers_name_and_frame_the_thing() -> None:
    for item, question in asked("box"):
        answer = re.fullmatch(r'```json\n\[\{"bbox_2d": \[(\d+, \d+, \d+, \d+)\], "label": "([^"]+)"\}\]\n```', question.answer)
        assert answer is not None, question.answer
        assert answer[2] in question.question
        height, width = item.pixels.shape[1:3]
        found = np.array([int(end) for end in answer[1].split(", ")])
        assert found.min() >= 0 and found.max() <= 1000
        wanted = np.array(named(item, answer[2]).box) * 1000 / np.array([width, height, width, height])
        assert np.abs(found - wanted).max() <= 0.5 + 1e-9


def test_relation_answers() -> None:
    for item, question in asked("relation"):
        names = re.findall(r"the ((?:(?!the |left |to |above |or |is |right )\w+ ?)+)", question.question)
        one, other = (named(item, name.strip().removesuffix(" is")) for name in names if name.strip() not in ("left",))
        if question.question.startswith("On which side"):
            one, other = other, one
        axis = 0 if question.answer in ("left", "right") else 1
        gap = (one.box[axis] + one.box[axis + 2] - other.box[axis] - other.box[axis + 2]) / 2
        assert abs(gap) >= 14
        assert question.answer == (("left", "right"), ("above", "below"))[axis][int(gap > 0)]


def test_written_answers() -> None:
    for item, question in asked("read_number"):
        assert re.fullmatch(r"[1-9]\d{1,3}", question.answer)
        assert question.answer in [thing.text for thing in item.things if thing.kind == "number"]
    for item, question in asked("read_word"):
        assert question.answer in WORDS
        colours = [colour for colour in COLOURS if f" {colour} " in question.question or f" {colour}?" in question.question]
        words = [t for t in item.things if t.kind == "word" and (not colours or t.colour == colours[0])]
        assert [word.text.lower() for word in words] == [question.answer]


def test_descriptions_list_everything_once_in_reading_order() -> None:
    for item, question in asked("describe"):
        assert sorted(question.answer.split(", ")) == sorted(thing.name for thing in item.things)
        assert question.boxes == tuple(thing.box for thing in reading_order(item.things))


def test_reading_order_of_a_known_page() -> None:
    blank = outline_stamp("square", 20, 0)

    def at(x: int, y: int) -> Thing:
        return Thing("shape", "square", "red", (255, 0, 0), blank, x, y)

    a, b, c, d = at(5, 8), at(60, 5), at(40, 50), at(10, 58)
    assert reading_order([c, b, d, a]) == [a, b, d, c]


def test_no_answer_is_a_shortcut() -> None:
    counts: Counter[str] = Counter()
    relations: Counter[str] = Counter()
    for seed in range(900):
        for question in picture_item(seed, Difficulty(max_side=160).asking(count=1, relation=1), "balance").questions:
            if question.kind == "count":
                counts[question.answer] += 1
            else:
                relations[question.answer] += 1
    assert set(counts) == set("123456")
    assert max(counts.values()) < 0.35 * counts.total() and min(counts.values()) > 0.06 * counts.total()
    assert 0.4 < relations["left"] / (relations["left"] + relations["right"]) < 0.6
    assert 0.4 < relations["above"] / (relations["above"] + relations["below"]) < 0.6
    for kind in ("colour", "shape", "icon"):
        answers = Counter(question.answer for _, question in asked(kind))
        assert max(answers.values()) < 0.3 * answers.total() and len(answers) >= 10


def test_every_answer_scores_against_itself_and_only_the_answer() -> None:
    for item in ITEMS:
        for question in item.questions:
            assert score(question.kind, question.answer, question)
            assert not score(question.kind, "", question)
            assert not score(question.kind, "perhaps", question)


def test_question_weights_choose_what_is_asked() -> None:
    level = Difficulty(max_questions=3).asking(colour=1.0, box=1.0)
    kinds = Counter(question.kind for seed in range(40) for question in picture_item(seed, level).questions)
    assert set(kinds) == {"colour", "box"}
    assert all(len(picture_item(seed, level).questions) <= 3 for seed in range(40))
    heavy = Difficulty(max_questions=1).asking(count=9.0, describe=1.0)
    kinds = Counter(question.kind for seed in range(100) for question in picture_item(seed, heavy).questions)
    assert kinds["count"] > 3 * kinds["describe"] > 0


def test_every_font_draws_every_character_differently() -> None:
    for font in FONTS:
        glyphs = [text_stamp(character, font, 24).alpha for character in CHAR_CLASSES[1:]]
        # 1 and l share a glyph in a few of these fonts; nothing else may.
        assert len({glyph.tobytes() + bytes(glyph.shape) for glyph in glyphs}) >= len(glyphs) - 1, font


@pytest.mark.parametrize("height", [14, 24, 40])
def test_digits_have_the_height_asked_for(height: int) -> None:
    for font in FONTS:
        assert abs(text_stamp("0", font, height).size[0] - height) <= 2, font


def test_outlines_have_the_side_asked_for() -> None:
    for kind in (*SHAPE_KINDS, *ICON_KINDS):
        stamps = [outline_stamp(kind, side, turn) for side in (20, 63) for turn in (0, 10)]
        for stamp, side in zip(stamps, (20, 20, 63, 63), strict=True):
            # Ink that covers less than half a pixel, as at the tips of a star, is outside the box.
            assert side - 3 <= max(stamp.size) <= side + 1
            assert stamp.solid.mean() > 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_side": 200, "max_side": 100}, "sides 200..100"),
        ({"max_objects": 0}, "objects 1..0"),
        ({"families": (("shape", 0.0),)}, "one family must be above 0"),
        ({"families": (("animal", 1.0),)}, "animal is not among"),
        ({"questions": (("color", 1.0),)}, "color is not among"),
        ({"shapes": ()}, "shapes: nothing to choose from"),
        ({"event_step": 0}, "event_step must be 1 or more"),
    ],
)
def test_difficulty_refuses_what_makes_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Difficulty(**options)  # type: ignore[arg-type]


def test_too_much_for_the_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        picture_item(0, Difficulty(min_side=48, max_side=48, min_objects=20, max_objects=20))
    with pytest.raises(ConfigError, match="seed -1"):
        picture_item(-1, EASY)


def test_narrow_worlds_work() -> None:
    one_kind = Difficulty(shapes=("star",), colours=("red",), families=(("shape", 1.0),), counting=1.0)
    texts = Difficulty(families=(("number", 1.0), ("word", 1.0)), words=("cat",), min_side=128, max_objects=4)
    for seed in range(40):
        assert {thing.name for thing in picture_item(seed, one_kind).things} == {"red star"}
        for question in picture_item(seed, texts).questions:
            if question.kind == "box":
                boxes = parse_boxes(question.answer)
                assert boxes is not None and len(boxes) == 1


def test_speed() -> None:
    level = Difficulty(min_side=192, max_side=192)
    start = time.process_time()
    for seed in range(60):
        picture_item(seed, level)
    assert 60 / (time.process_time() - start) > 60, "a trainer needs at least 60 pictures a second"

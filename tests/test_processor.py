"""From a checkpoint's folder, messages and files to a request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.config import preset
from foveal.errors import CheckpointError, ContextError, MediaError, PromptError
from foveal.media import ClipSampling, Frames
from foveal.patches import Budget, patchify
from foveal.preprocessor import read_preprocessors
from foveal.processor import Processor
from foveal.sequence import VisionSegment
from foveal.sizing import MediaShape, fair_cap, part_options, shared_budget
from tests.tiny_checkpoint import BUDGET, CONTEXT, tiny_checkpoint

FACTOR = 8  # of the tiny models: patches of 4 pixels, merged 2 by 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    return Processor.from_checkpoint(folder)


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint without its weights, to be spoilt."""
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(file: Path, **changes: Any) -> None:
    raw = json.loads(file.read_text())
    for key, value in changes.items():
        raw.pop(key, None) if value is None else raw.update({key: value})
    file.write_text(json.dumps(raw))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(frames: int, height: int, width: int) -> np.ndarray:
    return np.stack([picture(height, width, i) for i in range(frames)])


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


# --- a request --------------------------------------------------------------------------------------------------------


def test_media_stand_where_the_messages_have_them(processor: Processor, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    Image.fromarray(picture(40, 16)).save(file)
    messages = [
        {"role": "system", "content": "Be brief."},
        user("one", {"type": "image_url", "image_url": {"url": str(file)}}, "two", {"type": "video", "video": clip(3, 16, 24)}),
        {"role": "assistant", "content": "Yes."},
        user({"type": "image", "image": picture(24, 48)}, "three"),
    ]
    request = processor(messages)
    assert [p.kind for p in request.patches] == ["image", "video", "image"]
    assert request.names == ("red.png", "list of pictures", "array")
    vision = [(s.media, s.frame) for s in request.segments if isinstance(s, VisionSegment)]
    assert vision == [(0, 0), (1, 0), (1, 1), (2, 0)]
    text = request.text
    order = ["Be brief.", "one", "<|image_pad|>", "two", "<|video_pad|>", "Yes.", "<|image_pad|>", "three"]
    places = list(itertools.accumulate(order, lambda at, what: text.index(what, at + 1), initial=-1))
    assert places == sorted(places)
    counts = request.tokens_by_kind()
    assert counts["image"] == 5 * 2 + 3 * 6 and counts["video"] == 2 * 2 * 3
    assert sum(counts.values()) == len(request.sequence)
    assert request.sequence.num_vision_tokens == counts["image"] + counts["video"]
    ids = request.sequence.token_ids
    assert int((ids == processor.config.image_token_id).sum()) == counts["image"]
    assert int((ids == processor.config.video_token_id).sum()) == counts["video"]
    assert not request.opens_thinking


def test_bare_placeholders_take_the_media_beside_the_messages(processor: Processor) -> None:
    one, two, three = picture(16, 16), clip(2, 16, 16), picture(24, 16)
    beside = processor([user({"type": "image"}, {"type": "video"}, {"type": "image", "image": three})], media=[one, two])
    inside = processor(
        [user({"type": "image", "image": one}, {"type": "video", "video": two}, {"type": "image", "image": three})]
    )
    assert beside.text == inside.text
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(beside.patches, inside.patches, strict=True))
    for media in ([], [one], [one, two, three]):
        with pytest.raises(PromptError, match=f"hold 2 pictures and clips without a source, but {len(media)} were given"):
            processor([user({"type": "image"}, {"type": "video"})], media=media)


def test_a_question_about_files_of_any_kind(processor: Processor) -> None:
    asked = processor.ask("What?", [picture(16, 24), clip(4, 16, 16)], system="Brief.")
    told = processor(
        [
            {"role": "system", "content": "Brief."},
            user({"type": "image", "image": picture(16, 24)}, {"type": "video", "video": clip(4, 16, 16)}, "What?"),
        ]
    )
    assert asked.text == told.text and np.array_equal(asked.sequence.token_ids, told.sequence.token_ids)


def test_frames_that_exist_already_are_taken_as_they_are(processor: Processor) -> None:
    frames = Frames(clip(3, 16, 24), np.array([0.0, 5.0, 9.0]), "video", (16, 24), "mine")
    request = processor([user({"type": "video", "video": frames})])
    assert request.names == ("mine",) and "<2.5 seconds>" in processor.tokenizer.decode(request.sequence.token_ids)
    with pytest.raises(PromptError, match="mine is a video where the messages say image"):
        processor([user({"type": "image", "image": frames})])


def test_a_clip_where_a_picture_belongs_says_so(processor: Processor) -> None:
    with pytest.raises(MediaError, match="one picture where a clip was expected"):
        processor([user({"type": "video", "video": picture(16, 16)})])


def test_options_of_the_template_pass_through(folder: Path, tmp_path: Path) -> None:
    processor = Processor.from_checkpoint(tiny_checkpoint(tmp_path, thinking=True))
    messages = [user({"type": "image", "image": picture(16, 16)}, "What?")]
    assert processor(messages).opens_thinking
    assert not processor(messages, thinking=False).opens_thinking
    assert processor(messages, thinking=False).text.endswith("<think>\n\n</think>\n\n")
    assert "Picture 1: " in processor(messages, add_vision_id=True).text
    assert processor(messages, add_generation_prompt=False).text.endswith("What?<|im_end|>\n")
    assert '"name": "zoom"' in processor(messages, tools=[{"type": "function", "function": {"name": "zoom"}}]).text


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_the_checkpoint_s_budget_and_one_of_the_call(processor: Processor) -> None:
    assert processor.budget == BUDGET
    big = picture(400, 400)
    assert processor.ask("?", [big]).patches[0].num_tokens == 16  # 24 allows 4 x 4 of a square
    assert processor.ask("?", [big], budget=Budget(image=(1, 100))).patches[0].num_tokens == 100
    long = processor.ask("?", [clip(6, 64, 64)], budget=Budget(clip=(1, 12))).patches[0]
    assert long.num_tokens == 12 and len(long.grids) == 3


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 16),
        ({"max_tokens": 9}, 9),
        ({"max_pixels": 9 * FACTOR**2}, 9),
        ({"min_tokens": 100}, 100),
        ({"min_pixels": 100 * FACTOR**2}, 100),
        ({"detail": "high"}, 16),
        ({"detail": "low", "max_tokens": 400}, 256),
        ({"max_tokens": None}, 16),
    ],
)
def test_a_picture_s_own_keys(processor: Processor, options: dict[str, Any], tokens: int) -> None:
    part = {"type": "image", "image": picture(400, 400), **options}
    assert processor([user(part)], max_visual_share=0.9).patches[0].num_tokens == tokens


def test_the_openai_detail_stands_beside_the_url(processor: Processor, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(picture(400, 400)).save(file)
    part = {"type": "image_url", "image_url": {"url": str(file), "detail": "low"}}
    assert processor([user(part)], budget=Budget(image=(1, 16384))).patches[0].num_tokens == 256


@pytest.mark.parametrize(
    ("options", "frames", "tokens"),
    [
        ({}, 9, 5 * 4),
        ({"nframes": 4}, 4, 2 * 16),
        ({"fps": 1, "min_frames": 2}, 4, 2 * 16),
        ({"fps": 1, "max_frames": 4, "video_start": 1.0, "video_end": 3.0}, 4, 2 * 16),
        ({"fps": 1, "max_frames": 2}, 2, 36),  # fewer than the least by default, which yields
        ({"fps": 1e200, "max_frames": 4}, 4, 2 * 16),
        ({"total_pixels": 8 * FACTOR**2, "nframes": 4}, 4, 8),
        ({"max_tokens": 8, "nframes": 4}, 4, 8),
        ({"max_pixels": 4 * FACTOR**2, "min_pixels": FACTOR**2, "nframes": 4}, 4, 8),
    ],
)
def test_a_clip_s_own_keys(processor: Processor, options: dict[str, Any], frames: int, tokens: int) -> None:
    part = {"type": "video", "video": clip(9, 64, 64), **options}
    patches = processor([user(part)]).patches[0]
    assert len(patches.grids) == -(-frames // 2) and patches.num_tokens == tokens


def test_the_rate_of_a_list_of_pictures(processor: Processor) -> None:
    part = {"type": "video", "video": [picture(16, 16, i) for i in range(4)], "sample_fps": 0.5}
    assert processor([user(part)]).patches[0].times_s == (1.0, 5.0)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image", "fps": 2}, "a part of type image has the unknown key 'fps'; it may have min_pixels"),
        ({"type": "image", "resized_height": 280}, "unknown key 'resized_height'"),
        ({"type": "video", "detail": "low"}, "a part of type video has the unknown key 'detail'"),
        ({"type": "image", "max_pixels": "many"}, "max_pixels of a picture or clip is 'many'"),
        ({"type": "image", "max_tokens": True}, "max_tokens of a picture or clip is True"),
        ({"type": "image", "detail": "ultra"}, "an image has detail 'ultra'; expected low, high or auto"),
        ({"type": "image", "min_tokens": 9, "max_tokens": 4}, "the image budget is 9..4 tokens"),
        ({"type": "video", "fps": 10**400}, "fps of a picture or clip is 1000"),
        ({"type": "video", "fps": "2"}, "fps of a picture or clip is '2'"),
    ],
)
def test_keys_of_a_part_that_make_no_sense(processor: Processor, part: dict[str, Any], says: str) -> None:
    source = picture(16, 16) if part["type"] == "image" else clip(4, 16, 16)
    with pytest.raises(PromptError, match=says):
        processor([user({**part, part["type"]: source})])


def test_a_part_s_frame_rule_replaces_the_call_s(processor: Processor) -> None:
    vision = processor.config.vision
    _, sampling, _ = part_options("video", {"nframes": 6}, BUDGET, ClipSampling(fps=1.0), vision)
    assert sampling == ClipSampling(num_frames=6)
    _, sampling, _ = part_options("video", {"fps": 3}, BUDGET, ClipSampling(num_frames=4, end_s=9.0), vision)
    assert sampling == ClipSampling(fps=3, end_s=9.0)


# --- a share of the context -------------------------------------------------------------------------------------------


WIDE = Budget(image=(1, 16384), clip=(1, 12288))


def tokens_of(processor: Processor, files: Sequence[Any], **options: Any) -> list[int]:
    patches, _ = processor.read(files, budget=WIDE, **options)
    return [p.num_tokens for p in patches]


def test_visual_tokens_keep_within_their_share_and_small_media_keep_theirs(processor: Processor) -> None:
    room = int(0.9 * CONTEXT)
    icons = [picture(16, 16, i) for i in range(10)]
    counts = tokens_of(processor, [*icons, picture(300, 300), clip(4, 300, 300)])
    assert counts[:10] == [4] * 10
    # What the icons leave is halved, as far as whole rows of tokens go.
    assert 0.8 * room < sum(counts) <= room
    assert abs(counts[10] - counts[11]) < 40
    assert sum(tokens_of(processor, [picture(300, 300)], max_visual_share=0.25)) == 100


def test_media_that_fit_are_left_alone(processor: Processor) -> None:
    assert tokens_of(processor, [picture(96, 96), picture(80, 80)]) == [144, 100]


def test_many_pictures_are_never_all_kept_at_the_size_of_one(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept at once grows with the logarithm of their number, and their sizes are those of a fair share all the same."""
    files = [picture(300, 300, i) for i in range(40)]
    kept: list[int] = []
    read_one = Processor._read_one

    def watched(self: Processor, *given: Any) -> Any:
        one = read_one(self, *given)
        kept.append(one[0].num_tokens)
        return one

    monkeypatch.setattr(Processor, "_read_one", watched)
    counts = tokens_of(processor, files)
    room = int(0.9 * CONTEXT)
    shapes = [MediaShape("image", 1, (300, 300))] * 40
    cap = fair_cap(processor.config.vision, [(shape, WIDE) for shape in shapes], room)
    assert counts == [shapes[0].tokens(processor.config.vision, WIDE.capped(cap))] * 40
    assert sum(kept[:40]) < 6 * room < 40 * kept[0]


def test_frames_of_a_shrunk_clip_are_resized_from_the_source(processor: Processor) -> None:
    """Once, not twice: they equal those of a budget that was small from the start."""
    files = [clip(4, 200, 200), picture(200, 200)]
    shared, _ = processor.read(files, budget=WIDE)
    frames, budget = processor.open(files, budget=WIDE)
    vision = processor.config.vision
    for patches, opened, file in zip(shared, frames, files, strict=True):
        assert np.array_equal(patches.pixels, patchify(opened, vision, budget).pixels)
        alone, _ = processor.read([file], budget=budget)
        assert np.array_equal(patches.pixels, alone[0].pixels)
    assert sum(p.num_tokens for p in shared) <= int(0.9 * CONTEXT) < 2 * 25 * 25


def test_the_fair_cap_is_the_largest_that_fits(processor: Processor) -> None:
    vision = processor.config.vision
    rng = np.random.default_rng(0)
    for _ in range(30):
        shapes = [
            MediaShape("image", 1, (int(h), int(w))) if still else MediaShape("video", int(n), (int(h), int(w)))
            for h, w, n, still in zip(
                rng.integers(8, 400, 5), rng.integers(8, 400, 5), rng.integers(1, 12, 5), rng.integers(0, 2, 5), strict=True
            )
        ]
        room = int(rng.integers(60, 2000))
        cap = fair_cap(vision, [(shape, WIDE) for shape in shapes], room)

        def total(cap: int, shapes: Sequence[MediaShape] = shapes) -> int:
            return sum(shape.tokens(vision, WIDE.capped(cap)) for shape in shapes)

        assert total(cap) <= room
        assert cap == room or total(cap + 1) > room


def test_shapes_predict_tokens(processor: Processor) -> None:
    vision = processor.config.vision
    for file, shape in (
        (picture(50, 90), MediaShape("image", 1, (50, 90))),
        (clip(5, 50, 90), MediaShape("video", 5, (50, 90))),
        (clip(1, 9, 90), MediaShape("video", 1, (9, 90))),
    ):
        for budget in (BUDGET, WIDE, Budget(clip=(1, 60), frame=(2, 9))):
            patches, _ = processor.read([file], budget=budget, max_visual_share=1.0)
            assert patches[0].num_tokens == shape.tokens(vision, budget.capped(CONTEXT))


def test_more_media_than_tokens_are_refused(processor: Processor) -> None:
    shapes = [MediaShape("video", 100, (64, 64)), *[MediaShape("image", 1, (64, 64))] * 320]
    with pytest.raises(ContextError, match=r"321 pictures and clips with 420 frames need at least 370 visual tokens.* 360;"):
        shared_budget(processor.config, BUDGET, shapes)


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_a_share_that_is_none(processor: Processor, share: float) -> None:
    with pytest.raises(PromptError, match="expected a share of the context"):
        processor([user("?")], max_visual_share=share)


# --- a checkpoint's files ---------------------------------------------------------------------------------------------


def test_files_that_may_be_missing_have_the_released_defaults(own: Path) -> None:
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "generation_config.json"):
        (own / name).unlink()
    processor = Processor.from_checkpoint(own)
    assert processor.budget == Budget() and processor.generation == {} and processor.clip_sampling == ClipSampling()
    assert processor.end_ids == (processor.tokenizer.token_id("<|im_end|>"),)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_files_that_must_be_there(own: Path, name: str) -> None:
    (own / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Processor.from_checkpoint(own)


def test_both_spellings_of_sizes(own: Path) -> None:
    area = FACTOR**2
    edit(own / "preprocessor_config.json", size=None, min_pixels=3 * area, max_pixels=50 * area + 1)
    edit(own / "video_preprocessor_config.json", size={"shortest_edge": 1, "longest_edge": 70 * area * 2})
    assert Processor.from_checkpoint(own).budget == Budget(image=(3, 50), clip=(1, 70))
    # One bound alone is not lost.
    edit(own / "preprocessor_config.json", min_pixels=None)
    assert Processor.from_checkpoint(own).budget.image == (50, 50)
    edit(own / "preprocessor_config.json", min_pixels=area, max_pixels=None)
    assert Processor.from_checkpoint(own).budget.image == (1, 16384)


def test_released_sizes(tmp_path: Path) -> None:
    vision = preset("8B").vision
    files = {
        "preprocessor_config.json": {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16},
        "video_preprocessor_config.json": {"size": {"longest_edge": 25165824, "shortest_edge": 4096}, "patch_size": 16},
    }
    for file, raw in files.items():
        (tmp_path / file).write_text(json.dumps(raw))
    assert read_preprocessors(tmp_path, vision) == (vision, Budget(image=(64, 16384), clip=(2, 12288)))


def test_normalisation_reaches_the_vision_config(own: Path) -> None:
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        edit(own / name, image_mean=[0, 0.25, 0.5], image_std=[0.5, 0.25, 1])
    vision = Processor.from_checkpoint(own).config.vision
    assert vision.image_mean == (0.0, 0.25, 0.5) and vision.image_std == (0.5, 0.25, 1.0)
    edit(own / "video_preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(CheckpointError, match=r"for pictures and .* for clips; the model has one normalisation"):
        Processor.from_checkpoint(own)
    edit(own / "preprocessor_config.json", image_mean=None, image_std=None)  # which means the released 0.5
    edit(own / "video_preprocessor_config.json", image_std=None)
    assert Processor.from_checkpoint(own).config.vision.image_mean == (0.5, 0.5, 0.5)
    edit(own / "video_preprocessor_config.json", image_mean=[0.1, 0.5, 0.5])
    with pytest.raises(CheckpointError, match=r"image_mean is \[0\.5, .* for pictures and \[0\.1, .* for clips"):
        Processor.from_checkpoint(own)


def test_a_checkpoint_s_own_cap_on_frames(own: Path) -> None:
    whole = Processor.from_checkpoint(own).ask("?", [clip(4, 80, 80)])
    edit(own / "video_preprocessor_config.json", cap_pixels_per_frame=True, max_video_tokens=9)
    capped = Processor.from_checkpoint(own)
    assert capped.budget.single == 9
    assert capped.ask("?", [clip(4, 80, 80)]).patches[0].grids == ((6, 6),) * 2 != whole.patches[0].grids
    for changes in ({"max_video_tokens": 0}, {"max_video_tokens": 9, "cap_pixels_per_frame": "yes"}):
        edit(own / "video_preprocessor_config.json", **changes)
        with pytest.raises(CheckpointError, match=r"expected (a number of tokens|true or false)"):
            Processor.from_checkpoint(own)


def test_a_checkpoint_s_own_clip_sampling(own: Path) -> None:
    edit(own / "video_preprocessor_config.json", fps=2, min_frames=2, max_frames=5)
    processor = Processor.from_checkpoint(own)
    assert processor.clip_sampling == ClipSampling(min_frames=2, max_frames=5)
    assert len(processor.ask("?", [clip(9, 16, 16)]).patches[0].grids) == 3
    assert len(processor.ask("?", [clip(9, 16, 16)], clip_sampling=ClipSampling()).patches[0].grids) == 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_size": 14}, "patch_size is 14, but config.json says 4"),
        ({"merge_size": 4}, "merge_size is 4, but config.json says 2"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1, but config.json says 2"),
        ({"size": {"height": 4, "width": 4}}, "size is .*; expected shortest_edge and longest_edge"),
        ({"size": {"shortest_edge": "x"}}, "a size is 'x'; expected a number of pixels"),
        ({"size": {"shortest_edge": 6400, "longest_edge": 640}}, "the smallest size is 100 vision tokens, the largest 10"),
        ({"image_mean": [0.5]}, "image_mean is .*; expected 3 numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std is .*; expected 3 numbers"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"resample": 2}, "resample is 2"),
        ({"rescale_factor": 1.0}, r"rescale_factor is 1\.0; expected 1/255"),
    ],
)
def test_preprocessor_files_that_do_not_fit(own: Path, changes: dict[str, Any], says: str) -> None:
    edit(own / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: {says}"):
        Processor.from_checkpoint(own)


def test_a_video_file_that_does_not_fit(own: Path) -> None:
    edit(own / "video_preprocessor_config.json", patch_size=14)
    with pytest.raises(CheckpointError, match=r"video_preprocessor_config\.json: patch_size is 14"):
        Processor.from_checkpoint(own)


def share(own: Path) -> dict[str, Any]:
    """Turn the two files into the one that transformers 5 saves; return its content."""
    sections = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    raw = {section: json.loads((own / file).read_text()) for section, file in sections.items()}
    for file in sections.values():
        (own / file).unlink()
    (own / "processor_config.json").write_text(json.dumps({**raw, "processor_class": "Qwen3VLProcessor"}))
    return raw


def test_sections_of_one_file_say_the_same_as_two_files(own: Path) -> None:
    edit(own / "preprocessor_config.json", image_mean=[0, 0.25, 0.5])
    edit(own / "video_preprocessor_config.json", image_mean=[0, 0.25, 0.5], max_frames=6)
    before = Processor.from_checkpoint(own)
    share(own)
    after = Processor.from_checkpoint(own)
    for name in ("config", "budget", "clip_sampling"):
        assert getattr(after, name) == getattr(before, name)
    assert after.budget == BUDGET and after.clip_sampling.max_frames == 6 and after.config.vision.image_mean[1] == 0.25


def test_files_go_before_sections_and_must_not_contradict_them(own: Path) -> None:
    raw = share(own)
    image, area = own / "preprocessor_config.json", FACTOR**2
    # A file that says more or the same; the clips' section is still read.
    image.write_text(json.dumps(raw["image_processor"]))
    edit(own / "processor_config.json", image_processor={"resample": None, "patch_size": 4})
    assert Processor.from_checkpoint(own).budget == BUDGET
    edit(own / "processor_config.json", image_processor=raw["image_processor"])
    edit(image, size={"shortest_edge": area, "longest_edge": 9 * area})
    with pytest.raises(CheckpointError, match=r"/preprocessor_config\.json: size is .*, but processor_config\.json has .* in"):
        Processor.from_checkpoint(own)
    edit(own / "processor_config.json", image_processor=None)  # as older versions wrote the file: without sections
    assert Processor.from_checkpoint(own).budget.image == (1, 9)


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("image_processor", {"patch_size": 14}, "image_processor: patch_size is 14, but config.json says 4"),
        ("video_processor", {"resample": 2}, "video_processor: resample is 2"),
        ("video_processor", {"size": {"height": 3}}, "video_processor: size is .*; expected shortest_edge"),
        ("video_processor", {"image_mean": "x"}, "video_processor: image_mean is 'x'; expected 3 numbers"),
        ("image_processor", [1], "image_processor is a list; an object was expected"),
    ],
)
def test_sections_that_do_not_fit(own: Path, section: str, value: Any, says: str) -> None:
    share(own)
    edit(own / "processor_config.json", **{section: value})
    with pytest.raises(CheckpointError, match=rf"/processor_config\.json: {says}"):
        Processor.from_checkpoint(own)


def test_a_tokenizer_of_another_model(own: Path) -> None:
    raw = json.loads((own / "config.json").read_text())
    edit(own / "config.json", image_token_id=raw["image_token_id"] - 1)
    with pytest.raises(CheckpointError, match=rf"<\|image_pad\|> is {raw['image_token_id']}, but config"):
        Processor.from_checkpoint(own)
    edit(own / "config.json", image_token_id=raw["image_token_id"], text_config={**raw["text_config"], "vocab_size": 319})
    with pytest.raises(CheckpointError, match=r"ids up to 319, but config\.json has a vocab_size of 319"):
        Processor.from_checkpoint(own)


def test_end_tokens(processor: Processor) -> None:
    ids = [processor.tokenizer.token_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
    assert processor.end_ids == tuple(ids)
    one = Processor(processor.config, processor.tokenizer, processor.template, BUDGET, {"eos_token_id": 7})
    assert one.end_ids == (7,)

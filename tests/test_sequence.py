"""Layout, positions and rows of a sequence: goldens, parity with the reference's rope indices, and refusals."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Seq
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foveal.errors import PromptError
from foveal.sequence import Kind, Rule, Segment, Sequence, TextSegment, VisionSegment, build, padded
from tests.parity.reference import transformers

START, END, IMAGE, VIDEO, PAD = 152, 153, 150, 151, 0
Media = tuple[Kind, tuple[tuple[int, int], ...]]


def lay_out(segments: Seq[Segment], media: Seq[Media], **options: Any) -> Sequence:
    return build(
        segments,
        [grids for _, grids in media],
        kinds=[kind for kind, _ in media],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        merge=2,
        **options,
    )


def text(*ids: int) -> TextSegment:
    return TextSegment(ids)


GOLDEN_SEGMENTS: list[Segment] = [
    text(1, 2, START),
    VisionSegment(0, 0),
    text(END, 3, 4, START),
    VisionSegment(1, 0),
    text(END, 5, START),
    VisionSegment(1, 1),
    text(END, 6),
]
GOLDEN_MEDIA: list[Media] = [("image", ((4, 6),)), ("video", ((2, 4), (2, 4)))]


def test_the_released_layout_golden() -> None:
    """A picture of 4x6 patches and a clip of two 2x4 frames, as computed with the reference."""
    sequence = lay_out(GOLDEN_SEGMENTS, GOLDEN_MEDIA)
    ids = [1, 2, START, *[IMAGE] * 6, END, 3, 4, START, VIDEO, VIDEO, END, 5, START, VIDEO, VIDEO, END, 6]
    t = [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8, 9, 10, 10, 12, 13, 14, 15, 15, 17, 18]
    h = [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8, 9, 10, 10, 12, 13, 14, 15, 15, 17, 18]
    w = [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert sequence.token_ids.tolist() == ids
    assert sequence.position_ids.tolist() == [t, h, w]
    rows = iter(range(10))
    assert sequence.vision_rows.tolist() == [next(rows) if token in (IMAGE, VIDEO) else -1 for token in ids]
    assert sequence.next_position - len(sequence) == -3
    assert (len(sequence), sequence.num_vision_tokens, sequence.num_text_tokens) == (22, 10, 12)
    assert {array.dtype for array in (sequence.token_ids, sequence.position_ids, sequence.vision_rows)} == {np.dtype(np.int64)}


def test_vision_rows_follow_the_media_not_the_prompt() -> None:
    """Rows are numbered over the media in their order, wherever the prompt puts them."""
    media: list[Media] = [("image", ((2, 4),)), ("video", ((2, 2), (4, 2)))]
    segments = [VisionSegment(1, 0), text(7), VisionSegment(0, 0), text(8), VisionSegment(1, 1)]
    assert lay_out(segments, media).vision_rows.tolist() == [2, -1, 0, 1, -1, 3, 4]


def test_kept_tokens_move_nothing_else() -> None:
    whole = lay_out(GOLDEN_SEGMENTS, GOLDEN_MEDIA)
    kept = list(GOLDEN_SEGMENTS)
    kept[1] = VisionSegment(0, 0, tokens=((0, 2), (1, 0)))
    kept[3] = VisionSegment(1, 0, tokens=())
    part = lay_out(kept, GOLDEN_MEDIA)
    stays = np.array([i for i in range(len(whole)) if not (3 <= i < 9 and i not in (5, 6)) and i not in (13, 14)])
    assert part.token_ids.tolist() == whole.token_ids[stays].tolist()
    assert part.position_ids.tolist() == whole.position_ids[:, stays].tolist()
    assert part.next_position == whole.next_position
    assert [row for row in part.vision_rows.tolist() if row >= 0] == [0, 1, 2, 3]


def test_kept_tokens_in_any_order() -> None:
    part = lay_out([text(9), VisionSegment(0, 0, tokens=((1, 1), (0, 0)))], [("image", ((4, 4),))])
    assert part.position_ids.tolist() == [[0, 1, 1], [0, 2, 1], [0, 2, 1]]
    assert part.next_position == 3


def test_frames_of_different_sizes() -> None:
    sequence = lay_out([VisionSegment(0, 0), text(5), VisionSegment(0, 1)], [("video", ((2, 6), (4, 2)))])
    assert sequence.position_ids.tolist() == [[0, 0, 0, 3, 4, 4], [0, 0, 0, 3, 4, 5], [0, 1, 2, 3, 4, 4]]
    assert sequence.next_position == 6


def random_prompt(rng: np.random.Generator, *, between_frames: bool) -> tuple[list[Segment], list[Media]]:
    """Draw up to five pictures and clips with text around them and, if asked, between the frames."""
    media: list[Media] = []
    segments: list[Segment] = [text(*rng.integers(1, 100, rng.integers(1, 5)).tolist())]
    for m in range(rng.integers(0, 6)):
        kind: Kind = "video" if rng.random() < 0.5 else "image"
        grid = (2 * int(rng.integers(1, 7)), 2 * int(rng.integers(1, 7)))
        frames = int(rng.integers(1, 6)) if kind == "video" else 1
        media.append((kind, (grid,) * frames))
        for frame in range(frames):
            if between_frames or frame == 0:
                segments.append(text(*rng.integers(1, 100, rng.integers(0, 4)).tolist(), START))
            segments.append(VisionSegment(m, frame))
        segments.append(text(END))
    return segments, media


def reference_positions(model: str, sequences: list[Sequence], media: list[list[Media]], seconds: list[float] | None) -> Any:
    """Run the reference's rope index over a left-padded batch."""
    transformers()
    if model == "qwen3_vl":
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel as Model
    elif model == "qwen2_vl":
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel as Model
    else:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel as Model
    batch = padded(sequences, PAD)
    ids = torch.from_numpy(batch.token_ids)
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    grids = {
        kind: torch.tensor([[len(of), *of[0]] for one in media for k, of in one if k == kind], dtype=torch.long).reshape(-1, 3)
        for kind in ("image", "video")
    }
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=4))
    itself = SimpleNamespace(config=config)
    itself.get_vision_position_ids = functools.partial(Model.get_vision_position_ids, itself)
    extra = {} if seconds is None else {"second_per_grid_ts": torch.tensor(seconds)}
    positions, deltas = Model.get_rope_index(
        itself, ids, kinds, grids["image"], grids["video"], attention_mask=torch.from_numpy(batch.attention_mask), **extra
    )
    return batch, positions, deltas


def test_interleaved_equals_the_reference_on_random_batches() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        prompts = [random_prompt(rng, between_frames=True) for _ in range(3)]
        seen |= {kind for _, media in prompts for kind, _ in media}
        sequences = [lay_out(segments, media) for segments, media in prompts]
        batch, positions, deltas = reference_positions("qwen3_vl", sequences, [media for _, media in prompts], None)
        assert batch.position_ids.tolist() == positions.tolist()
        assert batch.deltas.tolist() == deltas[:, 0].tolist()
    assert seen == {"image", "video"}


@pytest.mark.parametrize(("rule", "model"), [("frame-index", "qwen2_vl"), ("seconds", "qwen2_5_vl")])
def test_older_rules_equal_the_reference_while_a_clip_is_not_longer_than_wide(rule: Rule, model: str) -> None:
    """Clips whose t axis stays inside the longer side: there, both ways to go on after a clip agree."""
    rng = np.random.default_rng(1)
    compared = 0
    for _ in range(60):
        segments, media = random_prompt(rng, between_frames=False)
        seconds = [float(rng.choice([0.1, 0.25, 0.3, 0.5, 1.0])) for _ in media]
        rates = [4 * s if rule == "seconds" else 1 for s in seconds]
        clips = [(grids, rate) for (kind, grids), rate in zip(media, rates, strict=True) if kind == "video"]
        if any(int((len(grids) - 1) * rate) >= max(grids[0]) // 2 for grids, rate in clips):
            continue
        compared += any(len(grids) > 1 for grids, _ in clips)
        options = {"seconds_per_grid": seconds, "tokens_per_second": 4.0} if rule == "seconds" else {}
        sequence = lay_out(segments, media, rule=rule, **options)
        per_clip = [rate / 4 for _, rate in clips] if rule == "seconds" else None
        batch, positions, deltas = reference_positions(model, [sequence], [media], per_clip)
        assert batch.position_ids.tolist() == positions.tolist()
        assert batch.deltas.tolist() == deltas[:, 0].tolist()
    assert compared >= 10


def test_after_a_long_clip_the_clock_passes_its_last_frame() -> None:
    """Qwen2-VL's paper and first code go on after the highest position used. transformers 5.23 adds the longer side only, so
    that text after a long clip would sit on positions the clip has taken; the older rule is kept."""
    clip: list[Media] = [("video", ((2, 4),) * 5)]
    segments = [text(1), *(VisionSegment(0, frame) for frame in range(5)), text(2)]
    sequence = lay_out(segments, clip, rule="frame-index")
    assert sequence.position_ids.tolist() == [
        [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6],
        [0] + [1] * 10 + [6],
        [0] + [1, 2] * 5 + [6],
    ]
    _, positions, _ = reference_positions("qwen2_vl", [sequence], [clip], None)
    assert positions[:, 0, :-1].tolist() == sequence.position_ids[:, :-1].tolist()
    assert positions[:, 0, -1].tolist() == [3, 3, 3]


def test_text_between_frames_ends_the_block_of_an_older_rule() -> None:
    segments = [VisionSegment(0, 0), VisionSegment(0, 1), text(7), VisionSegment(0, 2)]
    sequence = lay_out(segments, [("video", ((2, 2),) * 3)], rule="frame-index")
    assert sequence.position_ids[0].tolist() == [0, 1, 2, 3]
    assert sequence.next_position == 4


def test_seconds_are_cut_not_rounded() -> None:
    """0.3 s at 4 positions a second: frames at 0, 1.2, 2.4 and 3.6 take the positions 0, 1, 2 and 3."""
    sequence = lay_out(
        [VisionSegment(0, frame) for frame in range(4)],
        [("video", ((2, 2),) * 4)],
        rule="seconds",
        seconds_per_grid=[0.3],
        tokens_per_second=4,
    )
    assert sequence.position_ids[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [1, 2, 5, 22, 100])
def test_windows_join_to_the_whole(size: int) -> None:
    sequence = lay_out(GOLDEN_SEGMENTS, GOLDEN_MEDIA)
    windows = list(sequence.windows(size))
    assert [window.start for window in windows] == list(range(0, 22, size))
    assert all(len(window) <= size for window in windows)
    assert np.concatenate([window.token_ids for window in windows]).tolist() == sequence.token_ids.tolist()
    assert np.concatenate([window.position_ids for window in windows], axis=1).tolist() == sequence.position_ids.tolist()
    assert np.concatenate([window.vision_rows for window in windows]).tolist() == sequence.vision_rows.tolist()


def test_a_window_outside_is_refused() -> None:
    sequence = lay_out([text(1, 2)], [])
    assert len(sequence.window(1, 1)) == 0
    for start, stop in ((-1, 1), (0, 3), (2, 1)):
        with pytest.raises(IndexError, match="2 tokens"):
            sequence.window(start, stop)
    with pytest.raises(ValueError, match="at least one"):
        list(sequence.windows(0))


def test_padding_sides() -> None:
    pair = [lay_out([text(1)], []), lay_out([text(2, 3), VisionSegment(0, 0)], [("image", ((2, 4),))])]
    left, right = padded(pair, 9), padded(pair, 9, side="right")
    assert left.token_ids.tolist() == [[9, 9, 9, 1], [2, 3, IMAGE, IMAGE]]
    assert right.token_ids.tolist() == [[1, 9, 9, 9], [2, 3, IMAGE, IMAGE]]
    assert left.attention_mask.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert left.position_ids.shape == (3, 2, 4)
    assert left.position_ids[:, 1].tolist() == pair[1].position_ids.tolist()
    assert left.deltas.tolist() == right.deltas.tolist() == [0, 0]


IMG: Media = ("image", ((4, 4),))
CLIP: Media = ("video", ((4, 4), (4, 4)))


@pytest.mark.parametrize(
    ("segments", "media", "options", "message"),
    [
        ([text(1)], [IMG], {}, "media 1 has 1 frames but the prompt uses 0"),
        ([VisionSegment(0, 0)], [], {}, "refers to media 1, but 0 were given"),
        ([VisionSegment(0, 0), VisionSegment(0, 0)], [IMG], {}, "media 1 has 1 frames.*found frame 1 after the last"),
        ([VisionSegment(0, 1), VisionSegment(0, 0)], [CLIP], {}, "found frame 2 where frame 1 belongs"),
        ([VisionSegment(0, 0)], [CLIP], {}, "media 1 has 2 frames but the prompt uses 1"),
        ([VisionSegment(-1, 0)], [IMG], {}, "refers to media 0"),
        ([], [], {}, "empty"),
        ([text()], [], {}, "empty"),
        ([text(1, VIDEO)], [], {}, f"placeholder id {VIDEO}"),
        ([VisionSegment(0, 0)], [("image", ((3, 4),))], {}, "3x4 patches; both sides must be multiples of 2"),
        ([VisionSegment(0, 0)], [("image", ((0, 4),))], {}, "0x4 patches"),
        ([VisionSegment(0, 0)], [("image", ())], {}, "media 1 .image. has 0 grids"),
        ([VisionSegment(0, 0)], [("image", ((4, 4), (4, 4)))], {}, "has 2 grids; an image has one"),
        ([VisionSegment(0, 0)], [("audio", ((4, 4),))], {}, "kind 'audio'"),
        ([VisionSegment(0, 0, tokens=((2, 0),))], [IMG], {}, r"keeps token \(2, 0\), outside its grid of 2x2"),
        ([VisionSegment(0, 0, tokens=((1, 0), (1, 0)))], [IMG], {}, "keeps 2 tokens, 1 of them distinct"),
        ([VisionSegment(0, 0)], [IMG], {"rule": "spiral"}, "unknown position rule 'spiral'"),
        ([VisionSegment(0, 0)], [IMG], {"rule": "seconds"}, "needs tokens_per_second"),
        ([VisionSegment(0, 0)], [IMG], {"rule": "seconds", "tokens_per_second": 2, "seconds_per_grid": []}, "found 0"),
    ],
)
def test_refusals(segments: list[Segment], media: list[Media], options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        lay_out(segments, media, **options)


def test_refusals_of_padding_and_of_kinds() -> None:
    with pytest.raises(PromptError, match="nothing to pad"):
        padded([], 0)
    with pytest.raises(PromptError, match="not on 'middle'"):
        padded([lay_out([text(1)], [])], 0, side="middle")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="1 media have grids but 0 have a kind"):
        build([text(1)], [[(2, 2)]], kinds=[], image_token_id=1, video_token_id=2, merge=2)

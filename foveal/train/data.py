"""World items to training examples, through the same prompt, patches and sequence code that answers questions."""

from __future__ import annotations

import multiprocessing as mp
import queue
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveal.config import ModelConfig
from foveal.media import Frames
from foveal.messages import MediaInfo
from foveal.patches import Budget, Patches, patchify
from foveal.prompt import ChatTemplate
from foveal.sequence import Sequence, build
from foveal.tokenizer import Tokenizer
from foveal.train.looks import Look, View, looks
from foveal.world import (
    CLIP_KINDS,
    PICTURE_KINDS,
    QUESTION_KINDS,
    Difficulty,
    Item,
    Question,
    cell_labels,
    clip_item,
    picture_item,
)
from foveal.world.questions import count_questions
from foveal.world.scene import Scene, sample_size

IGNORE = -100
NO_BOX = -1.0
QUARTERS = 4  # characters are named at half a patch


@dataclass(frozen=True)
class CellTargets:
    """Dense targets of an example's vision tokens.

    classes: (V, merge*merge, 2) int64, kind and colour of every patch of a token;
    chars: (V, merge*merge, QUARTERS) int64, the character in every quarter of a patch (digits are narrower than a patch);
    boxes: (V, 4) float32, x1 y1 x2 y2 in 0..1 of the picture: the part, inside the token, of the thing that covers most of
    it, NO_BOX where there is none; marks: (V, 5) float32, 1 where the middle of a thing, its left end, top, right end, bottom
    lies in the token.
    """

    classes: np.ndarray
    chars: np.ndarray
    boxes: np.ndarray
    marks: np.ndarray


@dataclass(frozen=True)
class Example:
    """One conversation about one picture or clip.

    labels: (T,) the id each row must predict, IGNORE elsewhere; turns: (T,) the number of the question a labelled row
    answers, -1 elsewhere; kinds: the kind of every question, an index into QUESTION_KINDS; looks: where rows should look.
    """

    sequence: Sequence
    labels: np.ndarray
    turns: np.ndarray
    kinds: tuple[int, ...]
    patches: Patches
    cells: CellTargets
    looks: tuple[Look, ...] = ()


class ExampleMaker:
    """Turns an Item into an Example with a checkpoint's own tokenizer, template and budget."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate, budget: Budget) -> None:
        self.config, self.tokenizer, self.template, self.budget = config, tokenizer, template, budget
        self._start = tokenizer.token_id("<|im_start|>")
        self._end = tokenizer.token_id("<|im_end|>")
        self._assistant = tokenizer.encode_text("assistant\n")

    def __call__(self, item: Item) -> Example:
        height, width = item.pixels.shape[1:3]
        frames = Frames(item.pixels, item.times_s, item.kind, (height, width), "world")
        patches = patchify(frames, self.config.vision, self.budget)
        messages: list[dict[str, Any]] = []
        for i, question in enumerate(item.questions):
            parts: list[dict[str, Any]] = [{"type": item.kind}] if i == 0 else []
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question.question}]})
            messages.append({"role": "assistant", "content": question.answer})
        media = [MediaInfo(item.kind, patches.times_s)]
        prompt = self.template.render(messages, media=media, add_generation_prompt=False)
        sequence = build(
            prompt.segments, [patches.grids], kinds=[item.kind], merge=patches.merge,
            image_token_id=self.config.image_token_id, video_token_id=self.config.video_token_id,
        )  # fmt: skip
        labels, turns = self.label(sequence.token_ids)
        kinds = tuple(QUESTION_KINDS.index(q.kind) for q in item.questions)
        cells = _cell_targets(item, patches, self.config)
        per_step = 1 if item.kind == "image" else self.config.vision.temporal_patch_size
        where = looks(View(item, patches, sequence, self.tokenizer, per_step), turns)
        return Example(sequence, labels, turns, kinds, patches, cells, where)

    def label(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label what the assistant says and its end mark, found by the chat markers, which no text can imitate."""
        labels = np.full(len(ids), IGNORE, np.int64)
        turns = np.full(len(ids), -1, np.int64)
        head = np.array([self._start, *self._assistant])
        turn = 0
        for start in np.flatnonzero(ids == self._start):
            if not np.array_equal(ids[start : start + len(head)], head):
                continue
            first = start + len(head)
            last = first + int(np.flatnonzero(ids[first:] == self._end)[0])
            labels[first - 1 : last] = ids[first : last + 1]
            turns[first - 1 : last] = turn
            turn += 1
        return labels, turns


def _cell_targets(item: Item, patches: Patches, config: ModelConfig) -> CellTargets:
    vision = config.vision
    per = 1 if item.kind == "image" else vision.temporal_patch_size
    block = vision.spatial_merge_size**2
    classes = np.zeros((len(patches.pixels), 2), np.int64)
    chars = np.zeros((len(patches.pixels), QUARTERS), np.int64)
    boxes = np.full((len(patches.pixels) // block, 4), NO_BOX, np.float32)
    marks = np.zeros((len(boxes), 5), np.float32)
    tokens = patches.coords[::block]
    for t, (rows, columns) in enumerate(patches.grids):
        size = rows * vision.patch_size, columns * vision.patch_size
        # A frame pair is named after its last frame: what has appeared by then counts.
        frame = min(t * per + per - 1, len(item.pixels) - 1)
        found = cell_labels(item, size, cell=vision.patch_size, frame=frame)
        mine = patches.coords[:, 0] == t
        at = patches.coords[mine, 1], patches.coords[mine, 2]
        classes[mine] = np.stack([found.kind[at], found.colour[at]], axis=1)
        fine = cell_labels(item, size, cell=vision.patch_size // 2, frame=frame).char
        chars[mine] = fine.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(rows, columns, QUARTERS)[at]
        here = tokens[:, 0] == t
        places = tokens[here, 1:] // vision.spatial_merge_size
        counts = np.array([rows, columns]) // vision.spatial_merge_size
        boxes[here], marks[here] = _parts(item.object_map[frame], places, counts)
    return CellTargets(classes.reshape(-1, block, 2), chars.reshape(-1, block, QUARTERS), boxes, marks)


def _parts(objects: np.ndarray, places: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure, for tokens at rows and columns `places` (n, 2) of a grid of `counts`, what they show of the objects (H, W).

    Return boxes (n, 4) and marks (n, 5) as in CellTargets.
    """
    size = np.array(objects.shape)
    low, high = (places * size / counts).round().astype(int), ((places + 1) * size / counts).round().astype(int)
    boxes, marks = np.full((len(places), 4), NO_BOX, np.float32), np.zeros((len(places), 5), np.float32)
    shown = np.full(len(places), -1)
    for i, ((y1, x1), (y2, x2)) in enumerate(zip(low, high, strict=True)):
        inside = objects[y1:y2, x1:x2]
        things = inside[inside >= 0]
        if len(things):
            shown[i] = np.bincount(things).argmax()
            ys, xs = np.nonzero(inside == shown[i])
            boxes[i] = x1 + xs.min(), y1 + ys.min(), x1 + xs.max() + 1, y1 + ys.max() + 1
    for thing in np.unique(shown[shown >= 0]):
        mine = shown == thing
        ends = np.concatenate([boxes[mine, :2].min(0), boxes[mine, 2:].max(0)])
        marks[mine, 1:] = np.abs(boxes[mine] - ends) <= 2  # pixels
        middle = ((ends[1] + ends[3]) / 2, (ends[0] + ends[2]) / 2)
        marks[((low <= middle) & (middle < high)).all(1), 0] = 1
    boxes[shown >= 0] /= np.tile(size[::-1], 2)
    return boxes, marks


@dataclass(frozen=True)
class Mix:
    """What a stretch of training is fed: pictures of `difficulty`, and a share of clips (of `clips`, where that is given).

    counts: questions about numbers that every picture gets besides its own.
    """

    difficulty: Difficulty
    clip_share: float = 0.0
    clips: Difficulty | None = None
    counts: int = 0

    def of_one_size(self, seed: int) -> Mix:
        """Fix the size of all pictures, and that of all clips, by a seed."""
        rng = np.random.default_rng([seed, 78])
        level, clips = self.difficulty, self.clips or self.difficulty
        picture = sample_size(rng, level.min_side, level.max_side, level.max_ratio)
        clip = sample_size(rng, *clips.clip_side, clips.max_ratio)
        return Mix(replace(level, size=picture), self.clip_share, replace(clips, size=clip), self.counts)


@dataclass
class Feed:
    """Makes batches of examples in a background process: seeds in order from `seed`, kinds asked in proportion to weights.

    The pictures of a batch are of one size, and come before its clips, which are of another: frames of equal length are
    attended to in one call. What it makes depends on these values alone, so a run that resumes with them sees the same
    batches. Closing ends it.
    """

    maker: ExampleMaker
    batch_size: int
    seed: int
    mix: Mix
    weights: dict[str, float]

    def __post_init__(self) -> None:
        context = mp.get_context("fork")
        self._queue: mp.Queue[Any] = context.Queue(maxsize=4)
        self._process = context.Process(target=self._produce, daemon=True)
        self._process.start()

    def _produce(self) -> None:
        import torch

        # The trainer's own handlers came along with the fork; here the end is the end, and Ctrl-C is the trainer's affair.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        seed = self.seed
        try:
            while True:
                mix = self.mix.of_one_size(seed)
                items = [make_item(seed + i, mix, self.weights) for i in range(self.batch_size)]
                seed += self.batch_size
                self._queue.put([self.maker(item) for item in sorted(items, key=lambda item: item.kind)])
        except Exception as e:
            self._queue.put(e)

    def __iter__(self) -> Iterator[list[Example]]:
        while True:
            try:
                batch = self._queue.get(timeout=60)
            except queue.Empty:
                if self._process.is_alive():
                    continue
                raise RuntimeError(f"the data process ended with exit code {self._process.exitcode}") from None
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def make_item(seed: int, mix: Mix, weights: dict[str, float], split: str = "train") -> Item:
    """Make the item of a seed under a mix; a share of the seeds are clips."""
    rng = np.random.default_rng([seed, 77])
    clip = rng.random() < mix.clip_share
    kinds = CLIP_KINDS if clip else PICTURE_KINDS
    level = mix.clips if clip and mix.clips is not None else mix.difficulty
    level = replace(level, questions=tuple((kind, weights[kind]) for kind in kinds))
    if clip:
        return clip_item(seed, level, split)
    item = picture_item(seed, level, split)
    return replace(item, questions=item.questions + _further_counts(item, mix.counts, rng)) if mix.counts else item


def _further_counts(item: Item, most: int, rng: np.random.Generator) -> tuple[Question, ...]:
    """Draw questions about numbers that were not asked yet; most groups are of one thing, so large ones are likelier."""
    assert isinstance(item.truth, Scene)
    asked = {question.names for question in item.questions if question.kind == "count"}
    pool = [question for question in count_questions(item.truth, rng) if question.names not in asked]
    size = np.array([len(question.boxes) for question in pool], np.float64)
    drawn = rng.choice(len(pool), size=min(most, len(pool)), replace=False, p=size / size.sum()) if pool else ()
    return tuple(pool[i] for i in drawn)

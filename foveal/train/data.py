"""World items to training examples, through the same prompt, patches and sequence code that answers questions."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveal.config import ModelConfig
from foveal.media import Frames
from foveal.messages import MediaInfo
from foveal.patches import Budget, Patches, patchify
from foveal.prompt import ChatTemplate
from foveal.sequence import Sequence as Tokens
from foveal.sequence import build
from foveal.thinking import CLOSE, OPEN
from foveal.tokenizer import Tokenizer
from foveal.train.cells import CellTargets, cell_targets
from foveal.train.looks import Look, looks
from foveal.train.view import View
from foveal.world import (
    CASE_KINDS,
    CASE_QUESTIONS,
    CLIP_CASES,
    CLIP_KINDS,
    PICTURE_KINDS,
    QUESTION_KINDS,
    Case,
    Difficulty,
    Item,
    Question,
    clip_item,
    full_name,
    make,
    picture_item,
)
from foveal.world.questions import count_questions
from foveal.world.scene import Scene, sample_size

IGNORE = -100
ALONE_S = 5.0  # between two looks at whether the trainer lives, while the queue is full
CLOSED = f"\n{CLOSE}\n\n"  # what is forced on a model that has opened a thought and may not think
ASKED: tuple[str, ...] = (*QUESTION_KINDS, *(name for kind in CASE_KINDS for name in CASE_QUESTIONS[kind]))
"""The names under which questions are counted, the first edition's before the second's."""


@dataclass(frozen=True)
class Example:
    """One conversation about one picture or clip, or several.

    labels: (T,) the id each row must predict, IGNORE elsewhere; turns: (T,) the number of the question a labelled row
    answers, -1 elsewhere; kinds: the name of every question, an index into ASKED; media: what is shown, in order; cells:
    targets of all its vision tokens; looks: where rows should look.
    """

    sequence: Tokens
    labels: np.ndarray
    turns: np.ndarray
    kinds: tuple[int, ...]
    media: tuple[Patches, ...]
    cells: CellTargets
    looks: tuple[Look, ...] = ()

    @property
    def patches(self) -> Patches:
        """The only picture or clip."""
        (patches,) = self.media
        return patches

    def cells_by_medium(self) -> Iterator[CellTargets]:
        """Yield the targets of each picture or clip."""
        first = 0
        for patches in self.media:
            yield self.cells.take(first, first + patches.num_tokens)
            first += patches.num_tokens


class ExampleMaker:
    """Turns an Item or a Case into an Example with a checkpoint's own tokenizer, template and budget."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate, budget: Budget) -> None:
        self.config, self.tokenizer, self.template, self.budget = config, tokenizer, template, budget
        self._start = tokenizer.token_id("<|im_start|>")
        self._end = tokenizer.token_id("<|im_end|>")
        self._assistant = tokenizer.encode_text("assistant\n")
        self._closed = tokenizer.encode_template(CLOSED)

    def __call__(self, shown: Item | Case, think: bool = True) -> Example:
        """Make the example. A case's question that has its reasoning comes last, after the reasoning.

        Without `think` the thought is opened and closed at once, as `Sampling.thinking_tokens` of 0 does it: opening it is
        learned, its forced end is not, and the answer is.
        """
        items = (shown,) if isinstance(shown, Item) else shown.items
        questions = sorted(shown.questions, key=lambda question: bool(question.thinking))
        thoughts = [_thought(question, think) for question in questions]
        media = tuple(self._look(item) for item in items)
        sequence = self._lay_out(media, questions, thoughts)
        labels, turns = self.label(sequence.token_ids)
        for turn, thought in enumerate(thoughts):
            if thought == OPEN + CLOSED:
                forced = np.flatnonzero(turns == turn)[1 : 1 + len(self._closed)]
                assert np.array_equal(labels[forced], self._closed)
                labels[forced], turns[forced] = IGNORE, -1
        names = [question.kind if isinstance(shown, Item) else full_name(shown.kind, question.kind) for question in questions]
        vision = self.config.vision
        cells = CellTargets.cat([cell_targets(item, patches, vision) for item, patches in zip(items, media, strict=True)])
        view = View(items, media, sequence, self.tokenizer, vision.temporal_patch_size)
        where = looks(view, questions, turns, thoughts)
        return Example(sequence, labels, turns, tuple(map(ASKED.index, names)), media, cells, where)

    def _look(self, item: Item) -> Patches:
        size = item.pixels.shape[1:3]
        return patchify(Frames(item.pixels, item.times_s, item.kind, size, "world"), self.config.vision, self.budget)

    def _lay_out(self, media: Sequence[Patches], questions: Sequence[Question], thoughts: Sequence[str]) -> Tokens:
        messages: list[dict[str, Any]] = []
        for i, (question, thought) in enumerate(zip(questions, thoughts, strict=True)):
            parts: list[dict[str, Any]] = [{"type": m.kind} for m in media] if i == 0 else []
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question.question}]})
            messages.append({"role": "assistant", "content": thought + question.answer})
        infos = [MediaInfo(m.kind, m.times_s) for m in media]
        prompt = self.template.render(messages, media=infos, add_generation_prompt=False)
        return build(
            prompt.segments, [m.grids for m in media], kinds=[m.kind for m in media], merge=media[0].merge,
            image_token_id=self.config.image_token_id, video_token_id=self.config.video_token_id,
        )  # fmt: skip

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


def _thought(question: Question, think: bool) -> str:
    """Write what an assistant says before the answer."""
    if not question.thinking:
        return ""
    return f"{OPEN}\n{question.thinking}{CLOSED}" if think else OPEN + CLOSED


@dataclass(frozen=True)
class Mix:
    """What a stretch of training is fed: pictures of `difficulty`, and a share of clips (of `clips`, where that is given).

    counts: questions about numbers that every picture gets besides its own. cases: the share of the second edition, whose kinds
    are drawn in proportion to `case_kinds`; more: questions that a case gets besides its own, at most. thinking: how often a
    question that has its reasoning is answered with it.
    """

    difficulty: Difficulty
    clip_share: float = 0.0
    clips: Difficulty | None = None
    counts: int = 0
    cases: float = 0.0
    case_kinds: tuple[tuple[str, float], ...] = tuple((kind, 1.0) for kind in CASE_KINDS)
    more: int = 0
    thinking: float = 0.75

    def of_pictures(self) -> Mix:
        """Leave the clips out."""
        kinds = tuple((kind, weight) for kind, weight in self.case_kinds if kind not in CLIP_CASES)
        return replace(self, clip_share=0.0, case_kinds=kinds)

    def of_one_size(self, seed: int) -> Mix:
        """Fix the size of all pictures, and that of all clips, by a seed."""
        rng = np.random.default_rng([seed, 78])
        level, clips = self.difficulty, self.clips or self.difficulty
        picture = sample_size(rng, level.min_side, level.max_side, level.max_ratio)
        clip = sample_size(rng, *clips.clip_side, clips.max_ratio)
        return replace(self, difficulty=replace(level, size=picture), clips=replace(clips, size=clip))


@dataclass
class Feed:
    """Makes batches of examples in a background process: seeds in order from `seed`, kinds asked in proportion to weights.

    A batch has `batch_size` examples, or fewer where the next one would take it over `tokens`; one that is longer by itself is
    a batch of its own, since nothing is ever cut. The first edition's pictures of a batch are of one size, and come before its
    clips, which are of another: frames of equal length are attended to in one call. What it makes depends on these values
    alone, so a run that resumes with them sees the same batches. Closing ends it.
    """

    maker: ExampleMaker
    batch_size: int
    seed: int
    mix: Mix
    weights: dict[str, float]
    tokens: int | None = None

    def __post_init__(self) -> None:
        context = mp.get_context("fork")
        self._trainer = os.getpid()
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
                batch = self._batch(seed)
                seed += len(batch)
                self._put(sorted(batch, key=lambda example: example.media[0].kind))
        except Exception as e:
            self._put(e)

    def _put(self, made: list[Example] | Exception) -> None:
        """Queue what was made; end with a trainer that was killed, which could not close this."""
        while True:
            try:
                return self._queue.put(made, timeout=ALONE_S)
            except queue.Full:
                if os.getppid() != self._trainer:
                    os._exit(1)  # an ordinary end would wait until somebody has read what is queued

    def _batch(self, seed: int) -> list[Example]:
        mix, batch, room = self.mix.of_one_size(seed), list[Example](), self.tokens
        while len(batch) < self.batch_size:
            this = seed + len(batch)
            think = np.random.default_rng([this, 80]).random() < mix.thinking
            example = self.maker(make_subject(this, mix, self.weights), bool(think))
            if room is not None:
                room -= len(example.sequence)
                if room < 0 and batch:
                    break
            batch.append(example)
        return batch

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


def make_subject(seed: int, mix: Mix, weights: dict[str, float]) -> Item | Case:
    """Make what the example of a seed is about: a share of the seeds are cases."""
    rng = np.random.default_rng([seed, 79])
    if rng.random() >= mix.cases:
        return make_item(seed, mix, weights)
    share = np.array([weight * weights[kind] for kind, weight in mix.case_kinds])
    kind, _ = mix.case_kinds[int(rng.choice(len(share), p=share / share.sum()))]
    return make(kind, seed, more=mix.more)


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

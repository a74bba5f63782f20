"""The training loop: packed batches, a teacher's, dense and answer losses, resume, metrics as JSON lines."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveal.batch import Batch, PatchBatch
from foveal.errors import CheckpointError, ConfigError
from foveal.model import Qwen3VL
from foveal.train import checkpoint
from foveal.train.data import ASKED, IGNORE, Example, ExampleMaker, Feed, Mix
from foveal.train.dense import DenseHeads
from foveal.train.evidence import Evidence
from foveal.train.optimiser import MasterOptimiser, schedule
from foveal.train.teacher import Lessons, Teacher, trained_teacher
from foveal.world import CASE_KINDS, CASE_QUESTIONS, QUESTION_KINDS

# Kinds that cost many answer tokens, or that no other kind builds on, are asked less; what is hardest, more.
EMPHASIS = {
    "count": 1.5,
    "read_number": 1.5,
    "icon": 0.4,
    "box": 0.8,  # nearly never right to the last digit
    "describe": 0.3,
    "vanish_time": 0.4,
    "moves": 0.25,
    "clip_count": 0.3,
    "clip_colour": 0.4,
    "timeline": 0.1,
}


@dataclass(frozen=True)
class Stage:
    """What is fed and learned until a share `until` of all steps, in batches of `batch_size`.

    answers, dense, teacher, evidence: the weights of four losses: on the answers, on what every patch shows, on what the
    teacher says about the still pictures, on where questions about them look. 0 answers means the vision encoder alone.
    vision: the scale of its learning rates; what it has learned is soon lost to a decoder that knows nothing yet. 0: it stands
    still, a step takes little more than half as long, and of `dense` only the heads learn.
    tokens: the most that a batch may have, if that is fewer than `batch_size` examples have; see `Feed`.
    """

    until: float
    mix: Mix
    batch_size: int
    answers: float
    dense: float
    teacher: float = 0.0
    evidence: float = 0.0
    vision: float = 1.0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.teacher and not self.vision:
            raise ConfigError(f"teacher={self.teacher:g}, but the encoder stands still; set teacher to 0, or vision above 0")


MAY_CHANGE = ("steps", "teacher_steps", "save_every", "log_every")  # of the settings, from one sitting to the next


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result. recipe: the name of its stages."""

    steps: int
    recipe: str = ""
    lr: float = 1.5e-3
    muon_lr: float = 0.01
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    warmup: int = 30
    teacher_steps: int = 600
    seed: int = 1
    save_every: int = 100
    reweigh_every: int = 100
    log_every: int = 20


class Trainer:
    """Trains a model in place. `folder` holds the checkpoint and metrics.jsonl; an existing checkpoint is resumed."""

    def __init__(
        self, model: Qwen3VL, maker: ExampleMaker, settings: Settings, stages: Sequence[Stage], folder: Path,
    ) -> None:  # fmt: skip
        self.model, self.maker, self.settings, self.stages, self.folder = model, maker, settings, stages, folder
        vision = model.config.vision
        torch.manual_seed(settings.seed)
        self.heads = DenseHeads(model.config.text.hidden_size, 1 + len(vision.taps), vision.spatial_merge_size**2)
        self.lessons, self.evidence = Lessons(model.visual), Evidence(model.language_model)
        self.teacher: Teacher | None = None
        extra = {"dense": self.heads, "lessons": self.lessons, "evidence": self.evidence}
        named = [*model.named_parameters(), *((f"{k}.{n}", p) for k, m in extra.items() for n, p in m.named_parameters())]
        self.optimiser = MasterOptimiser(
            named, lr=settings.lr, muon_lr=settings.muon_lr, weight_decay=settings.weight_decay, betas=settings.betas,
            clip=settings.clip,
        )  # fmt: skip
        self._stopping = False
        self.step, self.next_seed, self.elapsed_s = 0, 0, 0.0
        self.accuracy = dict.fromkeys(ASKED, 0.0)  # teacher-forced, whole answers, decayed mean
        self.weights, self.weighed_at = self._weigh(), 0
        if (folder / checkpoint.FILE).is_file():
            tensors, state = checkpoint.load(folder)
            self._check_same_run(state)
            self.optimiser.restore(tensors)
            self.step, self.next_seed, self.elapsed_s = state["step"], state["next_seed"], state["elapsed_s"]
            self.accuracy |= state["accuracy"]
            self.weights |= state["weights"]
            self.weighed_at = state["weighed_at"]

    def _check_same_run(self, state: dict[str, Any]) -> None:
        """Refuse to go on with another recipe or with pictures of another size. What an older state does not say may be."""
        for what in ("budget", "settings"):
            then = state.get(what, {})
            now = json.loads(json.dumps(asdict(self.maker.budget if what == "budget" else self.settings)))
            other = [key for key in then if key not in MAY_CHANGE and then[key] != now.get(key)]
            if other:
                said, given = ({key: side.get(key) for key in other} for side in (then, now))
                raise CheckpointError(
                    f"{self.folder} was trained with a {what} of {said}, but {given} was given; go on with the same --start, "
                    "--edition and --image-tokens, or begin in another folder"
                )

    def stage(self) -> Stage:
        """Return the stage the next step belongs to."""
        share = self.step / self.settings.steps
        return next((s for s in self.stages if share < s.until), self.stages[-1])

    def run(self) -> None:
        """Train to the last step, or until `stop`; either way the state is saved.

        An exception leaves the last checkpoint as it is: what it interrupted is half a step. Raise FloatingPointError, with
        the step, when a gradient is not finite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stage, sums = self.stage(), _Means()
        feed: Feed | None = None
        try:
            while self.step < self.settings.steps and not self._stopping:
                due = self.step % self.settings.reweigh_every == 0 and self.step > self.weighed_at
                if feed is None or due or self.stage() is not stage:
                    if due:
                        self.weights, self.weighed_at = self._weigh(), self.step
                    stage = self.stage()
                    if feed is not None:
                        feed.close()
                        feed = None
                    if stage.teacher and self.teacher is None:
                        self.teacher = self._find_teacher(stage)
                        if self.teacher is None:
                            break
                    feed = Feed(
                        self.maker, stage.batch_size, self.next_seed, stage.mix, dict(self.weights), stage.tokens
                    )  # fmt: skip
                    batches = iter(feed)
                started = time.perf_counter()
                examples = next(batches)
                waited = time.perf_counter() - started
                metrics = self._train_step(examples, stage)
                self.elapsed_s += time.perf_counter() - started
                self.step += 1
                self.next_seed += len(examples)
                size = {"examples": len(examples), "tokens": sum(len(e.labels) for e in examples)}
                sums.add(metrics | size | {"wait_s": waited, "step_s": time.perf_counter() - started})
                if self.step % self.settings.log_every == 0:
                    self._log(sums.take(), stage)
                if self.step % self.settings.save_every == 0:
                    self.save()
            self.save()
        finally:
            if feed is not None:
                feed.close()

    def stop(self) -> None:
        """End `run` after the step it is in, the teacher's too; safe to call from a signal handler."""
        self._stopping = True

    def save(self) -> None:
        """Write the resumable state."""
        state = {
            "step": self.step, "next_seed": self.next_seed, "elapsed_s": self.elapsed_s, "accuracy": self.accuracy,
            "weights": self.weights, "weighed_at": self.weighed_at,
            "settings": asdict(self.settings), "budget": asdict(self.maker.budget),
        }  # fmt: skip
        checkpoint.save(self.folder, self.optimiser.tensors(), state)

    def _find_teacher(self, stage: Stage) -> Teacher | None:
        """Read the teacher, or train it first, on pictures whose seeds lie beyond the run's. None when asked to stop."""
        feed = Feed(self.maker, stage.batch_size, 10**8, stage.mix.of_pictures(), dict(self.weights))
        batches = itertools.takewhile(lambda _: not self._stopping, feed)
        steps, seed = self.settings.teacher_steps, self.settings.seed
        try:
            return trained_teacher(self.folder, batches, steps, dtype=self.model.dtype, seed=seed)
        finally:
            feed.close()

    def _weigh(self) -> dict[str, float]:
        """Ask most about what is answered worst: by kind of question, and of the second edition by kind of case."""
        weights = {kind: (1.15 - self.accuracy[kind]) * EMPHASIS.get(kind, 1.0) for kind in QUESTION_KINDS}
        for kind in CASE_KINDS:
            weights[kind] = 1.15 - sum(self.accuracy[name] for name in CASE_QUESTIONS[kind]) / len(CASE_QUESTIONS[kind])
        return weights

    def _train_step(self, examples: list[Example], stage: Stage) -> dict[str, float]:
        # On a CPU the fused attention's backward pass is several times slower than plain products at the lengths of the first
        # edition. At those of the second it is not, and a step takes an eighth less.
        fused = [SDPBackend.FLASH_ATTENTION] if stage.mix.cases else []
        with sdpa_kernel([SDPBackend.MATH, *fused]):
            loss, metrics = self._losses(examples, stage)
            loss.backward()
        scale = schedule(self.step, self.settings.steps, self.settings.warmup)
        try:
            metrics["grad_norm"] = self.optimiser.step(scale, stage.vision)
        except FloatingPointError as e:
            seeds = f"seeds {self.next_seed}..{self.next_seed + len(examples) - 1}"
            raise FloatingPointError(f"step {self.step} ({seeds}): {e}; the last good checkpoint is in {self.folder}") from None
        return metrics

    def _losses(self, examples: list[Example], stage: Stage) -> tuple[Tensor, dict[str, float]]:
        self.lessons.listener.on = self.teacher is not None and bool(stage.teacher)
        patches = PatchBatch.pack([m for e in examples for m in e.media], self.model.config.vision)
        with torch.set_grad_enabled(stage.vision > 0):
            vision = self.model.encode(patches)
        loss = torch.zeros(())
        metrics: dict[str, float] = {}
        if self.teacher is not None and stage.teacher:
            lessons = self.lessons(self.teacher, examples)
            loss = loss + stage.teacher * lessons
            metrics["lessons"] = lessons.item()
        if stage.dense:
            dense, seen = self.heads(vision, [e.cells for e in examples])
            metrics |= seen
            loss = loss + stage.dense * dense
            metrics["dense"] = dense.item()
        if stage.answers:
            labels = torch.from_numpy(np.concatenate([e.labels for e in examples]))
            rows = (labels != IGNORE).nonzero().flatten()
            batch = Batch.pack([e.sequence for e in examples], vision).with_output(rows)
            self.evidence.listener.on = bool(stage.evidence)
            logits = self.model(batch).float()
            each = F.cross_entropy(logits, labels[rows], reduction="none")
            share = torch.from_numpy(np.concatenate([answer_shares(e.turns) for e in examples]))[rows]
            answers = (each * share).sum() / share.sum()
            loss = loss + stage.answers * answers
            metrics["loss"] = answers.item()
            if stage.evidence:
                amiss, said = self.evidence.loss(examples)
                metrics |= said
                loss = loss + stage.evidence * amiss
                metrics["evidence"] = amiss.item()
            self._count(examples, rows, logits.detach().argmax(-1) == labels[rows])
        return loss, metrics

    def _count(self, examples: list[Example], rows: Tensor, right: Tensor) -> None:
        """Follow, per kind of question, how many whole answers are predicted right."""
        first, turns = 0, []
        kinds: list[int] = []
        for e in examples:
            turns.append(np.where(e.turns >= 0, e.turns + first, -1))
            kinds += e.kinds
            first += len(e.kinds)
        turn = torch.from_numpy(np.concatenate(turns))[rows]
        whole = torch.ones(first).scatter_reduce(0, turn, right.float(), "amin").tolist()
        for kind, value in zip(kinds, whole, strict=True):
            name = ASKED[kind]
            self.accuracy[name] = 0.998 * self.accuracy[name] + 0.002 * value

    def _log(self, means: dict[str, float], stage: Stage) -> None:
        line: dict[str, Any] = {"step": self.step, "elapsed_s": round(self.elapsed_s, 1), "items": self.next_seed}
        line |= {key: round(value, 4) for key, value in means.items()}
        line["items_per_s"] = round(means["examples"] / means["step_s"], 1)
        if stage.answers:
            names = ASKED if stage.mix.cases else QUESTION_KINDS
            line["accuracy"] = {name: round(self.accuracy[name], 3) for name in names}
        with (self.folder / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")
        if sys.stderr.isatty():
            done = self.step / self.settings.steps
            left = (self.settings.steps - self.step) * means["step_s"]
            print(f"\r{done:6.1%} loss {means.get('loss', means.get('dense', 0)):.3f} "
                  f"{line['items_per_s']} items/s {left / 60:.0f} min left ", end="", file=sys.stderr)  # fmt: skip


def answer_shares(turns: np.ndarray) -> np.ndarray:
    """Weigh labelled rows, (T,) float32, by one over the square root of their answer's length.

    By row alone the forty tokens of a box, most of them punctuation, would drown an answer of one word.
    """
    shares = np.zeros(len(turns), np.float32)
    labelled = turns >= 0
    shares[labelled] = 1 / np.sqrt(np.bincount(turns[labelled])[turns[labelled]])
    return shares


class _Means:
    """Averages metrics between two lines of the log."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            self._values.setdefault(key, []).append(value)

    def take(self) -> dict[str, float]:
        means = {key: sum(values) / len(values) for key, values in self._values.items()}
        self._values.clear()
        return means

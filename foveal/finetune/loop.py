"""The fine-tuning loop: batches in, steps, evaluation, a log, and a checkpoint from which it goes on bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.errors import CheckpointError, ConfigError, DivergenceError
from foveal.finetune import fingerprint, plots, state
from foveal.finetune.balance import Balance
from foveal.finetune.log import Log
from foveal.finetune.loss import AnswerLoss, row_weights
from foveal.finetune.optimiser import Optimiser, schedule
from foveal.finetune.order import Cursor, Packed, Stream
from foveal.finetune.prepare import PARTS, prepare
from foveal.finetune.samples import SampleReader
from foveal.finetune.settings import TuneSettings
from foveal.finetune.sources import Source, open_source
from foveal.finetune.team import Team, whole
from foveal.finetune.track import open_trackers
from foveal.model import Qwen3VL

SMOOTHING = 0.95  # of the mean loss that tells divergence
SETTLED = round(1 / (1 - SMOOTHING))  # steps before which that mean is a few batches' own


class Tuner:
    """Fine-tunes a model in place. `settings.output` holds the state, the log and its picture; a state there is gone on with.

    progress: told, after every step, how far the run is (0 to 1) and the step's metrics; notify: told of bad lines that are
    left out; team: the processes that train it together, told by the first of them alone; base: the folder the model came
    from, so that a run is not gone on with on another. Raise DataError, ConfigError or CheckpointError for a run that cannot
    begin or go on.
    """

    def __init__(
        self, model: Qwen3VL, reader: SampleReader, settings: TuneSettings, *, team: Team | None = None,
        base: Path | None = None,
        progress: Callable[[float, dict[str, Any]], None] = lambda share, metrics: None,
        notify: Callable[[str], None] = lambda reason: None,
    ) -> None:  # fmt: skip
        self.model, self.reader, self.settings, self.progress, self.notify = model, reader, settings, progress, notify
        self.team = team or Team()
        if settings.plot:
            plots.require_matplotlib()
        self.sources = [open_source(spec, settings.sources) for spec in settings.data]
        self.stream = self._stream(self.sources, settings.epochs if settings.epochs or settings.steps else 1.0)
        examined = [open_source(spec, settings.sources) for spec in settings.eval]
        self.examination = self._stream(examined, 1.0) if examined else None
        self.data = [fingerprint.of_source(source) for source in self.sources]
        self.base = None if base is None else fingerprint.of_checkpoint(base)
        self.learning = prepare(model, settings)
        self.objective = AnswerLoss(model, settings.chunk)
        self.team.divide(model, self.objective)
        parameters = dict(model.named_parameters())
        self.learning = {part: {name: parameters[name] for name in held} for part, held in self.learning.items()}
        self.optimiser = Optimiser(
            self.learning, {part: getattr(settings, part) for part in PARTS}, weight_decay=settings.weight_decay,
            betas=settings.betas, clip=settings.clip,
        )  # fmt: skip
        self.balance = Balance(model) if settings.balance else None
        self.step, self.cursor, self.done = 0, Cursor(), 0.0
        self.mean_loss, self.mean_weight, self.lowest_loss = 0.0, 0.0, math.inf
        self.saved_step: int | None = None
        self.elapsed_s = 0.0
        self._stopping = False
        if (saved := state.newest(settings.output)) is not None:
            self._resume(saved)
        self.team.wait()  # nobody may begin, and save, before all have read
        kinds = settings.track if self.team.leads else ()
        trackers = open_trackers(kinds, settings.output, self.step, settings.same_run())
        self.log = Log(settings.output, self.step, writes=self.team.leads, trackers=trackers)

    @property
    def share(self) -> float:
        """How far the run is, 0 to 1."""
        total = self.settings.steps if self.settings.steps is not None else self.stream.total
        return min(1.0, (self.step if self.settings.steps is not None else self.done) / (total or 1))

    def run(self) -> bool:
        """Train to the end, or until `stop`; either way the state is saved. Return whether the end was reached.

        Raise DivergenceError, and leave the last checkpoint, when a loss or gradient is not finite or the loss runs away.
        """
        try:
            return self._run()
        finally:
            self.log.close()

    def _run(self) -> bool:
        if self.examination is not None and self.share < 1:
            for _ in self.examination.start(Cursor()):  # a bad line is found now, and not after the first hundred steps
                if self._stopping:
                    break
        self.model.train()
        stream = self.stream.start(self.cursor)
        try:
            while self.share < 1 and not self.team.any(self._stopping):
                started = time.perf_counter()
                packed = self._take(stream)
                if not packed:
                    break
                metrics = self._step(packed)
                seconds = time.perf_counter() - started
                self.elapsed_s += seconds
                self._record(packed, metrics, seconds)
                settings = self.settings
                if settings.eval_every and self.examination and self.step % settings.eval_every == 0:
                    self._evaluate()
                if self.step % settings.save_every == 0:
                    self.save()
        finally:
            stream.close()
        finished = self.share >= 1 or not self.team.any(self._stopping)
        unheard = finished and self.examination is not None and not self.log.has_evaluation(self.step)
        if unheard:
            self._evaluate()
        if unheard or self.saved_step != self.step:
            self.save()
        self.model.eval()
        return finished

    def stop(self) -> None:
        """End `run` after the step it is in; safe to call from a signal handler."""
        self._stopping = True

    def save(self) -> None:
        """Write the resumable state of this step, unless that is done, and the picture of the log.

        Raise DivergenceError, and keep the last state, where weights are not finite.
        """
        self.log.flush()
        if self.saved_step != self.step:
            if damaged := self.optimiser.damaged():
                some = ", ".join(damaged[:3]) + (f" and {len(damaged) - 3} more" if len(damaged) > 3 else "")
                raise DivergenceError(self._where(f"the last step made weights that are not finite, {some}", []))
            run = {
                "step": self.step, "cursor": asdict(self.cursor), "done": self.done, "elapsed_s": self.elapsed_s,
                "mean_loss": self.mean_loss, "mean_weight": self.mean_weight,
                "lowest_loss": self.lowest_loss if math.isfinite(self.lowest_loss) else None,
                "settings": self.settings.same_run(), "data": self.data, "base": self.base,
            }  # fmt: skip
            state.save(self.settings.output, self.step, self.optimiser.tensors(), run, self.team.leads)
            self.saved_step = self.step
        if self.settings.plot and self.team.leads and self.log.file.is_file():
            figure = plots.new_figure(8, 3)
            plots.draw_run(figure, self.log.file)
            plots.save(figure, self.settings.output / "run.png")

    def learned(self) -> dict[str, Tensor]:
        """Gather what has been learned, in float32 on the CPU, by name. All processes take part, and the first gets it."""
        out: dict[str, Tensor] = {}
        for name, master in self.optimiser.masters.items():
            value = whole(master.detach())
            if self.team.leads:
                out[name] = value.cpu()
        return out

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss of a learned token over the evaluation sources, of which there are some."""
        assert self.examination is not None
        self.model.eval()
        total, weight = torch.zeros((), dtype=torch.float64), 0.0
        stream = self.examination.start(Cursor())
        while packed := list(islice(stream, self.team.data)):
            for turn in self.team.turns(len(packed)):
                loss = self.objective(packed[turn.batch].samples, "token").item()
                total += loss if turn.counts else 0.0
            weight += sum(sample.learned for batch in packed for sample in batch.samples)
        if self.balance is not None:
            self.balance.forget()
        self.team.rest(self.objective)
        self.model.train()
        return self.team.sum(total).item() / max(weight, 1.0)

    def _stream(self, sources: Sequence[Source], epochs: float | None) -> Stream:
        settings = self.settings
        return Stream(
            sources, self.reader, seed=settings.seed, window=settings.window, batch_size=settings.batch_size,
            batch_tokens=settings.batch_tokens, epochs=epochs, workers=settings.workers,
            skipped=self.notify if settings.skip_bad else None,
        )  # fmt: skip

    def _take(self, stream: Iterator[Packed]) -> list[Packed]:
        """Take the batches of a step: `accumulate`, or what is left of the last epoch."""
        if self.settings.steps is not None and self.step >= self.settings.steps:
            return []
        return list(islice(stream, self.settings.accumulate))

    def _step(self, packed: Sequence[Packed]) -> dict[str, Any]:
        """Run the batches of a step forward and backward, then step. Their losses share one norm, as if they were one batch."""
        settings, step, team = self.settings, self.step, self.team
        total_weight = float(sum(row_weights(batch.samples, settings.loss).sum() for batch in packed))
        losses = torch.zeros(len(packed), dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            for turn in team.turns(len(packed)):
                torch.manual_seed(_dropout_seed(settings.seed, step, turn.batch))
                seen = any(sample.request.patches for i in turn.all for sample in packed[i].samples)
                part = self.objective(packed[turn.batch].samples, settings.loss, others_see=seen) / total_weight
                if turn.counts:
                    losses[turn.batch] = part.item()
                if self.balance is not None:
                    part = part + settings.balance / len(packed) * self.balance.take()
                if part.requires_grad:  # text alone teaches an encoder nothing
                    (part * (team.data if turn.counts else 0)).backward()  # FSDP2 takes the mean of what it sums up
                self.optimiser.collect()
                if self.balance is not None:
                    self.balance.forget()
        values = team.sum(losses).tolist()
        for batch, value in zip(packed, values, strict=True):
            self._require_finite(value, "loss", [batch])
        loss = sum(values)
        self._watch(loss, total_weight, packed)
        now, end = self.share, self._share_after(packed[-1])
        scale = schedule((now + end) / 2, settings.warmup, settings.floor)
        norm = self.optimiser.step(scale)
        self._require_finite(norm, "gradient norm", packed)
        self.step, self.cursor, self.done = step + 1, packed[-1].after, packed[-1].done
        return {"loss": loss, "weight": total_weight, "grad_norm": norm, "lr_scale": scale}

    def _share_after(self, last: Packed) -> float:
        if self.settings.steps is not None:
            return (self.step + 1) / self.settings.steps
        return last.done / (self.stream.total or 1)

    def _require_finite(self, value: float, what: str, packed: Sequence[Packed]) -> None:
        if not math.isfinite(value):
            raise DivergenceError(self._where(f"the {what} is {value}", packed))

    def _watch(self, loss: float, weight: float, packed: Sequence[Packed]) -> None:
        """Follow the mean loss, and stop a run in which it left its lowest far behind."""
        self.mean_loss = SMOOTHING * self.mean_loss + (1 - SMOOTHING) * loss * weight
        self.mean_weight = SMOOTHING * self.mean_weight + (1 - SMOOTHING) * weight
        if self.step < SETTLED:  # one easy batch would be the lowest, and every other far above it
            return
        mean = self.mean_loss / self.mean_weight
        limit = self.settings.divergence
        if limit and mean > limit * self.lowest_loss + 1:
            raise DivergenceError(self._where(f"the mean loss is {mean:.3g} and was {self.lowest_loss:.3g}", packed))
        self.lowest_loss = min(self.lowest_loss, mean)

    def _where(self, what: str, packed: Sequence[Packed]) -> str:
        places = [str(sample.place) for batch in packed for sample in batch.samples]
        shown = ", ".join(places[:16]) + (f" and {len(places) - 16} more" if len(places) > 16 else "")
        batch = f"the batch was {shown}; " if places else ""  # an evaluation has none
        good = "there is no checkpoint yet"
        if self.saved_step is not None:
            folder = state.place(self.settings.output, self.saved_step)
            good = f"the last good checkpoint, of step {self.saved_step}, is {folder}"
        return f"step {self.step}: {what}; {batch}{good}; lower the learning rates, or look at the data"

    def _record(self, packed: Sequence[Packed], metrics: dict[str, Any], seconds: float) -> None:
        samples = [sample for batch in packed for sample in batch.samples]
        tokens = sum(map(len, samples))
        line = {
            "step": self.step, "share": round(self.share, 5), "epoch": round(self.done / self.stream.size, 4),
            "samples": len(samples), "tokens": tokens, "learned": sum(sample.learned for sample in samples),
            "tokens_per_s": round(tokens / seconds, 1), "elapsed_s": round(self.elapsed_s, 2), **metrics,
        }  # fmt: skip
        self.log.add(line, write=self.step % self.settings.log_every == 0)
        if self.team.leads:
            self.progress(self.share, line)

    def _evaluate(self) -> None:
        started = time.perf_counter()
        loss = self.evaluate()
        self._require_finite(loss, "evaluation loss", [])  # before such weights take the place of the last good ones
        line = {"step": self.step, "eval_loss": loss, "eval_s": round(time.perf_counter() - started, 2)}
        self.log.add(line)
        if self.team.leads:
            self.progress(self.share, line)

    def _resume(self, folder: Path) -> None:
        run = state.read_run(folder)
        self._require_same(run, folder)
        names = state.names(folder)
        wanted = {f"master.{name}" for name in self.optimiser.masters}
        held = {name for name in names if name.startswith("master.")}
        if wanted != held:
            raise CheckpointError(f"{folder} holds {len(held)} weights that learn, but this run has {len(wanted)}")
        tensors = self.optimiser.room(names)
        state.load(folder, tensors)
        self.optimiser.restore(tensors)
        self.step, self.cursor, self.done = run["step"], Cursor(**run["cursor"]), run["done"]
        self.mean_loss, self.mean_weight, self.elapsed_s = run["mean_loss"], run["mean_weight"], run["elapsed_s"]
        self.lowest_loss = math.inf if run["lowest_loss"] is None else run["lowest_loss"]
        self.saved_step = self.step

    def _require_same(self, run: Mapping[str, Any], folder: Path) -> None:
        """Require that a state belongs to these settings, this data and this base: the same run, or none."""
        then, now = run["settings"], self.settings.same_run()
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                longer = ""
                if name in ("steps", "epochs"):  # the schedule has ended where the old one did
                    longer = "; to train longer, begin another run from what this one has learned (docs/finetuning.md#longer)"
                raise ConfigError(
                    f"{name} is {now.get(name)!r}, but {folder} was begun with {then.get(name)!r}; change it back to go on, or "
                    f"name another output for another run{longer}"
                )
        if run["data"] != self.data:
            raise ConfigError(
                f"the data has changed since {folder} was begun: {run['data']} became {self.data}; name another output"
            )
        if run["base"] != self.base:
            raise ConfigError(
                f"{self.settings.base or 'the embedded model'} has changed since {folder} was begun on it; put it back, or "
                "name another output"
            )


def _dropout_seed(seed: int, step: int, batch: int) -> int:
    """Derive the seed of a batch's dropout: a function of its place, and nothing to save, whichever process runs it."""
    return int(np.random.SeedSequence([seed, step, batch]).generate_state(1, np.uint32)[0])

"""Records to samples: media read, prompt laid out, labels found, all by the code that answers questions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from foveal.errors import DataError, FovealError
from foveal.finetune.formats import read_record
from foveal.finetune.labels import IGNORE, Labeller
from foveal.finetune.settings import TuneSettings
from foveal.finetune.sources import Place, Source
from foveal.media import ClipSampling
from foveal.patches import Budget
from foveal.processor import Processor, Request


@dataclass(frozen=True, eq=False)
class Sample:
    """A conversation to learn from; labels, turns: (T,) int64, as in labels.py."""

    place: Place
    request: Request
    labels: np.ndarray
    turns: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def learned(self) -> int:
        """Count the labelled rows."""
        return int(np.count_nonzero(self.labels != IGNORE))


class SampleReader:
    """Reads records with a checkpoint's own processor.

    budget, clip_sampling: instead of the checkpoint's; max_tokens: the longest sample, by default the context. Nothing is ever
    cut off a sample, since a picture without the rest of its tokens is noise.
    """

    def __init__(
        self, processor: Processor, *, budget: Budget | None = None, clip_sampling: ClipSampling | None = None,
        max_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.processor = processor
        self.budget, self.clip_sampling = budget or processor.budget, clip_sampling or processor.clip_sampling
        self.max_tokens = max_tokens or processor.config.text.max_position_embeddings
        self.label = Labeller(processor.template)

    def __call__(self, source: Source, index: int) -> Sample:
        """Read one record. Raise DataError that begins with its file and line."""
        place = source.place(index)
        try:
            return self._read(source, index, place)
        except FovealError as error:
            said = str(error)
            raise DataError(said if said.startswith(f"{place}: ") else f"{place}: {said}") from error

    def _read(self, source: Source, index: int, place: Place) -> Sample:
        said = read_record(source.record(index), source.root)
        request = self.processor(
            said.messages, tools=said.tools, budget=self.budget, clip_sampling=self.clip_sampling, add_generation_prompt=False
        )
        if len(request.sequence) > self.max_tokens:
            counts = ", ".join(f"{n} {kind}" for kind, n in request.tokens_by_kind().items() if n)
            raise DataError(f"the sample has {len(request.sequence)} tokens ({counts}), but at most {self.max_tokens} fit")
        answers = sum(message["role"] == "assistant" for message in said.messages)
        return Sample(place, request, *self.label(request.sequence.token_ids, answers))


def reader_of(processor: Processor, settings: TuneSettings | None) -> SampleReader:
    """Make the reader that a run's settings describe; a sample must fit into a packed batch, too."""
    if settings is None:
        return SampleReader(processor)
    budget, clips = processor.budget, processor.clip_sampling
    budget = replace(budget, image=settings.image_tokens or budget.image, clip=settings.clip_tokens or budget.clip)
    if settings.fps is not None or settings.frames is not None:
        clips = replace(clips, fps=settings.fps, num_frames=settings.frames)
    context = processor.config.text.max_position_embeddings
    limits = [n for n in (settings.max_tokens, settings.batch_tokens, context) if n is not None]
    return SampleReader(processor, budget=budget, clip_sampling=clips, max_tokens=min(limits))

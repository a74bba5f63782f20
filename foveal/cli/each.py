"""`foveal ask --each`: the same question about every file by itself, all at once through the engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from foveal.cli import session, show
from foveal.cli.ask import answer_json
from foveal.cli.inputs import read_inputs
from foveal.cli.options import MediaOptions, ModelOptions, SamplingOptions
from foveal.errors import FovealError, PromptError


def run(
    words: tuple[str, ...], model: ModelOptions, media: MediaOptions, sampling: SamplingOptions, as_json: bool
) -> None:  # fmt: skip
    """Write one line a file, in their order; what goes wrong with one is said on stderr, and the others are answered."""
    inputs = read_inputs(words)
    session.check(model, media, sampling)
    if not inputs.files:
        raise PromptError("--each asks about every file by itself, but no file is named; name some, or leave it out")
    failed = 0
    with session.progress() as line:
        pipeline = session.load(model, line)
        chosen = session.sampling(sampling, pipeline.processor.generation)
        arguments: dict[str, Any] = session.media_arguments(media, pipeline) | {"system": sampling.system}
        from foveal.engine import Engine, Settings

        with Engine(pipeline, Settings(max_waiting=len(inputs.files))) as engine:
            streams = [engine.ask(inputs.question, file, sampling=chosen, **arguments) for file in inputs.files]
            for number, (file, stream) in enumerate(zip(inputs.files, streams, strict=True)):
                line(f"{number} of {len(streams)} answered")
                try:
                    answer = stream.answer
                except FovealError as error:
                    failed += 1
                    line.done()
                    why = " ".join(str(error).split()).removeprefix(f"{Path(file).name}: ")
                    session.note(f"{file}: {why}")
                    continue
                line.done()
                if as_json:
                    show.write_json({"file": file} | answer_json(answer, pipeline.name), lines=True)
                else:
                    sys.stdout.write(f"{file}: {' '.join(answer.text.split())}\n")
                    sys.stdout.flush()
    if failed:
        raise PromptError(f"{failed} of {len(streams)} files could not be answered; each is named above")

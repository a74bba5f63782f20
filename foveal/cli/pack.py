"""`foveal pack`: a checkpoint with packed weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.cli import session, show
from foveal.cli.models import check_runnable
from foveal.config import read_json
from foveal.errors import ConfigError
from foveal.hub import check_new, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence as Several

    from foveal.model.feedback import Moments
    from foveal.patches import Patches
    from foveal.sequence import Sequence

CONVERSATIONS = 64


def run(directory: Path, name: str | None, bits: int, calibrate: Path | None, conversations: int | None) -> None:
    if name is None:
        raise ConfigError(f"name the checkpoint to pack with -m, a folder or a hub name: foveal pack {directory} -m 2B")
    if conversations is not None and calibrate is None:
        raise ConfigError("--conversations counts those of --calibrate; name its file as well, or leave it out")
    if conversations is not None and conversations < 1:
        raise ConfigError(f"--conversations is {conversations}; calibrating takes one or more")
    check_runnable(name)
    check_new(directory)  # before anything is fetched, loaded or calibrated
    from foveal.model.load import load_model
    from foveal.model.quantize import is_packed, num_bytes, save_packed

    source = resolve(name)
    if is_packed(read_json(source / "config.json")):
        raise ConfigError(f"{source} is packed already; pack the original again for another width")
    with session.progress() as line:
        moments = None if calibrate is None else gathered(source, calibrate, conversations or CONVERSATIONS, line)
        line(f"packing {name} to {bits} bits")
        model = load_model(source, bits=bits, moments=moments)
        line(f"writing {show.num_bytes(num_bytes(model))}")
        save_packed(model, directory, bits, copy_from=source)
    session.note(f"wrote {directory}: {show.num_bytes(num_bytes(model))} of weights; foveal ask -m {directory} maps them")


def gathered(source: Path, file: Path, count: int, line: session.Progress) -> dict[str, Moments]:
    """Run some conversations of a file of training data, from all over it, through the plain model."""
    from foveal.finetune.samples import SampleReader
    from foveal.finetune.sources import open_source
    from foveal.generate import Pipeline
    from foveal.model.feedback import gather

    records = open_source(str(file))
    count = min(count, len(records))
    line(f"loading {source}")
    pipeline = Pipeline.load(source, bits=0)
    read = SampleReader(pipeline.processor)

    def conversations() -> Iterator[tuple[Sequence, Several[Patches]]]:
        for number in range(count):
            line(f"calibrating with {number + 1} of {count} conversations")
            request = read(records, number * len(records) // count).request
            yield request.sequence, request.patches

    return gather(pipeline.model, conversations())

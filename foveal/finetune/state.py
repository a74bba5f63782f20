"""The resumable state of a run, in torch's distributed format: what any number of processes saves, any other can load.

state/step-N holds the tensors, divided or not, and run.json beside them. It is written under another name, moved into place
when it is complete, and only then is the one before removed: a kill leaves the one or the other whole.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor

from foveal.errors import CheckpointError

FOLDER, RUN = "state", "run.json"
_PART = ".part"


def place(output: Path, step: int) -> Path:
    """Name the folder of a step."""
    return output / FOLDER / f"step-{step}"


def newest(output: Path) -> Path | None:
    """Find the last state of a run that was written to its end."""
    found = _states(output)
    return found[max(found)] if found else None


def _states(output: Path, suffix: str = "") -> dict[int, Path]:
    """List the states of a run by step, `suffix` behind their names; whatever else lies beside them is not ours."""
    found = {}
    for path in (output / FOLDER).glob("step-*"):
        match = re.fullmatch(rf"step-([0-9]+){re.escape(suffix)}", path.name)
        if match is not None and path.is_dir():
            found[int(match[1])] = path
    return found


def save(output: Path, step: int, tensors: Mapping[str, Tensor], run: Mapping[str, Any], leads: bool) -> Path:
    """Write a state; all processes take part, and the one that leads moves it into place. Return its folder.

    Raise CheckpointError, and leave the state before, when it cannot be written.
    """
    target = place(output, step)
    part = target.with_name(target.name + _PART)
    if leads:
        for left in _states(output, _PART).values():
            shutil.rmtree(left)
    try:
        with _alone_is_fine():
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(part))
        if leads:
            (part / RUN).write_text(json.dumps(run), encoding="utf-8")
            part.replace(target)
    except (dcp.CheckpointException, OSError) as error:
        if leads:  # what was written of it may be what fills the disk
            shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"{target} could not be written: {_reason(error)}; the state before it, if any, is whole: free some space, and the "
            "same command goes on from there"
        ) from None
    if leads:
        for old in _states(output).values():
            if old != target:
                shutil.rmtree(old)
    return target


def _reason(error: dcp.CheckpointException | OSError) -> str:
    """Say why; torch's exception is a traceback of every process for the most part."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "; ".join(dict.fromkeys(str(failure[0]).split("\n")[0] for failure in error.failures.values()))


def read_run(folder: Path) -> dict[str, Any]:
    """Read what `save` was given as `run`. Raise CheckpointError if that is not there."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RUN} cannot be read: {error}; name another output to begin again") from None
    assert isinstance(run, dict)
    return run


def names(folder: Path) -> set[str]:
    """List the tensors of a state."""
    return set(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)


def load(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, divided or not, with the values that a state has under their names; all processes take part."""
    with _alone_is_fine():
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder))


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Let torch not warn that there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        yield

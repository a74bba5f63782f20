"""`foveal pack`: a checkpoint with packed weights."""

from __future__ import annotations

from pathlib import Path

from foveal.cli import session, show
from foveal.cli.models import check_runnable
from foveal.config import read_json
from foveal.errors import ConfigError


def run(directory: Path, name: str, bits: int) -> None:
    check_runnable(name)
    from foveal.hub import resolve
    from foveal.model.load import load_model
    from foveal.model.quantize import is_packed, num_bytes, save_packed

    source = resolve(name)
    if source.resolve() == directory.resolve():
        raise ConfigError(f"{directory} is the checkpoint itself; name another folder to write")
    if is_packed(read_json(source / "config.json")):
        raise ConfigError(f"{source} is packed already; pack the original again for another width")
    with session.progress() as line:
        line(f"packing {name} to {bits} bits")
        model = load_model(source, bits=bits)
        line(f"writing {show.num_bytes(num_bytes(model))}")
        save_packed(model, directory, bits, copy_from=source)
    session.note(f"wrote {directory}: {show.num_bytes(num_bytes(model))} of weights; foveal ask -m {directory} maps them")

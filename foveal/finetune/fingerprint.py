"""What a run was begun with, in few bytes, to notice that it is another when the run is gone on with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from foveal.finetune.sources import Source

_BASE = (".safetensors", ".json", ".jinja")  # of a checkpoint, what decides how it learns
_WHOLE, _HEAD = 2**26, 2**22  # bytes of a file that is read to its end; of a larger one's beginning, with the tensors' header
_SAMPLES, _SAMPLE = 1024, 2**12


def of_source(source: Source) -> dict[str, Any]:
    """Say what an epoch takes of which file; not where that lies, since a run may be moved or started from elsewhere."""
    options = source.options
    with options.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": options.path.name, "share": options.share, "weight": options.weight, "records": len(source),
        "sha256": digest[:16],
    }  # fmt: skip


def of_checkpoint(folder: Path) -> dict[str, str]:
    """Digest the files of a checkpoint by name: small ones whole, of large ones the size, the beginning and a sample."""
    return {file.name: _sampled(file) for file in sorted(folder.iterdir()) if file.suffix in _BASE}


def _sampled(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as data:
        digest.update(data.read(size if size <= _WHOLE else _HEAD))
        if size > _WHOLE:
            for at in range(_HEAD, size, size // _SAMPLES):
                data.seek(at)
                digest.update(data.read(_SAMPLE))
    return digest.hexdigest()[:16]

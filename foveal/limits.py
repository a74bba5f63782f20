"""What this machine can do at most: bytes a second from memory, products a second of every kind of linear.

Measured at first use in about 0.2 s and kept in the user's cache, in a file named after all that the figures depend on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from foveal import kernels
from foveal.kernels.library import cache_folder, file_name

PATHS = ("float32", "bfloat16", "8 bits", "4 bits")  # torch's linears, then the native kernels'
TOKENS = (1, 16, 256)  # rows of a measured linear
BUDGET_S = 0.2
_SIDE = 1024  # of the measured weight: small enough that all runs fit into the budget
_RUNS_S = 0.008  # for the runs of one figure
_READ_MB = 64
_FORMAT = 1


@dataclass(frozen=True)
class Limits:
    """Speeds of this machine with the threads that torch and the kernels have now.

    read_bytes_per_s: of memory, all threads together. ops_per_s: multiplications and additions of a linear whose weight is in
    the processor's cache, by path, one for each of TOKENS; where there are no native kernels, torch's paths only. quiet:
    nothing else seemed to run meanwhile; if not, the figures are too low, and one path's more than another's.
    """

    read_bytes_per_s: float
    ops_per_s: Mapping[str, tuple[float, ...]]
    quiet: bool = True

    def speed(self, path: str, tokens: int) -> float:
        """Return the operations a second of a linear for so many rows: of the largest count measured up to it."""
        return self.ops_per_s[path][sum(tokens >= count for count in TOKENS[1:])]

    def peak(self, path: str) -> float:
        """Return the most operations a second a path reached."""
        return max(self.ops_per_s[path])


def limits() -> Limits:
    """Return this machine's limits: as kept, else measured now. A machine that is too busy to tell is not remembered."""
    return _limits(tuple(_machine().items()), kept_in())


def kept_in() -> Path:
    """Return the file that keeps the limits; without it they are measured anew."""
    key = hashlib.sha256(json.dumps(_machine()).encode()).hexdigest()
    return cache_folder().parent / f"limits-{key[:16]}.json"


def measure() -> Limits:
    """Measure the limits, the best of a few runs each, in BUDGET_S or less; once that is over each has two runs.

    A machine is quiet if it took no more than twice as long, and no linear was much slower with more rows.
    """
    import torch

    native = kernels.available()  # compiled by now, if it can be
    began = time.perf_counter()
    if native:
        read = kernels.read_bandwidth(_READ_MB, 3)
    else:
        many = torch.ones(_READ_MB << 18)
        read = many.nbytes / _best(many.sum, began)
        del many
    linear = torch.nn.functional.linear
    weight = torch.full((_SIDE, _SIDE), 0.01)
    half, packed = weight.bfloat16(), [kernels.pack(weight, bits) for bits in (8, 4)] if native else []
    speeds: dict[str, tuple[float, ...]] = {}
    with torch.inference_mode():
        for tokens in TOKENS:
            x = torch.full((tokens, _SIDE), 0.5)
            runs: dict[str, Callable[[], object]] = {
                "float32": functools.partial(linear, x, weight), "bfloat16": functools.partial(linear, x.bfloat16(), half),
            }  # fmt: skip
            runs |= {f"{one.bits} bits": functools.partial(kernels.matmul, x, one) for one in packed}
            for path, run in runs.items():
                speeds[path] = (*speeds.get(path, ()), 2 * tokens * _SIDE * _SIDE / _best(run, began))
    steady = all(after > before / 2 for found in speeds.values() for before, after in itertools.pairwise(found))
    return Limits(read, speeds, steady and time.perf_counter() - began <= 2 * BUDGET_S)


def _best(run: Callable[[], object], began: float) -> float:
    """Return the shortest of some runs in seconds: at least two, the first makes what is made once."""
    best, runs, first = math.inf, 0, time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best, runs = min(best, now - start), runs + 1
        if runs >= 2 and (now - first > _RUNS_S or now - began > BUDGET_S):
            return best


@functools.lru_cache(maxsize=8)
def _limits(machine: tuple[tuple[str, str | int], ...], file: Path) -> Limits:
    kept = _read(file, dict(machine))
    if kept is not None:
        return kept
    found = measure()
    if found.quiet:
        _write(file, dict(machine), found)
    return found


def _machine() -> dict[str, str | int]:
    """Name all that the figures depend on."""
    import torch

    native = kernels.available()
    return {
        "format": _FORMAT,
        "processor": _processor(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "library": file_name() if native else "none",
        "path": kernels.path() if native else "none",
        "threads": kernels.threads() if native else 0,
    }


@functools.cache
def _processor() -> str:
    """Name the processor's model; where the system does not, its kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(file: Path, machine: Mapping[str, str | int]) -> Limits | None:
    """Read kept limits; None where there are none, or none of this machine, or what is there is no such file."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        found = Limits(kept["read_bytes_per_s"], {path: tuple(speeds) for path, speeds in kept["ops_per_s"].items()})
        wanted = PATHS if machine["library"] != "none" else PATHS[:2]
        numbers = [found.read_bytes_per_s, *(speed for speeds in found.ops_per_s.values() for speed in speeds)]
        sound = (
            kept["machine"] == machine
            and tuple(found.ops_per_s) == wanted
            and all(len(speeds) == len(TOKENS) for speeds in found.ops_per_s.values())
            and all(isinstance(number, float) and 0 < number < math.inf for number in numbers)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if sound else None


def _write(file: Path, machine: Mapping[str, str | int], found: Limits) -> None:
    """Keep limits, whole or not at all; where the cache cannot be written they are measured again next time."""
    text = json.dumps(
        {"machine": machine, "read_bytes_per_s": found.read_bytes_per_s, "ops_per_s": dict(found.ops_per_s)}, indent=1
    )
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".json", dir=file.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text + "\n")
            os.replace(name, file)
        finally:
            Path(name).unlink(missing_ok=True)

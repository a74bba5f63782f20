"""One safetensors file: read with every byte accounted for, written tensor by tensor.

The format (8 bytes of header length, a JSON header, the tensors without gaps) is simple enough to own, and owning it buys
what the loader needs: a conversion holds one piece of a tensor and not the whole file, weights can stay mapped, a file is
written without holding it in memory, and a broken one is named with its reason. The tests hold it against the safetensors
library, both ways.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from foveal.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER = 100_000_000  # the limit of the safetensors library
# A cache line. A bfloat16 matrix-vector product over weights that straddle lines took 1.5 times as long (AVX-512, one row
# by 12288 x 2048), so tensors elsewhere are copied when loaded, and files are written so that they need not be.
ALIGNMENT = 64


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes start..stop of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class TensorFile:
    """A safetensors file open for reading. Raise CheckpointError if it is not one, from its first to its last byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
        except OSError as e:
            raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
        try:
            self.entries, self.metadata = self._read_header(size)
        except BaseException:
            self._file.close()
            raise
        self._mapping: mmap.mmap | None = None

    def close(self) -> None:
        """Close the file. Mapped tensors stay valid: each holds the mapping."""
        self._file.close()
        self._mapping = None

    def mapped(self, name: str) -> Tensor | None:
        """Return a tensor whose memory is the file, or None where it is not aligned to a cache line.

        Pages arrive when touched and are shared between processes; writing to the tensor never reaches the file.
        """
        entry = self.entries[name]
        if entry.start % ALIGNMENT or entry.start == entry.stop:
            return None
        if self._mapping is None:
            self._mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._mapping, dtype=entry.dtype, count=count, offset=entry.start).view(entry.shape)

    def give_back(self, names: Iterable[str]) -> Callable[[], None]:
        """Return a function that takes mapped tensors out of the process's memory until they are touched again.

        The system keeps the pages while it has room, so touching them costs a fault and no reading of the disk. What was
        written to them is lost.
        """
        spans: list[tuple[int, int]] = []
        for entry in sorted((self.entries[name] for name in names), key=lambda e: e.start):
            start = spans.pop()[0] if spans and spans[-1][1] == entry.start else entry.start
            spans.append((start, entry.stop))
        mapping, page = self._mapping, mmap.PAGESIZE
        whole = [(-(-start // page) * page, stop // page * page) for start, stop in spans]

        def give_back() -> None:
            if mapping is not None:
                for start, stop in whole:
                    if start < stop:
                        mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)

        return give_back

    def read(self, name: str, first: int = 0, stop: int | None = None, *, into: Tensor | None = None) -> Tensor:
        """Read a tensor, or its rows first..stop of the first axis, into memory of its own or `into` a contiguous tensor."""
        entry = self.entries[name]
        shape, start = entry.shape, entry.start
        if entry.shape:
            stop = entry.shape[0] if stop is None else stop
            shape, start = (stop - first, *entry.shape[1:]), entry.start + first * entry.row_bytes
        out = torch.empty(shape, dtype=entry.dtype) if into is None else into
        assert out.shape == shape and out.dtype == entry.dtype
        self._read_into(_bytes_of(out), start)
        return out

    def _read_into(self, target: memoryview, start: int) -> None:
        self._file.seek(start)
        while target:
            try:
                count = self._file.readinto(target)  # type: ignore[attr-defined]  # raw files have it
            except OSError as e:
                raise CheckpointError(f"{self.path} cannot be read: {e.strerror}") from None
            if not count:
                raise CheckpointError(f"{self.path} became shorter while it was read; load it again when it is complete")
            target = target[count:]

    def _broken(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a whole safetensors file: {why}; download or copy it again")

    def _read_header(self, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
        head = self._file.read(8)
        if head == b"version ":
            raise CheckpointError(f"{self.path} is a Git LFS pointer, not the weights; run git lfs pull in its folder")
        if len(head) < 8:
            raise self._broken(f"it has {size} bytes")
        length = int.from_bytes(head, "little")
        if length > MAX_HEADER:
            raise self._broken(f"its header would take {length} bytes, at most {MAX_HEADER} are allowed")
        if 8 + length > size:
            raise self._broken(f"its header of {length} bytes does not fit the file of {size}")
        try:
            header = json.loads(self._file.read(length), object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as e:
            raise self._broken(f"its header is not JSON ({e})") from None
        if not isinstance(header, dict):
            raise self._broken("its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
            raise self._broken("__metadata__ must map strings to strings")
        entries = {name: self._read_entry(name, raw, 8 + length) for name, raw in header.items()}
        end = 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start != end:
                raise self._broken(f"{name} starts at byte {entry.start} where {end} was expected")
            end = entry.stop
        if end != size:
            raise self._broken(f"its header describes {end} bytes, the file has {size}")
        return entries, metadata

    def _read_entry(self, name: str, raw: Any, base: int) -> Entry:
        if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
            raise self._broken(f"{name} needs dtype, shape and data_offsets")
        shape, offsets = raw["shape"], raw["data_offsets"]
        numbers = (shape, offsets)
        if any(not isinstance(part, list) or any(type(n) is not int or n < 0 for n in part) for part in numbers):
            raise self._broken(f"{name} has shape {shape} at {offsets}")
        if not isinstance(raw["dtype"], str) or raw["dtype"] not in DTYPES or len(offsets) != 2:
            raise self._broken(f"{name} has dtype {raw['dtype']!r} at {offsets}")
        dtype = DTYPES[raw["dtype"]]
        expected = math.prod(shape) * dtype.itemsize
        if offsets[1] - offsets[0] != expected:
            raise self._broken(f"{name}, {raw['dtype']} of shape {shape}, takes {expected} bytes but lies at {offsets}")
        return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _bytes_of(tensor: Tensor) -> memoryview:
    """View a contiguous tensor's memory."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out


def write_tensors(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    pieces: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file whose tensors start on cache lines where their sizes allow.

    `pieces(name)` gives the values of a tensor in order, in as many parts as it likes, in the dtype that was announced.
    """

    def nbytes(name: str) -> int:
        dtype, shape = tensors[name]
        return math.prod(shape) * dtype.itemsize

    # The format allows no gap, so a size that is no multiple of a line displaces all tensors behind it: those go last.
    order = sorted(tensors, key=lambda n: (nbytes(n) % ALIGNMENT != 0, -tensors[n][0].itemsize, n))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + nbytes(name)]}
        end += nbytes(name)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            written = 0
            for piece in pieces(name):
                assert piece.dtype == tensors[name][0], f"{name}: {piece.dtype}"
                written += file.write(_bytes_of(piece.contiguous()))
            assert written == nbytes(name), f"{name}: {written} bytes written, {nbytes(name)} announced"

"""Our reader and writer of safetensors against the library, and against files that are not what they claim."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.errors import CheckpointError
from foveal.model.tensorfile import ALIGNMENT, DTYPES, TensorFile, write_tensors

SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3, 5), (16,), (2, 0, 4), (64, 32))


def _values(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if dtype is torch.float8_e8m0fnu:
        return torch.randint(100, 140, shape, dtype=torch.uint8).view(dtype)
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 2, shape).to(dtype)


def _all() -> dict[str, Tensor]:
    return {f"{name}.{len(shape)}.{i}": _values(d, shape) for name, d in DTYPES.items() for i, shape in enumerate(SHAPES)}


def _same(a: Tensor, b: Tensor) -> bool:
    """Compare as bytes, which every dtype has."""
    return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    write_tensors(path, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}, lambda n: [tensors[n]], metadata or {})


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = _all()
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt"} and file.entries.keys() == tensors.keys()
    assert all(_same(file.read(name), value) for name, value in tensors.items())
    file.close()


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = _all()
    _write(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    theirs = load_file(tmp_path / "a.safetensors")
    assert theirs.keys() == tensors.keys()
    assert all(_same(theirs[name], value) for name, value in tensors.items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_rows_pieces_and_transposed_values(tmp_path: Path) -> None:
    value = torch.randn(10, 6)
    write_tensors(
        tmp_path / "a.safetensors",
        {"a": (torch.float32, (10, 6)), "t": (torch.float32, (6, 10))},
        lambda name: value.split(3) if name == "a" else [value.T],
        {},
    )
    file = TensorFile(tmp_path / "a.safetensors")
    assert torch.equal(file.read("a", 2, 7), value[2:7]) and torch.equal(file.read("a", 9), value[9:])
    assert torch.equal(file.read("t"), value.T)
    file.close()


def test_mapped_tensors_are_aligned_private_and_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _write(path, {"a": torch.arange(64.0), "b": torch.arange(128.0), "odd": torch.arange(3.0), "none": torch.empty(0)})
    before = path.read_bytes()
    file = TensorFile(path)
    mapped = {name: file.mapped(name) for name in ("a", "b", "none")}
    file.close()
    assert mapped["none"] is None
    a, b = mapped["a"], mapped["b"]
    assert a is not None and b is not None
    assert a.data_ptr() % ALIGNMENT == 0 and b.data_ptr() % ALIGNMENT == 0
    path.unlink()
    assert torch.equal(a, torch.arange(64.0)) and torch.equal(b, torch.arange(128.0))
    path.write_bytes(before)
    file = TensorFile(path)
    mapped_again = file.mapped("a")
    assert mapped_again is not None
    file.close()
    mapped_again.zero_()
    assert path.read_bytes() == before


def test_mapped_pages_that_were_given_back_come_again(tmp_path: Path) -> None:
    values = {name: torch.randn(8192) for name in "abc"}
    write_tensors(tmp_path / "x", {name: (torch.float32, (8192,)) for name in values}, lambda name: [values[name]], {})
    file = TensorFile(tmp_path / "x")
    mapped = {name: found for name in values if (found := file.mapped(name)) is not None}
    give_back = file.give_back(["c", "b"])
    file.close()
    for tensor in mapped.values():
        tensor[4096] = 7.0  # a page of its own: not in the file, so it shows which pages were given back
    give_back()
    assert mapped["a"][4096] == 7.0
    for name in "bc":
        assert torch.equal(mapped[name], values[name])


def test_a_tensor_off_a_cache_line_is_not_mapped(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0), "b": torch.arange(64.0)}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    for name, entry in file.entries.items():
        assert (file.mapped(name) is None) == (entry.start % ALIGNMENT != 0)
    assert any(entry.start % ALIGNMENT for entry in file.entries.values())
    file.close()


def _broken(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD: dict[str, tuple[Any, bytes, str]] = {
    "not json": (b"{", b"", "not JSON"),
    "not utf-8": (b'{"\xff": 1}', b"", "not JSON"),
    "a list": ([], b"", "not a JSON object"),
    "deep": (b"[" * 100_000, b"", "not JSON"),
    "twice": (b'{"a": 1, "a": 2}', b"", "occurs twice"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"0" * 8, "needs dtype"),
    "unknown dtype": ({"a": {**GOOD, "dtype": "F4"}}, b"0" * 8, "dtype 'F4'"),
    "list dtype": ({"a": {**GOOD, "dtype": ["F32"]}}, b"0" * 8, "dtype"),
    "negative": ({"a": {**GOOD, "shape": [-2]}}, b"0" * 8, "shape"),
    "boolean": ({"a": {**GOOD, "shape": [True]}}, b"0" * 8, "shape"),
    "size": ({"a": {**GOOD, "shape": [3]}}, b"0" * 8, "takes 12 bytes"),
    "three offsets": ({"a": {**GOOD, "data_offsets": [0, 8, 8]}}, b"0" * 8, "at"),
    "huge": ({"a": {**GOOD, "shape": [2**62, 2**62]}}, b"0" * 8, "takes"),
    "gap": ({"a": {**GOOD, "data_offsets": [4, 12]}}, b"0" * 12, "starts at byte"),
    "overlap": ({"a": GOOD, "b": GOOD}, b"0" * 8, "starts at byte"),
    "short": ({"a": GOOD}, b"0" * 7, "describes"),
    "long": ({"a": GOOD}, b"0" * 9, "describes"),
    "metadata": ({"__metadata__": {"a": 1}, "a": GOOD}, b"0" * 8, "__metadata__"),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_files_are_named_with_the_reason(name: str, tmp_path: Path) -> None:
    header, data, says = BAD[name]
    path = _broken(tmp_path / "a.safetensors", header, data)
    with pytest.raises(CheckpointError, match=says) as error:
        TensorFile(path)
    assert str(path) in str(error.value)
    with pytest.raises(SafetensorError):  # the library agrees that it is broken
        load_file(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for content, says in (
        (b"", "it has 0 bytes"),
        (b"1234567", "it has 7 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ((10**9).to_bytes(8, "little") + b"{}", "header would take"),
        ((99).to_bytes(8, "little") + b"{}", "does not fit"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            TensorFile(path)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        TensorFile(tmp_path / "none")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _write(path, {"a": torch.arange(5.0), "b": torch.arange(4)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            TensorFile(path)


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _write(path, {"a": torch.arange(1000.0)})
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="became shorter"):
        file.read("a")
    file.close()


@given(st.binary(max_size=60), st.integers(0, 200))
def test_noise_in_a_header_never_crashes(noise: bytes, at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        _write(path, {"a": torch.arange(5.0), "b": torch.arange(4)})
        whole = bytearray(path.read_bytes())
        whole[at : at + len(noise)] = noise
        path.write_bytes(whole)
        try:
            file = TensorFile(path)
        except CheckpointError:
            return
        for name in file.entries:
            file.read(name)
        file.close()

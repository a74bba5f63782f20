"""Arrays the kernels read and write: NumPy's or torch CPU tensors, checked and turned into addresses. Torch is not imported."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor on the CPU
TYPES = {"float32": 0, "bfloat16": 1, "uint16": 1, "float16": 2, "int8": 3}  # uint16: the bits of bfloat16 in NumPy
ALIGNMENT = 64  # a cache line
_names: dict[Any, str] = {}  # of dtypes met


def is_torch(x: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def facts(x: Array, what: str, dtypes: tuple[str, ...], dims: int) -> tuple[int, str, tuple[int, ...]]:
    """Return address, dtype and strides in elements, after a check of kind, dtype and number of axes."""
    if isinstance(x, np.ndarray):
        strides = tuple(s // x.itemsize for s in x.strides)
        address = x.__array_interface__["data"][0]
    elif is_torch(x):
        if x.device.type != "cpu":
            raise TypeError(f"{what} is on {x.device}; the kernels read the CPU's memory")
        strides, address = x.stride(), x.data_ptr()
    else:
        raise TypeError(f"{what} is a {type(x).__name__}; a NumPy array or a torch tensor is needed")
    dtype = _names.get(x.dtype)
    if dtype is None:  # str of a dtype is slow, and a decoding model comes here a thousand times a second
        dtype = _names.setdefault(x.dtype, str(x.dtype).removeprefix("torch."))
    if dtype not in dtypes:
        raise TypeError(f"{what} is {dtype}; {' or '.join(dtypes)} is needed")
    if x.ndim != dims:
        raise ValueError(f"{what} has shape {tuple(x.shape)}; {dims} axes are needed")
    return address, dtype, strides


def matrix(x: Array, what: str, dtypes: tuple[str, ...]) -> tuple[int, str, int]:
    """Return address, dtype and row stride of a matrix whose rows are dense."""
    address, dtype, (outer, inner) = facts(x, what, dtypes, 2)
    rows, columns = x.shape
    if rows <= 1:
        outer = columns
    if rows and ((inner != 1 and columns > 1) or outer < columns):
        raise ValueError(f"{what} has strides {(outer, inner)}; rows must be contiguous and apart")
    return address, dtype, outer


def dense(x: Array, what: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> int:
    address, _, strides = facts(x, what, dtypes, len(shape))
    if tuple(x.shape) != shape:
        raise ValueError(f"{what} has shape {tuple(x.shape)}; {shape} is needed")
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected and 0 not in shape:
            raise ValueError(f"{what} has strides {tuple(strides)}; it must be contiguous")
        expected *= size
    return address


def dense_rows(x: Array, what: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, str, tuple[int, ...]]:
    """Return address, dtype and the strides of all axes but the last two, which must be dense: a view of a cache has these."""
    address, dtype, strides = facts(x, what, dtypes, len(shape))
    if tuple(x.shape) != shape:
        raise ValueError(f"{what} has shape {tuple(x.shape)}; {shape} is needed")
    if (shape[-1] > 1 and strides[-1] != 1) or (shape[-2] > 1 and strides[-2] != shape[-1]):
        raise ValueError(f"{what} has strides {tuple(strides)}; the last two axes must be contiguous")
    return address, dtype, tuple(int(stride) for stride in strides[:-2])


def empty(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Make an array of the kind of `like` that starts on a cache line."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype))
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def as_numpy(x: Array) -> np.ndarray[Any, Any]:
    return x.detach().numpy() if is_torch(x) else x

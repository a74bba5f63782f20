"""Every instruction set of this machine, one after the other: a module with `pytestmark = each_path` is run on each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from foveal import kernels

PATHS = kernels.paths() if kernels.available() else ["portable"]
each_path = [
    pytest.mark.skipif(not kernels.available(), reason=f"no native kernels: {kernels.reason()}"),
    pytest.mark.usefixtures("path"),
]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    kernels.use_path(request.param)
    kernels.set_threads(2)
    yield request.param
    kernels.use_path(None)

"""One setting for all tests: few threads, so that they share a small machine, and the same random numbers every time."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.kernel_paths import path  # noqa: F401  a fixture

# Beside other workers one thread each, or they wait for each other; kernels are tested with both all the same.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
settings.register_profile("foveal", deadline=None, derandomize=True, database=None)
settings.load_profile("foveal")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread: tiny models are so small that a second only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

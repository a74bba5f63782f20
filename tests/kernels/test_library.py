"""How the compiled library is found, made and missed; each case in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foveal import kernels
from foveal.kernels import library

SAY = "from foveal import kernels; print(kernels.available(), kernels.reason())"
NEEDED = pytest.mark.skipif(not kernels.available(), reason=f"no native kernels: {kernels.reason()}")


def _fresh(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@NEEDED
def test_compiled_once_then_found(tmp_path: Path) -> None:
    assert _fresh(SAY, XDG_CACHE_HOME=str(tmp_path)) == "True"
    (made,) = (tmp_path / "foveal" / "kernels").iterdir()
    assert made.name == library.file_name()
    assert _fresh(SAY, XDG_CACHE_HOME=str(tmp_path), CC="/nowhere/cc") == "True"  # no compiler is asked again
    made.write_bytes(b"cut off")
    assert _fresh(SAY, XDG_CACHE_HOME=str(tmp_path)) == "True"


@pytest.mark.skipif(library.SOURCE.with_name(library.file_name()).exists(), reason="a library lies beside the source")
def test_without_a_compiler_the_reason_says_what_to_do(tmp_path: Path) -> None:
    said = _fresh(SAY, XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path), CC="")
    assert said.startswith("False no C compiler was found; install a C compiler")
    said = _fresh(SAY, XDG_CACHE_HOME=str(tmp_path), CC="false")
    assert said.startswith("False false could not compile the kernels: no message; install")
    assert not list((tmp_path / "foveal" / "kernels").iterdir())
    blocked = tmp_path / "file"
    blocked.touch()
    assert "cannot be written" in _fresh(SAY, XDG_CACHE_HOME=str(blocked))


def test_importing_the_kernels_loads_neither_torch_nor_the_library(tmp_path: Path) -> None:
    code = "import sys; from foveal import kernels; print('torch' in sys.modules)"
    assert _fresh(code, XDG_CACHE_HOME=str(tmp_path)) == "False"
    assert not list(tmp_path.iterdir())


@NEEDED
def test_numpy_alone_is_enough() -> None:
    code = (
        "import sys, numpy as np; from foveal import kernels; w = kernels.pack(np.ones((2, 32), np.float32), 4)\n"
        "print(kernels.matmul(np.ones((1, 32), np.float32), w)[0, 0].round(), 'torch' in sys.modules)"
    )
    assert _fresh(code) == "32.0 False"

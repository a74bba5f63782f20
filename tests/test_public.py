"""The public names: few, complete, and free until they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import foveal


def test_at_most_ten_names_and_all_of_them_exist() -> None:
    assert len(foveal.__all__) == len(set(foveal.__all__)) <= 10
    for name in foveal.__all__:
        assert getattr(foveal, name).__name__ == name


def test_all_is_what_is_exported() -> None:
    """In a fresh process: whatever has no underscore and is no submodule is either in __all__ or a part of Python."""
    code = (
        "import types, typing, foveal\n"
        "own = {n for n, v in vars(foveal).items() if not n.startswith('_') and not isinstance(v, types.ModuleType)}\n"
        "own -= {'annotations', 'Any', 'TYPE_CHECKING'}\n"
        "assert own | set(foveal._HOME) == set(foveal.__all__), (own, foveal.__all__)\n"
        "names = {}\n"
        "exec('from foveal import *', names)\n"
        "assert set(names) - {'__builtins__'} == set(foveal.__all__), names.keys()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_and_the_host_names_do_not_import_torch() -> None:
    code = (
        "import sys, foveal\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "foveal.preset('2B'); foveal.ModelConfig; foveal.FovealError; foveal.ClipSampling; foveal.Budget\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Piplein'"):
        foveal.Piplein  # noqa: B018


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(foveal.FovealError, match=r"config\.json"):
        foveal.load(str(tmp_path))

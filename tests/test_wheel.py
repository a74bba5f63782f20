"""The wheel: built with one command, run in a venv of its own, with the kernels inside or, without a compiler, whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from foveal import kernels

ROOT = Path(__file__).parent.parent


def build(target: Path, **environment: str) -> Path:
    """Build from a copy, so that nothing is left in the tree; with the setuptools that is installed."""
    source = target / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "results", "tests", "*.mp4")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target, source],
        check=True, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
def test_a_clean_venv_answers_with_the_kernels_of_the_wheel(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    assert wheel.name.endswith(f"-py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
        capture_output=True,
    )
    # torch and the rest are not installed again: the venv reads those of this one, behind its own foveal.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = (
        "import foveal, torch; from foveal import kernels; from foveal.kernels.library import SOURCE, file_name; "
        "assert SOURCE.with_name(file_name()).exists(), 'not in the wheel'; assert kernels.available(), kernels.reason(); "
        "print(foveal.__file__); print(foveal.load(bits=8).ask('Is there anything?').answer.finish_reason)"
    )
    environment = {**os.environ, "CC": "false", "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [venv / "bin" / "python", "-P", "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, reason = done.stdout.split()
    assert Path(where).is_relative_to(site) and reason in ("stop", "length")


def test_without_a_compiler_the_wheel_is_for_any_platform(tmp_path: Path) -> None:
    assert build(tmp_path, CC="false").name.endswith("-py3-none-any.whl")

"""Names of models: folders, hub names, aliases; what is said when there is no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.errors import CheckpointError
from foveal.hub import hub_name, resolve


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"),
        ("someone/their.own_model-1", "someone/their.own_model-1"),
        ("qwen3-vl:2b", "Qwen/Qwen3-VL-2B-Instruct"),
        ("2B", "Qwen/Qwen3-VL-2B-Instruct"),
        ("8B-thinking", "Qwen/Qwen3-VL-8B-Thinking"),
        ("Qwen3-VL-32b-Instruct", "Qwen/Qwen3-VL-32B-Instruct"),
        ("30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
        ("qwen3-vl:235B-A22B-thinking", "Qwen/Qwen3-VL-235B-A22B-Thinking"),
        ("3B", None),
        ("qwen3-vl", None),
        ("photo.png", None),
        ("a/b/c", None),
        ("", None),
        ("../model", None),
        ("./model", None),
        ("models/..", None),
        ("-model/x", None),
        ("owner/a--b", None),
    ],
)
def test_hub_names_and_aliases(name: str, expected: str | None) -> None:
    assert hub_name(name) == expected


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "2B").mkdir()
    assert resolve("~/2B") == tmp_path / "2B"
    monkeypatch.chdir(tmp_path)
    assert resolve("2B") == Path("2B")  # a folder goes before an alias


@pytest.mark.parametrize("name", ["nowhere", "../nowhere", "/no/such/folder", "3B"])
def test_a_name_of_nothing_is_refused_without_a_network(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub name such as"):
        resolve(name)


def _offline(code: str, cache: Path) -> str:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub")}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_offline_says_so_and_the_way_out(tmp_path: Path) -> None:
    out = _offline(
        "import sys; from foveal.errors import CheckpointError; from foveal.hub import resolve\n"
        "try: resolve('qwen3-vl:2b')\n"
        "except CheckpointError as e: print(e)\n"
        "else: raise SystemExit('resolved')\n"
        "assert 'torch' not in sys.modules",
        tmp_path,
    )
    assert out.startswith("Qwen/Qwen3-VL-2B-Instruct is not in the local cache and HF_HUB_OFFLINE is set")
    assert "give a folder" in out


def test_offline_uses_the_cache(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    out = _offline("from foveal.hub import resolve; print(resolve('someone/tiny'))", tmp_path)
    assert Path(out.strip()) == snapshot

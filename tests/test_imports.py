"""Who may import whom: the layers of the architecture, read from the source, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foveal

ROOT = Path(foveal.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Each part and what it may import of foveal, itself aside. A part that is missing here may not exist.
HOST = {
    "errors",
    "config",
    "media",
    "patches",
    "sizing",
    "preprocessor",
    "tokenizer",
    "messages",
    "thinking",
    "prompt",
    "sequence",
    "hub",
    "bpe",
}
SPINE = HOST | {"batch", "model", "sampler", "kernels"}
MAY = {
    "errors": set(),
    "units": set(),
    "config": {"errors"},
    **dict.fromkeys(HOST - {"errors", "config"}, HOST),
    "processor": HOST,
    "cost": HOST,
    "limits": HOST | {"kernels"},
    "choice": HOST | {"kernels", "limits"},
    "world": HOST,
    "kernels": HOST,
    "batch": HOST,
    "sampler": HOST,
    "reply": HOST | {"sampler"},
    "model": SPINE - {"sampler", "tokenizer", "messages", "prompt", "media"},
    "relevance": HOST | {"batch"},
    "standin": SPINE,
    "generate": SPINE | {"processor", "reply", "relevance", "cost", "choice"},
    "engine": SPINE | {"processor", "reply", "relevance", "cost", "generate"},
    "train": SPINE | {"processor", "relevance", "cost", "generate", "world", "standin", "limits", "choice"},
    "finetune": SPINE | {"processor", "cost", "train"},
    "serve": SPINE | {"processor", "relevance", "cost", "generate", "engine"},
    "evaluate": SPINE | {"processor", "relevance", "cost", "generate", "engine", "train", "finetune", "world"},
    "trace": SPINE | {"processor", "cost", "generate", "units"},
}
TOP = {"__init__", "__main__", "cli", "demo"}  # may import everything
WITHOUT_TORCH = sorted(HOST | {"units", "processor", "sampler", "reply", "cost", "world", "kernels", "limits", "choice"})


def _part(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> set[str]:
    """List the modules a file names in import statements, at any depth."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_layers(file: Path) -> None:
    part = _part(file)
    if part in TOP:
        return
    assert part in MAY, f"{part} has no place in the layers of this test"
    imported = {name.split(".")[1] for name in _imports(ast.parse(file.read_text())) if name.startswith("foveal.")}
    assert imported <= MAY[part] | {part}, f"{part} may not import {sorted(imported - MAY[part] - {part})}"


def test_no_layer_imports_one_above_it() -> None:
    """The table itself has no circle."""
    rank: dict[str, int] = {}
    below = {part: allowed - {part} - (HOST if part in HOST else set()) for part, allowed in MAY.items()}
    while len(rank) < len(below):
        ready = {part for part, parts in below.items() if part not in rank and parts <= rank.keys()}
        assert ready, f"{sorted(set(below) - rank.keys())} import one another"
        rank |= dict.fromkeys(ready, len(rank))


def _fresh(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_foveal_does_not_import_torch() -> None:
    _fresh("import sys, foveal; assert 'torch' not in sys.modules and 'transformers' not in sys.modules")


def test_the_host_side_does_not_import_torch() -> None:
    """Planning and preparing a request works in a process that has not paid for torch."""
    names = sorted({_part(file) for file in FILES} & set(WITHOUT_TORCH))
    assert len(names) > 5
    _fresh(
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module('foveal.' + name)\n"
        "    assert 'torch' not in sys.modules, name"
    )


def test_transformers_is_for_tests_only() -> None:
    for file in FILES:
        assert "transformers" not in {name.split(".")[0] for name in _imports(ast.parse(file.read_text()))}, file


def test_scripts_find_what_they_import() -> None:
    """What measures and draws is run rarely, so what it takes from the package and from its neighbours is looked for here."""
    names = [f"{path.parent.name}.{path.stem}" for folder in ("bench", "docs") for path in (ROOT.parent / folder).glob("*.py")]
    assert len(names) > 10
    code = f"import importlib\nfor name in {sorted(names)}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""README.md and the pages of docs/: every file, line and heading they name exists, and every part of foveal is named.

Of some pages the Python is run, and what it prints is what the page says.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest

import foveal
from foveal import kernels

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "foveal" / "assets" / "demo"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^(```|~~~).*?^\1[^\S\n]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[(?P<text>[^\]\n]*(?:\n[^\]\n]+)?)\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
_LINES = re.compile(r"L(\d+)(?:-L(\d+))?")


def _prose(page: Path) -> str:
    """Return a page without code, in which brackets are no links; line numbers stay."""
    text = _FENCE.sub(lambda m: "\n" * m.group().count("\n"), page.read_text(encoding="utf-8"))
    return _CODE.sub("`code`", text)


def _links(text: str) -> list[tuple[int, str]]:
    """List the line and the target of every link to something in this repository."""
    found = [(text.count("\n", 0, m.start()) + 1, m["target"]) for m in _LINK.finditer(text)]
    return [(line, target) for line, target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def _anchors(page: Path) -> set[str]:
    """Name a page's headings as GitHub does: lower case, hyphens for spaces, other punctuation left out."""
    out: set[str] = set()
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#{1,6} +(.+?)(?: +#+)?$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link in a heading counts with its text
        kept = (c for c in shown.lower() if c in "- _" or unicodedata.category(c)[0] in "LMN")
        name = plain = "".join(kept).replace(" ", "-")
        again = 0
        while name in out:
            again += 1
            name = f"{plain}-{again}"
        out.add(name)
    return out


def _wrong(page: Path, target: str) -> str | None:
    """Say what is wrong with a link, if anything is."""
    path, _, fragment = unquote(target).partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_relative_to(ROOT):
        return "leaves the repository"
    if not file.exists():
        return "names no file"
    if not fragment:
        return None
    if lines := _LINES.fullmatch(fragment):
        length = file.read_text(encoding="utf-8").count("\n") if file.is_file() else 0
        first, last = int(lines[1]), int(lines[2] or lines[1])
        return None if 1 <= first <= last <= length else f"names a line beyond the {length} of the file"
    if file.suffix != ".md":
        return "has an anchor that is neither a line nor a heading of a page"
    return None if fragment in _anchors(file) else "names a heading that is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    wrong = [(line, target, why) for line, target in _links(_prose(page)) if (why := _wrong(page, target))]
    assert not wrong, "\n".join(f"{page.relative_to(ROOT)}:{line}: ({target}) {why}" for line, target, why in wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_code(page: Path) -> None:
    """Paths from the top of the repository that are written as code, such as `tests/laws`."""
    named = re.findall(r"`((?:foveal|tests|bench|docs)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_are_links_are_in_their_file(page: Path) -> None:
    """[`Scheduler.plan`](file.py) leads to a file that has a class, function or constant plan."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    wrong = []
    for name, path in re.findall(r"\[`[\w.]*?(\w+)(?:\(\))?`\]\(([^)#\s]+\.py)[^)]*\)", text):
        file = page.parent / path
        if name != "py" and not re.search(rf"^\s*(?:(?:async )?def|class) {name}\b|^\s*{name}\b.* =", file.read_text(), re.M):
            wrong.append(f"{name} is not in {path}")
    assert not wrong


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/engine.md", "docs/world.md"])
def test_python_of_a_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks run in their order, beside the demo's files; `print(...)  # text` prints that text."""
    monkeypatch.chdir(tmp_path)
    for name in ("picture.png", "photo.png", "a.png", "b.png"):
        shutil.copy(DEMO / "picture.png", name)
    shutil.copy(DEMO / "clip.mp4", "clip.mp4")
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert blocks
    names = {"__name__": "page"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], page, "exec"), names)
        printed = iter(capsys.readouterr().out.splitlines())
        for said in re.findall(r"^ *print\(.*\)  # (.+)$", block[1], re.MULTILINE):
            assert said in printed, f"{page}:{line + 1}: {said!r} was not printed, or not in this order"


def test_the_embedded_model_answers_as_the_readme_says() -> None:
    """If the weights have changed, the table in README.md is to be written anew."""
    rows = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \| `(.+?)`", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 8
    model = foveal.load()
    said = [model.ask(question, DEMO / file).answer.text for file, question, _ in rows]
    assert [text.removeprefix("```json\n").removesuffix("\n```") for text in said] == [answer for _, _, answer in rows]


def test_every_page_is_linked_from_the_architecture() -> None:
    start = ROOT / "docs" / "architecture.md"
    linked = {(start.parent / target.partition("#")[0]).resolve() for _, target in _links(_prose(start))}
    assert {page.name for page in PAGES if page.parent == start.parent and page != start} <= {file.name for file in linked}


def test_every_part_is_in_the_tree_of_the_architecture() -> None:
    (tree,) = re.findall(r"^```\nfoveal/\n(.*?)^```$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"\w+(?:\.py|/)", tree))
    there = {
        p.name if p.is_file() else f"{p.name}/" for p in (ROOT / "foveal").iterdir() if re.match(r"[a-z]\w*(\.py)?$", p.name)
    }
    assert there <= named, f"the tree lacks {sorted(there - named)}"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nothing.md", "names no file"),
        ("../../elsewhere", "leaves the repository"),
        ("../pyproject.toml#L1", None),
        ("../pyproject.toml#L0", "names a line beyond"),
        ("../pyproject.toml#L1-L99999", "names a line beyond"),
        ("../pyproject.toml#anything", "has an anchor"),
        ("architecture.md#five-values", None),
        ("architecture.md#six-values", "names a heading"),
        ("#who-may-import-whom", None),
    ],
)
def test_what_this_file_finds(target: str, why: str | None) -> None:
    found = _wrong(ROOT / "docs" / "architecture.md", target)
    assert found == why or (why is not None and found is not None and found.startswith(why))


def test_links_are_found_outside_code_only() -> None:
    text = "[a](b.md)\n```\n[c](d.md)\n```\n`[e](f.md)` ![g](h.png) [`i`](j.py#L3) [k\nl](m.md) [web](https://x.org)\n"
    page = type("Page", (), {"read_text": lambda self, encoding: text})()
    assert _links(_prose(page)) == [(1, "b.md"), (5, "h.png"), (5, "j.py#L3"), (5, "m.md")]

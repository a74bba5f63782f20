"""The page: complete, escaped, and without anything from elsewhere."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.evaluate import Item, Run, examine, make_report
from foveal.evaluate.page import _opened, _shown, render
from tests.evaluate.tools import arm, new_run, truth
from tests.media_files import clip, read_barcodes

EVIL = '<script>alert(\'1\')</script><img src="http://evil.example/x.png" onerror=alert(1)> \ud800 & "quoted"'


class Reader(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    VOID = ("meta", "img", "path", "circle", "rect", "polyline")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "tr", "th", "li") and self.open[-1] != tag:
            self.open.remove(tag)  # these may be left open
        else:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@pytest.fixture
def examined(tmp_path: Path) -> Run:
    """Two arms, of which one says what it should not, on boxes, clips and a file of one's own."""
    Image.fromarray(np.full((300, 400, 3), 200, np.uint8)).save(tmp_path / "a.png")
    records = [
        {"image": "a.png", "evidence": {"boxes": [[10, 20, 110, 120]]}, "conversations": [
            {"from": "human", "value": f"<image>what is {EVIL[:20]}?"}, {"from": "gpt", "value": "<b>this</b>"}]},
        {"image": "http://unreachable.invalid/b.png", "conversations": [
            {"from": "human", "value": "<image>and this?"}, {"from": "gpt", "value": "that"}]},
    ]  # fmt: skip
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def evil(item: Item) -> str:
        return '[{"bbox_2d": [100, 200, 400, 800], "label": "</svg>"}]' if item.id.startswith("box") else EVIL

    arms = [arm("good", truth), arm("evil", evil)]
    run = new_run(tmp_path / "run", ["box", "first", "moves", str(file)], arms, items=2)
    examine(run, arms)
    return run


def test_nothing_comes_from_elsewhere_and_nothing_said_becomes_markup(examined: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.media.source.socket.getaddrinfo", _nowhere)
    page = render(examined, make_report(examined))
    page.encode("utf-8")
    reader = read(page)
    assert reader.open == []
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "link", "iframe", "object", "embed", "a", "form", "base"} & set(tags)
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/"), (tag, value)
        assert "url(" not in (attributes.get("style") or "") and "@import" not in page
    (policy,) = [a["content"] for tag, a in reader.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = " ".join(reader.text)
    assert "<script>alert('1')</script>" in text and "<b>this</b>" in text  # read as they were said


def _nowhere(*_: object, **__: object) -> None:
    raise OSError("no network in tests")


@pytest.mark.parametrize("count", [20, 300])
def test_evidence_of_a_clip_file_counts_its_own_frames(count: int, tmp_path: Path) -> None:
    """Frames are drawn as the file numbers them, not as they are sampled; of a long file the nearest of those there are."""
    (tmp_path / "a.mp4").write_bytes(clip(count, fps=10))
    box = (1.0, 2.0, 30.0, 20.0)
    frames, evidence = _opened(tmp_path / "a.mp4", [(7, box), (19, box)])
    drawn = read_barcodes(frames.pixels[[at for at, _ in evidence]])
    assert drawn == [7, 19] if count == 20 else all(abs(a - b) <= 2 for a, b in zip(drawn, [7, 19], strict=True))
    assert _opened(tmp_path / "a.mp4", [])[1] == []


def test_evidence_of_a_list_of_pictures_counts_its_entries(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    box = (1.0, 2.0, 9.0, 9.0)
    frames, evidence = _opened([str(tmp_path / f"{i}.png") for i in range(3)], [(2, box)])
    assert evidence == [(2, box)] and frames.pixels[:, 0, 0, 0].tolist() == [0, 80, 160]


def test_everything_that_was_measured_is_there(examined: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.media.source.socket.getaddrinfo", _nowhere)
    reader = read(render(examined, make_report(examined)))
    text = " ".join(reader.text)
    for words in ("good", "evil", "mine", "moves", "iou@0.75", "evil less good", "mean of tasks", "unreachable.invalid"):
        assert words in text, words
    for item in examined.tasks[0]:
        assert item.question in text and item.references[0] in text
    pictures = [a for tag, a in reader.tags if tag == "img"]
    rects = [a["stroke"] for tag, a in reader.tags if tag == "rect"]
    assert len(pictures) > 5 and {"var(--good)", "var(--bad)"} == set(rects)
    assert [tag for tag, _ in reader.tags].count("polyline") == 2  # IoU of boxes, an arm each


def test_a_run_without_failures_or_answers_is_drawn(tmp_path: Path) -> None:
    arms = [arm("good", truth)]
    run = new_run(tmp_path / "run", ["colour"], arms, items=2)
    assert "–" in render(run, make_report(run))
    examine(run, arms)
    page = render(run, make_report(run))
    assert "The worst failures" not in page and "100.0 [" in page and "mean of tasks" not in page


@pytest.mark.parametrize(("total", "needed"), [(1, ()), (3, (0,)), (12, (5, 6)), (64, (3,)), (64, tuple(range(20)))])
def test_frames_with_evidence_are_shown(total: int, needed: tuple[int, ...]) -> None:
    shown = _shown(total, needed)
    assert shown == sorted(set(shown)) and len(shown) == min(total, 8)
    assert set(shown) <= set(range(total)) and set(needed[:8]) <= set(shown)

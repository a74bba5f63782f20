"""The report as one HTML file: no script, no link, nothing from elsewhere; whatever a model said is escaped.

A content security policy in the page forbids scripts and requests, should anything slip through.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from foveal.errors import MediaError
from foveal.evaluate.file_tasks import EVERY_FRAME
from foveal.evaluate.items import Box, Item
from foveal.evaluate.metrics import Scores
from foveal.evaluate.report import LOWER_IS_BETTER, estimate_text, worst
from foveal.evaluate.run import Line, Run
from foveal.media import DEFAULT_FPS, Frames, load, probe
from foveal.media.encode import data_url
from foveal.world.score import parse_boxes

MAX_FRAMES, MAX_SIDE_PX = 8, 420  # of a clip in a card
MOST_LOADED = 240  # frames of a clip file, where its evidence names some
_CLIP_PX = 130  # a frame of a clip
CARDS = 6  # of a task
MAX_CARDS = 48
_COLOURS = 6
_AREA = (150, 620)  # where the plots' x axes begin and how long they are, in px

Estimate = Mapping[str, Any]


def render(run: Run, report: Mapping[str, Any], cards: int = CARDS) -> str:
    """Draw a report, with up to `cards` of the worst failures of each task on their pictures."""
    arms = [arm["name"] for arm in report["arms"]]
    body = "\n".join([*_head(report, arms), *_plots(run, report, arms), *_tables(report, arms), *_failures(run, arms, cards)])
    template = files("foveal.evaluate").joinpath("page.html").read_text(encoding="utf-8")
    before, after = template.split("__BODY__")
    return before + body + after


def _head(report: Mapping[str, Any], arms: Sequence[str]) -> Iterator[str]:
    answered = sum(arm["answered"] for arm in report["arms"])
    yield f"<h1>{_join(arms)}: {_count(len(report['tasks']), 'task')}, {_count(answered, 'answer')}</h1>"
    yield (
        '<p class="note">Every arm was asked the same. Intervals are 95 %: Wilson\'s for shares of right answers, a bootstrap '
        "over items for all else; differences are paired, item by item. They speak of more items of the same kinds, and of "
        "nothing else.</p>"
    )
    yield '<div class="panel"><table><tr><th></th><th>arm</th><th>settings</th>'
    yield "".join(f'<th class="n">{name}</th>' for name in ("answered", "refused", "prompt tokens", "reply tokens", "median"))
    yield "<th>ended by</th></tr>"
    for i, arm in enumerate(report["arms"]):
        settings = ", ".join(f"{key}={value}" for key, value in arm["settings"].items()) or "as they come"
        ends = ", ".join(f"{reason} {count:,}" for reason, count in arm["finish_reasons"].items())
        numbers = [f"{arm[key]:,}" for key in ("answered", "refused")]
        numbers += [f"{arm[key]:.1f}" for key in ("prompt_tokens", "generated_tokens")] + [f"{arm['median_s']:.2f} s"]
        cells = "".join(f'<td class="n">{text}</td>' for text in numbers)
        yield f"<tr><td>{_dot(i)}</td><td><b>{_(arm['name'])}</b></td><td>{_(settings)}</td>{cells}<td>{_(ends)}</td></tr>"
    yield "</table></div>"


def _plots(run: Run, report: Mapping[str, Any], arms: Sequence[str]) -> Iterator[str]:
    yield "<h2>Right answers</h2>"
    yield f'<p class="note">{"".join(_key(i, arm) for i, arm in enumerate(arms))}</p>'
    rows = [(task["name"], [task["metrics"]["right"][arm] for arm in arms]) for task in report["tasks"]]
    if len(rows) > 1:
        rows.append(("mean of tasks", [report["mean"]["metrics"]["right"][arm] for arm in arms]))
    yield _dots(rows, list(range(len(arms))), 0.0, 1.0, "share of right answers")
    if len(arms) > 1:
        yield f"<h2>Differences from {_(arms[0])}</h2>"
        yield '<p class="note">Share of right answers, on the same items. Where the line misses 0, chance is a poor excuse.</p>'
        sources = [(task["name"], task) for task in report["tasks"]]
        if len(sources) > 1:
            sources.append(("mean of tasks", report["mean"]))
        rows = [(name, [d for d in task["differences"]["right"] if d["against"] == arms[0]]) for name, task in sources]
        ends = [abs(d[k]) for _name, found in rows for d in found for k in ("low", "high") if d[k] is not None]
        reach = max(0.05, *ends) if ends else 1.0
        yield _dots(rows, list(range(1, len(arms))), -reach, reach, f"right answers, less those of {arms[0]}")
    for metric, title in (("iou", "Boxes: share of boxes above an IoU"), ("tiou", "Times: share of spans above an IoU")):
        names = [task["name"] for task in report["tasks"] if metric in task["metrics"]]
        if names:
            yield f"<h2>{title}</h2>"
            yield from (_curves(run, name, metric, arms) for name in names)


def _dots(rows: Sequence[tuple[str, Sequence[Estimate]]], colours: Sequence[int], low: float, high: float, label: str) -> str:
    """Draw values and intervals, a row for each of a task's arms."""
    left, width = _AREA
    step, gap = 16, 12
    height = sum(step * len(found) + gap for _, found in rows)

    def at(value: float) -> float:
        return left + width * (min(max(value, low), high) - low) / (high - low)

    out = []
    for k in range(5):
        value = low + (high - low) * k / 4
        out.append(f'<path d="M{at(value):.1f} 0V{height}" stroke="var(--line)"/>')
        out.append(_text(at(value), height + 14, _percent(value, low < 0), "middle"))
    if low < 0:
        out.append(f'<path d="M{at(0):.1f} 0V{height}" stroke="var(--ink)"/>')
    y = gap / 2
    for name, found in rows:
        out.append(_text(left - 12, y + step * len(found) / 2 + 4, name, "end", "strong"))
        for i, one in zip(colours, found, strict=True):
            middle = y + step / 2
            if one["value"] is not None:
                colour = f"var(--a{i % _COLOURS})"
                if one["low"] is not None:
                    out.append(
                        f'<path d="M{at(one["low"]):.1f} {middle}H{at(one["high"]):.1f}" stroke="{colour}" stroke-width="2"/>'
                    )
                out.append(f'<circle cx="{at(one["value"]):.1f}" cy="{middle}" r="4.5" fill="{colour}"/>')
                out.append(_text(left + width + 14, middle + 4, estimate_text("right", one, signed=low < 0), "start"))
            y += step
        y += gap
    out.append(_text(left + width / 2, height + 30, label, "middle"))
    return _svg(left + width + 190, height + 36, label, out)


def _curves(run: Run, task: str, metric: str, arms: Sequence[str]) -> str:
    """Draw the share of a task's answers whose IoU is above x; of several boxes their mean."""
    left, width, height = _AREA[0], 360, 200
    out = []
    for k in range(5):
        x, y = left + width * k / 4, height - (height - 10) * k / 4
        out.append(f'<path d="M{x} 10V{height}M{left} {y}H{left + width}" stroke="var(--line)"/>')
        out.append(_text(x, height + 14, f"{k / 4:g}", "middle") + _text(left - 8, y + 4, f"{k / 4:.0%}", "end"))
    for i, arm in enumerate(arms):
        scores: list[Scores] = [line["scores"] for line in run.lines.values() if (line["arm"], line["task"]) == (arm, task)]
        shares = np.sort([s[metric][0] / s[metric][1] for s in scores if metric in s])
        if len(shares):
            # A step down at every answer's own IoU.
            xs = np.repeat(np.concatenate([[0.0], shares, [1.0]]), 2)[1:-1]
            ys = np.repeat(1 - np.arange(len(shares) + 1) / len(shares), 2)
            points = " ".join(f"{left + width * x:.1f},{height - (height - 10) * y:.1f}" for x, y in zip(xs, ys, strict=True))
            out.append(f'<polyline points="{points}" fill="none" stroke="var(--a{i % _COLOURS})" stroke-width="2"/>')
    out.append(_text(left + width / 2, height + 30, f"IoU, {task}", "middle"))
    return _svg(left + width + 30, height + 36, f"IoU of {task}", out)


def _tables(report: Mapping[str, Any], arms: Sequence[str]) -> Iterator[str]:
    yield "<h2>All metrics</h2>"
    yield '<p class="note">In percent; error_s, the mean error of a time, in seconds.</p>'
    for task in report["tasks"]:
        facts = ", ".join(f"{key} {value}" for key, value in task["facts"].items() if key != "sha256" and value is not None)
        yield f'<h3>{_(task["name"])} <small>{_(facts)}</small></h3><div class="panel"><table><tr><th></th>'
        yield "".join(f'<th class="n">{_dot(i)} {_(arm)}</th>' for i, arm in enumerate(arms))
        pairs = [(d["arm"], d["against"]) for d in task["differences"].get("right", [])]
        yield "".join(f'<th class="n">{_(arm)} less {_(against)}</th>' for arm, against in pairs) + "</tr>"
        for metric, values in task["metrics"].items():
            down = " <small>(less is better)</small>" if metric in LOWER_IS_BETTER else ""
            cells = [estimate_text(metric, values[arm]) for arm in arms]
            cells += [estimate_text(metric, d, signed=True) for d in task["differences"][metric]]
            yield f"<tr><td>{_(metric)}{down}</td>" + "".join(f'<td class="n">{_(cell)}</td>' for cell in cells) + "</tr>"
        yield "</table></div>"


def _failures(run: Run, arms: Sequence[str], cards: int) -> Iterator[str]:
    share = max(1, min(cards, MAX_CARDS // max(1, len(run.tasks))))
    found = [(task, worst(run, task.name, share)) for task in run.tasks]
    if not any(ids for _, ids in found):
        return
    yield "<h2>The worst failures</h2>"
    yield (
        '<p class="note">First those that some arm got right, then by how far off the answer is. '
        '<span class="key"><i style="background:var(--good)"></i>where the evidence is</span>'
        '<span class="key"><i style="background:var(--bad)"></i>boxes that were answered</span></p>'
    )
    for task, ids in found:
        if ids:
            yield f'<h3>{_(task.name)}</h3><div class="cards">'
            for id in ids:
                yield _card(task.item(id), [run.lines[arm, id] for arm in arms if (arm, id) in run.lines])
            yield "</div>"


def _card(item: Item, lines: Sequence[Line]) -> str:
    earlier = "".join(f'<p class="note">{_(text)}</p>' for text in item.earlier if text)
    out = [f'<div class="card"><div class="frames">{"".join(_media(item, lines))}</div>{earlier}<p>{_(item.question)}</p><ul>']
    out += [f'<li class="truth">{_(truth)}</li>' for truth in item.references]
    for line in lines:
        right = ' class="right"' if line["scores"]["right"][0] == 1 else ""
        said = line["error"] or line["answer"] or "(nothing)"
        out.append(f"<li{right}><b>{_(line['arm'])}</b> {_(said[:400])}</li>")
    return "".join(out) + "</ul></div>"


def _media(item: Item, lines: Sequence[Line]) -> Iterator[str]:
    """Draw the media with their evidence; boxes that were answered go on the first medium that has some, else on the first."""
    answered = [box for line in lines if (boxes := parse_boxes(line["answer"])) for box in boxes]
    if not item.scorer.endswith("box"):
        answered = []
    meant = min(item.evidence.pictures, default=0)
    for index, (_kind, source) in enumerate(item.media):
        try:
            frames, evidence = _opened(source, item.evidence.on(index))
        except MediaError as error:  # it may be an address that only the arm's server reaches
            yield f"<figure><figcaption>{_(str(error))}</figcaption></figure>"
            continue
        number = f"picture {index + 1}" if len(item.media) > 1 else ""
        for at in _shown(len(frames.pixels), [frame for frame, _ in evidence]):
            boxes = [box for frame, box in evidence if frame == at]
            said = answered if index == meant and (boxes or at == 0) else []
            time_s = float(frames.times_s[at])
            span = item.evidence.span_s
            hit = span is not None and index == meant and span[0] <= time_s <= span[1]
            caption = f"{number} {time_s:.1f} s".strip() if frames.kind == "video" else number
            width = MAX_SIDE_PX if len(item.media) == 1 else MAX_SIDE_PX // 2
            yield _frame(frames.pixels[at], boxes, said, caption, hit, _CLIP_PX if frames.kind == "video" else width)


def _opened(source: Any, evidence: list[tuple[int, Box]]) -> tuple[Frames, list[tuple[int, Box]]]:
    """Load a medium, and number the frames of its evidence, which are the file's, as those that are loaded.

    Of a long clip not all are: a box is then drawn in the frame that is nearest in time.
    """
    if isinstance(source, Frames) or not evidence:
        return source if isinstance(source, Frames) else load(source), evidence
    is_list = isinstance(source, list)  # of pictures, each a frame
    times_s = np.arange(len(source)) / DEFAULT_FPS if is_list else probe(source, sampling=EVERY_FRAME).times_s
    frames = load(source, sampling=EVERY_FRAME if len(times_s) <= MOST_LOADED else None)
    nearest = {at: int(np.abs(frames.times_s - times_s[at]).argmin()) for at, _ in evidence if at < len(times_s)}
    return frames, [(nearest[at], box) for at, box in evidence if at in nearest]


def _shown(total: int, needed: Sequence[int]) -> list[int]:
    """Choose frames of a clip: those with evidence, and others evenly."""
    evenly = [round(float(i)) for i in np.linspace(0, total - 1, min(total, MAX_FRAMES))]
    first = sorted({i for i in needed if 0 <= i < total})[:MAX_FRAMES]
    rest = [i for i in evenly if i not in first]
    spare = MAX_FRAMES - len(first)
    return sorted([*first, *(rest[round(i)] for i in np.linspace(0, len(rest) - 1, min(spare, len(rest))))])


def _frame(pixels: np.ndarray, boxes: Sequence[Box], said: Sequence[Box], caption: str, hit: bool, most: int) -> str:
    height, width = pixels.shape[:2]
    shown = min(most, 2 * width)
    rects = [_rect(box, "--good", width) for box in boxes]
    # Answers are in thousandths of the sides, as the released models write them.
    rects += [_rect((x1 * width / 1000, y1 * height / 1000, x2 * width / 1000, y2 * height / 1000), "--bad", width)
              for x1, y1, x2, y2 in said]  # fmt: skip
    image = f'<img src="{data_url(pixels, max_side_px=2 * MAX_SIDE_PX)}" alt="">'
    overlay = f'<svg viewBox="0 0 {width} {height}">{"".join(rects)}</svg>'
    note = f'<figcaption class="{"hit" if hit else ""}">{caption}</figcaption>' if caption else ""
    return f'<figure style="width:{shown}px;max-width:100%"><div class="frame">{image}{overlay}</div>{note}</figure>'


def _rect(box: Box, colour: str, width: int) -> str:
    x1, y1, x2, y2 = box
    size = f'width="{max(0.0, x2 - x1):.1f}" height="{max(0.0, y2 - y1):.1f}"'
    pen = f'fill="none" stroke="var({colour})" stroke-width="{max(1.0, width / 130):.1f}"'
    return f'<rect x="{x1:.1f}" y="{y1:.1f}" {size} {pen}/>'


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    head = f'<svg width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{_(label)}">'
    return f'<div class="panel">{head}{"".join(parts)}</svg></div>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{_(text)}</text>'


def _dot(index: int) -> str:
    return f'<span class="key" style="margin:0"><i style="background:var(--a{index % _COLOURS})"></i></span>'


def _key(index: int, name: str) -> str:
    return f'<span class="key"><i style="background:var(--a{index % _COLOURS})"></i>{_(name)}</span>'


def _percent(value: float, signed: bool) -> str:
    return f"{value:+.1%}" if signed and value else f"{value:.0%}"


def _join(names: Sequence[str]) -> str:
    return _(", ".join(names))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _(text: object) -> str:
    """Escape whatever is written into the page."""
    # A surrogate that stands alone, which a model may well say, cannot be written to a file.
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True)

"""Charts of known values: columns and lines, and, kept for the test split, bars that lie."""

from __future__ import annotations

import numpy as np

from foveal.world.kinds.tools import Made, ask, between, one, size_px, some, unasked
from foveal.world.scene import Thing, shade
from foveal.world.sheet import Sheet
from foveal.world.splits import RGB, Material
from foveal.world.stamps import Stamp

_STEPS = (1, 2, 5, 10, 20, 25, 50, 100)
# How far off an answer may be, as a share of the axis: half of what one sees when the axis is 100 pixels long.
_TOLERANCE = 0.04


def chart(rng: np.random.Generator, material: Material) -> Made:
    """A chart with an axis of round numbers; no two values are nearer than a twenty-fifth of the axis."""
    sheet = Sheet(rng, material, dark=True)
    layout = one(rng, material.layouts(("columns", "line"), ("bars",)))
    pen = sheet.pen(size_px(rng, 8, 15))
    lexicon = material.lexicon
    names = some(rng, one(rng, (lexicon.first_names, lexicon.places, lexicon.products)), between(rng, 3, 7))
    step, ticks = one(rng, _STEPS), between(rng, 3, 6)
    top = step * ticks
    long = between(rng, 110, 260)
    values = [round(float(share) * top) if top >= 50 else round(float(share) * top, 1) for share in _spread(rng, len(names))]
    lying = layout == "bars"
    if lying:
        long = max(long, ticks * (pen.width(str(top)) + pen.px))
    pitch = round(pen.px * rng.uniform(2.2, 3.2))
    if not lying:
        pitch = max(pitch, max(map(pen.width, names)) + pen.px)
    thick = round(pitch * rng.uniform(0.4, 0.8))
    wide = pitch * len(names)
    rgb = shade(rng, one(rng, material.inks(sheet.tone)))
    for i in range(ticks + 1):
        at = round(i * long / ticks)
        rule = (at, 0, at + 1, wide) if lying else (0, -at, wide, 1 - at)
        if i == 0 or rng.random() < 0.8:
            sheet.panel(rule, sheet.faint(0.6 if i == 0 else 0.2))
        if lying:
            sheet.text(pen, str(i * step), at, wide + 1.6 * pen.px, "centre", "number")
        else:
            sheet.text(pen, str(i * step), -0.6 * pen.px, pen.px / 2 - at, "right", "number")
    marks, labels, points = [], [], []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        middle = (i + 0.5) * pitch
        reach = value * long / top
        if lying:
            marks.append(sheet.panel((0, middle - thick / 2, reach, middle + thick / 2), rgb, "bar"))
            labels.append(sheet.text(pen, name, -0.6 * pen.px, middle + pen.px / 2, "right"))
        elif layout == "columns":
            marks.append(sheet.panel((middle - thick / 2, -reach, middle + thick / 2, 0), rgb, "bar"))
            labels.append(sheet.text(pen, name, middle, 2 * pen.px, "centre"))
        else:
            points.append((middle, -reach))
            labels.append(sheet.text(pen, name, middle, 2 * pen.px, "centre"))
    if layout == "line":
        sheet.add(_polyline(points, rgb))
        marks = [sheet.panel((x - 3, y - 3, x + 3, y + 3), rgb, "point") for x, y in points]
    title = sheet.pen(round(1.3 * pen.px))
    sheet.text(title, one(rng, lexicon.measures), wide / 2, -(0 if lying else long) - 1.6 * pen.px, "centre")
    item = sheet.finish(between(rng, 10, 26))
    a, b = some(rng, range(len(names)), 2)
    order = np.argsort(values)
    last, word = ((order[-1], "highest"), (order[0], "lowest"))[between(rng, 0, 1)]
    limit = between(rng, 1, ticks - 1) * step
    differ = abs(values[a] - values[b])
    found = [
        ask(rng, "chart_value", f"{values[a]:g}", item, [marks[a], labels[a]], tolerance=_TOLERANCE * top, a=names[a]),
        ask(rng, "chart_extreme", names[last], item, [marks[last], labels[last]], a=word),
        ask(
            rng, "chart_difference", f"{differ:g}", item, [marks[a], labels[a]], [marks[b], labels[b]], a=names[a],
            b=names[b], tolerance=1.5 * _TOLERANCE * top,
            thinking=f"{names[a]} is {values[a]:g} and {names[b]} is {values[b]:g}. "
            f"{max(values[a], values[b]):g} - {min(values[a], values[b]):g} = {differ:g}.",
        ),
    ]  # fmt: skip
    if all(abs(value - limit) > 0.03 * top for value in values):
        above = [i for i, value in enumerate(values) if value > limit]
        found.append(ask(rng, "chart_above", str(len(above)), item, *([marks[i]] for i in above), named=False, a=str(limit)))
    asked = (found[0], *some(rng, found[1:], 2))
    for name, value, mark, label in zip(names, values, marks, labels, strict=True):
        found.append(ask(rng, "chart_value", f"{value:g}", item, [mark, label], tolerance=_TOLERANCE * top, a=name))
    return Made((item,), asked, unasked(found, asked))


def _spread(rng: np.random.Generator, count: int) -> list[float]:
    """Draw shares of the axis, no two nearer than a twenty-fifth, in random order."""
    while True:
        shares = rng.uniform(0.08, 1.0, size=count)
        if count == 1 or np.diff(np.sort(shares)).min() >= 0.04:
            return shares.tolist()


def _polyline(points: list[tuple[float, float]], rgb: RGB) -> Thing:
    """Draw a line through points, two pixels wide."""
    xs, ys = np.array(points).T
    columns = np.arange(round(xs[0]), round(xs[-1]) + 1)
    rows = np.interp(columns, xs, ys)
    top, height = int(np.floor(ys.min())) - 1, int(np.ceil(ys.max())) - int(np.floor(ys.min())) + 3
    high, low = np.minimum(rows[:-1], rows[1:]), np.maximum(rows[:-1], rows[1:])
    grid = np.arange(height)[:, None] + top
    alpha = np.where((grid >= np.floor(high) - 0.5) & (grid <= np.floor(low) + 1.5), 255, 0).astype(np.uint8)
    inked = np.flatnonzero(alpha.any(axis=1))
    alpha = alpha[inked[0] : inked[-1] + 1]
    return Thing("panel", "line", "none", rgb, Stamp(alpha, alpha > 0), int(columns[0]), top + int(inked[0]))

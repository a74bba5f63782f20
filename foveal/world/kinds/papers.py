"""Documents: receipts, forms, tables, paragraphs."""

from __future__ import annotations

import numpy as np

from foveal.world.colours import PALETTE, far_from
from foveal.world.kinds.tools import Made, ask, between, date, money, one, size_px, some, unasked, value
from foveal.world.questions import Question
from foveal.world.sheet import Align, Pen, Sheet
from foveal.world.splits import Material

_ORDER = ("first", "second", "third", "fourth")


def receipt(rng: np.random.Generator, material: Material) -> Made:
    """A shop's receipt; what is bought adds up, with tax if there is any."""
    sheet = Sheet(rng, material)
    layout = one(rng, material.layouts(("column", "leader", "counted"), ("stacked",)))
    pen = sheet.pen(size_px(rng, 8, 20))
    line, sign = round(pen.px * rng.uniform(1.7, 2.3)), one(rng, ("", "$", ""))
    bought = [
        (name, between(rng, 1, 6) if layout in ("counted", "stacked") else 1, between(rng, 49, 1999))
        for name in some(rng, material.lexicon.products, between(rng, 2, 8))
    ]
    width = max(round(1.3 * pen.width("Amount due  $999.99")), round(pen.px * rng.uniform(14, 22)))
    shop, day = one(rng, material.lexicon.shops), date(rng)
    title = sheet.pen(round(pen.px * rng.uniform(1.2, 1.7)))
    at = {"shop": sheet.text(title, shop, width / 2, 0, "centre")}
    y = line
    if rng.random() < 0.7:
        at["day"] = sheet.text(pen, day, width / 2, y, "centre")
        y += line
    rows: list[tuple[int, int]] = []

    def pair(left: str, cents: int, y: int, pen: Pen = pen) -> tuple[int, int]:
        price = f"{sign}{money(cents)}"
        first = sheet.text(pen, left, 0, y)
        if layout == "leader":
            dots = "." * max(2, int((width - pen.width(left) - pen.width(price)) / max(1, pen.width("."))) - 2)
            sheet.text(pen, dots, (pen.width(left) + width - pen.width(price)) / 2, y, "centre")
        return first, sheet.text(pen, price, width, y, "right", "number")

    for name, count, cents in bought:
        y += line
        if layout == "stacked":
            first = sheet.text(pen, name, 0, y)
            y += line
            second = pair(f"  {count} @ {money(cents)}", count * cents, y)
            rows.append((first, second[1]))
        else:
            rows.append(pair(f"{count} x {name}" if layout == "counted" else name, count * cents, y))
    total = sum(count * cents for _, count, cents in bought)
    y += line // 2
    sheet.panel((0, y, width, y + max(1, pen.px // 10)), sheet.faint(0.7))
    if rng.random() < 0.4:
        y += line
        tax = round(total * one(rng, (5, 8, 10, 20)) / 100)
        pair("Tax", tax, y)
        total += tax
    y += round(1.2 * line)
    bold = Pen(pen.face, round(pen.px * rng.uniform(1.0, 1.3)), pen.ink, pen.rgb)
    at["total"] = pair(one(rng, ("Total", "TOTAL", "Amount due")), total, y, bold)[1]
    if rng.random() < 0.4:
        y += line
        given = -(-total // 500) * 500
        pair("Cash", given, y)
        y += line
        pair("Change", given - total, y)
    item = sheet.finish(between(rng, 8, 28))
    number = between(rng, 0, len(bought) - 1)
    name, count, cents = bought[number]
    found = [
        ask(rng, "receipt_total", f"{sign}{money(total)}", item, [at["total"]]),
        ask(rng, "receipt_price", f"{sign}{money(count * cents)}", item, rows[number], a=name),
        ask(rng, "receipt_shop", shop, item, [at["shop"]]),
    ]
    if "day" in at:
        found.append(ask(rng, "receipt_date", day, item, [at["day"]]))
    if layout in ("counted", "stacked"):
        found.append(ask(rng, "receipt_quantity", str(count), item, rows[number], a=name))
    asked = (found[0], *some(rng, found[1:], 2))
    for (name, count, cents), row in zip(bought, rows, strict=True):
        found.append(ask(rng, "receipt_price", f"{sign}{money(count * cents)}", item, row, a=name))
        if layout in ("counted", "stacked"):
            found.append(ask(rng, "receipt_quantity", str(count), item, row, a=name))
    return Made((item,), asked, unasked(found, asked))


def form(rng: np.random.Generator, material: Material) -> Made:
    """Labels and what was filled in; at the foot boxes that are ticked or not."""
    sheet = Sheet(rng, material)
    layout = one(rng, material.layouts(("beside", "above"), ("ruled",)))
    pen = sheet.pen(size_px(rng, 9, 18))
    filled = sheet.pen(pen.px, one(rng, material.inks(sheet.tone)))
    fields = some(rng, material.lexicon.fields, between(rng, 3, 6))
    values = [value(rng, rule, material) for _, rule in fields]
    label_px = max(pen.width(f"{label}:") for label, _ in fields)
    box_px = max(filled.width(text) for text in values) + 2 * pen.px
    line, y, at = round(pen.px * (rng.uniform(2.6, 3.4) + (layout == "ruled"))), 0, []
    title = sheet.pen(round(pen.px * rng.uniform(1.3, 1.8)))
    sheet.text(title, one(rng, material.lexicon.titles), 0, -line)
    left = label_px + pen.px if layout == "beside" else 0
    for (label, _), text in zip(fields, values, strict=True):
        if layout == "beside":
            sheet.text(pen, f"{label}:", 0, y)
        elif layout == "above":
            sheet.text(pen, label, 0, y)
            y += round(2.1 * pen.px)
        if layout == "ruled":
            sheet.panel((0, y + pen.px // 2, box_px, y + pen.px // 2 + 1), sheet.faint(0.6))
            sheet.text(Pen(pen.face, max(8, round(0.75 * pen.px)), pen.ink, pen.rgb), label, 0, y + round(1.6 * pen.px))
        else:
            sheet.frame((left, y - round(1.5 * pen.px), left + box_px, y + round(0.6 * pen.px)), sheet.faint(0.5))
        at.append(sheet.text(filled, text, left + pen.px // 2, y))
        y += line
    ticks = []
    for option in some(rng, material.lexicon.options, between(rng, 1, 3)):
        mark = tick(sheet, pen, option, 0, y, ticked := rng.random() < 0.5)
        ticks.append((option, ticked, mark))
        y += line
    item = sheet.finish(between(rng, 10, 30))
    found = [
        ask(rng, "form_value", text, item, [number], a=label.lower())
        for (label, _), text, number in zip(fields, values, at, strict=True)
    ]
    option, ticked, mark = one(rng, ticks)
    asked = (*some(rng, found, 2), ask(rng, "ticked", "yes" if ticked else "no", item, mark, a=option))
    for option, ticked, mark in ticks:
        found.append(ask(rng, "ticked", "yes" if ticked else "no", item, mark, a=option))
    return Made((item,), asked, unasked(found, asked))


def tick(sheet: Sheet, pen: Pen, option: str, x: int, y: int, ticked: bool) -> list[int]:
    """Draw a box that may be ticked, and what for; return the numbers of both."""
    side = round(1.3 * pen.px)
    box = (x, y + 0.15 * pen.px - side, x + side, y + 0.15 * pen.px)
    numbers = [sheet.frame(box, sheet.faint(0.8), max(1, pen.px // 8))]
    if ticked:
        rest = max(2, round(0.25 * side))
        sheet.panel((box[0] + rest, box[1] + rest, box[2] - rest, box[3] - rest), pen.rgb)
    return [*numbers, sheet.text(pen, option, x + 1.7 * side, y)]


def table(rng: np.random.Generator, material: Material) -> Made:
    """Whole numbers by row and column, all of a column different."""
    sheet = Sheet(rng, material)
    layout = one(rng, material.layouts(("grid", "rules"), ("stripes",)))
    pen = sheet.pen(size_px(rng, 8, 18))
    head = sheet.pen(pen.px)
    columns = some(rng, material.lexicon.measures, between(rng, 2, 4))
    lexicon = material.lexicon
    rows = some(rng, one(rng, (lexicon.places, lexicon.first_names, lexicon.products)), between(rng, 3, 8))
    top = one(rng, (50, 500, 5000))
    cells = np.stack([rng.choice(np.arange(1, top), size=len(rows), replace=False) for _ in columns], axis=1)
    gap, line = round(pen.px * rng.uniform(1.2, 2.5)), round(pen.px * rng.uniform(2.0, 2.8))
    ends = [max(pen.width(name) for name in rows) + gap]
    for name in columns:
        ends.append(ends[-1] + max(head.width(name), pen.width(str(top))) + 2 * gap)
    down = [i * line - round(0.65 * line) for i in range(len(rows) + 2)]
    if layout == "stripes":
        for i in range(1, len(rows) + 1, 2):
            sheet.panel((-gap, down[i], ends[-1], down[i + 1]), sheet.faint(0.12))
    if layout == "grid":
        for x in (-gap, *ends):
            sheet.panel((x, down[0], x + 1, down[-1]), sheet.faint(0.5))
    for i, y in enumerate(down):
        if layout == "grid" or (layout == "rules" and i in (0, 1, len(down) - 1)):
            sheet.panel((-gap, y, ends[-1], y + 1), sheet.faint(0.5))
    heads = [sheet.text(head, name, end - gap, 0, "right") for name, end in zip(columns, ends[1:], strict=True)]
    at = np.zeros(cells.shape, int)
    labels = []
    for i, name in enumerate(rows):
        labels.append(sheet.text(pen, name, 0, (i + 1) * line))
        for j in range(len(columns)):
            at[i, j] = sheet.text(pen, str(cells[i, j]), ends[j + 1] - gap, (i + 1) * line, "right", "number")
    item = sheet.finish(between(rng, 10, 28))
    i, j, k = between(rng, 0, len(rows) - 1), between(rng, 0, len(columns) - 1), between(rng, 0, len(columns) - 1)
    best, most = ((cells[:, k].argmax(), "highest"), (cells[:, k].argmin(), "lowest"))[between(rng, 0, 1)]
    asked = (
        ask(rng, "table_cell", str(cells[i, j]), item, [at[i, j]], a=rows[i], b=columns[j].lower()),
        ask(rng, "table_extreme", rows[best], item, [labels[best], at[best, k]], a=most, b=columns[k].lower()),
        ask(rng, "table_name", columns[j], item, [heads[j]], a=_ORDER[j]),
    )
    found = []
    for j, column in enumerate(columns):
        found.append(ask(rng, "table_name", column, item, [heads[j]], a=_ORDER[j]))
        for i in some(rng, range(len(rows)), 2):
            found.append(ask(rng, "table_cell", str(cells[i, j]), item, [at[i, j]], a=rows[i], b=column.lower()))
    return Made((item,), asked, unasked(found, asked))


def paragraph(rng: np.random.Generator, material: Material) -> Made:
    """A title and lines of words, one of them in another ink; every word is there once."""
    sheet = Sheet(rng, material)
    aligned: tuple[Align, ...] = ("right",) if material.held_out else ("left", "centre")
    layout = one(rng, aligned)
    pen = sheet.pen(size_px(rng, 8, 24))
    clear = far_from(np.array([PALETTE[sheet.ink]]), 40.0)
    others = [ink for ink in material.inks(sheet.tone) if ink in clear]
    words = some(rng, material.lexicon.words, between(rng, 8, 32))
    width = round(pen.px * rng.uniform(14, 24))
    marked = between(rng, 0, len(words) - 1) if others else -1
    bright = Pen(pen.face, pen.px, ink := one(rng, others), sheet.pen(pen.px, ink).rgb) if others else pen
    line, y = round(pen.px * rng.uniform(1.6, 2.4)), 0
    title = " ".join(some(rng, material.lexicon.words, between(rng, 1, 2))).capitalize()
    titled = sheet.pen(round(pen.px * rng.uniform(1.3, 2.0)))
    x = {"left": 0.0, "centre": width / 2, "right": float(width)}[layout]
    heading = sheet.text(titled, title, x, -round(1.3 * line), layout)
    lines: list[list[int]] = [[]]
    written = 0.0
    for i, word in enumerate(words):
        if lines[-1] and written + pen.width(f" {word}") > width:
            lines.append([])
            written = 0.0
        written += pen.width(f" {word}")
        lines[-1].append(i)
    at: list[int] = []
    shown = list(words)
    shown[0] = shown[0].capitalize()
    shown[-1] += "."
    for numbers in lines:
        rest = width - pen.width(" ".join(shown[i] for i in numbers))
        x = {"left": 0.0, "centre": rest / 2, "right": float(rest)}[layout]
        for i in numbers:
            at.append(sheet.text(bright if i == marked else pen, shown[i], x, y))
            x += pen.width(f"{shown[i]} ")
        y += line
    item = sheet.finish(between(rng, 10, 30))
    found: list[Question] = [ask(rng, "paragraph_title", title, item, [heading])]
    number = between(rng, 0, len(words) - 2)
    found.append(ask(rng, "paragraph_after", words[number + 1], item, at[number : number + 2], a=words[number]))
    row = between(rng, 0, min(4, len(lines)) - 1)
    read = " ".join(shown[i] for i in lines[row])
    found.append(ask(rng, "paragraph_line", read, item, [at[i] for i in lines[row]], a=_ORDER[row]))
    if others:
        found.append(ask(rng, "paragraph_marked", words[marked], item, [at[marked]], c=bright.ink))
    asked = tuple(some(rng, found, 3))
    for number in some(rng, range(len(words) - 1), 2):
        found.append(ask(rng, "paragraph_after", words[number + 1], item, at[number : number + 2], a=words[number]))
    for row in some(rng, range(min(4, len(lines))), 1):
        read = " ".join(shown[i] for i in lines[row])
        found.append(ask(rng, "paragraph_line", read, item, [at[i] for i in lines[row]], a=_ORDER[row]))
    return Made((item,), asked, unasked(found, asked))

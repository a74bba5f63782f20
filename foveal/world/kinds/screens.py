"""Interface screens: a window with fields, boxes to tick and named buttons."""

from __future__ import annotations

import numpy as np

from foveal.world.kinds.papers import tick
from foveal.world.kinds.tools import Made, ask, between, one, size_px, some, unasked, value
from foveal.world.phrases import say
from foveal.world.questions import Question, box_answer
from foveal.world.sheet import Pen, Sheet
from foveal.world.splits import Material


def screen(rng: np.random.Generator, material: Material) -> Made:
    """A window. Its buttons are filled or outlined; no two say the same."""
    sheet = Sheet(rng, material, dark=True)
    layout = one(rng, material.layouts(("bottom", "toolbar"), ("side",)))
    pen = sheet.pen(size_px(rng, 9, 17))
    lexicon = material.lexicon
    fields = some(rng, lexicon.fields, between(rng, 1, 3))
    options = some(rng, lexicon.options, between(rng, 1, 3))
    actions = some(rng, lexicon.actions, between(rng, 3, 5))
    pad, tall = round(pen.px * rng.uniform(0.9, 1.5)), round(pen.px * rng.uniform(2.2, 2.8))
    wides = [pen.width(action) + 2 * pad for action in actions]
    if layout == "side":
        wides = [max(wides)] * len(actions)
    step = tall + round(0.6 * pen.px)
    side = max(wides) + 2 * pad if layout == "side" else 0
    values = [value(rng, rule, material) for _, rule in fields]
    written = [*values, *(label for label, _ in fields), *(f"XX {option}" for option in options)]  # XX: the box to tick
    entry = max(map(pen.width, written)) + 2 * pad
    row = sum(wides) + pad * (len(wides) + 1)
    width = max(row if layout != "side" else 0, side + entry + 2 * pad, round(16 * pen.px))
    bar = round(2.4 * pen.px)
    body = step + len(fields) * (step + round(1.6 * pen.px)) + len(options) * step
    height = max(bar + body + (0 if layout == "side" else step), bar + pad + len(actions) * step if layout == "side" else 0)
    sheet.panel((0, 0, width, height), sheet.faint(0.06))
    sheet.panel((0, 0, width, bar), head := sheet.rgb)
    sheet.frame((0, 0, width, height), sheet.faint(0.7))
    title = one(rng, lexicon.titles)
    at_title = sheet.text(Pen(pen.face, pen.px, sheet.tone, sheet.ground), title, pad, 0.5 * (bar + pen.px))
    top = bar + pad + (step if layout == "toolbar" else 0)
    at_fields = []
    y = top
    for (label, _), text in zip(fields, values, strict=True):
        sheet.text(pen, label, side + pad, y + pen.px)
        y += round(1.6 * pen.px)
        sheet.panel((side + pad, y, side + pad + entry, y + tall), sheet.ground)
        sheet.frame((side + pad, y, side + pad + entry, y + tall), sheet.faint(0.5))
        at_fields.append(sheet.text(pen, text, side + 1.6 * pad, y + 0.5 * (tall + pen.px)))
        y += step
    ticks = []
    for option in options:
        y += step
        ticks.append((option, ticked := rng.random() < 0.5, tick(sheet, pen, option, side + pad, y - pen.px // 2, ticked)))
    buttons, x = [], pad
    filled = rng.random() < 0.5
    if layout == "bottom" and rng.random() < 0.6:
        x = width - row + pad
    for i, (action, wide) in enumerate(zip(actions, wides, strict=True)):
        if layout == "side":
            box = (pad, bar + pad + i * step, pad + wide, bar + pad + i * step + tall)
        else:
            y = bar + pad // 2 if layout == "toolbar" else height - tall - pad // 2
            box = (x, y, x + wide, y + tall)
            x += wide + pad
        buttons.append(sheet.panel(box, head, "button") if filled else sheet.frame(box, head, kind="button"))
        caption = Pen(pen.face, pen.px, sheet.tone, sheet.ground) if filled else pen
        sheet.text(caption, action, (box[0] + box[2]) / 2, (box[1] + box[3] + pen.px) / 2, "centre")
    item = sheet.finish(between(rng, 0, 24))

    def find(target: int) -> Question:
        name, box = actions[target], item.things[buttons[target]].box
        question = say(rng, "screen_find", a=name, b=name.lower())
        return Question("screen_find", question, box_answer([(box, name)], item.pixels.shape[1:3]), (box,), names=(name,))

    number, target = between(rng, 0, len(actions) - 2), between(rng, 0, len(actions) - 1)
    beside = "screen_below" if layout == "side" else "screen_beside"
    option, ticked, mark = one(rng, ticks)
    (label_text, _), text, at = one(rng, list(zip(fields, values, at_fields, strict=True)))
    rest = [
        ask(rng, "screen_value", text, item, [at], a=label_text),
        ask(rng, beside, actions[number + 1], item, [buttons[number], buttons[number + 1]], a=actions[number]),
        ask(rng, "ticked", "yes" if ticked else "no", item, mark, a=option),
        ask(rng, "screen_title", title, item, [at_title]),
    ]
    asked = (find(target), *some(rng, rest, 2))
    rest += [find(i) for i in some(rng, range(len(actions)), 2)]
    for (label_text, _), text, at in zip(fields, values, at_fields, strict=True):
        rest.append(ask(rng, "screen_value", text, item, [at], a=label_text))
    for option, ticked, mark in ticks:
        rest.append(ask(rng, "ticked", "yes" if ticked else "no", item, mark, a=option))
    return Made((item,), asked, unasked(rest, asked))

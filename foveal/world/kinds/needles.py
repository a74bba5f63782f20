"""A key and its code among many others, in glyphs of 8 to 48 pixels."""

from __future__ import annotations

import numpy as np

from foveal.world.kinds.tools import Made, ask, between, code, one, size_px, some, unasked
from foveal.world.scene import Box, find_room
from foveal.world.sheet import Sheet
from foveal.world.splits import Material

_SIDE = (256, 512)


def needle(rng: np.random.Generator, material: Material) -> Made:
    """Keys with codes, scattered; sizes and faces differ from pair to pair, and no pair lies over another."""
    sheet = Sheet(rng, material, dark=True)
    form = one(rng, material.layouts(("{key}: {code}", "{key} {code}"), ("{code} = {key}",)))
    size = between(rng, *_SIDE), between(rng, *_SIDE)
    taken: list[Box] = []
    pairs: list[tuple[str, str, int]] = []
    for key in some(rng, material.lexicon.words, between(rng, 4, 16)):
        secret = code(rng)
        text = form.format(key=key, code=secret)
        pen = sheet.pen(size_px(rng, 8, 48), one(rng, material.inks(sheet.tone)))
        wide, tall = pen.width(text) + 4, 2 * pen.px
        room = find_room(rng, (tall, wide), size, taken)
        if room is None:
            continue
        taken.append((room[0], room[1], room[0] + wide, room[1] + tall))
        pairs.append((key, secret, sheet.text(pen, text, room[0] + 2, room[1] + 1.4 * pen.px)))
    if not pairs:
        return needle(rng, material)
    item = sheet.finish(between(rng, 4, 24), least=128)
    key, secret, number = one(rng, pairs)
    other, other_code, other_number = one(rng, pairs)
    found = [ask(rng, "needle_code", secret, item, [number], a=key)]
    if other != key:
        found.append(ask(rng, "needle_key", other, item, [other_number], a=other_code))
    further = []
    for key, secret, number in pairs:
        further.append(ask(rng, "needle_code", secret, item, [number], a=key))
        further.append(ask(rng, "needle_key", key, item, [number], a=secret))
    return Made((item,), tuple(found), unasked(further, found))

"""The kinds of cases. A maker draws one case from a generator and a split's material; to add a kind, add its maker here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foveal.world.kinds.charts import chart
from foveal.world.kinds.films import event, glimpse, order
from foveal.world.kinds.needles import needle
from foveal.world.kinds.papers import form, paragraph, receipt, table
from foveal.world.kinds.scenes import absent, emoji, far, pictures, reasoned, turns
from foveal.world.kinds.screens import screen
from foveal.world.kinds.tools import Made
from foveal.world.splits import Material

KINDS: dict[str, Callable[[np.random.Generator, Material], Made]] = {
    "receipt": receipt,
    "form": form,
    "table": table,
    "paragraph": paragraph,
    "chart": chart,
    "screen": screen,
    "needle": needle,
    "emoji": emoji,
    "absent": absent,
    "far": far,
    "pictures": pictures,
    "turns": turns,
    "reasoned": reasoned,
    "event": event,
    "order": order,
    "glimpse": glimpse,
}

FILMS = ("event", "order", "glimpse")  # those that are about clips; all others are about pictures

# The kinds of questions that each may ask.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "receipt": ("receipt_total", "receipt_price", "receipt_shop", "receipt_date", "receipt_quantity"),
    "form": ("form_value", "ticked"),
    "table": ("table_cell", "table_extreme", "table_name"),
    "paragraph": ("paragraph_title", "paragraph_after", "paragraph_line", "paragraph_marked"),
    "chart": ("chart_value", "chart_extreme", "chart_difference", "chart_above"),
    "screen": ("screen_find", "screen_value", "screen_beside", "screen_below", "ticked", "screen_title"),
    "needle": ("needle_code", "needle_key"),
    "emoji": ("emoji_name", "emoji_colour", "emoji_find", "emoji_only"),
    "absent": ("absent_one", "absent_list"),
    "far": ("far_number", "far_same", "far_colour"),
    "pictures": ("pictures_which", "pictures_count", "pictures_changed", "pictures_colour"),
    "turns": ("turns_first", "turns_find", "turns_nearest", "turns_others"),
    "reasoned": ("reasoned_count",),
    "event": ("appear_time", "vanish_time", "moves"),
    "order": ("order_list", "order_last"),
    "glimpse": ("glimpse_code", "glimpse_time"),
}

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

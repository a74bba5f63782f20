"""The page of a trace: pictures rebuilt from the very patches the encoder took, and one HTML file without links."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal.config import VisionConfig
from foveal.media.encode import data_url
from foveal.patches import Patches
from foveal.units import flops

MAX_FRAMES = 12  # of one clip on the page
MAX_SIDE_PX = 720


def render(trace: dict[str, Any], media: Seq[Patches], vision: VisionConfig) -> str:
    """Draw a trace; `media` are the request's patches, in order."""
    costs = [c | {"flops": flops(c["flops"]), "rate": flops(c["flops"] / c["seconds"]) + "/s"} for c in trace["costs"]]
    data = trace | {"costs": costs, "media": [_with_frames(m, p, vision) for m, p in zip(trace["media"], media, strict=True)]}
    # Inside a script element only "<" could end it or open a comment.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = files("foveal.trace").joinpath("page.html").read_text(encoding="utf-8")
    before, after = template.split("__DATA__")
    return before + text + after


def rebuild(patches: Patches, vision: VisionConfig, frame: int) -> npt.NDArray[np.uint8]:
    """Put the patches of one temporal index back together: its first frame, (h, w, 3); dropped patches are grey."""
    p, channels = vision.patch_size, vision.in_channels
    rows = patches.coords[:, 0] == frame
    pixels = patches.pixels[rows].reshape(int(rows.sum()), channels, -1, p, p)[:, :, 0]  # (P, C, p, p)
    height, width = patches.grids[frame]
    canvas = np.full((height, width, p, p, channels), 128, np.uint8)
    canvas[patches.coords[rows, 1], patches.coords[rows, 2]] = pixels.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(canvas.transpose(0, 2, 1, 3, 4).reshape(height * p, width * p, channels))


def _with_frames(media: dict[str, Any], patches: Patches, vision: VisionConfig) -> dict[str, Any]:
    total = len(patches.grids)
    shown = sorted({round(i) for i in np.linspace(0, total - 1, min(total, MAX_FRAMES))})
    frames = [
        {
            "index": t,
            "time_s": patches.times_s[t],
            "time": f"{patches.times_s[t]:.1f} s",  # rounded here, as in the prompt: JavaScript rounds 0.25 up
            "src": data_url(rebuild(patches, vision, t), max_side_px=MAX_SIDE_PX),
        }
        for t in shown
    ]
    return media | {"frames": frames, "hidden_frames": total - len(shown)}

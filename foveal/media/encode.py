"""Pixels back to a file's bytes: data URLs for pages and for servers."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_SMALL_PX = 256 * 256


def data_url(pixels: np.ndarray, *, max_side_px: int | None = None, lossless: bool = False) -> str:
    """Write one frame (H, W, 3) uint8 as a data URL, no longer than `max_side_px` a side.

    Small pictures keep every pixel (PNG); large ones would make a page heavy, and are JPEG unless `lossless`.
    """
    image = Image.fromarray(pixels)
    if max_side_px is not None:
        image.thumbnail((max_side_px, max_side_px))
    buffer = io.BytesIO()
    kind = "png" if lossless or image.width * image.height <= _SMALL_PX else "jpeg"
    image.save(buffer, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return bytes_url(buffer.getvalue(), f"image/{kind}")


def bytes_url(data: bytes, mime: str) -> str:
    """Write bytes as a data URL."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"

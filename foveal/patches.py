"""Frames to Patches: the resize rule, the budget in vision tokens, and uint8 patches in merge-block order.

Pixels stay uint8 and are stored once: a still picture's patch holds one frame although the encoder's kernel spans two
(the duplicate is folded into the weights), and normalisation is folded there too. That is eight times less to move than the
reference's float32 `pixel_values`, and the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from foveal.config import VisionConfig
from foveal.errors import MediaError, PromptError

if TYPE_CHECKING:
    from foveal.media import Frames

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class Budget:
    """How many vision tokens a picture or clip may take; one token covers factor x factor pixels.

    image: tokens of one picture (released default 64..16384; down to 4 when asked).
    clip: tokens of a whole clip over all its frame pairs (released default 2..12288).
    frame: when given, tokens of one frame pair instead (the per-frame mode of qwen-vl-utils, 128..768), within `clip`.
    single: when given, the most tokens that one frame, not a pair, may have within `clip` (a checkpoint's own
        `cap_pixels_per_frame`); a clip of few frames then does not spend the whole budget on them.
    """

    image: tuple[int, int] = (64, 16384)
    clip: tuple[int, int] = (2, 12288)
    frame: tuple[int, int] | None = None
    single: int | None = None

    def __post_init__(self) -> None:
        if self.single is not None and self.single < 1:
            raise PromptError(f"a frame may have at most {self.single} tokens; expected 1 or more")
        for name in ("image", "clip", "frame"):
            pair = getattr(self, name)
            if pair is None:
                continue
            low, high = pair
            if not 1 <= low <= high:
                raise PromptError(f"the {name} budget is {low}..{high} tokens; expected 1 <= minimum <= maximum")

    @classmethod
    def from_pixels(
        cls, image: tuple[int, int] | None, clip: tuple[int, int] | None, *, factor: int, temporal_patch_size: int
    ) -> Budget:
        """Convert the `size` entries of preprocessor files: pixel areas for pictures, T*H*W volumes for clips."""
        default = cls()
        area, volume = factor * factor, temporal_patch_size * factor * factor
        return cls(
            image=default.image if image is None else (math.ceil(image[0] / area), max(1, image[1] // area)),
            clip=default.clip if clip is None else (math.ceil(clip[0] / volume), max(1, clip[1] // volume)),
        )

    def capped(self, tokens: int) -> Budget:
        """Lower every maximum (and a minimum above it) to `tokens`, a request's share of the context."""

        def cap(pair: tuple[int, int]) -> tuple[int, int]:
            return min(pair[0], tokens), min(pair[1], tokens)

        return replace(self, image=cap(self.image), clip=cap(self.clip), frame=self.frame and cap(self.frame))


@dataclass(frozen=True)
class Patches:
    """The patches of one picture or clip, any subset of its vision tokens.

    pixels: (P, F*C*p*p) uint8; F = 1 for a picture, temporal_patch_size for a clip; within a row (C, F, p, p) with the
        axes the reference's kernel has. merge*merge consecutive rows make one vision token.
    coords: (P, 3) int32, (t, row, column) in patches.
    grids: (rows, columns) in patches of every temporal index, the full grid even when rows were dropped.
    times_s: one per temporal index, the mean time of the frames in it.
    source_size: (height, width) of the file.
    """

    pixels: npt.NDArray[np.uint8]
    coords: npt.NDArray[np.int32]
    grids: tuple[tuple[int, int], ...]
    times_s: tuple[float, ...]
    kind: Literal["image", "video"]
    merge: int
    source_size: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """Vision tokens these patches make."""
        return len(self.pixels) // self.merge**2

    def take(self, tokens: npt.NDArray[np.integer] | list[int]) -> Patches:
        """Keep the given vision tokens (indices in this value's own order). The grids, and so the clock, stay."""
        block = self.merge**2
        rows = (np.asarray(tokens, dtype=np.int64)[:, None] * block + np.arange(block)).reshape(-1)
        return replace(self, pixels=self.pixels[rows], coords=self.coords[rows])

    def lengths(self) -> list[int]:
        """Count the rows of every temporal index; attention stays inside each. Raise PromptError if frames are not in order."""
        frames = self.coords[:, 0]
        if np.any(frames[1:] < frames[:-1]):
            raise PromptError("the rows of a clip must keep its frames in order; sort the vision tokens before taking them")
        return np.bincount(frames, minlength=len(self.grids)).tolist()


def smart_resize(height: int, width: int, *, factor: int, min_tokens: int, max_tokens: float) -> tuple[int, int]:
    """Choose a picture's size: both sides multiples of `factor`, area within the budget, aspect ratio nearly kept.

    Source: transformers `models/qwen2_vl/image_processing_qwen2_vl.py::smart_resize`, with Python's half-even `round`.
    Raise MediaError for an aspect ratio above 200.
    """
    _check_ratio(height, width)
    low, high = min_tokens * factor * factor, max_tokens * factor * factor
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > high:
        beta = math.sqrt(height * width / high)
        h = max(factor, math.floor(height / beta / factor) * factor)
        w = max(factor, math.floor(width / beta / factor) * factor)
    elif h * w < low:
        beta = math.sqrt(low / (height * width))
        h = math.ceil(height * beta / factor) * factor
        w = math.ceil(width * beta / factor) * factor
    return h, w


def smart_resize_clip(
    num_frames: int,
    height: int,
    width: int,
    *,
    factor: int,
    temporal_patch_size: int,
    min_tokens: int,
    max_tokens: int | Fraction,
) -> tuple[int, int]:
    """Choose the size of all frames of a clip; the budget is of the whole clip, T*H*W.

    Source: transformers `models/qwen3_vl/video_processing_qwen3_vl.py::smart_resize`. `num_frames` is counted before the
    padding to full frame pairs, as there. Raise MediaError for an aspect ratio above 200.
    """
    volume = temporal_patch_size * factor * factor
    low, high = min_tokens * volume, max_tokens * volume
    _check_area(height, width)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
    h, w = round(height / factor) * factor, round(width / factor) * factor
    t = round(num_frames / temporal_patch_size) * temporal_patch_size
    if t * h * w > high:
        beta = math.sqrt(num_frames * height * width / high)
        h = max(factor, math.floor(height / beta / factor) * factor)
        w = max(factor, math.floor(width / beta / factor) * factor)
    elif t * h * w < low:
        beta = math.sqrt(low / (num_frames * height * width))
        h = math.ceil(height * beta / factor) * factor
        w = math.ceil(width * beta / factor) * factor
    return h, w


def target_size(num_frames: int, height: int, width: int, kind: str, vision: VisionConfig, budget: Budget) -> tuple[int, int]:
    """Choose the (height, width) a picture or the frames of a clip are resized to."""
    if kind == "image":
        low, high = budget.image
        return smart_resize(height, width, factor=vision.factor, min_tokens=low, max_tokens=high)
    # The reference decides with at least two frames: a clip of one is padded by repeating it.
    n, pair = max(num_frames, vision.temporal_patch_size), vision.temporal_patch_size
    low, high = budget.clip
    if budget.frame is not None:
        # Source: qwen-vl-utils 0.0.14 `fetch_video`. The share is a fraction of a token there too, and the maximum stays a
        # little above the minimum, so that the two never cross.
        share = max(min(budget.frame[1], high / math.ceil(n / pair)), budget.frame[0] * 1.05)
        return smart_resize(height, width, factor=vision.factor, min_tokens=budget.frame[0], max_tokens=share)
    most: int | Fraction = high
    if budget.single is not None:
        # Source: transformers 5.23 `models/qwen3_vl/video_processing_qwen3_vl.py::resize`, which floors in pixels.
        area = vision.factor**2
        each = max(min(budget.single * area, high * pair * area // n), int(low * pair * area * 1.05))
        most = Fraction(each * n, pair * area)
    return smart_resize_clip(n, height, width, factor=vision.factor, temporal_patch_size=pair, min_tokens=low, max_tokens=most)


def resize(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize (N, H, W, C) uint8 frames to (h, w), bicubic with antialiasing.

    Equal bit for bit to the released processors (torchvision v2 `resize`, which calls the same kernel on uint8); feeding it
    channels last, as decoders deliver, is several times faster than channels first.
    """
    if pixels.shape[1:3] == size:
        return pixels
    import torch  # lazily: everything else on the host side works without it

    return torch.from_numpy(_planes(pixels, size)).permute(0, 2, 3, 1).contiguous().numpy()


def _planes(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize as `resize` does, into (N, C, h, w) of whatever strides come for free: the kernel writes planes or rows."""
    if pixels.shape[1:3] == size:
        return pixels.transpose(0, 3, 1, 2)
    import torch

    frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=True).numpy()


def patchify(frames: Frames, vision: VisionConfig, budget: Budget) -> Patches:
    """Resize frames into the budget and cut them into patches.

    An odd clip repeats its last frame, as the reference does. Frames that `media` already fitted are not resized again.
    """
    pixels = frames.pixels
    n, height, width, channels = pixels.shape
    size = (height, width)
    if size == frames.source_size or size[0] % vision.factor or size[1] % vision.factor:
        size = target_size(n, height, width, frames.kind, vision, budget)
    planes = _planes(pixels, size)
    per = 1 if frames.kind == "image" else vision.temporal_patch_size
    times = [float(t) for t in frames.times_s]
    if n % per:
        repeat = per - n % per
        planes = np.concatenate([planes, np.repeat(planes[-1:], repeat, axis=0)])
        times += [times[-1]] * repeat
    t, p, m = len(planes) // per, vision.patch_size, vision.spatial_merge_size
    h, w = size[0] // p, size[1] // p
    # (t, F, C, h/m, m, p, w/m, m, p) -> (t, h/m, w/m, m, m, C, F, p, p): facts 3g, with F = 1 for a picture.
    blocks = planes.reshape(t, per, channels, h // m, m, p, w // m, m, p)
    rows = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, channels * per * p * p)
    return Patches(
        pixels=np.ascontiguousarray(rows),
        coords=merge_block_coords(t, h, w, m),
        grids=((h, w),) * t,
        # The reference averages the first and the last frame of a pair.
        times_s=tuple((times[i * per] + times[i * per + per - 1]) / 2 for i in range(t)),
        kind=frames.kind,
        merge=m,
        source_size=frames.source_size,
    )


def merge_block_coords(t: int, h: int, w: int, merge: int) -> npt.NDArray[np.int32]:
    """List (t, row, column) of a full grid in the order the encoder takes it: merge blocks, row-major inside and out."""
    index = np.indices((t, h, w), dtype=np.int32).reshape(3, t, h // merge, merge, w // merge, merge)
    return np.ascontiguousarray(index.transpose(1, 2, 4, 3, 5, 0).reshape(-1, 3))


def _check_area(height: int, width: int) -> None:
    if height <= 0 or width <= 0:
        raise MediaError(f"a picture of {width}x{height} pixels has no area")


def _check_ratio(height: int, width: int) -> None:
    _check_area(height, width)
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise MediaError(
            f"a picture of {width}x{height} pixels has an aspect ratio of {ratio:.0f}; "
            f"the model takes at most {MAX_ASPECT_RATIO}: crop or pad it"
        )

"""How many vision tokens the pictures and clips of a request may take: from a part's own keys, a budget, and the context."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

from foveal.config import ModelConfig, VisionConfig
from foveal.errors import ContextError, PromptError
from foveal.media import ClipSampling
from foveal.patches import Budget, target_size
from foveal.sequence import Kind

VISUAL_SHARE = 0.9  # of the context, for all visual tokens of a request; source: qwen-vl-utils 0.0.14
LOW_DETAIL_TOKENS = 256  # what "detail": "low" allows a picture
_LARGEST = 1e300  # number in a part; beyond lie integers that are no floats
_BOUNDS = ("min_pixels", "max_pixels", "min_tokens", "max_tokens")
_CLIP_KEYS = {
    "fps": "fps", "nframes": "num_frames", "num_frames": "num_frames", "min_frames": "min_frames", "max_frames": "max_frames",
    "video_start": "start_s", "start_s": "start_s", "video_end": "end_s", "end_s": "end_s",
}  # fmt: skip


@dataclass(frozen=True)
class MediaShape:
    """What decides how many vision tokens a picture or clip takes: frames, and (height, width) of the source in pixels."""

    kind: Kind
    frames: int
    size: tuple[int, int]

    def tokens(self, vision: VisionConfig, budget: Budget) -> int:
        """Count the vision tokens it takes under a budget."""
        height, width = target_size(self.frames, *self.size, self.kind, vision, budget)
        temporal = 1 if self.kind == "image" else -(-self.frames // vision.temporal_patch_size)
        return temporal * (height // vision.factor) * (width // vision.factor)


def visual_room(config: ModelConfig, share: float = VISUAL_SHARE) -> int:
    """Return how many visual tokens a request may hold."""
    if not 0 < share <= 1:
        raise PromptError(f"max_visual_share is {share!r}; expected a share of the context above 0, up to 1")
    return max(1, int(config.text.max_position_embeddings * share))


def shared_budget(
    config: ModelConfig, budget: Budget, shapes: SequenceOf[MediaShape], max_visual_share: float = VISUAL_SHARE
) -> Budget:
    """Cap a budget so that these media together keep within their share of the context, as `Processor` does."""
    room = visual_room(config, max_visual_share)
    capped = budget.capped(room)
    if sum(shape.tokens(config.vision, capped) for shape in shapes) <= room:
        return capped
    return budget.capped(fair_cap(config.vision, [(shape, budget) for shape in shapes], room))


def fair_cap(vision: VisionConfig, media: SequenceOf[tuple[MediaShape, Budget]], room: int) -> int:
    """Return the largest number of tokens that, as everyone's maximum, keeps the sum within `room`.

    Small media keep what they want and leave the rest to the large ones. Raise ContextError when one token for each picture
    and frame pair is too much already.
    """

    def total(cap: int) -> int:
        return sum(shape.tokens(vision, budget.capped(cap)) for shape, budget in media)

    least = total(1)
    if least > room:
        frames = sum(shape.frames for shape, _ in media)
        raise ContextError(
            f"{len(media)} pictures and clips with {frames} frames need at least {least} visual tokens, but a request may hold "
            f"{room}; give fewer of them, or fewer frames (clip_sampling)"
        )
    low, high = 1, room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= room else (low, middle - 1)
    return low


def part_options(
    kind: Kind | None, options: Mapping[str, Any], budget: Budget, sampling: ClipSampling, vision: VisionConfig
) -> tuple[Budget, ClipSampling, float | None]:
    """Read the keys a message part has beside its source; return its budget, clip sampling and the rate of a list of pictures.

    Keys are those of qwen-vl-utils 0.0.14 (pixels, nframes, ...), the OpenAI API (detail) and tokens. An unknown one is a
    PromptError, never ignored: budgets that were silently dropped are a common source of wrong sizes.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if kind == "image":
        budget = _image_options(given, budget, vision)
        known = [*_BOUNDS, "detail"]
        sample_fps = None
    else:
        budget, sampling = _clip_options(given, budget, sampling, vision)
        known = [*_BOUNDS, "total_pixels", "sample_fps", *_CLIP_KEYS]
        sample_fps = _number(given.pop("sample_fps"), "sample_fps") if "sample_fps" in given else None
    if given:
        raise PromptError(f"a part of type {kind} has the unknown key {next(iter(given))!r}; it may have {', '.join(known)}")
    return budget, sampling, sample_fps


def _image_options(given: dict[str, Any], budget: Budget, vision: VisionConfig) -> Budget:
    low, high = _range(given, budget.image, vision.factor**2)
    detail = given.pop("detail", "auto")
    if detail not in ("low", "high", "auto"):
        raise PromptError(f"an image has detail {detail!r}; expected low, high or auto")
    if detail == "low":
        low, high = min(low, LOW_DETAIL_TOKENS), min(high, LOW_DETAIL_TOKENS)
    return replace(budget, image=(low, high))


def _clip_options(
    given: dict[str, Any], budget: Budget, sampling: ClipSampling, vision: VisionConfig
) -> tuple[Budget, ClipSampling]:
    area = vision.factor**2
    # min_pixels and max_pixels bound one frame there, and total_pixels the clip: tokens * factor**2, frame pairs counted once.
    pixels: dict[str, Any] = {key: given.pop(key) for key in _BOUNDS[:2] if key in given}
    if pixels:
        budget = replace(budget, frame=_range(pixels, budget.frame or (128, 768), area))
    if "total_pixels" in given:
        given["max_tokens"] = _number(given.pop("total_pixels"), "total_pixels") // area
    budget = replace(budget, clip=_range(given, budget.clip, area))
    changes: dict[str, Any] = {}
    for theirs, ours in _CLIP_KEYS.items():
        if theirs in given:
            value = _number(given.pop(theirs), theirs)
            changes[ours] = value if ours in ("fps", "start_s", "end_s") else round(value)
    if "max_frames" in changes:  # as with tokens: a bound that is not given yields to the one that is
        changes.setdefault("min_frames", min(sampling.min_frames, changes["max_frames"]))
    elif "min_frames" in changes:
        changes["max_frames"] = max(sampling.max_frames, changes["min_frames"])
    if {"fps", "num_frames"} & changes.keys():
        sampling = replace(sampling, fps=None, num_frames=None)  # a part's own rule replaces both
    return budget, replace(sampling, **changes)


def _range(given: dict[str, Any], default: tuple[int, int], area: int) -> tuple[int, int]:
    """Take minimum and maximum out of a part's keys, in tokens; a bound that is not given yields to the one that is."""
    bounds = {key: _number(given.pop(key), key) for key in _BOUNDS if key in given}
    low = high = None
    if "min_pixels" in bounds:
        low = -(-int(bounds["min_pixels"]) // area)
    if "max_pixels" in bounds:
        high = int(bounds["max_pixels"]) // area
    low = int(bounds["min_tokens"]) if "min_tokens" in bounds else low
    high = int(bounds["max_tokens"]) if "max_tokens" in bounds else high
    if high is not None:
        high = max(1, high)
    if low is None:
        low = default[0] if high is None else min(default[0], high)
    return low, max(default[1], low) if high is None else high


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LARGEST:
        raise PromptError(f"{name} of a picture or clip is {value!r}; expected a number of at least 0")
    return value

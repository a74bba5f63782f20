"""Options shared by several commands. Imports nothing heavy: `foveal --help` reads this file.

None means: as the checkpoint's own files say, or foveal's default where they say nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from foveal.errors import ConfigError

if TYPE_CHECKING:
    from foveal.media import ClipSampling
    from foveal.patches import Budget

MODEL = Group("Model", sort_key=1)
MEDIA = Group("Pictures and clips", sort_key=2)
SAMPLING = Group("Answer", sort_key=3)
OUTPUT = Group("Output", sort_key=4)

KvCache = Literal["auto", "float32", "bfloat16", "int8"]
Flag = Annotated[bool, Parameter(negative="", group=OUTPUT, show_default=False)]


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """Which model, where, in which precision."""

    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None
    """Checkpoint folder, hub name such as Qwen/Qwen3-VL-2B-Instruct, or a short one such as 2B; else the embedded model."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the weights in memory; the fastest of the accurate ones on CPUs, the checkpoint's own elsewhere."""

    quantize: Literal["none", "8", "4"] | None = None
    """Pack the weights to 8 or 4 bits while they are loaded, on CPUs: half or a quarter of the memory, and faster."""

    kv_cache: KvCache = "auto"
    """What keys and values are kept as; as the weights, beside packed ones bfloat16. int8: half of that, for long prompts."""

    @property
    def cache_dtype(self) -> str | None:
        return None if self.kv_cache == "auto" else self.kv_cache

    @property
    def bits(self) -> int | None:
        """The width to pack to, 0 for none, None where nothing was said."""
        return None if self.quantize is None else 0 if self.quantize == "none" else int(self.quantize)

    def check(self) -> None:
        """Refuse what cannot run before anything heavy is imported."""
        from foveal.cli.models import check_runnable

        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(f"--device is {self.device!r}; expected cpu, cuda or cuda:N")
        if self.bits and (self.device != "cpu" or self.dtype is not None):
            raise ConfigError("--quantize is for CPUs and decides the precision; leave out --device and --dtype")
        check_runnable(self.model)


@Parameter(name="*", group=MEDIA)
@dataclass(frozen=True)
class MediaOptions:
    """How finely pictures and clips are looked at."""

    image_tokens: Annotated[str | None, Parameter(help="Vision tokens of one picture: MIN..MAX, MIN.., ..MAX or N.")] = None
    clip_tokens: Annotated[str | None, Parameter(help="Vision tokens of one clip, all frames together.")] = None
    frame_tokens: Annotated[str | None, Parameter(help="Vision tokens of one frame pair, within --clip-tokens.")] = None
    fps: Annotated[float | None, Parameter(help="Frames a second taken from a clip (2).")] = None
    frames: Annotated[int | None, Parameter(help="Frames taken from a clip, instead of --fps.")] = None
    start: Annotated[float | None, Parameter(help="Where to begin in a clip, in seconds.")] = None
    end: Annotated[float | None, Parameter(help="Where to stop in a clip, in seconds.")] = None

    def clip_sampling(self, default: ClipSampling | None = None) -> ClipSampling:
        """Change the checkpoint's rule for choosing frames where an option says so; raise ConfigError for contradictions."""
        from foveal.media import ClipSampling

        out = default or ClipSampling()
        if self.fps is not None or self.frames is not None:
            out = replace(out, fps=self.fps, num_frames=self.frames)
        return replace(out, start_s=self.start, end_s=self.end)

    def budget(self, default: Budget) -> Budget:
        """Change the checkpoint's own budget where an option says so."""
        frame = default.frame
        if self.frame_tokens is not None:
            frame = parse_range("--frame-tokens", self.frame_tokens, default.frame or (128, 768))
        return replace(
            default,
            image=parse_range("--image-tokens", self.image_tokens, default.image),
            clip=parse_range("--clip-tokens", self.clip_tokens, default.clip),
            frame=frame,
        )


@Parameter(name="*", group=SAMPLING)
@dataclass(frozen=True)
class SamplingOptions:
    """How the answer is chosen."""

    system: Annotated[str | None, Parameter(help="System message.")] = None
    temperature: Annotated[float | None, Parameter(help="0 takes the likeliest token every time.")] = None
    top_p: Annotated[float | None, Parameter(help="Smallest set of tokens whose probability reaches this.")] = None
    top_k: Annotated[int | None, Parameter(help="Likeliest tokens only; 0 for all.")] = None
    min_p: Annotated[float | None, Parameter(help="Tokens above this share of the likeliest one.")] = None
    repetition_penalty: Annotated[float | None, Parameter(help="Above 1 lowers tokens already in the text.")] = None
    presence_penalty: Annotated[float | None, Parameter(help="Subtracted once from tokens already generated.")] = None
    frequency_penalty: Annotated[float | None, Parameter(help="Subtracted for every time a token was generated.")] = None
    seed: Annotated[int | None, Parameter(help="Repeats a sampled answer.")] = None
    max_tokens: Annotated[int | None, Parameter(help="Longest answer, reasoning included.")] = None
    thinking_tokens: Annotated[int | None, Parameter(help="Longest reasoning of a thinking model; then it must answer.")] = None
    stop: Annotated[list[str] | None, Parameter(help="End the answer before this text; may be repeated.", negative="")] = None

    def chosen(self) -> dict[str, Any]:
        """Return what was given, by field of `Sampling`; the checkpoint's defaults fill the rest."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "system"}
        return {name: tuple(v) if name == "stop" else v for name, v in given.items() if v is not None}


def parse_range(option: str, text: str | None, default: tuple[int, int]) -> tuple[int, int]:
    """Read MIN..MAX, MIN.., ..MAX or N (exactly); an open end is the default's, moved if it lies on the wrong side."""
    if text is None:
        return default
    match = re.fullmatch(r"\s*(\d*)(\.\.)?(\d*)\s*", text)
    if match is None or not (match[1] or match[3]):
        raise ConfigError(f"{option} is {text!r}; expected MIN..MAX, such as 64..1024")
    if match[2] is None:
        low = high = int(match[1] or match[3])
    else:
        low = int(match[1]) if match[1] else min(default[0], int(match[3]))
        high = int(match[3]) if match[3] else max(default[1], low)
    if not 1 <= low <= high:
        raise ConfigError(f"{option} is {text!r}; expected 1 <= MIN <= MAX")
    return low, high


def check_dtype(dtype: str | None) -> None:
    """Refuse an unknown precision in the words of the command line."""
    from foveal.config import DTYPE_BYTES

    if dtype is not None and dtype not in DTYPE_BYTES:
        raise ConfigError(f"--dtype is {dtype!r}; expected {', '.join(DTYPE_BYTES)}")

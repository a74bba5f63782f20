"""Everything that decides a fine-tuning run, from a TOML file and `key=value` on top. Imports nothing heavy."""

from __future__ import annotations

import difflib
import math
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from foveal.errors import ConfigError
from foveal.finetune.sources import SourceOptions
from foveal.finetune.track import Kind

Norm = Literal["token", "sample", "sqrt"]
# What may change between two sittings of one run: none of it moves a weight. Of data, the state keeps what was read instead.
FREE = (
    "data", "sources", "save_every", "log_every", "workers", "threads", "plot", "merge", "eval", "eval_every", "skip_bad",
    "divergence", "tensor_parallel", "track",
)  # fmt: skip


@dataclass(frozen=True)
class LoraSettings:
    """Adapters of `rank` on the Linears that `target` names, scaled by alpha / rank (rslora: alpha / sqrt(rank)).

    target: "all-linear", a pattern for whole names, or a list of names' ends such as "q_proj". parameters: the packed experts
    that get adapters, by names' ends such as "experts.down_proj". Only what belongs to parts that learn is meant; a part in
    which any is found learns by its adapters alone.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    target: str | tuple[str, ...] = "all-linear"
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.rank >= 1, f"lora.rank is {self.rank}; expected 1 or more")
        _require(self.alpha > 0, f"lora.alpha is {self.alpha}; expected more than 0")
        _require(0 <= self.dropout < 1, f"lora.dropout is {self.dropout}; expected 0 or more, and less than 1")
        _require(bool(self.target or self.parameters), "lora.target is empty; name the Linears that are to get adapters")

    @property
    def scale(self) -> float:
        return float(self.alpha / (self.rank**0.5 if self.rslora else self.rank))


@dataclass(frozen=True)
class TuneSettings:
    """A run. Paths of a file are relative to its folder; None is the checkpoint's or foveal's own default.

    vision, merger, language: learning rates of the encoder, of the main and all DeepStack mergers, of the decoder; 0 freezes.
    steps or epochs: how long. batch_tokens packs samples into batches of so many tokens, batch_size counts them; gradients of
    `accumulate` batches make a step. window: samples read ahead, sorted by length and packed. max_tokens: the longest sample.
    warmup: share of the run; floor: what the cosine ends at, as a share. loss: what counts alike, every learned token, every
    sample, or (sqrt) between the two. balance: weight of the routers' balance loss. chunk: rows of logits in memory at once.
    divergence: stop when the mean loss is so many times its lowest, plus 1; 0 never. eval_every, save_every: in steps.
    merge: write the model with its adapters merged, too. tensor_parallel: of the processes that torchrun started, so many
    share every product; all others take batches of their own. bits: 8 keeps frozen weights in 8 bits, for adapters to learn
    on. track: "trackio", "tensorboard": where the log goes, too.
    """

    output: Path
    data: tuple[str, ...]
    model: str | None = None
    eval: tuple[str, ...] = ()
    sources: dict[str, SourceOptions] = field(default_factory=dict)
    vision: float = 0.0
    merger: float = 0.0
    language: float = 1e-5
    lora: LoraSettings | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_tokens: int | None = None
    batch_size: int = 1
    accumulate: int = 1
    window: int = 64
    max_tokens: int | None = None
    image_tokens: tuple[int, int] | None = None
    clip_tokens: tuple[int, int] | None = None
    fps: float | None = None
    frames: int | None = None
    warmup: float = 0.03
    floor: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    loss: Norm = "token"
    balance: float = 0.0
    chunk: int = 1024
    checkpointing: bool = False
    seed: int = 0
    save_every: int = 100
    eval_every: int = 100
    log_every: int = 1
    divergence: float = 3.0
    skip_bad: bool = False
    plot: bool = True
    merge: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: int | None = None
    workers: int = 1
    tensor_parallel: int = 1
    bits: Literal[8] | None = None
    track: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.data), "there is no data; name at least one source")
        for name in ("vision", "merger", "language", "weight_decay", "balance", "divergence", "floor", "warmup"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("vision", "merger", "language", "weight_decay", "balance", "divergence", "clip"):
            value = getattr(self, name)
            _require(math.isfinite(value) or name == "clip", f"{name} is {value}; expected a number that is finite")
        _require(
            all(0 <= beta < 1 for beta in self.betas), f"betas is {list(self.betas)}; expected two of at least 0 and below 1"
        )
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}; expected 0 or more, and less than 2^63")
        _require(self.vision + self.merger + self.language > 0, "vision, merger and language are all 0: nothing would learn")
        _require(self.warmup < 1 and self.floor <= 1, f"warmup {self.warmup} and floor {self.floor} are shares, at most 1")
        _require(self.steps is None or self.epochs is None, "steps and epochs are both given; one of them ends the run")
        _require(self.batch_tokens is None or self.batch_size == 1, "batch_tokens and batch_size are both given; one will do")
        for name in ("steps", "epochs", "batch_tokens", "max_tokens", "threads", "clip", "fps", "frames"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} is {value}; expected more than 0")
        for name in ("batch_size", "accumulate", "window", "chunk", "save_every", "log_every", "workers", "tensor_parallel"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected 1 or more")
        _require(
            self.bits is None or self.tensor_parallel == 1,
            "bits is 8, and weights in 8 bits cannot be divided; set tensor_parallel = 1",
        )
        _require(self.eval_every >= 0, f"eval_every is {self.eval_every}; expected 0 (never) or more")
        _require(self.fps is None or self.frames is None, "fps and frames are both given; one chooses the frames of clips")

    @property
    def compute_dtype(self) -> str | None:
        """What the model computes in: float32 on CPUs, elsewhere the checkpoint's own (None), unless `dtype` says."""
        return self.dtype or ("float32" if self.device == "cpu" else None)

    @property
    def base(self) -> str | None:
        """The model's name; of a folder its absolute path, since what is written may be read from anywhere."""
        if self.model is None or not (folder := _from_home(self.model)).is_dir():
            return self.model
        return str(folder.resolve())

    def same_run(self) -> dict[str, Any]:
        """Return, as JSON values, what must not change between two sittings."""
        kept = {name: _plain(value) for name, value in asdict(self).items() if name not in FREE and name != "output"}
        return kept | {"model": self.base}


def read_settings(file: Path | None, changes: Mapping[str, Any] | None = None, assignments: Iterable[str] = ()) -> TuneSettings:
    """Read a TOML file, put `changes` on top (None changes nothing) and then `key=value` texts. Raise ConfigError."""
    raw: dict[str, Any] = {}
    if file is not None:
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not valid TOML: {error}") from None
        _anchor(raw, file.parent)
    raw |= {key: value for key, value in (changes or {}).items() if value is not None}
    for text in assignments:
        _assign(raw, text)
    made = _build(TuneSettings, raw, "")
    assert isinstance(made, TuneSettings)
    return made


def _anchor(raw: dict[str, Any], folder: Path) -> None:
    """Make the paths a file holds relative to its folder, but those that begin with ~."""
    if isinstance(raw.get("output"), str):
        raw["output"] = folder / _from_home(raw["output"])
    if isinstance(raw.get("model"), str) and (at := folder / _from_home(raw["model"])).is_dir():
        raw["model"] = str(at)
    named = raw.get("sources")
    named = named if isinstance(named, dict) else {}
    for source in named.values():
        for key in ("path", "root"):
            if isinstance(source, dict) and isinstance(source.get(key), str):
                source[key] = folder / _from_home(source[key])
    for key in ("data", "eval"):
        if isinstance(raw.get(key), list):
            raw[key] = [
                spec if not isinstance(spec, str) or spec.partition("%")[0] in named else str(folder / _from_home(spec))
                for spec in raw[key]
            ]


def _assign(raw: dict[str, Any], text: str) -> None:
    """Put one `key=value` in, the value as TOML has it, or else a word; `lora.rank=8` reaches into a table."""
    key, is_assignment, value = text.partition("=")
    if not is_assignment or not key.strip():
        raise ConfigError(f"--set {text!r} is not an assignment; expected key=value, such as language=1e-4")
    *tables, name = key.strip().split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {text!r}: {table} is not a table")
    try:
        raw[name] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raw[name] = value.strip()


def _build(cls: type[Any], raw: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass of a table; every key must be known and of its type."""
    kinds, known = get_type_hints(cls), {f.name: f for f in fields(cls)}
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"unknown setting {where}{key}" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
            )
    for name, f in known.items():
        if name not in raw and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"the setting {where}{name} is missing")
    return cls(**{key: _value(kinds[key], value, f"{where}{key}") for key, value in raw.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """Bring a TOML value to a field's type, or raise ConfigError."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for option in inner:
            if option is not type(None) and _suits(option, value):
                return _value(option, value, where)
        raise _wrong(kind, value, where)
    if not _suits(kind, value):
        raise _wrong(kind, value, where)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        return {key: _value(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else _build(kind, value, f"{where}.")
    return value if origin is Literal else _from_home(value) if kind is Path else kind(value)


def _from_home(path: str | Path) -> Path:
    """Put the home folder where a path begins with ~."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path} begins with ~, but {error}; write the path in full") from None


def _suits(kind: Any, value: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, list | tuple) and (inner[-1] is Ellipsis or len(value) == len(inner))
    if origin is dict or is_dataclass(kind):
        return isinstance(value, Mapping) or (isinstance(kind, type) and isinstance(value, kind))
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, str | Path if kind is Path else kind)


def _wrong(kind: Any, value: Any, where: str) -> ConfigError:
    name = getattr(kind, "__name__", None) if get_origin(kind) is None else str(kind).replace("typing.", "")
    return ConfigError(f"the setting {where} is {value!r}; expected {name}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)

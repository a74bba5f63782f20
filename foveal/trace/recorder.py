"""Watch a model from outside: hooks on its modules that time every block and layer. The model knows nothing of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveal.batch import Batch, PatchBatch, VisionTokens
from foveal.model import Qwen3VL


@dataclass(frozen=True)
class Call:
    """One module's forward: seconds, and what it returned."""

    name: str
    seconds: float
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


@dataclass
class EncodePass:
    """One run of the vision encoder. rms: root mean square of the rows behind every block."""

    patches: int
    start_s: float = 0.0
    vision_tokens: int = 0
    patch_bytes: int = 0
    seconds: float = 0.0
    calls: list[Call] = field(default_factory=list)
    rms: list[float] = field(default_factory=list)
    tap_shape: tuple[int, ...] = ()
    dtype: str = ""
    num_bytes: int = 0


@dataclass
class DecoderPass:
    """One run of the decoder over new rows: a prefill window, or one decoded token.

    start_s: when it began, on the recorder's clock; seconds: layers and norm; head_s: scoring the vocabulary for the last row.
    Where the head was not part of the pass (`Qwen3VL.hidden`), it is computed once more to time it and to know `top`.
    rms_text, rms_vision: root mean square of the rows that enter every layer, after a tap was added; rms_vision is empty
    without vision rows. top: the likeliest ids of the last row and their probabilities, before any sampling option.
    """

    rows: int
    start_s: float = 0.0
    vision_rows: int = 0
    seconds: float = 0.0
    head_s: float = 0.0
    calls: list[Call] = field(default_factory=list)
    rms_text: list[float] = field(default_factory=list)
    rms_vision: list[float] = field(default_factory=list)
    tap_rms: list[float] = field(default_factory=list)
    logits_shape: tuple[int, ...] = ()
    dtype: str = ""
    top: list[tuple[int, float]] = field(default_factory=list)


class Recorder:
    """Record every pass of a model while the `with` block runs.

    What the hooks themselves take is kept out of every time: `now` is a clock that stands still in them. Passes must not
    overlap: one request at a time.
    """

    def __init__(self, model: Qwen3VL, *, top: int = 5) -> None:
        self.encodes: list[EncodePass] = []
        self.passes: list[DecoderPass] = []
        self._model, self._top = model, top
        self._handles: list[RemovableHandle] = []
        self._starts: dict[str, float] = {}
        self._overhead = 0.0
        self._slots: Tensor | None = None
        self._in_pass = False

    def __enter__(self) -> Recorder:
        visual, text = self._model.visual, self._model.language_model
        self._watch(visual, "visual", self._begin_encode, self._end_encode)
        self._watch(visual.patch_embed, "patch_embed", None, self._in_encode)
        for i, block in enumerate(visual.blocks):
            self._watch(block, f"block {i}", None, self._in_encode)
        for i, merger in enumerate(visual.deepstack_merger_list):
            self._watch(merger, f"tap {i}", None, self._in_encode)
        self._watch(visual.merger, "merger", None, self._in_encode)
        self._watch(self._model, "model", self._begin_pass, self._end_pass)
        self._watch(text, "decoder", self._begin_decoder, self._end_decoder)
        for i, layer in enumerate(text.layers):
            self._watch(layer, f"layer {i}", self._enter_layer, self._in_decoder)
        self._watch(text.norm, "norm", None, self._in_decoder)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def now(self) -> float:
        """Return seconds of a clock that does not count the hooks' own work."""
        return self._clock() - self._overhead

    def _watch(self, module: nn.Module, name: str, begin: Any, end: Any) -> None:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            entered = self._clock()
            if begin is not None:
                begin(name, args)
            self._overhead += self._clock() - entered
            self._starts[name] = self._clock() - self._overhead

        def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            ended = self._clock()
            seconds = ended - self._overhead - self._starts[name]
            end(name, seconds, out)
            self._overhead += self._clock() - ended

        self._handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def _clock(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()

    def _begin_encode(self, _: str, args: tuple[Any, ...]) -> None:
        batch: PatchBatch = args[0]
        rows = len(batch.rows_columns)
        self.encodes.append(EncodePass(rows, self.now(), patch_bytes=batch.stills.nbytes + batch.pairs.nbytes))

    def _in_encode(self, name: str, seconds: float, out: Tensor) -> None:
        current = self.encodes[-1]
        current.calls.append(_call(name, seconds, out))
        if name.startswith("block"):
            current.rms.append(_rms(out))

    def _end_encode(self, _: str, seconds: float, out: VisionTokens) -> None:
        current = self.encodes[-1]
        current.seconds, current.vision_tokens = seconds, len(out)
        current.tap_shape, current.dtype = tuple(out.taps.shape), _dtype(out.embeddings)
        current.num_bytes = out.embeddings.nbytes + out.taps.nbytes

    def _begin_pass(self, _: str, args: tuple[Any, ...]) -> None:
        self.passes.append(DecoderPass(len(args[0].token_ids), self.now()))
        self._in_pass = True

    def _end_pass(self, _: str, seconds: float, out: Tensor) -> None:
        current = self.passes[-1]
        current.head_s, self._in_pass = seconds - current.seconds, False
        self._note_logits(current, out)

    def _note_logits(self, current: DecoderPass, logits: Tensor) -> None:
        current.logits_shape = tuple(logits.shape)
        best = logits[-1].float().softmax(-1).topk(min(self._top, logits.shape[-1]))
        current.top = [(int(i), float(p)) for i, p in zip(best.indices, best.values, strict=True)]

    def _begin_decoder(self, _: str, args: tuple[Any, ...]) -> None:
        batch: Batch = args[0]
        if not self._in_pass:  # Qwen3VL.hidden was called: the decoder without the head
            self.passes.append(DecoderPass(len(batch.token_ids), self.now()))
        current = self.passes[-1]
        self._slots = None if batch.vision is None else batch.vision_slots
        if batch.vision is not None:
            current.vision_rows = len(batch.vision)
            current.tap_rms = [_rms(tap) for tap in batch.vision.taps]

    def _enter_layer(self, _: str, args: tuple[Any, ...]) -> None:
        current, x = self.passes[-1], args[0]
        if self._slots is None:
            current.rms_text.append(_rms(x))
            return
        is_text = torch.ones(len(x), dtype=torch.bool, device=x.device)
        is_text[self._slots] = False
        current.rms_vision.append(_rms(x[self._slots]))
        current.rms_text.append(_rms(x[is_text]))

    def _in_decoder(self, name: str, seconds: float, out: Tensor) -> None:
        self.passes[-1].calls.append(_call(name, seconds, out))

    def _end_decoder(self, _: str, seconds: float, out: Tensor) -> None:
        current = self.passes[-1]
        current.seconds, current.dtype = seconds, _dtype(out)
        if not self._in_pass:
            began = self._clock()
            logits = self._model.logits(out[-1:])
            current.head_s = self._clock() - began
            self._note_logits(current, logits)


def _call(name: str, seconds: float, out: Tensor) -> Call:
    return Call(name, seconds, tuple(out.shape), _dtype(out), out.nbytes)


def _rms(x: Tensor) -> float:
    return float(x.float().pow(2).mean().sqrt()) if x.numel() else 0.0


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")

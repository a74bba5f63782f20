"""One request from messages to text: encode, prefill in windows, decode. No paging, no tricks: the oracle of faster paths."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from foveal.batch import Batch
from foveal.errors import ContextError
from foveal.media import ClipSampling, Limits
from foveal.model import KVCache, Qwen3VL
from foveal.model.load import load_model, resolve
from foveal.patches import Budget
from foveal.processor import Processor, Request
from foveal.prompt import ThinkingStream
from foveal.sampler import Sampler, Sampling
from foveal.tokenizer import IncrementalDecoder

EMBEDDED = Path(__file__).parent / "assets" / "mini"
PREFILL_WINDOW = 1024  # tokens a prefill step; bounds the memory of long prompts

FinishReason = Literal["stop", "stop_text", "length", "context", "loop"]


@dataclass(frozen=True)
class Piece:
    """Some more text of a reply."""

    text: str
    channel: Literal["reasoning", "answer"]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Stats:
    """What a request took. Tokens are counts, times seconds, memory the peak of the whole process in bytes."""

    text_tokens: int
    image_tokens: int
    video_tokens: int
    generated_tokens: int
    prepare_s: float
    encode_s: float
    prefill_s: float
    decode_s: float
    first_token_s: float
    peak_memory_bytes: int

    @property
    def prompt_tokens(self) -> int:
        return self.text_tokens + self.image_tokens + self.video_tokens

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding, the first token (which prefill gives) aside."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 and self.generated_tokens > 1 else 0.0

    def line(self) -> str:
        """Say it in one line for people."""
        parts = [f"{n} {kind}" for kind, n in (("text", self.text_tokens), ("image", self.image_tokens),
                                               ("video", self.video_tokens)) if n]  # fmt: skip
        return (
            f"{self.prompt_tokens} prompt tokens ({' + '.join(parts)}), {self.generated_tokens} generated; "
            f"first token {self.first_token_s * 1e3:.0f} ms, {self.tokens_per_s:.1f} tokens/s, "
            f"peak memory {self.peak_memory_bytes / 2**20:.0f} MiB"
        )


@dataclass(frozen=True)
class Answer:
    """A whole reply. reasoning is None where the model did not think aloud; token_ids are all ids, the end mark included."""

    text: str
    reasoning: str | None
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    stats: Stats


class Reply:
    """A reply that is being generated: iterate over its pieces, then read `answer`.

    Iterating yields the answer's text only; `pieces()` yields reasoning as well.
    """

    def __init__(self, pieces: Iterator[Piece | Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def pieces(self) -> Iterator[Piece]:
        """Yield what is left, reasoning and answer."""
        for piece in self._pieces:
            if isinstance(piece, Answer):
                self._answer = piece
            else:
                yield piece

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self.pieces() if piece.channel == "answer")

    @property
    def answer(self) -> Answer:
        """Return the whole reply, generating what is left of it."""
        for _ in self.pieces():
            pass
        assert self._answer is not None
        return self._answer


class Pipeline:
    """A model with its processor: what `foveal.load` returns."""

    def __init__(self, model: Qwen3VL, processor: Processor, name: str) -> None:
        self.model, self.processor, self.name = model, processor, name

    @classmethod
    def load(
        cls, name: str | Path | None = None, *, device: str = "cpu", dtype: str | None = None, revision: str | None = None
    ) -> Pipeline:
        """Load a checkpoint folder or a hub name; None is the embedded model.

        dtype: "float32", "bfloat16" or "float16"; by default float32 on a CPU, where half precision is slow on most, and
        the checkpoint's own elsewhere.
        """
        directory = EMBEDDED if name is None else resolve(name, revision=revision)
        processor = Processor.from_checkpoint(directory)
        wanted = dtype or ("float32" if device == "cpu" else processor.config.dtype)
        model = load_model(directory, dtype=getattr(torch, wanted), device=device)
        return cls(model, processor, "the embedded model" if name is None else str(name))

    def sampling(self, **changes: Any) -> Sampling:
        """Return the checkpoint's own defaults with some values changed."""
        return replace(Sampling.from_generation_config(self.processor.generation), **changes)

    def ask(
        self, question: str, *files: Any, system: str | None = None, sampling: Sampling | None = None,
        budget: Budget | None = None, clip_sampling: ClipSampling | None = None, limits: Limits | None = None,
        thinking: bool = True,
    ) -> Reply:  # fmt: skip
        """Ask about files (paths, URLs, bytes, PIL images, arrays), pictures or clips as their bytes say."""
        began = time.perf_counter()
        frames = self.processor.open(files, budget=budget, clip_sampling=clip_sampling, limits=limits)
        content: list[dict[str, Any]] = [{"type": f.kind, f.kind: f} for f in frames]
        content.append({"type": "text", "text": question})
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        request = self.processor(messages, budget=budget, thinking=thinking)
        return self.run(request, sampling, began=began)

    def chat(
        self, messages: SequenceOf[Mapping[str, Any]], *, tools: SequenceOf[Mapping[str, Any]] | None = None,
        sampling: Sampling | None = None, **options: Any,
    ) -> Reply:  # fmt: skip
        """Answer a conversation in the form of the OpenAI API, media in its content parts; options as for Processor."""
        began = time.perf_counter()
        return self.run(self.processor(messages, tools=tools, **options), sampling, began=began)

    def run(self, request: Request, sampling: Sampling | None = None, *, began: float | None = None) -> Reply:
        """Generate the reply to a prepared request. Raise ContextError, before anything runs, when it does not fit."""
        sampling = sampling or self.sampling()
        self._check_fits(request)
        return Reply(self._generate(request, sampling, time.perf_counter() if began is None else began))

    def _check_fits(self, request: Request) -> None:
        context, length = self.processor.config.text.max_position_embeddings, len(request.sequence)
        if length + 1 > context:
            kinds = ", ".join(f"{n} {kind}" for kind, n in request.tokens_by_kind().items() if n)
            raise ContextError(
                f"the prompt has {length} tokens ({kinds}) and the context is {context}, with one kept for the answer; "
                "give fewer image tokens, fewer frames, or less text"
            )

    @torch.inference_mode()
    def _generate(self, request: Request, sampling: Sampling, began: float) -> Iterator[Piece | Answer]:
        clock = [began, time.perf_counter()]
        vision = self.model.encode(request.patches) if request.patches else None
        clock.append(time.perf_counter())
        cache = self.model.new_cache(len(request.sequence) + 64)
        sampler = Sampler(sampling, request.sequence.token_ids.tolist())
        token = sampler(self._prefill(request, vision, cache))
        clock.append(time.perf_counter())
        text = _TextOut(self.processor, sampling, request.opens_thinking)
        room = self.processor.config.text.max_position_embeddings - len(request.sequence)
        position, ids = request.sequence.next_position, [token]
        forced: list[int] = []
        thought = 0
        while True:
            yield from text.push(token)
            reason = text.finished(ids, room)
            if reason is not None:
                break
            thought += text.thinking
            if text.thinking and not forced and sampling.thinking_tokens is not None and thought >= sampling.thinking_tokens:
                forced = self.processor.tokenizer.encode_template("\n</think>\n\n")
            logits = self.model(Batch.step([token], [position], self.model.device), [cache])[0]
            position += 1
            if forced:
                token = forced.pop(0)
                sampler.note(token)
            else:
                token = sampler(logits)
            ids.append(token)
        yield from text.flush()
        clock.append(time.perf_counter())
        yield text.answer(ids, reason, self._stats(request, clock, len(ids)))

    def _prefill(self, request: Request, vision: Any, cache: KVCache) -> torch.Tensor:
        logits = None
        for window in request.sequence.windows(PREFILL_WINDOW):
            batch = Batch.pack([window], [vision], output="last", device=self.model.device)
            logits = self.model(batch, [cache])
        assert logits is not None  # a sequence has at least one token
        return logits[0]

    def _stats(self, request: Request, clock: list[float], generated: int) -> Stats:
        kinds = request.tokens_by_kind()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        prepare, encode, prefill, decode = (b - a for a, b in zip(clock, clock[1:], strict=False))
        return Stats(
            kinds["text"], kinds["image"], kinds["video"], generated, prepare, encode, prefill, decode,
            clock[3] - clock[0], peak,
        )  # fmt: skip


class _TextOut:
    """Ids to pieces: whole characters, reasoning apart, stop texts held back, and the reasons to end."""

    def __init__(self, processor: Processor, sampling: Sampling, opens_thinking: bool) -> None:
        self.sampling = sampling
        self._ends = {*processor.end_ids, *sampling.stop_token_ids}
        # Thinking tags are ordinary added tokens: keep what the decoder shows of them, ThinkingStream takes them out.
        self._decoder = IncrementalDecoder(processor.tokenizer)
        self._stream = ThinkingStream(opens_thinking)
        self._close = processor.tokenizer.added.get("</think>")
        self.thinking = opens_thinking
        self._open = processor.tokenizer.added.get("<think>")
        self._held, self._said = "", {"reasoning": "", "answer": ""}
        self._thought = opens_thinking
        self._stopped: FinishReason | None = None

    def push(self, token: int) -> Iterator[Piece]:
        """Take the next id; yield what is certain to be part of the reply."""
        if token in self._ends:
            self._stopped = "stop"
            return
        if token == self._open:
            self.thinking = True
        elif token == self._close:
            self.thinking = False
        yield from self._route(self._stream.push(self._decoder.push(token)))

    def flush(self) -> Iterator[Piece]:
        if self._stopped == "stop_text":
            return
        yield from self._route(self._stream.push(self._decoder.flush()))
        yield from self._route(self._stream.flush())
        if self._held:
            held, self._held = self._held, ""
            yield self._say("answer", held)

    def _route(self, parts: list[tuple[Literal["reasoning", "answer"], str]]) -> Iterator[Piece]:
        for channel, text in parts:
            if self._stopped == "stop_text":
                return
            if channel == "reasoning" or not self.sampling.stop:
                yield self._say(channel, text)
                continue
            self._held += text
            ends = [at for stop in self.sampling.stop if (at := self._held.find(stop)) >= 0]
            if ends:
                self._held, self._stopped = self._held[: min(ends)], "stop_text"
                keep = len(self._held)
            else:
                keep = len(self._held) - max(_overlap(self._held, stop) for stop in self.sampling.stop)
            if keep:
                out, self._held = self._held[:keep], self._held[keep:]
                yield self._say(channel, out)

    def _say(self, channel: Literal["reasoning", "answer"], text: str) -> Piece:
        self._said[channel] += text
        if channel == "reasoning":
            self._thought = True
        return Piece(text, channel)

    def finished(self, ids: list[int], room: int) -> FinishReason | None:
        """Say why the reply ends after `ids`, if it does; `room` is what the context leaves for it."""
        if self._stopped is not None:
            return self._stopped
        if len(ids) >= room:
            return "context"
        if len(ids) >= self.sampling.max_tokens:
            return "length"
        if self.sampling.loop_guard and is_looping(ids):
            return "loop"
        return None

    def answer(self, ids: list[int], reason: FinishReason, stats: Stats) -> Answer:
        reasoning = self._said["reasoning"] if self._thought else None
        return Answer(self._said["answer"], reasoning, reason, tuple(ids), stats)


def is_looping(ids: SequenceOf[int], *, max_period: int = 128, min_repeats: int = 4, min_tokens: int = 96) -> bool:
    """Tell whether the ids end in one block, of up to `max_period` tokens, repeated over and over.

    The repetition must cover `min_tokens` and `min_repeats` rounds: table rules and runs of zeros are shorter.
    """
    n = len(ids)
    if n < min_tokens:
        return False
    last = ids[-1]
    for period in range(1, min(max_period, n // min_repeats) + 1):
        if ids[-1 - period] != last:
            continue
        span = max(min_tokens, period * min_repeats)
        if span > n:
            continue
        tail = ids[n - span :]
        if tail[period:] == tail[:-period]:
            return True
    return False


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of text may begin a stop text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

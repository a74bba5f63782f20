"""One request from messages to text: encode, prefill in windows, decode. No paging, no tricks: the oracle of faster paths."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from foveal.batch import Batch
from foveal.choice import Choice, choose
from foveal.config import CACHE_DTYPES, DTYPE_BYTES, read_json
from foveal.errors import ConfigError
from foveal.hub import EMBEDDED, resolve
from foveal.media import ClipSampling, Limits
from foveal.model import KVCache, Qwen3VL
from foveal.model.load import load_model
from foveal.model.quantize import is_packed
from foveal.patches import Budget
from foveal.processor import Processor, Request
from foveal.reply import FinishReason, Piece, ReplyStream
from foveal.sampler import Sampler, Sampling

PREFILL_WINDOW = 1024  # tokens a prefill step; bounds the memory of long prompts


@dataclass(frozen=True)
class Stats:
    """What a request took. Tokens are counts, times seconds, memory the peak of the whole process in bytes.

    generated_tokens are all ids of the reply, those of a thought (reasoning_tokens), an end mark and a forced close included.
    first_token_s runs from the question to the first token, which prefill gives; decode_s counts those after it, and leaves
    out what the consumer of the pieces does between two of them. In an engine, prepare_s and prefill_s hold what a request
    waited for others, and encode_s its share of what was encoded together, 0 where its pictures were known already.
    peak_memory_bytes is 0 where the system does not tell; on a GPU it is the peak of torch's own memory there.
    """

    text_tokens: int
    image_tokens: int
    video_tokens: int
    generated_tokens: int
    reasoning_tokens: int
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
        """Speed of decoding, the first token aside."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 and self.generated_tokens > 1 else 0.0

    def line(self) -> str:
        """Say it in one line for people."""
        kinds = (("text", self.text_tokens), ("image", self.image_tokens), ("video", self.video_tokens))
        parts = [f"{n} {kind}" for kind, n in kinds if n]
        return (
            f"{self.prompt_tokens} prompt tokens ({' + '.join(parts)}), {self.generated_tokens} generated; "
            f"first token {self.first_token_s * 1e3:.0f} ms, {self.tokens_per_s:.1f} tokens/s, "
            f"peak memory {self.peak_memory_bytes / 2**20:.0f} MiB"
        )


@dataclass(frozen=True)
class Answer:
    """A whole reply. reasoning is None where the model did not think aloud; token_ids are all ids, the end mark included.

    finish_reason: "stop" at an end token, "stop_text", "length" (max_tokens), "context" (full), "loop" (the loop guard), or
    "cancelled" where the caller ended it.
    """

    text: str
    reasoning: str | None
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    stats: Stats


class Reply:
    """A reply that is being generated: iterate over its text, then read `answer`.

    Iterating yields the answer's text only; `pieces()` yields the reasoning as well. Nothing runs before the first of them is
    asked for. Ctrl-C and `close` end it; what was said so far remains its answer.
    """

    def __init__(self, model: Qwen3VL, processor: Processor, request: Request, sampling: Sampling, prepare_s: float) -> None:
        self.request = request
        self._model, self._sampling = model, sampling
        self._stream = ReplyStream(
            processor.tokenizer, sampling, end_ids=processor.end_ids, opens_thinking=request.opens_thinking,
            room=processor.room(request),
        )  # fmt: skip
        self._times = {"prepare": prepare_s, "encode": 0.0, "prefill": 0.0, "decode": 0.0}
        self._pieces = self._generate()
        self._answer: Answer | None = None
        self._error: Exception | None = None

    def pieces(self) -> Iterator[Piece]:
        """Yield what is left, reasoning and answer."""
        yield from self._pieces

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self._pieces if piece.channel == "answer")

    @property
    def answer(self) -> Answer:
        """Return the whole reply, generating what is left of it; raise what went wrong, however often it is asked for."""
        for _ in self._pieces:
            pass
        if self._error is not None:
            raise self._error
        if self._answer is None:
            reasoning, text = self._stream.texts()
            ids, reason = tuple(self._stream.token_ids), self._stream.finish_reason or "cancelled"
            self._answer = Answer(text, reasoning, reason, ids, self._stats())
        return self._answer

    def close(self) -> None:
        """End the reply here and give its memory back."""
        self._pieces.close()

    def _generate(self) -> Generator[Piece, None, None]:
        try:
            yield from self._say()
        except Exception as error:
            self._error = error
            raise

    @torch.inference_mode()
    def _say(self) -> Generator[Piece, None, None]:
        stream, model, sequence = self._stream, self._model, self.request.sequence
        with self._timed("encode"):
            vision = model.encode(self.request.patches) if self.request.patches else None
            if self.request.patches and model.rest_encoder is not None:
                model.rest_encoder()  # of the 2B in 4 bits a quarter of all memory, of no use until the next picture
        with self._timed("prefill"):
            cache = model.new_cache(len(sequence) + 64)
            sampler = Sampler(self._sampling, sequence.token_ids.tolist())
            logits = self._prefill(vision, cache)
            del vision
            token = self._next(sampler, logits)
        yield from stream.push(token)
        while stream.finish_reason is None:
            with self._timed("decode"):
                position = sequence.next_position + len(stream.token_ids) - 1
                logits = model(Batch.step([token], [position], model.device), [cache])[0]
                token = self._next(sampler, logits)
                pieces = stream.push(token)
            yield from pieces
        yield from stream.flush()

    def _prefill(self, vision: Any, cache: KVCache) -> torch.Tensor:
        """Read the prompt window by window; return the logits (R,) of what follows it."""
        for window in self.request.sequence.windows(PREFILL_WINDOW):
            batch = Batch.pack([window], [vision], output="last", device=self._model.device)
            hidden = self._model.hidden(batch, [cache])
        return self._model.logits(hidden)[0]  # a sequence has at least one token, so there was a window

    def _next(self, sampler: Sampler, logits: torch.Tensor) -> int:
        token = self._stream.next_forced()
        if token is None:
            return sampler(logits.float().cpu().numpy())
        sampler.note(token)
        return token

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)
        finally:
            self._times[stage] += time.perf_counter() - began

    def _stats(self) -> Stats:
        kinds, times = self.request.tokens_by_kind(), self._times
        return Stats(
            kinds["text"], kinds["image"], kinds["video"], len(self._stream.token_ids), self._stream.reasoning_tokens,
            times["prepare"], times["encode"], times["prefill"], times["decode"],
            times["prepare"] + times["encode"] + times["prefill"], peak_memory_bytes(self._model.device),
        )  # fmt: skip


class Pipeline:
    """A model with its processor: what `foveal.load` returns. `choice` says why it has its precision where nobody named one."""

    def __init__(self, model: Qwen3VL, processor: Processor, name: str, choice: Choice | None = None) -> None:
        self.model, self.processor, self.name, self.choice = model, processor, name, choice

    @classmethod
    def load(
        cls,
        name: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
        bits: int | None = None,
        kv_cache: str | None = None,
        revision: str | None = None,
    ) -> Pipeline:
        """Load a checkpoint folder or a hub name; None is the embedded model.

        dtype: "float32", "bfloat16" or "float16". bits: 8 or 4 packs the weights, on a CPU; 0 never does. Where neither is
        given the checkpoint's own dtype is taken, and on a CPU what `choice.py` finds fastest of what is accurate. kv_cache:
        what keys and values are kept as, "float32", "bfloat16" or "int8"; by default as the weights are, beside packed ones
        bfloat16. Raise CheckpointError for files that are missing or do not fit one another, ConfigError for a dtype, a device
        or a width that does not exist.
        """
        try:
            where = torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"there is no device {device!r}; use cpu, cuda, cuda:1, ...") from error
        if dtype is not None and dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
        if kv_cache is not None and kv_cache not in CACHE_DTYPES:
            raise ConfigError(f"kv_cache is {kv_cache!r}; expected one of {', '.join(CACHE_DTYPES)}")
        directory = EMBEDDED if name is None else resolve(name, revision=revision)
        processor = Processor.from_checkpoint(directory)
        choice = None
        packed = is_packed(read_json(directory / "config.json"))
        if packed and bits == 0:
            raise ConfigError(f"{directory} is packed, and plain weights are not in it; load it so, or load the original")
        if where.type == "cpu" and dtype is None and not bits and not packed:
            choice = choose(processor.config, packs=bits is None)
            dtype, bits = choice.dtype, choice.bits
        wanted = dtype or ("float32" if where.type == "cpu" else processor.config.dtype)
        model = load_model(directory, dtype=getattr(torch, wanted), device=where, bits=bits or None)
        model.kv_cache = None if kv_cache is None else getattr(torch, kv_cache)
        return cls(model, processor, "the embedded model" if name is None else str(name), choice)

    def sampling(self, **changes: Any) -> Sampling:
        """Return the checkpoint's own defaults with some fields of `Sampling` changed."""
        return replace(Sampling.from_generation_config(self.processor.generation), **changes)

    def ask(
        self,
        question: str,
        *files: Any,
        system: str | None = None,
        sampling: Sampling | None = None,
        budget: Budget | None = None,
        clip_sampling: ClipSampling | None = None,
        limits: Limits | None = None,
        thinking: bool = True,
    ) -> Reply:
        """Ask about files (paths, URLs, bytes, PIL images, arrays), pictures or clips as their bytes say.

        The files are read and the prompt is laid out at once, so that what is wrong with them is raised here. `sampling`
        defaults to the checkpoint's own; `thinking=False` lets a thinking model answer without.
        """
        began = time.perf_counter()
        request = self.processor.ask(
            question, files, system=system, budget=budget, clip_sampling=clip_sampling, limits=limits, thinking=thinking
        )
        return self.run(request, sampling, prepare_s=time.perf_counter() - began)

    def chat(self, messages: SequenceOf[Mapping[str, Any]], *, sampling: Sampling | None = None, **options: Any) -> Reply:
        """Answer a conversation in the form of the OpenAI API, media in its content parts; options as of `Processor`."""
        began = time.perf_counter()
        request = self.processor(messages, **options)
        return self.run(request, sampling, prepare_s=time.perf_counter() - began)

    def run(self, request: Request, sampling: Sampling | None = None, *, prepare_s: float = 0.0) -> Reply:
        """Generate the reply to a prepared request. Raise ContextError, before anything runs, when it does not fit."""
        return Reply(self.model, self.processor, request, sampling or self.sampling(), prepare_s)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: of torch on a GPU, of the process elsewhere; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB

"""Ids to a reply: whole characters, reasoning apart from the answer, stop texts held back, and every reason to end.

Host side only, one token at a time; whatever produces the tokens asks it what to show, what to say next, and when to end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foveal.sampler import LoopGuard, Sampling
from foveal.thinking import CLOSE, Channel, ThinkingStream, split_thinking
from foveal.tokenizer import IncrementalDecoder, Tokenizer

FinishReason = Literal["stop", "stop_text", "length", "context", "loop", "cancelled"]
"""An end token; a stop text; max_tokens; no room in the context; the loop guard; the caller ended it early."""


@dataclass(frozen=True)
class Piece:
    """Some more text of a reply; never part of a character."""

    text: str
    channel: Channel

    def __str__(self) -> str:
        return self.text


class ReplyStream:
    """Take the ids of one reply in order.

    end_ids: the checkpoint's own end tokens. opens_thinking: the prompt ends inside a thought (see `Prompt`). room: tokens the
    context leaves for the reply.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: Sampling,
        *,
        end_ids: Collection[int] = (),
        opens_thinking: bool = False,
        room: int,
    ) -> None:
        self.token_ids: list[int] = []
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_end else frozenset(end_ids))
        self._most = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self._cut: FinishReason = "context" if self._most == room != sampling.max_tokens else "length"
        self._thinking_tokens = sampling.thinking_tokens
        self._decoder = IncrementalDecoder(tokenizer)
        self._thinking = ThinkingStream(opens_thinking)
        self._stop = StopTexts(sampling.stop)
        self._loop = LoopWatch(sampling.loop_guard) if isinstance(sampling.loop_guard, LoopGuard) else None
        self._forced: list[int] = []
        self._said: dict[Channel, list[str]] = {"reasoning": [], "answer": []}
        self._thought = opens_thinking
        self._close_id = tokenizer.added.get(CLOSE)
        self._closed_unopened = False

    def next_forced(self) -> int | None:
        """Return the id that must come next, None where one is to be sampled.

        Once a thought has used up its tokens, these are the ids that close it; they count as tokens of the reply.
        """
        if not self._forced and self._thinking_tokens is not None and self._thinking.thinking:
            if self.reasoning_tokens < self._thinking_tokens:
                return None
            ended = self._tokenizer.decode(self.token_ids[-1:]).endswith("\n")
            self._forced = self._tokenizer.encode_template(f"{CLOSE}\n\n" if ended else f"\n{CLOSE}\n\n")
            self._thinking_tokens = None  # a reply has one thought; whatever is opened later is part of the answer
        return self._forced.pop(0) if self._forced else None

    def push(self, token: int) -> list[Piece]:
        """Take the next id; return what is certain to be part of the reply by now."""
        self.token_ids.append(token)
        if token in self._ends:
            self.finish_reason = "stop"
            return []
        thinking = self._thinking.thinking
        self.reasoning_tokens += thinking
        if token == self._close_id and not thinking and not self._thought:
            self._closed_unopened = True
        pieces = self._route(self._thinking.push(self._decoder.push(token)))
        self._thought |= self._thinking.thinking
        if self.finish_reason is None and self._loop is not None and self._loop.push(token):
            self.finish_reason = "loop"
        if self.finish_reason is None and len(self.token_ids) >= self._most:
            self.finish_reason = self._cut
        return pieces

    def flush(self) -> list[Piece]:
        """Return what was held back; the reply has ended."""
        if self._stop.found:
            return []
        pieces = self._route(self._thinking.push(self._decoder.flush()))
        pieces += self._route(self._thinking.flush())
        if held := self._stop.flush():
            pieces.append(self._say("answer", held))
        if self._stop.found:
            self.finish_reason = "stop_text"
        return pieces

    def texts(self) -> tuple[str | None, str]:
        """Return the reasoning, None if there was none, and the answer.

        They are the pieces joined, but for a reply that closes a thought nobody opened: its beginning has been shown as answer
        by the time the closing tag tells what it was.
        """
        answer = "".join(self._said["answer"])
        if self._closed_unopened and CLOSE in answer:
            return split_thinking(answer)
        return "".join(self._said["reasoning"]) if self._thought else None, answer

    def _route(self, parts: list[tuple[Channel, str]]) -> list[Piece]:
        pieces = []
        for channel, text in parts:
            if channel == "answer":
                text = self._stop.push(text)
                if self._stop.found:
                    self.finish_reason = "stop_text"
            if text:
                pieces.append(self._say(channel, text))
        return pieces

    def _say(self, channel: Channel, text: str) -> Piece:
        self._said[channel].append(text)
        return Piece(text, channel)


class StopTexts:
    """Pass a text on until the first of some stop texts, holding back whatever may turn out to begin one."""

    def __init__(self, stops: Collection[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Return what can no longer be part of a stop text; nothing after one was found."""
        if self.found or not self._stops:
            return "" if self.found else text
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            keep, self._held = self._held[: min(places)], ""
            return keep
        cut = len(self._held) - max(_overlap(self._held, stop) for stop in self._stops)
        keep, self._held = self._held[:cut], self._held[cut:]
        return keep

    def flush(self) -> str:
        """Return what is held back; no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin the stop text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class LoopWatch:
    """Tell when a stream of ids has begun to repeat itself, by the measure of a LoopGuard; constant work a token."""

    def __init__(self, guard: LoopGuard) -> None:
        self._periods = np.arange(1, guard.max_period + 1)
        # Copies of a block of p tokens cover run + p tokens, where run counts ids equal to the one p places before.
        self._needed = np.maximum(guard.min_tokens, guard.min_repeats * self._periods) - self._periods
        self._last = np.full(guard.max_period, -1, dtype=np.int64)  # the newest id first
        self._runs = np.zeros(guard.max_period, dtype=np.int64)

    def push(self, token: int) -> bool:
        """Take the next id; return whether the ids now end in a loop."""
        self._runs = (self._runs + 1) * (self._last == token)
        self._last[1:] = self._last[:-1].copy()
        self._last[0] = token
        return bool((self._runs >= self._needed).any())

"""A reply's reasoning and its answer, told apart in the whole text or as it arrives."""

from __future__ import annotations

from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
Channel = Literal["reasoning", "answer"]


def split_thinking(text: str, opened: bool = False) -> tuple[str | None, str]:
    """Split a reply into its reasoning (None if there is none) and its answer.

    A reply that holds only `</think>` began inside the thought, as those of Thinking models do. Without any tag, `opened` (see
    `Prompt.opens_thinking`) tells an unfinished thought from a plain answer.
    """
    before, closed, answer = text.partition(CLOSE)
    head, start, rest = before.partition(OPEN)
    if start and not head.strip():
        before, opened = rest, True
    if not closed and not opened:
        return None, text
    return before.strip("\n"), answer.lstrip("\n")


class ThinkingStream:
    """Split a reply as it arrives; the pieces of each channel, joined, equal `split_thinking` of the whole.

    Only one case differs: where the prompt did not open a thought and the reply closes one it never opened, what came before
    has been passed on as the answer already, and so is the tag.
    """

    def __init__(self, opened: bool = False) -> None:
        self._opened = opened
        self._channel: Channel | None = None  # undecided until the reply has shown whether it starts with <think>
        self._held = ""
        self._at_start = True  # line ends around a thought belong to neither channel

    @property
    def thinking(self) -> bool:
        """Tell whether the reply is inside a thought, as far as it has shown."""
        return self._channel == "reasoning" or (self._channel is None and self._opened)

    def push(self, text: str) -> list[tuple[Channel, str]]:
        """Return what can be told of the reply after `text`, as (channel, text) with no empty texts."""
        self._held += text
        out: list[tuple[Channel, str]] = []
        if self._channel is None and not self._decide():
            return out
        if self._channel == "reasoning":
            thought, closed, rest = self._held.partition(CLOSE)
            if closed:
                self._emit(out, thought.rstrip("\n"))
                self._channel, self._held, self._at_start = "answer", rest, True
            else:
                keep = _could_close(self._held)
                thought, self._held = self._held[:keep], self._held[keep:]
                self._emit(out, thought)
        if self._channel == "answer":
            answer, self._held = self._held, ""
            self._emit(out, answer)
        return out

    def flush(self) -> list[tuple[Channel, str]]:
        """Return what was held back; the reply has ended."""
        out: list[tuple[Channel, str]] = []
        if self._channel is None:
            self._settle()
        rest, self._held = self._held, ""
        self._emit(out, rest.rstrip("\n") if self._channel == "reasoning" else rest)
        return out

    def _decide(self) -> bool:
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._channel, self._held = "reasoning", start[len(OPEN) :]
        elif OPEN.startswith(start):
            return False
        else:
            self._settle()
        return True

    def _settle(self) -> None:
        self._channel = "reasoning" if self._opened else "answer"
        self._at_start = self._opened

    def _emit(self, out: list[tuple[Channel, str]], text: str) -> None:
        if self._at_start:
            text = text.lstrip("\n")
        if text and self._channel is not None:
            self._at_start = False
            out.append((self._channel, text))


def _could_close(text: str) -> int:
    """Return where a tail begins that may turn out to be the end of a thought: line ends and the start of a closing tag."""
    at = next(len(text) - k for k in range(len(CLOSE) - 1, -1, -1) if text.endswith(CLOSE[:k]))
    return len(text[:at].rstrip("\n"))

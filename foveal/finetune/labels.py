"""What is learned of a prompt: the assistant's tokens and their end mark, found by the structure the template wrote.

Turns begin and end with added tokens, and only a template can write those: whatever a person types, `<|im_start|>assistant`
included, has been encoded as ordinary text (foveal/messages.py). How an assistant's turn opens is read off the template
itself: it is what `add_generation_prompt` adds. So exactly that is not learned which generation is given.
"""

from __future__ import annotations

import numpy as np

from foveal.errors import CheckpointError, DataError
from foveal.prompt import ChatTemplate
from foveal.sequence import TextSegment
from foveal.tokenizer import Tokenizer

IGNORE = -100
START, END = "<|im_start|>", "<|im_end|>"


class Labeller:
    """Labels prompts of one template."""

    def __init__(self, template: ChatTemplate) -> None:
        self.tokenizer: Tokenizer = template.tokenizer
        self._start, self._end = self.tokenizer.token_id(START), self.tokenizer.token_id(END)
        opening = _opening_ids(template)
        if not opening or opening[0] != self._start:
            shown = self.tokenizer.decode(opening, skip_special=False)
            raise CheckpointError(f"the chat template opens a reply with {shown!r}; labels need one that begins with {START}")
        opens = self._bytes(opening[1:])
        # All that generation is given, a thought's opening included, and the least that makes a turn the assistant's.
        self._openings = (opens, opens[: opens.index(b"\n") + 1] if b"\n" in opens else opens)

    def __call__(self, token_ids: np.ndarray, turns: int) -> tuple[np.ndarray, np.ndarray]:
        """Label a prompt of (T,) ids with so many assistant messages; raise DataError if the template wrote other than those.

        Return the id every row must predict, IGNORE where it learns nothing, and the number of the assistant's turn each
        labelled row belongs to, -1 elsewhere; both (T,) int64. A token that holds both the end of an opening and the start of
        an answer (two line breaks) is not learned: generation never has to say it.
        """
        labels, numbers = np.full((2, len(token_ids)), -1, np.int64)
        labels[:] = IGNORE
        found = 0
        for start in np.flatnonzero(token_ids == self._start):
            ends = np.flatnonzero(token_ids[start:] == self._end)
            stop = int(start + ends[0]) if len(ends) else len(token_ids)
            first = self._first_learned(token_ids[start + 1 : stop])
            if first is None:
                continue
            if stop == len(token_ids):
                raise DataError(f"the chat template does not end the assistant's message {found + 1} with {END}")
            rows = slice(start + first, stop)  # the row before each learned token predicts it
            labels[rows] = token_ids[start + 1 + first : stop + 1]
            numbers[rows] = found
            found += 1
        if found != turns:
            raise DataError(f"the messages have {turns} of the assistant's, but the chat template wrote {found}")
        return labels, numbers

    def _first_learned(self, ids: np.ndarray) -> int | None:
        """Count the tokens of an opening at the head of a turn; None for a turn that is not the assistant's."""
        limit = len(self._openings[0])
        ends, text = [], b""
        for index in ids:
            text += self.tokenizer.token_bytes(int(index))
            ends.append(len(text))
            if len(text) >= limit:
                break
        opening = next((opening for opening in self._openings if text.startswith(opening)), None)
        if opening is None:
            return None
        return next(i for i, end in enumerate(ends) if end >= len(opening)) + 1

    def _bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.tokenizer.token_bytes(index) for index in ids)


def _opening_ids(template: ChatTemplate) -> list[int]:
    """Return what the template adds where a reply is to begin."""
    question = [{"role": "user", "content": "?"}]
    asked, open_ended = (
        [index for segment in template.render(question, add_generation_prompt=opens).segments
         if isinstance(segment, TextSegment) for index in segment.token_ids]
        for opens in (False, True)
    )  # fmt: skip
    if open_ended[: len(asked)] != asked:
        raise CheckpointError("the chat template writes the question differently where a reply is to begin")
    return open_ended[len(asked) :]

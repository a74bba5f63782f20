"""One question of an examination: what is asked, what is right, and where in the media the evidence lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.evaluate.metrics import Scores
from foveal.finetune.formats import texts_of
from foveal.media import Frames
from foveal.messages import split_media

Box = tuple[float, float, float, float]
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Evidence:
    """Where the answer is to be seen: boxes (x1, y1, x2, y2) in pixels of the first medium, of a clip in those frames; a span.

    frames: of a clip, one index a box; a clip's frames are counted as its file or array has them. pictures: where there are
    several media, the number (from 0) of the one each box is in.
    """

    boxes: tuple[Box, ...] = ()
    frames: tuple[int, ...] = ()
    span_s: tuple[float, float] | None = None
    pictures: tuple[int, ...] = ()

    def on(self, medium: int) -> list[tuple[int, Box]]:
        """List the frame and the box of all evidence in one medium."""
        none = (0,) * len(self.boxes)
        places = zip(self.pictures or none, self.frames or none, self.boxes, strict=True)
        return [(frame, box) for picture, frame, box in places if picture == medium]

    def to_json(self) -> dict[str, Any]:
        """Write out what there is."""
        given = {"boxes": self.boxes, "frames": self.frames, "span_s": self.span_s, "pictures": self.pictures}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True, eq=False)
class Item:
    """A question, the same for every arm.

    id: unique in the examination, and enough for its task to make it again. messages: in the form of the OpenAI API, their
    media paths, URLs or Frames, the last from the user. references: accepted answers. score: judges an answer.
    """

    id: str
    messages: Messages
    references: tuple[str, ...]
    scorer: str
    score: Callable[[str], Scores]
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def question(self) -> str:
        """The text of the last message."""
        return " ".join(texts_of(self.messages[-1]))

    @property
    def earlier(self) -> list[str]:
        """The texts of the messages before it."""
        return [" ".join(texts_of(message)) for message in self.messages[:-1]]

    @property
    def media(self) -> list[tuple[str, Any]]:
        """List the kind ("image", "video") and the source of every medium."""
        return [(part.kind, part.source) for part in split_media(self.messages)[1]]


def prompt_json(messages: Sequence[dict[str, Any]]) -> Messages:
    """Write messages out, with names for the media."""
    return [{**message, "content": _named(message["content"])} for message in messages]


def _named(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [{key: _name(value) for key, value in part.items()} for part in content]


def _name(value: Any) -> Any:
    if isinstance(value, Frames):
        return value.name
    if isinstance(value, list):  # a clip as a list of pictures
        return [_name(one) for one in value]
    return f"{value[:60]}…" if isinstance(value, str) and value.startswith("data:") else value


def with_system(messages: Messages, system: str | None) -> Messages:
    """Put an arm's system message before a conversation that has none."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]

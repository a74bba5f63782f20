"""Records of three formats to messages: the released fine-tune format, ShareGPT and OpenAI-style messages.

    {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "A cat."}]}
    {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]}
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}, ...]}

Placeholders count in what is asked, never in what is answered, and only in records that bring media of their own beside the
messages or use `conversations`; every one needs its picture or clip, and the other way round.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from foveal.errors import DataError
from foveal.messages import split_media
from foveal.sequence import Kind

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
_PLACEHOLDER = re.compile("(<image>|<video>)")
_KINDS: dict[str, Kind] = {"<image>": "image", "<video>": "video"}
_KEYS: dict[Kind, tuple[str, str]] = {"image": ("image", "images"), "video": ("video", "videos")}
_URL = re.compile(r"(?:https?|file|data):", re.IGNORECASE)


@dataclass(frozen=True)
class Conversation:
    """Messages whose parts name their media by absolute path or URL, ready for `Processor`; tools as JSON schemas."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


def read_record(record: Any, root: Path) -> Conversation:
    """Bring a record of any of the formats into messages. Raise DataError or PromptError that says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise DataError(f"the record is a {type(record).__name__}; it is an object with 'conversations' or 'messages'")
    held = [key for key in ("conversations", "messages") if record.get(key) is not None]
    if len(held) != 1:
        raise DataError(
            f"the record has {' and '.join(held) or 'the keys ' + brief(list(record))}; expected 'conversations' or 'messages'"
        )
    turns = record[held[0]]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise DataError(f"{held[0]} is {brief(turns)}; it is a list of at least one message")
    shelf = _Shelf.of(record, placeholders=held[0] == "conversations")
    messages = [_message(turn, f"{held[0]}[{i}]", shelf) for i, turn in enumerate(turns)]
    shelf.require_empty()
    if record.get("system"):
        messages.insert(0, {"role": "system", "content": _string(record["system"], "system")})
    messages = _rooted(messages, root)
    _check_roles(messages)
    return Conversation(messages, _tools(record.get("tools")))


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """List the texts of a message that `read_record` has made; one that only calls tools has none."""
    content = message.get("content") or []
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


@dataclass
class _Shelf:
    """The media that stand beside the messages, taken in order by their placeholders."""

    media: dict[Kind, list[Any]]
    placeholders: bool  # whether <image> in a question stands for a picture, or for itself
    wanted: dict[Kind, int] = field(default_factory=lambda: {"image": 0, "video": 0})

    @classmethod
    def of(cls, record: Mapping[str, Any], placeholders: bool) -> _Shelf:
        media: dict[Kind, list[Any]] = {"image": [], "video": []}
        for kind, keys in _KEYS.items():
            held = [key for key in keys if record.get(key) not in (None, "", [])]
            if len(held) > 1:
                raise DataError(f"the record has {held[0]!r} and {held[1]!r}; one of them is enough")
            for key in held:
                value = record[key]
                named = list(value) if isinstance(value, list) else [value]
                if wrong := [one for one in named if not isinstance(one, str | list)]:
                    raise DataError(f"{key!r} holds {brief(wrong[0])}; expected the name of a file, or a list of names")
                media[kind] += named
        return cls(media, placeholders or any(media.values()))

    def take(self, kind: Kind) -> dict[str, Any]:
        """Make the part of the next picture or clip; beyond the last one it is bare, and counted."""
        at = self.wanted[kind]
        self.wanted[kind] += 1
        return {"type": kind, kind: self.media[kind][at]} if at < len(self.media[kind]) else {"type": kind}

    def require_empty(self) -> None:
        names: dict[Kind, str] = {"image": "pictures", "video": "clips"}
        for kind, name in names.items():
            wanted, given = self.wanted[kind], len(self.media[kind])
            if wanted != given:
                raise DataError(
                    f"the messages have {wanted} {kind} placeholder{'s' * (wanted != 1)} but the record names {given} {name}; "
                    f"add the missing ones or remove what is too much ({name} stand under {kind!r} or '{kind}s')"
                )


def _message(turn: Any, where: str, shelf: _Shelf) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is a {type(turn).__name__}; a message has 'from' and 'value', or 'role' and 'content'")
    if "from" in turn:
        role, content, rest = turn["from"], turn.get("value"), {}
        if turn.get("role") is not None or "value" not in turn:
            raise DataError(f"{where} has the keys {brief(list(turn))}; expected 'from' and 'value'")
    else:
        role, content = turn.get("role"), turn.get("content")
        rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{where} is from {brief(role)}; expected one of {', '.join(_ROLES)}")
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(content, where)}
    role = _ROLES[role]
    if content is not None and not isinstance(content, str | list):
        raise DataError(f"{where} says {brief(content)}; expected a text or a list of parts")
    if isinstance(content, str) and role in ("user", "tool") and shelf.placeholders:
        content = _parts(content, shelf)
    elif isinstance(content, list):
        content = [_filled(part, shelf) for part in content]
    return {"role": role, "content": content, **rest}


def _parts(text: str, shelf: _Shelf) -> str | list[dict[str, Any]]:
    """Cut a question at its placeholders. Text is stripped, as in the released trainer: pictures bring no line breaks."""
    pieces = _PLACEHOLDER.split(text)
    if len(pieces) == 1:
        return text.strip()
    parts = []
    for piece in pieces:
        if piece in _KINDS:
            parts.append(shelf.take(_KINDS[piece]))
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _filled(part: Any, shelf: _Shelf) -> Any:
    """Give a bare picture or clip of a list of parts the next of those beside the messages."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind in _KEYS and isinstance(part, Mapping) and set(part) <= {"type", "text"}:
        return shelf.take(kind)
    # Some writers fill every key of every part, most of them with null.
    return {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Read ShareGPT's function_call turn, whose value is the call, or calls, as JSON text."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise DataError(f"{where} is a function_call whose value is not JSON: {brief(value)}") from None
    return [{"function": call} for call in (calls if isinstance(calls, list) else [calls])]


def _tools(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"tools is not JSON: {brief(value)}") from None
    if not value:
        return None
    if not isinstance(value, list):
        raise DataError(f"tools is a {type(value).__name__}; it is a list of JSON schemas, or that as text")
    return value


def _check_roles(messages: Sequence[Mapping[str, Any]]) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise DataError(
            f"the messages are from {', '.join(dict.fromkeys(roles))}; without an assistant's there is nothing to learn"
        )
    for i, message in enumerate(messages):
        said = "".join(texts_of(message)).strip() or message.get("tool_calls") or message.get("reasoning_content")
        if message["role"] == "assistant" and not said:
            raise DataError(f"message {i + 1} is the assistant's and says nothing; a model would learn to be silent")
    if roles[-1] != "assistant":
        raise DataError(
            f"the last of {len(roles)} messages is from the {roles[-1]}, and nobody answers it; end with the assistant"
        )


def _rooted(messages: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Make the paths of media absolute, and give every part one spelling."""
    bare, media = split_media(messages)
    found = iter(media)
    for message in bare:
        if isinstance(message.get("content"), list):
            for i, part in enumerate(message["content"]):
                if part["type"] != "text":
                    medium = next(found)
                    if medium.source is None:
                        raise DataError(
                            f"the messages hold a {medium.kind} without a source, and the record names none beside them"
                        )
                    message["content"][i] = {"type": medium.kind, medium.kind: _resolve(medium.source, root), **medium.options}
    return bare


def _resolve(source: Any, root: Path) -> Any:
    if isinstance(source, list):
        return [_resolve(one, root) for one in source]
    if not isinstance(source, str) or _URL.match(source):
        return source
    return str(root / source)


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} is a {type(value).__name__}; it is a string")
    return value

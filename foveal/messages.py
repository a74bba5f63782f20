"""Messages: what a caller may send, checked, and made harmless before a chat template sees it.

Every character of untrusted text that could begin or end an added token is swapped for a lone surrogate, which no cleaned
text contains. After rendering, the text is split at the added tokens, all of which are therefore the template's own, and only
then are the characters swapped back. The surrogates keep lengths and white space as they were, so a template that strips or
measures text sees what the reference sees. It does not see markup a user typed: a user message spelt `<tool_response>...`
stays a user message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from reprlib import repr as brief  # a value in a message must not fill the screen, nor recurse without end
from typing import Any, Literal

from foveal.errors import CheckpointError, PromptError
from foveal.sequence import Kind
from foveal.tokenizer import clean_text

ROLES = ("system", "user", "assistant", "tool")
_MEDIA_KEYS: dict[str, Kind] = {
    "image": "image", "image_url": "image", "input_image": "image",
    "video": "video", "video_url": "video", "input_video": "video",
}  # fmt: skip
_TEXT_TYPES = ("text", "input_text", "output_text")
# What an assistant turn may contain as real tokens; its author is the model, whose thoughts and calls are written with them.
_ASSISTANT_MARKUP = re.compile("(</?think>|</?tool_call>)")
_MAX_DEPTH = 64  # levels of nested JSON in tools and arguments


@dataclass(frozen=True)
class MediaInfo:
    """Say what a prompt must know of a picture or clip: its kind and the time in seconds of every temporal patch."""

    kind: Kind
    times_s: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class MediaPart:
    """Hold a picture or clip as it stood in a message: where it comes from, and the part's other keys (fps, min_pixels, ...).

    `source` is None for a bare placeholder.
    """

    kind: Kind
    source: Any
    options: dict[str, Any] = field(default_factory=dict)


class Guard:
    """Hide the edges of added tokens in untrusted text (see the module's docstring)."""

    def __init__(self, added: Mapping[str, int]) -> None:
        # The first character alone is enough to break a token that untrusted text begins; hiding the last one too breaks a
        # token whose first characters come from the template.
        edges = sorted({token[0] for token in added} | {token[-1] for token in added if not token[-1].isalnum()})
        if len(edges) > 0x800:
            raise CheckpointError(
                f"the added tokens begin and end with {len(edges)} different characters; at most 2048 are supported"
            )
        self._hide = {ord(edge): 0xD800 + i for i, edge in enumerate(edges)}
        self._show = {hidden: edge for edge, hidden in self._hide.items()}
        words = [re.escape(token) for token in added if token[0].isalnum()]
        self._words = re.compile("|".join(words) or "(?!)")

    def text(self, text: str) -> str:
        """Return untrusted text, fit to be given to a template."""
        return clean_text(text).translate(self._hide)

    def spoken(self, text: str) -> str:
        """Hide everything but the markup an assistant writes."""
        pieces = _ASSISTANT_MARKUP.split(text)
        return "".join(piece if i % 2 else self.text(piece) for i, piece in enumerate(pieces))

    def name(self, text: str) -> str:
        """Leave plain words alone: templates look keys up and compare them, and quotes stand around them in JSON."""
        return text if re.fullmatch(r"\w+", text) and not self._words.search(text) else self.text(text)

    def tree(self, value: Any, where: str, depth: int = 0) -> Any:
        """Copy JSON data with every string and key hidden."""
        if depth > _MAX_DEPTH:
            raise PromptError(f"{where} is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(value, str):
            return self.name(value)
        if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise PromptError(f"{where} has the key {brief(key)}; JSON keys are strings")
            return {self.name(key): self.tree(item, where, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(item, where, depth + 1) for item in value]
        raise PromptError(f"{where} holds {brief(value)}; only JSON values can be written into a prompt")

    def show(self, text: str) -> str:
        """Return rendered text as it is meant to be read and tokenised."""
        return clean_text(text.translate(self._show))


class MessageReader:
    """Check messages and copy what templates read, with untrusted text hidden and media reduced to placeholders."""

    _KEYS = frozenset({"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name"})

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def read(self, messages: Seq[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Kind]]:
        """Return the cleaned messages and the kinds of their placeholders in order."""
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Seq):
            raise PromptError(f"messages are a list of {{'role', 'content'}}, not a {type(messages).__name__}")
        if not messages:
            raise PromptError("there are no messages; at least one is needed")
        kinds: list[Kind] = []
        return [self._message(message, f"messages[{i}]", kinds) for i, message in enumerate(messages)], kinds

    def _message(self, message: Mapping[str, Any], where: str, kinds: list[Kind]) -> dict[str, Any]:
        if not isinstance(message, Mapping):
            raise PromptError(f"{where} is a {type(message).__name__}; a message has 'role' and 'content'")
        role = "system" if message.get("role") == "developer" else message.get("role")  # as later models of that API have it
        if role not in ROLES:
            raise PromptError(f"{where} has the role {brief(role)}; the roles are {', '.join(ROLES)}")
        # Clients send back every field of a reply, most of them empty.
        fields = {key: value for key, value in message.items() if value is not None and not _is_empty_list(value)}
        fields["role"] = role
        fields.setdefault("reasoning_content", fields.pop("reasoning", None))
        unknown = next((key for key in fields if key not in self._KEYS), None)
        if unknown is not None:
            known = ", ".join(sorted(self._KEYS))
            raise PromptError(f"{where} has the unknown key {brief(unknown)}; a message may have {known}")
        out: dict[str, Any] = {"role": role, "content": self._content(fields, where, kinds)}
        reasoning = fields.get("reasoning_content")
        if reasoning is not None:
            self._only_assistant(role, "reasoning_content", where)
            out["reasoning_content"] = self._guard.spoken(_string(reasoning, f"the reasoning_content of {where}"))
        if "tool_calls" in fields:
            self._only_assistant(role, "tool_calls", where)
            out["tool_calls"] = self._tool_calls(fields["tool_calls"], where)
        for key in ("name", "tool_call_id"):
            if key in fields:
                out[key] = self._guard.text(_string(fields[key], f"the {key} of {where}"))
        return out

    @staticmethod
    def _only_assistant(role: str, key: str, where: str) -> None:
        if role != "assistant":
            raise PromptError(f"{where} is of role {role!r} and has {key}; only an assistant message can")

    def _content(self, fields: Mapping[str, Any], where: str, kinds: list[Kind]) -> str | list[dict[str, Any]]:
        hide = self._guard.spoken if fields["role"] == "assistant" else self._guard.text
        content = fields.get("content")
        if content is None:
            if fields["role"] == "assistant" and ("tool_calls" in fields or fields["reasoning_content"] is not None):
                return ""
            raise PromptError(f"{where} has no content; only an assistant message with tool_calls or reasoning can go without")
        if isinstance(content, str):
            return hide(content)
        if not isinstance(content, list | tuple):
            raise PromptError(f"the content of {where} is a {type(content).__name__}; it is a string or a list of parts")
        parts: list[dict[str, Any]] = []
        for j, part in enumerate(content):
            kind, value, _ = _read_part(part, f"{where}.content[{j}]")
            if kind == "text":
                parts.append({"type": "text", "text": hide(value)})
            else:
                kinds.append(kind)
                parts.append({"type": kind})
        return parts

    def _tool_calls(self, calls: Any, where: str) -> list[dict[str, Any]]:
        if not isinstance(calls, list | tuple):
            raise PromptError(f"the tool_calls of {where} are a {type(calls).__name__}; they are a list")
        out = []
        for j, call in enumerate(calls):
            at = f"{where}.tool_calls[{j}]"
            inner = call.get("function", call) if isinstance(call, Mapping) else call
            if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
                raise PromptError(f"{at} has no name; it is {{'function': {{'name', 'arguments'}}}}")
            arguments = inner.get("arguments", {})
            if isinstance(arguments, str):
                arguments = self._guard.text(arguments)
            elif isinstance(arguments, Mapping):
                arguments = self._guard.tree(arguments, f"the arguments of {at}")
            else:
                raise PromptError(f"the arguments of {at} are a {type(arguments).__name__}; pass an object or its JSON text")
            out.append({"type": "function", "function": {"name": self._guard.text(inner["name"]), "arguments": arguments}})
        return out


def _is_empty_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and not value


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{what} is a {type(value).__name__}; it is a string")
    return value


def _read_part(part: Any, where: str) -> tuple[Literal["text", "image", "video"], Any, dict[str, Any]]:
    """Return a part's kind, its text or media source, and its other keys."""
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is a {type(part).__name__}; a part is {{'type': 'text', 'text': ...}} or a picture or clip")
    if part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        part = {"type": "text", "text": part["refusal"]}
    declared = part.get("type")
    present = [key for key in ("text", *_MEDIA_KEYS) if part.get(key) is not None]
    if declared is None and len(present) == 1:
        declared = present[0]
    if declared in _TEXT_TYPES:
        if present != ["text"]:
            raise PromptError(f"{where} is of type {brief(declared)} and has {', '.join(present) or 'no text'}; give it 'text'")
        return "text", _string(part["text"], f"the text of {where}"), {}
    if not isinstance(declared, str) or declared not in _MEDIA_KEYS:
        raise PromptError(f"{where} is of the unknown type {brief(declared)}; the types are text, {', '.join(_MEDIA_KEYS)}")
    kind = _MEDIA_KEYS[declared]
    others = [key for key in present if _MEDIA_KEYS.get(key) != kind]
    if others:
        raise PromptError(f"{where} is of type {brief(declared)} and has {others[0]!r}; give each its own part")
    sources = [part[key] for key in (*present, "url", "path") if part.get(key) is not None]
    if len(sources) > 1:
        raise PromptError(f"{where} names {len(sources)} sources; a part holds one picture or clip")
    source, options = (sources[0] if sources else None), {}
    if isinstance(source, Mapping):
        options = {key: value for key, value in source.items() if key != "url"}
        source = source.get("url")
        if source is None:
            raise PromptError(f"{where} has {brief(declared)} without 'url'")
    options |= {key: value for key, value in part.items() if key not in ("type", "url", "path", *_MEDIA_KEYS)}
    return kind, source, options


def split_media(messages: Seq[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """Take the pictures and clips out of messages: return the messages with bare placeholders, and the media in order.

    Sources may stand under image, image_url, input_image, video, video_url or input_video (a value or {"url": ...}), or under
    url or path beside a type.
    """
    MessageReader(Guard({})).read(messages)
    media: list[MediaPart] = []
    out = []
    for i, message in enumerate(messages):
        copy = dict(message)
        if isinstance(copy.get("content"), list | tuple):
            parts: list[dict[str, Any]] = []
            for j, part in enumerate(copy["content"]):
                kind, value, options = _read_part(part, f"messages[{i}].content[{j}]")
                if kind == "text":
                    parts.append({"type": "text", "text": value})
                else:
                    media.append(MediaPart(kind, value, options))
                    parts.append({"type": kind})
            copy["content"] = parts
        out.append(copy)
    return out, media


def read_tools(tools: Seq[Mapping[str, Any]] | None, guard: Guard) -> list[dict[str, Any]] | None:
    """Check tool definitions and copy them with everything in them hidden."""
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise PromptError("tools are a list of JSON schemas, such as {'type': 'function', 'function': {...}}")
    return [guard.tree(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def match_media(kinds: Seq[Kind], media: Seq[MediaInfo]) -> None:
    """Require one media of the right kind for every placeholder."""
    given = [info.kind for info in media]
    if len(kinds) != len(given):
        advice = "add the missing media or remove a placeholder"
        if len(kinds) < len(given):
            advice = "remove media or add a placeholder"
        raise PromptError(f"the messages hold {count_kinds(kinds)}, but {count_kinds(given)} were given; {advice}")
    for i, (kind, other) in enumerate(zip(kinds, given, strict=True), 1):
        if kind != other:
            raise PromptError(f"placeholder {i} of {len(kinds)} is for a {kind} but media {i} is a {other}; mind the order")
    for i, info in enumerate(media, 1):
        if not info.times_s or (info.kind == "image" and len(info.times_s) != 1):
            raise PromptError(f"media {i} ({info.kind}) has {len(info.times_s)} times; an image has one, a video at least one")
        if not all(map(math.isfinite, info.times_s)):
            raise PromptError(f"media {i} ({info.kind}) has a time that is not a number of seconds: {info.times_s}")


def count_kinds(kinds: Seq[Kind]) -> str:
    images = sum(kind == "image" for kind in kinds)
    videos = len(kinds) - images
    return f"{images} image{'s' * (images != 1)} and {videos} video{'s' * (videos != 1)}"

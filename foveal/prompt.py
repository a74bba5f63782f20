"""Messages to segments, through the checkpoint's own chat template.

The template is trusted, what it is filled with is not: foveal/messages.py hides whatever could become an added token before
rendering, and it is shown again after the rendered text has been split at the added tokens. Text is tokenised in whole runs
between two of them, timestamps included, because that is where the reference cuts.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveal.errors import CheckpointError, PromptError
from foveal.messages import Guard, MediaInfo, MessageReader, match_media, read_tools
from foveal.sequence import Kind, Segment, TextSegment, VisionSegment
from foveal.tokenizer import Tokenizer, clean_text

if TYPE_CHECKING:
    import jinja2

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
_PADS: dict[str, Kind] = {IMAGE_PAD: "image", VIDEO_PAD: "video"}
Timestamps = Literal["text", "tokens"]


@dataclass(frozen=True)
class Prompt:
    """Hold a rendered prompt: `segments` for the model, `text` for people, and whether the reply starts inside a thought."""

    segments: tuple[Segment, ...]
    text: str
    opens_thinking: bool


def timestamp_text(seconds: float) -> str:
    """Write a time as the released models read it; Python's own rounding of the binary value, as in the reference."""
    return f"<{seconds:.1f} seconds>"


def timestamp_token(seconds: float) -> str:
    """Write a time as one learnable token, in whole seconds, halves to even: 207.4 gives <t_3m27s>."""
    minutes, rest = divmod(round(seconds), 60)
    return f"<t_{minutes}m{rest}s>"


class ChatTemplate:
    """Render messages with a jinja2 chat template in a sandbox and cut the result into segments.

    `source` is the template or, as some checkpoints have it, several by name ("default", "tool_use"). `variables` are further
    names it may read, such as bos_token.
    """

    def __init__(
        self, source: str | Mapping[str, str], tokenizer: Tokenizer, variables: Mapping[str, str] | None = None
    ) -> None:
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        self.tokenizer = tokenizer
        self._variables = dict(variables or {})
        self._guard = Guard(tokenizer.added)

    @classmethod
    def from_checkpoint(cls, directory: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """Find chat_template.jinja, else chat_template.json, else the template in tokenizer_config.json."""
        directory = Path(directory)
        config = _read_json(directory / "tokenizer_config.json") or {}
        plain = directory / "chat_template.jinja"
        if plain.is_file():
            source: Any = plain.read_text(encoding="utf-8")
        else:
            source = (_read_json(directory / "chat_template.json") or {}).get("chat_template") or config.get("chat_template")
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}
        if not source:
            raise CheckpointError(
                f"{directory} has no chat template; expected chat_template.jinja, chat_template.json, or a chat_template "
                "in tokenizer_config.json"
            )
        named = {key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(key)}
        return cls(
            source,
            tokenizer,
            {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()},
        )

    @classmethod
    def builtin(cls, name: Literal["instruct", "thinking"], tokenizer: Tokenizer) -> ChatTemplate:
        """Return foveal's own template with the layout of the released Instruct or Thinking models."""
        return cls(builtin_template(name), tokenizer)

    def render(
        self,
        messages: Seq[Mapping[str, Any]],
        *,
        media: Seq[MediaInfo] = (),
        tools: Seq[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
        timestamps: Timestamps = "text",
        thinking: bool = True,
        **options: Any,
    ) -> Prompt:
        """Render messages whose pictures and clips are `media`, in order of appearance.

        `timestamps="tokens"` writes one learnable token a frame instead of text. `thinking=False` closes a thought that the
        template opens. `options` are further variables of this template; one it does not read is an error. Raise PromptError
        for messages that are malformed, or that do not match the media.
        """
        if timestamps not in ("text", "tokens"):
            raise PromptError(f"timestamps are written as 'text' or as 'tokens', not {timestamps!r}")
        clean, declared = MessageReader(self._guard).read(messages)
        match_media(declared, media, "the messages hold")
        source = self.sources.get("tool_use" if tools else "default") or self.sources.get("default")
        if source is None:
            raise CheckpointError(f"the checkpoint has the chat templates {', '.join(self.sources)} but none named 'default'")
        rendered = _run(
            source,
            messages=clean,
            tools=read_tools(tools, self._guard),
            add_generation_prompt=add_generation_prompt,
            add_vision_id=add_vision_id,
            **self._variables,
            **self._read_options(options, source),
        )
        pieces = list(self.tokenizer.split_template(rendered))
        opens = add_generation_prompt and _ends_in_thought(pieces)
        if opens and not thinking:
            rendered += "\n</think>\n\n"
            pieces = list(self.tokenizer.split_template(rendered))
        match_media([_PADS[text] for text, index in pieces if index is not None and text in _PADS], media, "the template wrote")
        segments = self._lay_out(pieces, media, timestamps)
        return Prompt(tuple(segments), self._guard.show(rendered), opens and thinking)

    def _read_options(self, options: Mapping[str, Any], source: str) -> dict[str, Any]:
        known = _variables_of(source) - {"messages", "tools", "raise_exception", "strftime_now", *self._variables}
        for name in options:
            if name not in known:
                raise PromptError(
                    f"this chat template does not read {name!r}; it reads {', '.join(sorted(known)) or 'no options'}"
                )
        return {name: self._guard.tree(value, f"the option {name!r}") for name, value in options.items()}

    def _lay_out(self, pieces: Seq[tuple[str, int | None]], media: Seq[MediaInfo], timestamps: Timestamps) -> list[Segment]:
        """Turn the template's placeholders into frames and everything else into token ids."""
        out = _Writer(self.tokenizer)
        used = 0
        tokens = [text if index is not None else "" for text, index in pieces]
        for i, (text, index) in enumerate(pieces):
            wrapped = tokens[i - 1 : i + 2] == [VISION_START, VIDEO_PAD, VISION_END]
            if index is None:
                out.text(self._guard.show(text))
            elif text == IMAGE_PAD:
                out.vision(used, 0)
                used += 1
            elif text == VIDEO_PAD:
                if wrapped:  # the released layout has no outer pair: every frame brings its own
                    out.drop_token()
                for frame, seconds in enumerate(media[used].times_s):
                    self._write_time(out, seconds, timestamps)
                    out.token(self.tokenizer.token_id(VISION_START))
                    out.vision(used, frame)
                    out.token(self.tokenizer.token_id(VISION_END))
                used += 1
            elif text != VISION_END or tokens[i - 2 : i + 1] != [VISION_START, VIDEO_PAD, VISION_END]:
                out.token(index)
        return out.finish()

    def _write_time(self, out: _Writer, seconds: float, timestamps: Timestamps) -> None:
        if timestamps == "text":
            out.text(timestamp_text(seconds))
            return
        token = timestamp_token(seconds)
        index = self.tokenizer.added.get(token)
        if index is None:
            raise PromptError(
                f"the tokenizer has no timestamp token {token}; add one for every second to the added_tokens of tokenizer.json "
                "and train their embeddings, or write timestamps as text"
            )
        out.token(index)


class _Writer:
    """Collect text, tokens and frames; encode each run of text at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._segments: list[Segment] = []
        self._ids: list[int] = []
        self._run: list[str] = []

    def text(self, text: str) -> None:
        self._run.append(text)

    def token(self, index: int) -> None:
        self._end_run()
        self._ids.append(index)

    def drop_token(self) -> None:
        self._ids.pop()

    def vision(self, media: int, frame: int) -> None:
        self._end_segment()
        self._segments.append(VisionSegment(media, frame))

    def finish(self) -> list[Segment]:
        self._end_segment()
        return self._segments

    def _end_run(self) -> None:
        if self._run:
            self._ids.extend(self._tokenizer.encode_text("".join(self._run)))
            self._run = []

    def _end_segment(self) -> None:
        self._end_run()
        if self._ids:
            self._segments.append(TextSegment(tuple(self._ids)))
            self._ids = []


def _ends_in_thought(pieces: Seq[tuple[str, int | None]]) -> bool:
    while pieces and pieces[-1][1] is None and not pieces[-1][0].strip():
        pieces = pieces[:-1]
    return bool(pieces) and pieces[-1][0] == "<think>" and pieces[-1][1] is not None


def builtin_template(name: Literal["instruct", "thinking"]) -> str:
    """Return the source of foveal's own template."""
    return (Path(__file__).parent / "assets" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}; an object is needed")
    return data


def _run(source: str, **values: Any) -> str:
    template = _compile(source)
    try:
        return template.render(**values)
    except PromptError:
        raise
    except Exception as error:  # whatever a checkpoint's template does to these messages
        raise PromptError(f"the chat template refused these messages: {error}") from error


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    """Compile with the settings the reference renders chat templates under."""
    import jinja2

    try:
        return _environment().from_string(clean_text(source))
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"the chat template has an error in line {error.lineno}: {error.message}") from error


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


@lru_cache(maxsize=16)
def _variables_of(source: str) -> frozenset[str]:
    from jinja2 import meta

    return frozenset(meta.find_undeclared_variables(_environment().parse(clean_text(source))))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Plain JSON rather than jinja2's HTML-safe kind. Escaping is done here so that hidden characters (surrogates) stay.
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return re.sub("[\x7f-\ud7ff\ue000-\U0010ffff]", lambda m: json.dumps(m.group())[1:-1], text) if ensure_ascii else text


def _raise_exception(message: str) -> None:
    raise PromptError(f"the chat template refused these messages: {message}")


def split_thinking(text: str, opened: bool = False) -> tuple[str | None, str]:
    """Split a reply into its reasoning (None if there is none) and its answer.

    A reply that holds only `</think>` began inside the thought, as those of Thinking models do. Without any tag, `opened` (see
    `Prompt.opens_thinking`) tells an unfinished thought from a plain answer.
    """
    before, closed, answer = text.partition("</think>")
    head, start, rest = before.partition("<think>")
    if start and not head.strip():
        before, opened = rest, True
    if not closed and not opened:
        return None, text
    return before.strip("\n"), answer.lstrip("\n")

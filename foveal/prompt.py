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
from foveal.messages import Guard, MediaInfo, MessageReader, count_kinds, match_media, read_tools
from foveal.sequence import Kind, Segment, TextSegment, VisionSegment
from foveal.thinking import CLOSE, OPEN
from foveal.tokenizer import Tokenizer, clean_text

if TYPE_CHECKING:
    import jinja2

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
_PADS: dict[str, Kind] = {IMAGE_PAD: "image", VIDEO_PAD: "video"}
Timestamps = Literal["text", "tokens"]
Piece = tuple[str, int | None]  # a run of text, or an added token and its id


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
        think: bool = True,
        **options: Any,
    ) -> Prompt:
        """Render messages whose pictures and clips are `media`, in order of appearance.

        `timestamps="tokens"` writes one learnable token a frame instead of text. `think=False` closes at once a thought that
        the template opens. `options` are further variables of this template, such as enable_thinking. Raise PromptError for
        messages that are malformed or do not match the media, and for options the template does not read.
        """
        if timestamps not in ("text", "tokens"):
            raise PromptError(f"timestamps are written as 'text' or as 'tokens', not {timestamps!r}")
        clean, declared = MessageReader(self._guard).read(messages)
        match_media(declared, media)
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
            **self._read_options(options, source, needed={"tools": bool(tools), "add_vision_id": add_vision_id}),
        )
        pieces = list(self.tokenizer.split_template(rendered))
        opens = add_generation_prompt and _ends_in_thought(pieces)
        if opens and not think:
            rendered += f"\n{CLOSE}\n\n"
            pieces = list(self.tokenizer.split_template(rendered))
        self._check_placeholders(pieces, declared)
        segments = self._lay_out(pieces, media, timestamps)
        return Prompt(tuple(segments), self._guard.show(rendered), opens and think)

    def _check_placeholders(self, pieces: Seq[Piece], declared: Seq[Kind]) -> None:
        """Require that the template wrote what the messages hold."""
        wrote = [_PADS[text] for text, index in pieces if index is not None and text in _PADS]
        if wrote == list(declared):
            return
        for pad, kind in _PADS.items():
            if kind in declared and pad not in self.tokenizer.added:
                raise CheckpointError(f"{self.tokenizer.name} has no token {pad}, which every {kind} needs")
        raise PromptError(
            f"the messages hold {count_kinds(declared)}, but the chat template wrote {count_kinds(wrote)}; it leaves some "
            "messages out (those of a system message, say): move their pictures and clips to a user message"
        )

    def _read_options(self, options: Mapping[str, Any], source: str, needed: Mapping[str, bool]) -> dict[str, Any]:
        """Check that the template reads the options, and hide what is in them."""
        _, reads = _compile(source)
        known = sorted(reads - {"messages", "tools", "add_generation_prompt", "add_vision_id", *self._variables})
        for name in [*options, *(name for name, is_needed in needed.items() if is_needed)]:
            if name not in reads or (name in options and name not in known):
                raise PromptError(f"this chat template does not read {name!r}; its options are: {', '.join(known) or 'none'}")
        return {name: self._guard.tree(value, f"the option {name!r}") for name, value in options.items()}

    def _lay_out(self, pieces: Seq[Piece], media: Seq[MediaInfo], timestamps: Timestamps) -> list[Segment]:
        """Turn the template's placeholders into frames and everything else into token ids."""
        out = _Writer(self.tokenizer)
        tokens = [text if index is not None else None for text, index in pieces]
        used = i = 0
        while i < len(pieces):
            text, index = pieces[i]
            # The released layout has no outer pair around a clip (transformers 4.57): every frame brings its own.
            wrapped = tokens[i : i + 3] == [VISION_START, VIDEO_PAD, VISION_END]
            if index is None:
                out.text(self._guard.show(text))
            elif wrapped or text == VIDEO_PAD:
                self._write_clip(out, used, media[used].times_s, timestamps)
                used += 1
            elif text == IMAGE_PAD:
                out.vision(used, 0)
                used += 1
            else:
                out.token(index)
            i += 3 if wrapped else 1
        return out.finish()

    def _write_clip(self, out: _Writer, media: int, times_s: Seq[float], timestamps: Timestamps) -> None:
        for frame, seconds in enumerate(times_s):
            self._write_time(out, seconds, timestamps)
            out.token(self.tokenizer.token_id(VISION_START))
            out.vision(media, frame)
            out.token(self.tokenizer.token_id(VISION_END))

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


def _ends_in_thought(pieces: Seq[Piece]) -> bool:
    while pieces and pieces[-1][1] is None and not pieces[-1][0].strip():
        pieces = pieces[:-1]
    return bool(pieces) and pieces[-1][0] == OPEN and pieces[-1][1] is not None


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


def _run(source: str, /, **values: Any) -> str:
    template, _ = _compile(source)
    try:
        return template.render(**values)
    except PromptError:
        raise
    except Exception as error:  # whatever a checkpoint's template does to these messages
        raise PromptError(f"the chat template refused these messages: {error}") from error


@lru_cache(maxsize=16)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """Return a template, compiled with the settings the reference renders chat templates under, and the names it reads."""
    import jinja2
    from jinja2 import meta

    environment = _environment()
    try:
        tree = environment.parse(clean_text(source))
        names = meta.find_undeclared_variables(tree) - environment.globals.keys()
        return environment.from_string(tree), frozenset(names)
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


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Plain JSON rather than jinja2's HTML-safe kind. Escaping is done here so that hidden characters (surrogates) stay.
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return re.sub("[\x7f-\ud7ff\ue000-\U0010ffff]", lambda m: json.dumps(m.group())[1:-1], text) if ensure_ascii else text


def _raise_exception(message: str) -> None:
    raise PromptError(f"the chat template refused these messages: {message}")

"""Tell files from the question among the words of a command line, in any order."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from foveal.errors import ConfigError, MediaError, PromptError

_URL = re.compile(r"(?:https?://|file://|data:[\w.+-]+/)", re.IGNORECASE)
_MEDIA_SUFFIX = re.compile(
    r"\.(?:png|apng|jpe?g|jfif|webp|gif|bmp|tiff?|avif|heic|svg|pdf|mp4|m4v|mov|mkv|webm|avi|mpe?g|mpg|ts|flv|ogv|wmv)$", re.I
)
_OPTION = re.compile(r"--?[a-zA-Z][\w-]*(?:=.*)?")
_MAX_QUESTION_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Inputs:
    """The files in the order given, and the question."""

    files: tuple[str, ...]
    question: str


def read_inputs(words: tuple[str, ...], stdin: BinaryIO | None = None) -> Inputs:
    """Sort words into files and the question; the question may come from stdin ("-", or piped when none is given).

    Raise MediaError for a file that is not there, PromptError unless exactly one question is left.
    """
    files: list[str] = []
    texts: list[str] = []
    for word in words:
        if is_media(word):
            files.append(word)
        else:
            texts.append(word)
    for text in texts:
        if looks_like_path(text, alone=len(texts) == 1):
            raise MediaError(_missing(text))
    if len(texts) > 1:
        listed = ", ".join(repr(_short(text)) for text in texts)
        raise PromptError(f"{len(texts)} questions were given: {listed}; put one question in quotes, and check the file names")
    if texts == ["-"]:
        return Inputs(tuple(files), _from_stdin(stdin, asked=True))
    if not texts:
        return Inputs(tuple(files), _from_stdin(stdin, asked=False))
    if not texts[0].strip():
        raise PromptError("the question is empty")
    return Inputs(tuple(files), texts[0])


def refuse_options(words: Iterable[str], command: str, options: Callable[[], Mapping[str, Iterable[str]]]) -> None:
    """Raise ConfigError for an option among the words of a command, which it therefore does not have.

    options: gives the option names (--fps, -m) of every command; asked for only when there is something to explain.
    """
    for word in words:
        if _OPTION.fullmatch(word):
            raise ConfigError(_wrong_option(word, command, options()))


def is_media(word: str) -> bool:
    """Tell whether a word is a URL or the path of something that exists."""
    if _URL.match(word):
        return True
    try:
        return bool(word) and os.path.exists(word)
    except (OSError, ValueError):  # a question may be too long for a path, or hold a NUL
        return False


def looks_like_path(word: str, *, alone: bool) -> bool:
    """Tell whether a word that names no file was meant to; `alone`: it would otherwise be the question."""
    if not word or len(word) > 4096 or "\n" in word:
        return False
    if not re.search(r"\s", word):
        return bool(_MEDIA_SUFFIX.search(word)) or ("/" in word.strip("/") and not word.endswith(("?", "!"))) or word[0] == "/"
    if word.startswith(("/", "./", "../", "~/", "\\\\")) or re.match(r"[A-Za-z]:\\", word):
        return bool(_MEDIA_SUFFIX.search(word))
    # "describe photo.png" may be a question; beside another question it is a file name with spaces.
    return not alone and bool(_MEDIA_SUFFIX.search(word))


def display_name(source: str) -> str:
    """Name a file in tables: no folders, no queries, no data."""
    if source[:5].lower() == "data:":
        return "data URL"
    path = unquote(urlsplit(source).path) if _URL.match(source) else source
    return _short(os.path.basename(path.rstrip("/")) or source)


def _wrong_option(word: str, command: str, options: Mapping[str, Iterable[str]]) -> str:
    import difflib

    name, own = word.partition("=")[0], [*options[command], "--help"]
    if name in own:
        return f"{name} stands after --, behind which all words are files and the question; put it before"
    if holders := [f"foveal {other}" for other, names in options.items() if name in names]:
        listed = " and ".join(filter(None, (", ".join(holders[:-1]), holders[-1])))
        return f"foveal {command} has no option {name}; {listed} {'have' if len(holders) > 1 else 'has'} it"
    near = difflib.get_close_matches(name, own, n=1, cutoff=0.7)
    return f"unknown option {word}; " + (f"did you mean {near[0]}?" if near else f"see foveal {command} --help")


def _missing(word: str) -> str:
    folder = os.path.dirname(word)
    if folder and not os.path.isdir(folder):
        return f"{_short(word)}: no such file; there is no folder {_short(folder)}"
    near = ""
    try:
        import difflib

        names = difflib.get_close_matches(os.path.basename(word), os.listdir(folder or "."), n=1, cutoff=0.7)
        near = f"; did you mean {os.path.join(folder, names[0])}?" if names else ""
    except OSError:
        pass
    return f"{_short(word)}: no such file{near}"


def _from_stdin(stdin: BinaryIO | None, *, asked: bool) -> str:
    if stdin is None:
        terminal = sys.stdin is None or sys.stdin.isatty()
        if terminal and not asked:
            raise PromptError('there is no question; put it in quotes, such as: foveal ask photo.png "What is this?"')
        stdin = sys.stdin.buffer
    data = stdin.read(_MAX_QUESTION_BYTES + 1)
    if len(data) > _MAX_QUESTION_BYTES:
        raise PromptError(f"the question on standard input is longer than {_MAX_QUESTION_BYTES:,} bytes")
    if b"\0" in data[:4096]:
        raise PromptError("standard input holds binary data; a question was expected (give pictures and clips as files)")
    text = data.decode("utf-8", "replace").rstrip("\n")
    if not text.strip():
        raise PromptError('there is no question; put it in quotes, such as: foveal ask photo.png "What is this?"')
    return text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:60] + "…" + text[-19:]

"""An arm behind the OpenAI API, on whatever server: the standard library's HTTP, with time limits and patience."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import mimetypes
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from foveal.errors import ConfigError, ServerError
from foveal.evaluate.arms import Said, item_sampling
from foveal.evaluate.items import Item, Messages, with_system
from foveal.media import Frames, Limits, load_clip
from foveal.media.encode import bytes_url, data_url
from foveal.media.source import fetch, resolve
from foveal.prompt import timestamp_text
from foveal.sampler import Sampling
from foveal.world import save_clip

# Busy, or broken for a while. Anything else will be the same the next time.
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_REFUSED = (400, 413, 422)  # this prompt: too long, or a form of media the server does not take
_WAIT_S = (0.5, 30.0)  # before the first repetition, twice as long before each other, at most
_MAX_BYTES = 64 * 2**20  # of a reply
_MAX_TIMEOUT_S = 1e6  # twelve days; a socket takes no number of any size


@dataclass(frozen=True)
class Server:
    """Where a server is, and how to treat it.

    url: its base, with or without /v1. timeout_s: silence on the line before a request is given up. retries: repetitions of one
    that failed for a reason that may pass. clips: as "video", an MP4 in a video_url part, or as "frames", pictures with their
    times before them. key: sent as a bearer token, without the line break that a file may have left behind it.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    retries: int = 4
    clips: Literal["video", "frames"] = "video"

    def __post_init__(self) -> None:
        expected = "expected one such as http://localhost:8000/v1"
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname or "", parts.port  # a port that is none is found when it is read
            host.encode("idna")  # as connecting will
        except ValueError as error:
            raise ConfigError(f"the server's address is {self.url!r}: {_unlucky(error)}; {expected}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError(f"the server's address is {self.url!r}; {expected}")
        if re.search(r"[\x00-\x20\x7f]", host) or re.search(r"[^\x21-\x7e]", self.path):
            raise ConfigError(f"the server's address is {self.url!r}, with a character that no address holds; {expected}")
        if not 0 < self.timeout_s <= _MAX_TIMEOUT_S or self.retries < 0:
            raise ConfigError(
                f"a timeout of {self.timeout_s} s and {self.retries} retries; expected more than 0 s and at most "
                f"{_MAX_TIMEOUT_S:,.0f} s, and 0 or more"
            )
        key = (self.key or "").strip()
        if odd := re.search(r"[^\x20-\x7e]", key):  # the key itself is for nobody's screen
            raise ConfigError(
                f"character {odd.start() + 1} of {len(key)} of the server's key (OPENAI_API_KEY) is one that no header can "
                "hold; copy the key again"
            )
        object.__setattr__(self, "key", key or None)

    @property
    def path(self) -> str:
        """The path of chat completions."""
        path = urlsplit(self.url).path.rstrip("/").removesuffix("/chat/completions")
        return f"{path or '/v1'}/chat/completions"


class Remote:
    """Answers by a server's chat completions. sampling: fields of `Sampling` the server is asked for; others it decides."""

    def __init__(
        self, server: Server, sampling: Mapping[str, Any], *, system: str | None = None, parallel: int = 4
    ) -> None:  # fmt: skip
        self.server, self.sampling, self.system, self.parallel = server, dict(sampling), system, parallel
        self._closed = threading.Event()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def __call__(self, item: Item) -> Said:
        """Ask about an item. Raise ServerError where the server cannot be made to answer."""
        began = time.perf_counter()
        sampling = self.sampling
        if sampling.get("temperature"):
            sampling = sampling | {"seed": item_sampling(Sampling(**sampling), item).seed}
        body = {"model": self.server.model, "messages": self._messages(item), **sampling}
        try:
            reply = self._ask(json.dumps(body).encode())
        except _Refusal as refusal:
            return Said("", "refused", error=str(refusal), seconds=time.perf_counter() - began)
        return _read(reply, time.perf_counter() - began)

    def close(self) -> None:
        """End the requests that are under way."""
        self._closed.set()
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):  # it has ended by itself
                        connection.sock.shutdown(socket.SHUT_RDWR)  # unlike close, this wakes the thread that reads

    def _messages(self, item: Item) -> Messages:
        out = []
        for message in with_system(item.messages, self.system):
            content = message["content"]
            if isinstance(content, list):  # one that only calls tools has none
                content = [new for part in content for new in self._part(part)]
            out.append({**message, "content": content})
        return out

    def _part(self, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        kind = part["type"]
        if kind == "text":
            return [{"type": "text", "text": part["text"]}]
        source = part[kind]
        if extra := [key for key in part if key not in ("type", kind)]:
            raise ConfigError(f"a {kind} has {extra[0]!r}, which a server would not heed; take it out of the record")
        if kind == "image":
            url = data_url(source.pixels[0], lossless=True) if isinstance(source, Frames) else _file_url(source, "image")
            return [_url("image", url)]
        if self.server.clips == "frames":
            frames = source if isinstance(source, Frames) else load_clip(source)
            out: list[dict[str, Any]] = []
            for pixels, time_s in zip(frames.pixels, frames.times_s, strict=True):
                out += [{"type": "text", "text": timestamp_text(float(time_s))}, _url("image", data_url(pixels, lossless=True))]
            return out
        return [_url("video", _clip_url(source) if isinstance(source, Frames) else _file_url(source, "video"))]

    def _ask(self, body: bytes) -> dict[str, Any]:
        """Send a request until it is answered."""
        pause, ceiling = _WAIT_S
        for attempt in range(self.server.retries + 1):
            status, headers, text = self._send(body)
            if status == 200:
                return _parsed(text, self.server)
            said = f"{self.server.url} answered {status}: {_reason(text)}" if status else f"{self.server.url}: {text}"
            if status in _REFUSED:
                raise _Refusal(said)
            if status and status not in _AGAIN:
                hint = {401: "set OPENAI_API_KEY", 403: "set OPENAI_API_KEY", 404: "see --api and --model"}.get(status)
                raise ServerError(said + (f"; {hint}" if hint else ""))
            if attempt < self.server.retries:
                self._closed.wait(min(max(pause, _after(headers)), ceiling))
                pause *= 2
            if self._closed.is_set():
                raise ServerError(f"{self.server.url}: the examination ended before this answer")
        raise ServerError(f"{said}, {self.server.retries + 1} times over; is the server there and up to its load?")

    def _send(self, body: bytes) -> tuple[int, Mapping[str, str], str]:
        """Send a request once; return status, headers and body, or 0 and what went wrong on the line."""
        parts = urlsplit(self.server.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "foveal"}
        if self.server.key:
            headers["Authorization"] = f"Bearer {self.server.key}"
        connection = kind(parts.hostname or "", parts.port, timeout=self.server.timeout_s)
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
            if self._closed.is_set():  # while this connected, when there was nothing yet that `close` could have ended
                return 0, {}, "the examination ended"
            connection.request("POST", self.server.path, body, headers)
            response = connection.getresponse()
            data = response.read(_MAX_BYTES)
            if response.length and len(data) < _MAX_BYTES:  # which `read` does not say when it is given a number
                return 0, {}, f"the reply broke off after {len(data):,} of {len(data) + response.length:,} bytes"
            return response.status, dict(response.headers), data.decode("utf-8", "replace")
        except TimeoutError:
            return 0, {}, f"no answer within {self.server.timeout_s:g} s"
        except ssl.SSLError as error:
            raise ServerError(f"{self.server.url}: no safe connection: {error.reason or error}") from error
        except (OSError, http.client.HTTPException) as error:
            return 0, {}, getattr(error, "strerror", None) or str(error) or type(error).__name__
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


class _Refusal(ServerError):
    """One prompt that the server will not answer."""


def _url(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _file_url(source: Any, kind: str) -> str:
    """Send a file's own bytes, by path or file://; another URL as it is, for the server to fetch. Raise MediaError."""
    if not isinstance(source, str):
        raise ConfigError(
            f"a {kind} given as a {type(source).__name__} cannot be sent to a server; name one file, or use frames"
        )
    if source.split(":", 1)[0].lower() in ("http", "https", "data"):
        return source
    found = resolve(source, Limits(), fetch)
    mime = mimetypes.guess_type(found.name)[0] or ("image/png" if kind == "image" else "video/mp4")
    with found.open() as file:
        return bytes_url(file.read(), mime)


def _clip_url(frames: Frames) -> str:
    """Write generated frames as an MP4."""
    step = float(frames.times_s[1] - frames.times_s[0]) if len(frames.times_s) > 1 else 1.0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        save_clip(file, frames.pixels, 1 / step)
        return bytes_url(file.read_bytes(), "video/mp4")


def _parsed(text: str, server: Server) -> dict[str, Any]:
    try:
        reply = json.loads(text)
        if not isinstance(reply["choices"][0]["message"], dict):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise ServerError(f"{server.url} answered 200 with what is no chat completion: {text[:200]!r}") from None
    return dict(reply)


def _read(reply: dict[str, Any], seconds: float) -> Said:
    choice = reply["choices"][0]
    message, usage = choice["message"], reply.get("usage")
    content = message.get("content") or ""
    if isinstance(content, list):  # some servers answer in parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return Said(
        str(content).strip(), str(choice.get("finish_reason") or "stop"), reasoning if isinstance(reasoning, str) else None,
        _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), seconds,
    )  # fmt: skip


def _count(usage: Any, name: str) -> int:
    """Read a count of tokens; 0 where a server gives none, or something else: the answer stands without it."""
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return max(0, int(value)) if isinstance(value, int | float) and math.isfinite(value) else 0


def _reason(text: str) -> str:
    """Take the message out of an error's JSON."""
    try:
        error = json.loads(text)
        error = error.get("error", error) if isinstance(error, dict) else error
        text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "nothing"


def _after(headers: Mapping[str, str]) -> float:
    """Read Retry-After in seconds; a date, or none, is 0."""
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), "")
    return float(value) if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value) else 0.0


def _unlucky(error: ValueError) -> str:
    """Say what is wrong with an address, without the words that only Python's own codecs have for it."""
    return "a part of the host is empty or too long" if isinstance(error, UnicodeError) else str(error)

"""Where media comes from: a path, file://, http(s):// or data: URL, or bytes, as one readable, sized, named Source."""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import io
import os
import re
import socket
import stat
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from foveal.errors import MediaError
from foveal.media.values import Deadline, Limits

Fetch = Callable[[str, Limits], bytes]
"""Turn an http(s) URL into bytes. A server passes its own, with its own policy on hosts and addresses."""

MAX_REDIRECTS = 3
_IDLE_TIMEOUT_S = 15.0  # silence on the line; the whole download is bounded by Limits.timeout_s
_LOOK_S = 0.1  # between two looks at the deadline of a download
_CHUNK_BYTES = 1 << 16
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class Source:
    """Something with a name, a size and bytes; a local file is opened in place, everything else is held in memory."""

    name: str
    size: int
    content: bytes | Path

    def open(self) -> BinaryIO:
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        return _open_regular(self.content, self.name)

    def head(self, size: int = 4096) -> bytes:
        with self.open() as file:
            return file.read(size)

    def read(self, limits: Limits) -> bytes:
        """Read all of it, if it is no more than a picture may be."""
        if self.size > limits.max_bytes:
            raise too_large(self.name, limits.max_bytes)
        with self.open() as file:
            data = file.read(limits.max_bytes + 1)  # a file may have grown since its size was taken
        if len(data) > limits.max_bytes:
            raise too_large(self.name, limits.max_bytes)
        return data


def resolve(source: str | os.PathLike[str] | bytes | bytearray | memoryview, limits: Limits, fetch: Fetch) -> Source:
    """Find the source and check its size; download it when it is a URL. Raises MediaError."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _in_memory("bytes", bytes(source) if len(source) <= limits.max_bytes else None, limits)
    if not isinstance(source, str):
        return _local(Path(source), limits)
    if not source.strip():
        raise MediaError("found an empty text where a picture or clip should be named; give a path or a URL")
    if source[:5].lower() == "data:":
        return _in_memory("data URL", _decode_data_url(source, limits), limits)
    scheme = _SCHEME.match(source)
    if scheme is None:
        return _local(Path(source), limits)
    match scheme[1].lower():
        case "http" | "https":
            return _in_memory(url_name(source), fetch(source, limits), limits)
        case "file":
            return _local(_file_url_path(source), limits)
        case other:
            raise MediaError(f"found a {other[:20]}:// address; give a path, or a file://, http://, https:// or data: URL")


def too_large(name: str, limit: int) -> MediaError:
    return MediaError(f"{name}: is larger than the limit of {limit:,} bytes; use a smaller file or raise the limit")


def safe_name(name: str) -> str:
    """Make a name from outside fit for one line of a message."""
    printable = "".join(c if c.isprintable() else "�" for c in name)
    return printable if len(printable) <= 80 else f"{printable[:50]}…{printable[-29:]}"


def url_name(url: str) -> str:
    """Name a URL by its host and last path segment: queries and user parts may hold secrets."""
    try:
        parts = urllib.parse.urlsplit(url)
        return safe_name(f"{parts.hostname or '?'}/{parts.path.rpartition('/')[2]}")
    except ValueError:
        return "URL"


def _in_memory(name: str, data: bytes | None, limits: Limits) -> Source:
    if data is None or len(data) > limits.max_bytes:
        raise too_large(name, limits.max_bytes)
    if not data:
        raise MediaError(f"{name}: is empty (0 bytes); give a picture or a clip")
    return Source(name, len(data), data)


def _local(path: Path, limits: Limits) -> Source:
    name = safe_name(path.name or str(path))
    with _open_regular(path, name) as file:
        size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise MediaError(f"{name}: is an empty file (0 bytes); give a picture or a clip")
    if size > limits.max_file_bytes:
        raise too_large(name, limits.max_file_bytes)
    return Source(name, size, path)


def _open_regular(path: Path, name: str) -> BinaryIO:
    """Open a regular file and nothing else: a pipe or a device could block, or never end."""
    # O_NONBLOCK: opening a named pipe must not wait for a writer. It means nothing to a regular file.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except PermissionError:
        raise MediaError(f"{name}: may not be read (permission denied)") from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise MediaError(f"{name}: cannot be opened ({type(e).__name__})") from e
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, device or socket"
        raise MediaError(f"{name}: is {found}; give a file")
    return os.fdopen(descriptor, "rb")


def _file_url_path(url: str) -> Path:
    parts = urllib.parse.urlsplit(url)
    if parts.netloc.lower() not in ("", "localhost"):
        raise MediaError(f"found a file:// URL of another host ({safe_name(parts.netloc)}); write file:///path")
    return Path(urllib.request.url2pathname(parts.path))


def _decode_data_url(url: str, limits: Limits) -> bytes | None:
    """Decode data:[type][;parameters][;base64],payload; None when it would exceed the limit."""
    comma = url.find(",", 0, 1024)
    if comma < 0:
        raise MediaError("data URL: no comma after the media type; expected data:image/png;base64,...")
    payload = url[comma + 1 :]
    is_base64 = url[:comma].lower().rstrip().endswith(";base64")
    # At most 3 characters of percent encoding stand for one base64 character; 4 of those for 3 bytes.
    if len(payload) > 4 * limits.max_bytes + 4:
        return None
    try:
        data = urllib.parse.unquote_to_bytes(payload)
        if not is_base64:
            return data
        data = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as e:
        raise MediaError("data URL: its base64 text is damaged or cut off") from e


# --- http -------------------------------------------------------------------------------------------------------------


def fetch(url: str, limits: Limits) -> bytes:
    """Download an http(s) URL: at most limits.max_bytes within limits.timeout_s, over at most MAX_REDIRECTS redirects.

    Any host is allowed; a server that fetches on others' behalf must put its own policy in front. Raises MediaError.
    """
    name = url_name(url)
    deadline = Deadline(name, limits)
    try:
        with _Watchdog(deadline) as watchdog:
            opener, request = _opener(watchdog), _request(url)
            for _ in range(MAX_REDIRECTS + 1):
                try:
                    with opener.open(request, timeout=min(_IDLE_TIMEOUT_S, limits.timeout_s)) as response:
                        return _read_body(response, name, limits, deadline)
                except urllib.error.HTTPError as e:
                    deadline.check()
                    with e:  # its body is never read: only an address is wanted, and it may have no end
                        request = _redirected(request, e, name)
    except (OSError, http.client.HTTPException, ValueError) as e:
        if isinstance(e, MediaError):
            raise
        deadline.check()
        reason = e.reason if isinstance(e, urllib.error.URLError) and isinstance(e.reason, Exception) else e
        raise MediaError(f"{name}: could not be downloaded ({_why(reason)}); check the address and the connection") from e
    raise MediaError(f"{name}: redirects more than {MAX_REDIRECTS} times; give the final address")


def _redirected(request: urllib.request.Request, answer: urllib.error.HTTPError, name: str) -> urllib.request.Request:
    location = answer.headers.get("Location")
    if answer.code not in (301, 302, 303, 307, 308) or not location:
        raise MediaError(f"{name}: the server answered {answer.code}; expected 200 with a picture or clip")
    target = urllib.parse.urljoin(request.full_url, location)
    scheme = urllib.parse.urlsplit(target).scheme.lower()
    if scheme not in ("http", "https") or (request.type == "https" and scheme == "http"):
        raise MediaError(f"{name}: redirects from {request.type} to {safe_name(scheme) or '?'}, which is not followed")
    return _request(target)


def _why(error: Exception) -> str:
    """Say in our own words what went wrong: library texts may hold internal addresses."""
    match error:
        case socket.gaierror():
            return "the host name is unknown"
        case TimeoutError():
            return f"no answer for {_IDLE_TIMEOUT_S:g} s"
        case ConnectionRefusedError():
            return "connection refused"
        case http.client.InvalidURL():
            return "not a valid URL"
        case http.client.IncompleteRead():
            return "the connection ended early"
        case _:
            return type(error).__name__


def _request(url: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise MediaError(f"{url_name(url)}: holds a user name or password; download the file yourself and give its path")
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    if not host:
        raise MediaError("the URL has no host; expected http(s)://host/path")
    # People paste addresses with spaces and letters beyond ASCII; what is encoded already stays.
    path, query = (urllib.parse.quote(part, safe="/%:@!$&'()*+,;=~?-._[]") for part in (parts.path, parts.query))
    clean = urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))
    return urllib.request.Request(clean, headers={"User-Agent": "foveal", "Accept-Encoding": "identity"})


def _read_body(response: Any, name: str, limits: Limits, deadline: Deadline) -> bytes:
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.max_bytes:
        raise too_large(name, limits.max_bytes)
    body = bytearray()
    while len(body) <= limits.max_bytes:
        deadline.check()
        chunk = response.read(min(_CHUNK_BYTES, limits.max_bytes + 1 - len(body)))
        if not chunk:
            break
        body += chunk
    else:
        raise too_large(name, limits.max_bytes)
    deadline.check()  # the watchdog ends a slow download by closing it, which looks like its end
    if announced.isdecimal() and len(body) < int(announced[:20]):
        raise MediaError(f"{name}: the connection ended after {len(body):,} of {int(announced[:20]):,} bytes; try again")
    return bytes(body)


class _Watchdog:
    """Close the connections of a download once its deadline is over: a server that drips bytes defeats any per-read timeout."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()

    def __enter__(self) -> _Watchdog:
        threading.Thread(target=self._watch, name="foveal-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_S):
            if self._deadline.over:
                self._close()
                return

    def watch(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        self._deadline.check()  # a connection made after the timer has fired would be nobody's

    def _close(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


def _opener(watchdog: _Watchdog) -> urllib.request.OpenerDirector:
    """Know http, https and the environment's proxies; urllib's default opener also reads ftp: and file:."""

    class HTTPConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watchdog.watch(self.sock)

    class HTTPSConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            watchdog.watch(self.sock)

    class HTTPHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(HTTPConnection, req)

    class HTTPSHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(HTTPSConnection, req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener

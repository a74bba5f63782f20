"""A tiny server of the OpenAI API, which answers, fails and stalls as a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, dict[str, str], str]]


class Fake:
    """A server: `reply` makes status, headers and body of a request's JSON; `seen` keeps what was asked."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.reply: Reply = lambda body: completion("red")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
                status, headers, text = outer.reply(body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # whoever asked has given up
                    self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


def completion(text: Any, **more: Any) -> tuple[int, dict[str, str], str]:
    choice = {"message": {"role": "assistant", "content": text, **more}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 70, "completion_tokens": 2}})

"""Names of models: folders, hub names, aliases; downloads from a hub of our own, and what is said when there is none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foveal.errors import CheckpointError, ConfigError, HubError
from foveal.hub import hub_name, resolve


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"),
        ("someone/their.own_model-1", "someone/their.own_model-1"),
        ("qwen3-vl:2b", "Qwen/Qwen3-VL-2B-Instruct"),
        ("2B", "Qwen/Qwen3-VL-2B-Instruct"),
        ("8B-thinking", "Qwen/Qwen3-VL-8B-Thinking"),
        ("Qwen3-VL-32b-Instruct", "Qwen/Qwen3-VL-32B-Instruct"),
        ("30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
        ("4b-fp8", "Qwen/Qwen3-VL-4B-Instruct-FP8"),
        ("qwen3-vl:8b-thinking-fp8", "Qwen/Qwen3-VL-8B-Thinking-FP8"),
        ("qwen3-vl:235B-A22B-thinking", "Qwen/Qwen3-VL-235B-A22B-Thinking"),
        ("3B", None),
        ("qwen3-vl", None),
        ("photo.png", None),
        ("a/b/c", None),
        ("", None),
        ("../model", None),
        ("./model", None),
        ("models/..", None),
        ("-model/x", None),
        ("owner/a--b", None),
        ("owner/" + "a" * 91, None),
    ],
)
def test_hub_names_and_aliases(name: str, expected: str | None) -> None:
    assert hub_name(name) == expected


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "2B").mkdir()
    assert resolve("~/2B") == tmp_path / "2B"
    monkeypatch.chdir(tmp_path)
    assert resolve("2B") == Path("2B")  # a folder goes before an alias


@pytest.mark.parametrize("name", ["nowhere", "../nowhere", "/no/such/folder", "3B"])
def test_a_name_of_nothing_is_refused_without_a_network(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub name such as"):
        resolve(name)


def test_a_folder_has_no_revision_and_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no revision 'v1'"):
        resolve(tmp_path, "v1")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match="is a file; name the folder"):
        resolve(tmp_path / "model.safetensors")


# ---- a hub of our own, spoken to by the real client in a process of its own, since it reads its variables at import

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOS = {
    "someone/tiny": {
        "config.json": b"{}", "chat_template.jinja": b"hi", "merges.txt": b"a b", "model.safetensors": b"weights",
        "model.py": b"import os", "pytorch_model.bin": b"pickle", "README.md": b"read me", "onnx/config.json": b"{}",
        "fp16/model.safetensors": b"other weights",
    },
    "someone/gguf": {"config.json": b"{}", "model.gguf": b"other"},
    "someone/other": {"model.gguf": b"other", "params.json": b"{}"},
}  # fmt: skip
# The hub's own words for what stands in the way.
REFUSALS = {
    "someone/gated": (403, "GatedRepo"), "someone/none": (404, "RepoNotFound"), "someone/hidden": (401, "RepoNotFound"),
    "someone/broken": (500, ""),
}  # fmt: skip


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> tuple[int, bytes, dict[str, str]]:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, kind, revision, *rest = [*(parts[2:] if api else parts), "", "", ""]
        repo = f"{owner}/{name}"
        if repo in REFUSALS:
            status, code = REFUSALS[repo]
            return status, b"", {"X-Error-Code": code} if code else {}
        if revision not in ("main", COMMIT):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        files = REPOS[repo]
        if api and kind == "tree":
            tree = [{"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files.items()]
            return 200, json.dumps(tree).encode(), {}
        if api:
            return 200, json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": []}).encode(), {}
        content = files["/".join(part for part in rest if part)]
        return 200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}

    def do_GET(self) -> None:
        status, content, headers = self._answer()
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        self.server.requests.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.requests = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


ASK = """
import json, sys
from foveal.errors import HubError
from foveal.hub import resolve
for asked in json.loads(sys.argv[1]):
    try:
        folder = resolve(**asked)
    except HubError as e:
        print(json.dumps(str(e)))
    else:
        print(json.dumps([str(folder), sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())]))
assert "torch" not in sys.modules
"""


def _ask(cache: Path, *asked: dict[str, Any], **variables: str) -> list[Any]:
    """Resolve names in a process of its own; return the messages, or folders and what is in them. Nothing goes to stderr."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    env = {**kept, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ASK, json.dumps(asked)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert "%" not in done.stderr, "progress is for terminals"
    return [json.loads(line) for line in done.stdout.splitlines()]


def _url(hub: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


DESCRIBED = ["chat_template.jinja", "config.json", "merges.txt"]


def test_what_is_downloaded_is_what_a_checkpoint_needs(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    tiny = {"name": "someone/tiny"}
    first, second = _ask(tmp_path, {**tiny, "weights": False}, {**tiny, "revision": COMMIT}, HF_ENDPOINT=_url(hub))
    assert first[1] == DESCRIBED  # no weights, and no pickles, code, or other folders
    assert second[1] == [*DESCRIBED, "model.safetensors"] and second[0] == first[0]
    assert Path(second[0]).is_relative_to(tmp_path) and (Path(second[0]) / "model.safetensors").read_bytes() == b"weights"
    # Offline the cache serves, and says so where it cannot.
    before = len(hub.requests)  # type: ignore[attr-defined]
    offline = _ask(tmp_path, tiny, {"name": "2B"}, HF_ENDPOINT=_url(hub), HF_HUB_OFFLINE="1")
    assert offline[0] == second
    assert offline[1].startswith("Qwen/Qwen3-VL-2B-Instruct is not complete in the local cache and HF_HUB_OFFLINE is set")
    assert "give a folder" in offline[1]
    assert len(hub.requests) == before  # type: ignore[attr-defined]


def test_progress_is_shown_on_a_terminal(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    termios = pytest.importorskip("termios", reason="there are no pseudo-terminals here")
    outer, inner = os.openpty()
    termios.tcsetwinsize(inner, (24, 100))
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": _url(hub), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    try:
        code = [sys.executable, "-c", ASK, '[{"name": "someone/tiny"}]']
        done = subprocess.run(code, stdout=subprocess.PIPE, stderr=inner, env=env)
        assert done.returncode == 0
        assert "100%" in os.read(outer, 100_000).decode()
    finally:
        os.close(inner)
        os.close(outer)


def test_an_unfinished_download_is_not_a_checkpoint(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    tiny = {"name": "someone/tiny"}
    _ask(tmp_path, {**tiny, "weights": False}, HF_ENDPOINT=_url(hub))
    described, whole = _ask(tmp_path, {**tiny, "weights": False}, tiny, HF_HUB_OFFLINE="1")
    assert described[1] == DESCRIBED
    assert whole.startswith("someone/tiny is not complete in the local cache") and "while online" in whole


def test_a_cache_of_other_tools_without_its_weights(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    (snapshot / shards[0]).write_text("")
    described, whole = _ask(tmp_path, {"name": "someone/tiny", "weights": False}, {"name": "someone/tiny"}, HF_HUB_OFFLINE="1")
    assert described[0] == str(snapshot)
    assert whole.startswith(f"the local copy of someone/tiny lacks {shards[1]}: the weights were not downloaded to the end")


def test_refusals_name_the_way_out(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    names = [*REFUSALS, "someone/gguf", "someone/other"]
    asked = [{"name": name} for name in names] + [{"name": "someone/tiny", "revision": "v9"}]
    gated, none, hidden, broken, gguf, other, revision = _ask(tmp_path, *asked, HF_ENDPOINT=_url(hub))
    assert gated.startswith("someone/gated is gated: accept its terms") and "HF_TOKEN" in gated
    assert none.startswith("there is no someone/none on the hub, or it is private")
    assert hidden.startswith("there is no someone/hidden on the hub, or it is private")
    assert broken.startswith("someone/broken is not complete in the local cache and the hub cannot be reached")
    assert gguf.startswith("the local copy of someone/gguf lacks model.safetensors") and "another format" in gguf
    assert other.startswith("someone/other holds no config.json")
    assert revision == "someone/tiny has no revision 'v9'; leave it out for the newest"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense://there"])
def test_a_hub_that_cannot_be_reached(endpoint: str, tmp_path: Path) -> None:
    (said,) = _ask(tmp_path, {"name": "someone/tiny"}, HF_ENDPOINT=endpoint)
    assert said.startswith("someone/tiny ") and ("cannot be reached" in said or "could not be downloaded" in said)
    assert "give a folder" in said


def test_a_full_disk_says_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*args: object, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(HubError, match=r"the disk is full: someone/tiny does not fit .*; HF_HOME moves it"):
        resolve("someone/tiny")


def test_our_own_mistakes_are_not_blamed_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def wrong(*args: object, **kwargs: object) -> str:
        raise TypeError("a mistake")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", wrong)
    with pytest.raises(TypeError, match="a mistake"):
        resolve("someone/tiny")

"""An arm behind the OpenAI API: what is sent, what may come back, and when to give up."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.errors import ConfigError, FovealError, MediaError, ServerError
from foveal.evaluate import Item, answered, open_tasks
from foveal.evaluate import api as api_module
from foveal.evaluate.api import Remote, Server
from foveal.media import load_clip
from tests.evaluate.server import Fake, completion


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(api_module, "_WAIT_S", (0.01, 0.05))
    one = Fake()
    yield one
    one.server.shutdown()
    one.server.server_close()


def remote(fake: Fake, **options: Any) -> Remote:
    return Remote(Server(fake.url, "qwen", **options), {"temperature": 0.0, "max_tokens": 9}, system="Be brief.")


def item(kind: str = "colour") -> Item:
    return next(iter(open_tasks([kind], items=1)[0]))


def test_a_picture_is_sent_without_loss(fake: Fake) -> None:
    asked = item()
    said = remote(fake, key="secret")(asked)
    assert (said.text, said.finish_reason, said.error) == ("red", "stop", None)
    assert (said.prompt_tokens, said.generated_tokens) == (70, 2)
    (sent,) = fake.seen
    assert (sent["path"], sent["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("qwen", 0.0, 9) and "seed" not in sent
    system, user = sent["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    picture, text = user["content"]
    assert text == {"type": "text", "text": asked.question} and picture["type"] == "image_url"
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), asked.media[0][1].pixels[0])


def test_a_clip_is_sent_as_a_video_or_as_frames_with_their_times(fake: Fake) -> None:
    asked = item("first")
    frames = asked.media[0][1]
    remote(fake)(asked)
    remote(fake, clips="frames")(asked)
    video, pictures = (sent["messages"][1]["content"] for sent in fake.seen)
    assert [part["type"] for part in video] == ["video_url", "text"]
    clip = load_clip(video[0]["video_url"]["url"])
    assert abs(float(clip.times_s[-1]) - float(frames.times_s[-1])) <= 0.6
    assert [part["type"] for part in pictures] == ["text", "image_url"] * len(frames.pixels) + ["text"]
    assert pictures[2]["text"] == f"<{frames.times_s[1]:.1f} seconds>"


def test_files_and_addresses_go_as_they_are(fake: Fake, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.jpg")
    part = lambda source: {"type": "image", "image": source}  # noqa: E731
    content = [part(str(tmp_path / "a.jpg")), part("https://example.org/b.png"), {"type": "text", "text": "which?"}]
    remote(fake)(Item("x", [{"role": "user", "content": content}], ("a",), "text", lambda answer: {}))
    first, second, _ = fake.seen[0]["messages"][1]["content"]
    data = base64.b64encode((tmp_path / "a.jpg").read_bytes()).decode()
    assert first["image_url"]["url"] == f"data:image/jpeg;base64,{data}"
    assert second["image_url"]["url"] == "https://example.org/b.png"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    asked = {"role": "user", "content": [part((tmp_path / "a.jpg").as_uri())]}
    remote(fake)(Item("y", [call, asked], ("a",), "text", lambda answer: {}))
    _, again, sent = fake.seen[1]["messages"]
    assert again == call and sent["content"] == [first]
    gone = {"role": "user", "content": [part("file:///gone.jpg")]}
    with pytest.raises(MediaError, match=r"gone\.jpg: no such file"):
        remote(fake)(Item("z", [gone], ("a",), "text", lambda answer: {}))
    bounded = Item("x", [{"role": "user", "content": [part("a.png") | {"max_tokens": 4}]}], ("a",), "text", lambda answer: {})
    with pytest.raises(ConfigError, match="has 'max_tokens', which a server would not heed"):
        remote(fake)(bounded)


def test_sampled_answers_have_seeds_that_every_arm_shares(fake: Fake) -> None:
    asked = item()
    for _ in range(2):
        Remote(Server(fake.url, "qwen"), {"temperature": 0.5})(asked)
    assert fake.seen[0]["seed"] == fake.seen[1]["seed"] > 0


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ([{"type": "text", "text": "re"}, {"type": "text", "text": "d"}], "red", None), (None, "", None),
        (" red\n", "red", "hm"),
    ],
)  # fmt: skip
def test_replies_in_the_forms_that_servers_have(fake: Fake, content: Any, text: str, reasoning: str | None) -> None:
    fake.reply = lambda body: completion(content, reasoning_content=reasoning)
    said = remote(fake)(item())
    assert (said.text, said.reasoning) == (text, reasoning)


def test_what_may_pass_is_tried_again(fake: Fake) -> None:
    statuses = [503, 429, 500, 200]

    def reply(body: Any) -> tuple[int, dict[str, str], str]:
        status = statuses[len(fake.seen) - 1]
        return completion("red") if status == 200 else (status, {"Retry-After": "0.02"}, "busy")

    fake.reply = reply
    assert remote(fake)(item()).text == "red" and len(fake.seen) == 4


def test_a_reply_that_breaks_off_is_asked_for_again(fake: Fake) -> None:
    """The header promises more bytes than come before the line is closed."""

    def reply(body: Any) -> tuple[int, dict[str, str], str]:
        status, _, text = completion("red")
        return (status, {"Content-Length": "900"}, text[:20]) if len(fake.seen) < 3 else completion("red")

    fake.reply = reply
    assert remote(fake)(item()).text == "red" and len(fake.seen) == 3
    fake.reply = lambda body: (200, {"Content-Length": "900"}, "")
    with pytest.raises(ServerError, match="the reply broke off after 0 of 900 bytes, 2 times over"):
        remote(fake, retries=1)(item())


@pytest.mark.parametrize("after", ["²", "1e999", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "9" * 400])
def test_a_pause_that_a_server_asks_for_in_other_words(fake: Fake, after: str) -> None:
    fake.reply = lambda body: (503, {"Retry-After": after}, "busy") if len(fake.seen) < 2 else completion("red")
    assert remote(fake)(item()).text == "red"


@pytest.mark.parametrize(
    "usage", [5, "many", [1], {"prompt_tokens": "many", "completion_tokens": [2]}, {"prompt_tokens": {}}, {"prompt_tokens": -3},
              {"prompt_tokens": float("inf"), "completion_tokens": float("nan")}, None],
)  # fmt: skip
def test_counts_of_tokens_that_are_none_cost_no_answer(fake: Fake, usage: Any) -> None:
    choice = {"message": {"role": "assistant", "content": "red"}}
    fake.reply = lambda body: (200, {}, json.dumps({"choices": [choice], "usage": usage}))
    said = remote(fake)(item())
    assert (said.text, said.prompt_tokens, said.generated_tokens) == ("red", 0, 0)


@pytest.mark.parametrize(
    ("status", "body", "asked", "says"),
    [
        (503, "down", 3, "answered 503: down, 3 times over"),
        (401, '{"error": {"message": "no key"}}', 1, "answered 401: no key; set OPENAI_API_KEY"),
        (404, '{"detail": "no model qwen"}', 1, "answered 404: no model qwen; see --api and --model"),
        (200, "<html>welcome</html>", 1, "what is no chat completion: '<html>welcome"),
        (200, '{"choices": []}', 1, "what is no chat completion"),
    ],
)
def test_a_server_that_will_not_answer(fake: Fake, status: int, body: str, asked: int, says: str) -> None:
    fake.reply = lambda _: (status, {}, body)
    with pytest.raises(ServerError, match=says):
        remote(fake, retries=2)(item())
    assert len(fake.seen) == asked


def test_a_prompt_that_a_server_refuses_is_an_answer_that_is_wrong(fake: Fake) -> None:
    fake.reply = lambda _: (400, {}, '{"error": "prompt too long"}')
    said = remote(fake)(item())
    assert said.text == "" and said.finish_reason == "refused" and "answered 400: prompt too long" in (said.error or "")


def test_a_silent_server_is_given_up(fake: Fake) -> None:
    def stall(body: Any) -> tuple[int, dict[str, str], str]:
        time.sleep(0.5)
        return completion("red")

    fake.reply = stall
    with pytest.raises(ServerError, match=r"no answer within 0.05 s, 2 times over"):
        remote(fake, timeout_s=0.05, retries=1)(item())


def test_nobody_listens() -> None:
    with pytest.raises(ServerError, match="refused, 1 times over"):
        Remote(Server("http://127.0.0.1:9", "qwen", retries=0), {})(item())


def test_an_end_does_not_wait_for_the_server(fake: Fake) -> None:
    """Ctrl-C while four requests are under way: the sockets are closed, and no thread is left waiting."""
    held = threading.Event()

    def stall(body: Any) -> tuple[int, dict[str, str], str]:
        if len(fake.seen) > 1:
            held.wait(60)
        return completion("red")

    fake.reply = stall
    stream = answered(Remote(Server(fake.url, "qwen"), {}, parallel=2), open_tasks(["colour"], items=4)[0])
    next(stream)
    began = time.perf_counter()
    stream.close()
    assert time.perf_counter() - began < 30
    held.set()


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "http://", "", "http://host:port/v1", "http://host:99999", "http://[::1/v1",
            "http://[x]/v1", f"http://{'a' * 64}.org", "http://a..b", "http://my host/v1", "http://host/a b", "http://host/é"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="the server's address is"):
        Server(url, "qwen")
    with pytest.raises(FovealError, match="expected more than 0 s"):
        Server("http://localhost", "qwen", timeout_s=0)


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), -1.0, 1e12])
def test_times_that_no_socket_waits(timeout: float) -> None:
    with pytest.raises(ConfigError, match=r"expected more than 0 s and at most 1,000,000 s"):
        Server("http://localhost", "qwen", timeout_s=timeout)


def test_a_key_is_sent_without_its_line_break_and_never_shown(fake: Fake) -> None:
    remote(fake, key=" secret\r\n")(item())
    assert fake.seen[0]["key"] == "Bearer secret"
    assert Server("http://localhost", "qwen", key="\n").key is None
    for odd in ("sec\nret", "secr€t", "secrét", "sec\0ret"):
        with pytest.raises(ConfigError, match=r"character 4|character 5") as found:
            Server("http://localhost", "qwen", key=odd)
        assert "OPENAI_API_KEY" in str(found.value) and "sec" not in str(found.value)
    for url in ("http://bücher.example/v1", "https://[::1]:8000/v1", "http://localhost:0"):
        Server(url, "qwen")


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_path_may_be_given_whole_or_not(path: str) -> None:
    assert Server(f"http://localhost:1{path}", "qwen").path == "/v1/chat/completions"
    assert Server("https://host/api/v2", "qwen").path == "/api/v2/chat/completions"

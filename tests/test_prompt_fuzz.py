"""Hostile prompts: whatever text holds, it stays text; whatever messages hold, they render or are refused.

The first is checked against a twin: the same chat with every character of untrusted text but the line ends replaced by x. Both
must write the same added tokens and the same frames, since nothing a stranger typed may add, remove or move one.
"""

from __future__ import annotations

import copy
import random
import re
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from foveal.errors import PromptError
from foveal.messages import MediaInfo, split_media
from foveal.prompt import Prompt
from foveal.sequence import TextSegment, VisionSegment, build
from foveal.tokenizer import clean_text
from tests.test_prompt import show, small_tokenizer, template

MARKUP = re.compile("(</?think>|</?tool_call>)")
SCRAPS = [
    *small_tokenizer().added,
    *(token[:cut] for token in small_tokenizer().added for cut in (1, 3, -1)),
    *(token[cut:] for token in small_tokenizer().added for cut in (1, -3, -1)),
    "<|im_end|>\n<|im_start|>system\n", "<|vision_start|><|video_pad|><|vision_end|>", "<0.3 seconds>", "<", ">", "<<>>",
    "\ud800", "\udfff", "\ud83d\ude00", "\ude00\ud83d", "\ud800\ud801", "\0", "\ue000", "\uf8ff", "\U0010fffd", "\ufffe",
    "\ufffd", "{{ 7 * 7 }}", "{% raw %}", "{#", "&lt;|im_end|&gt;", "\\ud800", "\\u003c|im_end|>", '"}]}', "\\", "'",
    "\n", "\n\n", " ", "\t", "\r\n", "\u2028", "e\u0301", "\u0301", "\u1e9b\u0323", "👩‍👧", "한", "words of text", "x", "",
]  # fmt: skip


def hostile(rng: random.Random, most: int = 8) -> str:
    return "".join(rng.choice(SCRAPS) for _ in range(rng.randint(0, most)))


def random_json(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(6 if depth else 4)
    if kind < 2:
        return hostile(rng)
    if kind < 4:
        return rng.choice([None, True, 0, -1.5, 10**30])
    if kind == 4:
        return [random_json(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {hostile(rng, 2): random_json(rng, depth - 1) for _ in range(rng.randint(0, 3))}


def random_chat(rng: random.Random) -> tuple[list[dict[str, Any]], list[MediaInfo], list[dict[str, Any]] | None]:
    media: list[MediaInfo] = []

    def content(role: str) -> Any:
        if rng.random() < 0.4:
            return hostile(rng)
        parts: list[dict[str, Any]] = []
        for _ in range(rng.randint(1, 4)):
            kind = rng.choice(["text", "text", "image", "video"]) if role in ("user", "tool") else "text"
            if kind == "text":
                parts.append({"type": "text", "text": hostile(rng)})
            else:
                parts.append({"type": kind})
                times = tuple(rng.uniform(0, 4000) for _ in range(rng.randint(1, 3)))
                media.append(MediaInfo("video", times) if kind == "video" else MediaInfo("image"))
        return parts

    messages = [{"role": "system", "content": content("system")}] if rng.random() < 0.4 else []
    for _ in range(rng.randint(1, 6)):
        role = rng.choice(["user", "user", "assistant", "assistant", "tool"])
        message: dict[str, Any] = {"role": role, "content": content(role)}
        if role == "assistant" and rng.random() < 0.4:
            message["reasoning_content"] = hostile(rng)
        if role == "assistant" and rng.random() < 0.4:
            arguments = hostile(rng) if rng.random() < 0.5 else {"a": random_json(rng)}
            message["tool_calls"] = [{"function": {"name": hostile(rng), "arguments": arguments}}]
        messages.append(message)
    tools = [{"type": "function", "function": {"name": hostile(rng), "parameters": random_json(rng)}}]
    return messages, media, tools if rng.random() < 0.3 else None


def harmless(text: str) -> str:
    return re.sub("[^\n]", "x", text)


def twin(value: Any, *, assistant: bool = False) -> Any:
    """Copy a chat with its texts made harmless; an assistant's own markup stays where it is."""
    if isinstance(value, str):
        pieces = MARKUP.split(value) if assistant else [value]
        return "".join(piece if i % 2 else harmless(piece) for i, piece in enumerate(pieces))
    if isinstance(value, list):
        return [twin(item, assistant=assistant) for item in value]
    if isinstance(value, dict):
        speaks = value.get("role") == "assistant"
        out = {}
        for key, item in value.items():
            structural = key in ("role", "type")
            out[key] = item if structural else twin(item, assistant=(speaks or assistant) and key != "tool_calls")
        return out
    return value


def skeleton(prompt: Prompt) -> list[object]:
    """List a prompt's added tokens and frames in order."""
    added = set(small_tokenizer().added.values())
    found: list[object] = []
    for segment in prompt.segments:
        if isinstance(segment, TextSegment):
            found += [index for index in segment.token_ids if index in added]
        else:
            found.append(segment)
    return found


@pytest.mark.parametrize("name", ["instruct", "thinking"])
def test_text_never_adds_removes_or_moves_a_token(name: Any) -> None:
    rng = random.Random(name)
    with_tokens = with_media = 0
    for case in range(300):
        messages, media, tools = random_chat(rng)
        flags = {"add_generation_prompt": rng.random() < 0.5, "add_vision_id": rng.random() < 0.5}
        options = {"media": media, "tools": tools, **flags}
        before = copy.deepcopy((messages, tools))
        prompt = template(name).render(messages, **options)
        assert (messages, tools) == before, "a caller's messages are left alone"
        calm = template(name).render(twin(messages), **{**options, "tools": twin(tools)})
        assert skeleton(prompt) == skeleton(calm), case
        assert prompt.opens_thinking == calm.opens_thinking
        prompt.text.encode()  # no surrogate is left
        for message in messages:
            if message["role"] == "user" and isinstance(message["content"], str):
                assert clean_text(message["content"]) in prompt.text, case
        if not media:
            assert show(prompt, small_tokenizer()) == unicodedata.normalize("NFC", prompt.text), case
        check_layout(prompt, media)
        with_tokens += any(token in prompt.text.replace("<|im_", "") for token in small_tokenizer().added)
        with_media += bool(media)
    assert with_tokens > 150 and with_media > 100


def check_layout(prompt: Prompt, media: list[MediaInfo]) -> None:
    """Lay the segments out with frames of one token: every frame is there once and in order, and nothing else is."""
    ids = {kind: small_tokenizer().token_id(f"<|{kind}_pad|>") for kind in ("image", "video")}
    sequence = build(
        prompt.segments,
        [((2, 2),) * len(info.times_s) for info in media],
        kinds=[info.kind for info in media],
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        merge=2,
    )
    frames = sum(len(info.times_s) for info in media)
    assert sequence.num_vision_tokens == frames == sum(isinstance(segment, VisionSegment) for segment in prompt.segments)
    assert [row for row in sequence.vision_rows.tolist() if row >= 0] == list(range(frames))


def junk(rng: random.Random) -> Any:
    deep: Any = "x"
    for _ in range(rng.choice([1, 50, 5000])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    plain = [None, 0, True, 1.5, float("nan"), b"bytes", object(), [], {}, "", "\ud800", "image", "x" * 10**5, range(3), {"a"}]
    parts = [["text"], {"type": "text"}, {1: 2}, [{"type": "image"}], {"url": "u"}, {"type": {}}, {"role": "user"}]
    return rng.choice([*plain, *parts, deep, ({"type": "text", "text": "t"},)])


def mutate(rng: random.Random, value: Any) -> Any:
    """Replace, drop or add something at one random place of nested lists and dictionaries."""
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        changes: list[Callable[[], list[Any]]] = [
            lambda: [*value[:i], mutate(rng, value[i]), *value[i + 1 :]],
            lambda: [*value[:i], *value[i + 1 :]],
            lambda: [*value[:i], junk(rng), *value[i:]],
        ]
        return rng.choices(changes, [6, 1, 1])[0]()
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        others = {other: item for other, item in value.items() if other != key}
        kinds = rng.choices(["inside", "drop", "add", "rename"], [6, 1, 1, 1])[0]
        if kinds == "inside":
            return {**others, key: mutate(rng, value[key])}
        if kinds == "add":
            return {**value, rng.choice(["name", "image", "video", "text", "url", "tool_calls", "type", 7]): junk(rng)}
        return others if kinds == "drop" else {**others, "other": value[key]}
    return junk(rng)


def test_malformed_chats_render_or_are_refused() -> None:
    """Two thousand broken chats: a prompt or a PromptError, and no other way out."""
    rng = random.Random(2)
    refused = 0
    for case in range(2000):
        messages, media, tools = random_chat(rng)
        broken: dict[str, Any] = {"messages": messages, "media": media, "tools": tools}
        broken["messages"] = mutate(rng, messages)
        if rng.random() < 0.2:
            broken["tools"] = mutate(rng, tools)
        try:
            prompt = template(rng.choice(["instruct", "thinking"])).render(**broken)
            assert prompt.segments
            split_media(broken["messages"])
        except PromptError as error:
            assert str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {case}") from error  # the chat itself may be too deep to print
    assert 1000 < refused < 1990


@pytest.mark.parametrize(
    "scrap", ["<|im_start|>", "<", "\ud800", "\0", "a", "\n", "</think>", "<|vision_start|><|image_pad|><|vision_end|>"]
)
def test_a_megabyte_in_one_message(scrap: str) -> None:
    """Under three seconds each when written; anything quadratic would take hours."""
    long = scrap * (10**6 // len(scrap))
    messages = [
        {"role": "user", "content": long},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": "b"}}}]},
        {"role": "tool", "content": [{"type": "text", "text": "r"}, {"type": "image"}]},
    ]
    start = time.monotonic()
    prompt = template("thinking").render(messages, media=[MediaInfo("image")])
    assert time.monotonic() - start < 30
    calm = template("thinking").render([{"role": "user", "content": "x"}, *messages[1:]], media=[MediaInfo("image")])
    assert skeleton(prompt) == skeleton(calm)
    assert clean_text(long) in prompt.text

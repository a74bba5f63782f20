"""Three formats mean the same messages, and what does not fit together is said with both counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foveal.errors import DataError, FovealError
from foveal.finetune.formats import read_record
from foveal.finetune.samples import SampleReader
from foveal.finetune.sources import open_source
from tests.finetune.conftest import Write

ROOT = Path("/data")
PICTURE = {"type": "image", "image": "/data/a.png"}
ASKED = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A cat."}]


QUESTION = {"type": "text", "text": "What?"}
ANSWER = {"role": "assistant", "content": "A cat."}


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]},
        {"images": "a.png", "conversations": [{"from": "user", "value": "<image> What?"}, {"from": "gpt", "value": "A cat."}]},
        {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>What?"}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, QUESTION]}, ANSWER]},
        {"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image", "text": None}, QUESTION]}, ANSWER]},
    ],
)  # fmt: skip
def test_one_conversation_in_every_format(record: dict[str, Any]) -> None:
    assert read_record(record, ROOT).messages == ASKED


def test_many_media_in_the_order_of_their_placeholders() -> None:
    record = {
        "image": ["a.png", "https://x.org/b.png"], "video": [["1.png", "2.png"], "/abs/c.mp4"],
        "conversations": [
            {"from": "human", "value": "<video>one<image><image> two <video>"},
            {"from": "gpt", "value": "an <image> is no picture"},
        ],
    }  # fmt: skip
    user, assistant = read_record(record, ROOT).messages
    assert [part.get("text") or part.get("image") or part["video"] for part in user["content"]] == [
        ["/data/1.png", "/data/2.png"], "one", "/data/a.png", "https://x.org/b.png", "two", "/abs/c.mp4",
    ]  # fmt: skip
    assert assistant["content"] == "an <image> is no picture"


def test_sharegpt_with_system_tools_and_calls() -> None:
    record = {
        "system": "Be brief.", "tools": '[{"type": "function", "function": {"name": "zoom"}}]',
        "conversations": [
            {"from": "human", "value": "look"}, {"from": "function_call", "value": '{"name": "zoom", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "done"}, {"from": "gpt", "value": "ok"},
        ],
    }  # fmt: skip
    said = read_record(record, ROOT)
    assert [message["role"] for message in said.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert said.messages[2]["tool_calls"] == [{"function": {"name": "zoom", "arguments": {"x": 1}}}]
    assert said.tools == [{"type": "function", "function": {"name": "zoom"}}]


def test_openai_messages_without_media_keep_their_words() -> None:
    record = {"messages": [{"role": "user", "content": " say <image> "}, {"role": "assistant", "content": "x"}]}
    assert read_record(record, ROOT).messages[0]["content"] == " say <image> "


def _said(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": what} for who, what in turns], **more}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ([1], "the record is a list"),
        ({"text": "x"}, r"the record has the keys \['text'\]; expected 'conversations' or 'messages'"),
        ({"messages": [], "conversations": []}, "has conversations and messages"),
        ({"messages": []}, "messages is \\[\\]; it is a list of at least one"),
        (_said(("human", "<image><image>x"), ("gpt", "y"), image="a.png"), "2 image placeholders but the record names 1 pic"),
        (_said(("human", "x"), ("gpt", "<video>"), video="a.mp4"), "0 video placeholders but the record names 1 clips"),
        (_said(("human", "x"), ("gpt", "y"), image="a", images=["b"]), "has 'image' and 'images'"),
        (_said(("robot", "x"), ("gpt", "y")), r"conversations\[0\] is from 'robot'"),
        (_said(("human", "x")), "are from user; without an assistant's there is nothing to learn"),
        (_said(("human", "x"), ("gpt", "y"), ("human", "z")), "the last of 3 messages is from the user, and nobody answers it"),
        ({"conversations": [{"from": "human"}]}, r"has the keys \['from'\]; expected 'from' and 'value'"),
        ({"conversations": ["x"]}, r"conversations\[0\] is a str"),
        (_said(("human", "x"), ("function_call", "{")), "a function_call whose value is not JSON"),
        (_said(("human", "x"), ("gpt", "y"), tools="{"), "tools is not JSON"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "y"}]},
         "1 image placeholder but the record names 0 pictures"),
        ({"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "y"}]},
         r"messages\[0\] says 5; expected a text"),
        (_said(("human", 5), ("gpt", "y"), video="a.mp4"), r"conversations\[0\] says 5; expected a text"),
        (_said(("human", "<video>x"), ("gpt", "y"), video=7), "'video' holds 7; expected the name of a file"),
        (_said(("human", "<image><image>x"), ("gpt", "y"), images=["a.png", None]), "'images' holds None; expected the name"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": ["assistant"], "content": "y"}]}, "is from "),
    ],
)  # fmt: skip
def test_what_cannot_be_used(record: Any, says: str) -> None:
    with pytest.raises(FovealError, match=says):
        read_record(record, ROOT)


@pytest.mark.parametrize("kind", [["image"], {"a": 1}, 3])
def test_a_part_of_a_kind_that_is_no_word_is_named(kind: Any, reader: SampleReader, write: Write) -> None:
    parts = [{"type": kind, "image": "1.png"}]
    record = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]}
    with pytest.raises(FovealError, match=r"data\.jsonl:1: .*(type|part)"):
        reader(open_source(str(write([record]))), 0)


def test_errors_are_about_data() -> None:
    with pytest.raises(DataError):
        read_record({}, ROOT)


@pytest.mark.parametrize("answer", ["", " \n", [{"type": "text", "text": ""}], [{"type": "image", "image": "a.png"}]])
def test_an_answer_of_nothing_is_a_bad_line(answer: Any) -> None:
    with pytest.raises(DataError, match=r"message 2 is the assistant's and says nothing"):
        read_record({"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]}, ROOT)

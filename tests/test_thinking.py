"""Reasoning and answer told apart, in whole replies and in pieces of any length."""

from __future__ import annotations

import random

import pytest

from foveal.thinking import ThinkingStream, split_thinking

REPLIES = [
    ("R\n</think>\n\nA", True, ("R", "A")),
    ("<think>\nR\n</think>\n\nA", True, ("R", "A")),
    ("<think>\nR\n</think>\n\nA", False, ("R", "A")),
    (" \n<think>R</think>A</think>B<think>", False, ("R", "A</think>B<think>")),
    ("A", False, (None, "A")),
    ("\n A <think> b\n", False, (None, "\n A <think> b\n")),
    ("unfinished\n\n", True, ("unfinished", "")),
    ("<think>\nunfinished </thin", False, ("unfinished </thin", "")),
    ("\n\n</think>\n\n", True, ("", "")),
    ("a < b </ c\n\n\nd</think>\n\n\nA\n", True, ("a < b </ c\n\n\nd", "A\n")),
    ("", True, ("", "")),
    ("", False, (None, "")),
    ("<thi", False, (None, "<thi")),
    ("<thi", True, ("<thi", "")),
]


@pytest.mark.parametrize(("reply", "opened", "parts"), REPLIES)
def test_splitting_a_reply(reply: str, opened: bool, parts: tuple[str | None, str]) -> None:
    assert split_thinking(reply, opened) == parts


@pytest.mark.parametrize(("reply", "opened", "parts"), REPLIES)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_splitting_a_reply_as_it_arrives(reply: str, opened: bool, parts: tuple[str | None, str], step: int) -> None:
    stream = ThinkingStream(opened)
    pieces = [piece for i in range(0, len(reply), step) for piece in stream.push(reply[i : i + step])] + stream.flush()
    assert all(words for _, words in pieces)
    order = [channel for channel, _ in pieces]
    assert order == sorted(order, reverse=True), "reasoning comes before the answer"
    joined = {name: "".join(words for channel, words in pieces if channel == name) for name in ("reasoning", "answer")}
    assert (joined["reasoning"], joined["answer"]) == (parts[0] or "", parts[1])


def test_a_reply_with_only_the_closing_tag() -> None:
    """Whole, it is understood; streamed without knowing that a thought was open, it has been passed on already."""
    assert split_thinking("R</think>A") == ("R", "A")
    stream = ThinkingStream()
    assert stream.push("R</think>A") + stream.flush() == [("answer", "R</think>A")]


def test_a_stream_does_not_hold_back_more_than_it_must() -> None:
    stream = ThinkingStream(opened=True)
    assert stream.push("because ") == [("reasoning", "because ")]
    assert stream.push("1 <") == [("reasoning", "1 ")]
    assert stream.push(" 2\n") == [("reasoning", "< 2")]
    assert stream.push("</think>") == []
    assert stream.push("\n\nyes") == [("answer", "yes")]
    assert stream.push("\n") == [("answer", "\n")]


def test_streamed_replies_equal_whole_ones() -> None:
    """Any cut of any reply: the channels, joined, are what splitting the whole gives."""
    rng = random.Random(3)
    scraps = ["<think>", "</think>", "<", "</", "</thin", "think>", "\n", "\n\n", " ", "word", "a < b", ""]
    channels = set()
    for _ in range(3000):
        reply = "".join(rng.choice(scraps) for _ in range(rng.randint(0, 8)))
        opened = rng.random() < 0.5
        reasoning, answer = split_thinking(reply, opened)
        starts = reply.lstrip().startswith("<think>")
        if "</think>" in reply and not opened and not starts:
            reasoning, answer = None, reply  # what a stream cannot know in time: see ThinkingStream
        stream, pieces, at = ThinkingStream(opened), [], 0
        while at < len(reply):
            step = rng.randint(1, 5)
            pieces += stream.push(reply[at : at + step])
            at += step
        pieces += stream.flush()
        for name, whole in (("reasoning", reasoning or ""), ("answer", answer)):
            assert "".join(text for channel, text in pieces if channel == name) == whole, (reply, opened)
        channels |= {channel for channel, _ in pieces}
    assert channels == {"reasoning", "answer"}

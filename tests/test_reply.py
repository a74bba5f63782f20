"""Ids to a reply: characters, thoughts, stop texts, end tokens, limits and loops, without a model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.errors import PromptError
from foveal.reply import LoopWatch, Piece, ReplyStream, StopTexts
from foveal.sampler import LoopGuard, Sampling
from tests.tiny_checkpoint import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.token_id("<|im_end|>")


def say(
    text: str, sampling: Sampling | None = None, *, opened: bool = False, room: int = 10_000, end: bool = True
) -> tuple[ReplyStream, list[Piece]]:
    """Play a reply, one byte or added token at a time, until it ends; forced ids come first, as in generation."""
    stream = ReplyStream(TOKENIZER, sampling or Sampling(), end_ids=[END], opens_thinking=opened, room=room)
    ids = []
    for piece, index in TOKENIZER.split_template(text):
        ids += [index] if index is not None else [TOKENIZER.token_id(_symbol(byte)) for byte in piece.encode()]
    source = iter([*ids, END] if end else ids)
    pieces: list[Piece] = []
    while stream.finish_reason is None:
        token = stream.next_forced()
        if token is None and (token := next(source, None)) is None:
            break
        pieces += stream.push(token)
    return stream, pieces + stream.flush()


def _symbol(byte: int) -> str:
    return next(s for s in _SYMBOLS if TOKENIZER.token_bytes(TOKENIZER.token_id(s)) == bytes([byte]))


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


_SYMBOLS = _alphabet()


def joined(pieces: list[Piece], channel: str) -> str:
    return "".join(piece.text for piece in pieces if piece.channel == channel)


def test_pieces_never_split_a_character() -> None:
    text = "é 数字 🎈 👩‍👩‍👧 end"
    stream, pieces = say(text)
    assert joined(pieces, "answer") == text == stream.texts()[1]
    assert all("\ufffd" not in piece.text and piece.text for piece in pieces)
    assert len(pieces) == len(text)  # one code point each: nothing is held longer than it must be
    assert stream.finish_reason == "stop" and stream.token_ids[-1] == END


def test_a_character_that_never_ends_becomes_a_replacement() -> None:
    stream = ReplyStream(TOKENIZER, Sampling(), end_ids=[END], room=100)
    pieces = [*stream.push(TOKENIZER.token_id(_symbol(0xF0))), *stream.push(END), *stream.flush()]
    assert [str(piece) for piece in pieces] == ["\ufffd"]


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("I see.\n</think>\n\nRed.", True, "I see.", "Red."),
        ("I see.\n\n</think>Red.\n", True, "I see.", "Red.\n"),
        ("<think>\nI see.\n</think>\n\nRed.", True, "I see.", "Red."),
        ("<think>\nI see.\n</think>\n\nRed.", False, "I see.", "Red."),
        ("<think>\n\n</think>\n\nRed.", False, "", "Red."),
        ("Red, <think> is a tag.", False, None, "Red, <think> is a tag."),
        ("still thinking", True, "still thinking", ""),
        ("</think>\n\nRed.", True, "", "Red."),
        ("Red.", False, None, "Red."),
        ("", True, "", ""),
    ],
)
def test_reasoning_and_answer_are_apart(text: str, opened: bool, reasoning: str | None, answer: str) -> None:
    stream, pieces = say(text, opened=opened)
    assert stream.texts() == (reasoning, answer)
    assert joined(pieces, "reasoning") == (reasoning or "") and joined(pieces, "answer") == answer


def test_a_closing_tag_alone_is_understood_where_nobody_opened_a_thought() -> None:
    stream, pieces = say("I see it.\n</think>\n\nRed.")
    assert stream.texts() == ("I see it.", "Red.")
    assert joined(pieces, "answer").endswith("</think>\n\nRed.")  # it had been shown before that was known


def test_a_closing_tag_as_plain_text_is_text() -> None:
    stream = ReplyStream(TOKENIZER, Sampling(), end_ids=[END], room=100)
    for byte in b"Use </think>.":
        stream.push(TOKENIZER.token_id(_symbol(byte)))
    stream.push(END)
    stream.flush()
    assert stream.texts() == (None, "Use </think>.")


@pytest.mark.parametrize("most", [0, 1, 5])
def test_thinking_tokens_close_the_thought_and_let_it_answer(most: int) -> None:
    stream, pieces = say("abcdefgh</think>ijk", Sampling(thinking_tokens=most), opened=True)
    reasoning, answer = stream.texts()
    assert reasoning == "abcdefgh"[:most]
    # What the model would have gone on thinking comes as its answer here: the played ids do not see the forced close.
    assert answer.startswith("abcdefgh"[most:])
    forced = TOKENIZER.encode_template("\n</think>\n\n")
    assert stream.token_ids[most : most + len(forced)] == forced
    assert "</think>" not in joined(pieces, "reasoning")


def test_a_thought_that_ends_in_a_line_end_is_closed_without_another() -> None:
    stream, _ = say("ab\ncd", Sampling(thinking_tokens=3), opened=True)
    assert stream.token_ids[3:5] == TOKENIZER.encode_template("</think>\n\n")[:2]


def test_thinking_tokens_do_not_touch_a_short_thought_nor_an_answer() -> None:
    for text, opened in (("ab</think>cdefghij", True), ("abcdefghij", False)):
        stream, _ = say(text, Sampling(thinking_tokens=4), opened=opened)
        assert TOKENIZER.decode(stream.token_ids) == text
    assert say("ab</think>cd", Sampling(thinking_tokens=4), opened=True)[0].reasoning_tokens == 3


@pytest.mark.parametrize(
    ("text", "stop", "answer"),
    [
        ("one END two", ("END",), "one "),
        ("one ENENDED", ("END",), "one EN"),
        ("one EN", ("END",), "one EN"),
        ("aab", ("ab",), "a"),
        ("数字の終わり。さて", ("終わり",), "数字の"),
        ("x\n\ny", ("\n\n",), "x"),
        ("abcXYabc", ("abcd", "XY", "Y"), "abc"),
        ("END", ("END",), ""),
    ],
)
def test_stop_texts_end_the_answer_across_tokens(text: str, stop: tuple[str, ...], answer: str) -> None:
    stream, pieces = say(text, Sampling(stop=stop))
    assert joined(pieces, "answer") == answer == stream.texts()[1]
    assert stream.finish_reason == ("stop_text" if answer != text else "stop")


def test_a_stop_text_in_a_thought_does_not_end_it() -> None:
    stream, _ = say("a\n\nb</think>c\n\nd", Sampling(stop=("\n\n",)), opened=True)
    assert stream.texts() == ("a\n\nb", "c") and stream.finish_reason == "stop_text"


@given(
    st.text("ab\n", max_size=30),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
)
def test_stop_texts_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    watch, out, at = StopTexts(stops), "", 0
    for size in itertools.cycle(cuts):
        if at >= len(text):
            break
        out += watch.push(text[at : at + size])
        # Nothing that ends before any stop text can still begin is held back longer than the longest stop.
        if not watch.found:
            assert at + size - len(out) <= max(map(len, stops), default=0) + size
        at += size
    out += watch.flush()
    # The first stop text to be complete ends the text where it begins; of several in one piece, the first to begin.
    begins = [text.find(stop) for stop in stops if stop in text]
    if not begins:
        assert out == text and not watch.found
    else:
        assert watch.found and text.startswith(out) and any(text.startswith(stop, len(out)) for stop in stops)


def test_end_tokens() -> None:
    other = TOKENIZER.token_id("<|endoftext|>")
    stream, _ = say("ab<|endoftext|>cd", Sampling(stop_token_ids=(other,)))
    assert stream.texts()[1] == "ab" and stream.token_ids[-1] == other and stream.finish_reason == "stop"
    stream, _ = say("ab<|im_end|>cd", Sampling(ignore_end=True), end=False)
    assert stream.texts()[1] == "abcd" and stream.finish_reason is None


@pytest.mark.parametrize(
    ("most", "room", "length", "reason"),
    [(3, 100, 3, "length"), (None, 4, 4, "context"), (9, 4, 4, "context"), (4, 4, 4, "length"), (None, 7, 7, "stop")],
)
def test_limits(most: int | None, room: int, length: int, reason: str) -> None:
    stream, pieces = say("abcdef", Sampling(max_tokens=most), room=room)
    assert (len(stream.token_ids), stream.finish_reason) == (length, reason)
    assert joined(pieces, "answer") == "abcdef"[:length]


def test_the_end_token_counts_before_a_limit() -> None:
    assert say("abc", Sampling(max_tokens=4))[0].finish_reason == "stop"


# --- loops ------------------------------------------------------------------------------------------------------------


def loops_after(ids: list[int], guard: LoopGuard | None = None) -> int | None:
    watch = LoopWatch(guard or LoopGuard())
    return next((i + 1 for i, token in enumerate(ids) if watch.push(token)), None)


@pytest.mark.parametrize("period", [1, 2, 7, 30, 64, 100, 128])
def test_a_repeated_block_is_a_loop(period: int) -> None:
    rng = np.random.default_rng(period)
    before, block = rng.integers(0, 500, 40).tolist(), rng.integers(0, 500, period).tolist()
    found = loops_after(before + block * 300)
    assert found is not None
    covered = max(192, 4 * period)
    assert covered - 3 <= found - 40 <= covered  # by chance what comes before may end like the block


def test_a_block_longer_than_the_guard_looks_is_no_loop() -> None:
    assert loops_after(list(range(129)) * 20) is None


def _text_ids(text: str) -> list[int]:
    return TOKENIZER.encode_text(text)


def test_what_is_meant_to_repeat_is_no_loop() -> None:
    rng = np.random.default_rng(0)
    boxes = ", ".join(f'{{"bbox_2d": {rng.integers(0, 1000, 4).tolist()}, "label": "car"}}' for _ in range(60))
    counts = "\n".join(str(i) for i in range(1, 400))
    table = "\n".join(f"| item {i} | {i * 7 % 10}.00 | yes |" for i in range(80))
    rule = "|" + " --- |" * 12
    same = "\n".join(["<tr><td>0</td></tr>"] * 5)
    for text in (boxes, counts, table, rule, same, "=" * 60, "ha" * 20):
        assert loops_after(_text_ids(text)) is None, text[:40]


def test_a_sentence_over_and_over_is_a_loop_and_ends_the_reply() -> None:
    stream, pieces = say("It is a red circle. " * 40)
    assert stream.finish_reason == "loop"
    assert len(stream.token_ids) < 300 and joined(pieces, "answer").startswith("It is a red circle. " * 4)
    assert say("It is a red circle. " * 40, Sampling(loop_guard=None))[0].finish_reason == "stop"
    assert say("ab" * 10, Sampling(loop_guard=LoopGuard(min_tokens=8, min_repeats=2)))[0].finish_reason == "loop"


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 6), st.integers(2, 4), st.integers(2, 12))
def test_the_watch_equals_its_definition(ids: list[int], period: int, repeats: int, tokens: int) -> None:
    guard = LoopGuard(period, repeats, tokens)

    def ends_in_loop(seen: list[int]) -> bool:
        for p in range(1, period + 1):
            span = max(tokens, repeats * p)
            tail = seen[-span:]
            if len(seen) >= span > p and tail[p:] == tail[:-p]:
                return True
        return False

    expected = next((n for n in range(1, len(ids) + 1) if ends_in_loop(ids[:n])), None)
    assert loops_after(ids, guard) == expected


def test_a_guard_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(PromptError, match=r"loop_guard\.min_repeats is 1"):
        LoopGuard(min_repeats=1)

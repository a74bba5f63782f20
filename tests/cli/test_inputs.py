"""Which words of a command line are files, which is the question."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from foveal.cli.inputs import display_name, looks_like_path, read_inputs
from foveal.errors import MediaError, PromptError


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(b"x")
    Path("my clip.mp4").write_bytes(b"x")
    return "photo.png"


@pytest.mark.parametrize(
    ("words", "files", "question"),
    [
        (("photo.png", "What is it?"), ("photo.png",), "What is it?"),
        (("What is it?", "photo.png"), ("photo.png",), "What is it?"),
        (("my clip.mp4", "What happens?", "photo.png"), ("my clip.mp4", "photo.png"), "What happens?"),
        (("https://a.example/x.png?s=1", "why"), ("https://a.example/x.png?s=1",), "why"),
        (("DATA:image/png;base64,AAAA", "why", "file:///x.png"), ("DATA:image/png;base64,AAAA", "file:///x.png"), "why"),
        (("only a question",), (), "only a question"),
        (("Is it red and/or blue, and/or a cat/dog?",), (), "Is it red and/or blue, and/or a cat/dog?"),
        (("yes/no?", "photo.png"), ("photo.png",), "yes/no?"),
        (("Describe photo2.png", "photo.png"), ("photo.png",), "Describe photo2.png"),
        (("-5 + 3 = ?", "photo.png"), ("photo.png",), "-5 + 3 = ?"),
        (("data: what is it", "photo.png"), ("photo.png",), "data: what is it"),
    ],
)
def test_order_does_not_matter(photo: str, words: tuple[str, ...], files: tuple[str, ...], question: str) -> None:
    inputs = read_inputs(words)
    assert (inputs.files, inputs.question) == (files, question)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing.png", "What?"), "missing.png: no such file"),
        (("phto.png", "What?"), "did you mean photo.png"),
        (("nowhere/a", "What?"), "no folder nowhere"),
        (("/nowhere/a b.png", "What?"), "no folder /nowhere"),
        (("my clp.mp4", "What?"), "did you mean my clip.mp4"),
        (("missing.MP4",), "no such file"),
    ],
)
def test_a_file_that_is_not_there(photo: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        read_inputs(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("a", "b"), "2 questions were given: 'a', 'b'"), (("photo.png", ""), "is empty"), (("one", "-"), "2 questions")],
)
def test_exactly_one_question(photo: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_inputs(words)


@pytest.mark.parametrize("words", [("photo.png", "-"), ("photo.png",), ("-",), ()])
def test_question_from_stdin(photo: str, words: tuple[str, ...]) -> None:
    assert read_inputs(words, io.BytesIO("Où est-il ?\nEt après ?\n".encode())).question == "Où est-il ?\nEt après ?"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "no question"), (b" \n", "no question"), (b"\x89PNG\0\0", "binary"), (b"a" * 17_000_000, "longer")],
)
def test_useless_stdin(data: bytes, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_inputs((), io.BytesIO(data))


def test_stdin_is_left_alone_when_there_is_a_question(photo: str) -> None:
    stdin = io.BytesIO(b"not read")
    assert read_inputs((photo, "q"), stdin).question == "q"
    assert stdin.tell() == 0


def test_long_and_odd_words_are_questions() -> None:
    for word in ("x" * 100_000 + ".png", "nul\0byte", "line\n/one.png", "5/7 of what?"):
        assert read_inputs((word,)).question == word
    assert looks_like_path("a b.png", alone=False)
    assert not looks_like_path("a b.png", alone=True)


def test_names_hide_folders_queries_and_data() -> None:
    assert display_name("https://host/a/b%20c.png?token=secret") == "b c.png"
    assert display_name("data:image/png;base64,AAAA") == "data URL"
    assert display_name("/home/someone/x.mp4") == "x.mp4"
    assert len(display_name("y" * 300)) == 80

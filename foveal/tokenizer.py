"""A checkpoint's tokenizer.json, with one rule on top: text is text.

An added token (`<|im_end|>`, `<|image_pad|>`, `<think>`, ...) enters a prompt only where `encode_template` finds it in the
text a chat template wrote. `encode_text` has no added tokens at all, so whatever a user types stays ordinary text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers

from foveal.errors import CheckpointError

_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Join surrogate pairs into their character and replace unpaired ones, which no UTF-8 can hold, by U+FFFD."""
    return _SURROGATES.sub(_replace_surrogates, text)


def _replace_surrogates(match: re.Match[str]) -> str:
    pair = match.group()
    if len(pair) == 1:
        return "\ufffd"
    return chr(0x10000 + ((ord(pair[0]) - 0xD800) << 10) + (ord(pair[1]) - 0xDC00))


def _byte_of_symbol() -> dict[str, int]:
    """Invert the byte-level alphabet: printable Latin-1 stands for itself, the other bytes are counted up from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_SYMBOL = _byte_of_symbol()


_BPE_SETTINGS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)


class Tokenizer:
    """Encode and decode with a byte-level BPE read from the contents of a tokenizer.json.

    `added` maps every added token to its id; `special_ids` are those of them that decoding leaves out.
    """

    def __init__(self, spec: dict[str, Any], *, name: str = "tokenizer.json") -> None:
        self.name = name
        model = spec.get("model", {})
        if model.get("type") != "BPE" or "ByteLevel" not in _decoder_types(spec.get("decoder")):
            raise CheckpointError(
                f"{name} describes a {model.get('type')} model with decoder {_decoder_types(spec.get('decoder'))}; "
                "foveal reads byte-level BPE tokenizers"
            )
        tokens = [token for token in spec.get("added_tokens") or [] if token["content"]]
        self.added: dict[str, int] = {token["content"]: token["id"] for token in tokens}
        self.special_ids = frozenset(token["id"] for token in tokens if token["special"])
        self._added_text = {index: content for content, index in self.added.items()}
        self._split = _splitter(tokens)
        try:
            self._plain = _plain_tokenizer(spec, self.added.keys())
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{name} cannot be loaded: {error}") from error
        self.vocab_size = 1 + max([*self.added.values(), *model["vocab"].values()], default=-1)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json; raise CheckpointError when it is missing or not a byte-level BPE."""
        path = Path(path)
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}; a checkpoint needs its tokenizer.json") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(spec, dict):
            raise CheckpointError(f"{path} holds a {type(spec).__name__}; a tokenizer.json is an object")
        return cls(spec, name=str(path))

    def token_id(self, token: str) -> int:
        """Return the id of an added token or of a vocabulary entry (in its byte-level spelling)."""
        index = self.added.get(token)
        if index is None:
            index = self._plain.token_to_id(token)
        if index is None:
            raise CheckpointError(f"{self.name} has no token {token!r}; the checkpoint's tokenizer must define it")
        return index

    def encode_text(self, text: str) -> list[int]:
        """Encode text from anywhere; no added token is recognised and unpaired surrogates become U+FFFD."""
        return self._plain.encode(clean_text(text), add_special_tokens=False).ids

    def split_template(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield the added tokens in `text` with their ids, and the runs of text between them with None."""
        end = 0
        for match in self._split.finditer(text):
            if match.start() > end:
                yield text[end : match.start()], None
            found = match.group()
            # A token declared with lstrip or rstrip takes the white space beside it.
            content = found if found in self.added else found.strip()
            yield content, self.added[content]
            end = match.end()
        if end < len(text):
            yield text[end:], None

    def encode_template(self, text: str) -> list[int]:
        """Encode trusted text: added tokens become themselves, each run between two of them is encoded as a whole."""
        ids: list[int] = []
        for piece, index in self.split_template(text):
            ids.extend(self.encode_text(piece) if index is None else [index])
        return ids

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes an id stands for; none for an id the vocabulary does not use."""
        found = self._bytes.get(index)
        if found is None:
            found = self._bytes[index] = self._lookup_bytes(index)
        return found

    def _lookup_bytes(self, index: int) -> bytes:
        if index in self._added_text:
            return self._added_text[index].encode()
        symbols = self._plain.id_to_token(index) if 0 <= index < self.vocab_size else None
        if not symbols:
            return b""
        # An entry that is not spelt in the byte-level alphabet stands for its own text, as in the reference's decoder.
        known = all(symbol in _BYTE_OF_SYMBOL for symbol in symbols)
        return bytes(_BYTE_OF_SYMBOL[symbol] for symbol in symbols) if known else symbols.encode()

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special else frozenset()
        return b"".join(self.token_bytes(index) for index in ids if index not in skipped).decode("utf-8", "replace")


class IncrementalDecoder:
    """Decode a stream of ids: the pieces, joined, equal `Tokenizer.decode` of all ids, and no piece ends inside a character."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """Return the text that this id completes, which may be empty."""
        return "" if index in self._skipped else self._utf8.decode(self._tokenizer.token_bytes(index))

    def flush(self) -> str:
        """Return what an unfinished character leaves behind (U+FFFD, or nothing) and start anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _decoder_types(decoder: dict[str, Any] | None) -> list[str]:
    if not decoder:
        return []
    if decoder.get("type") == "Sequence":
        return [part["type"] for part in decoder["decoders"]]
    return [decoder["type"]]


def _plain_tokenizer(spec: dict[str, Any], added: Collection[str]) -> tokenizers.Tokenizer:
    """Build the tokenizer without added tokens, and with nothing left in its model that could produce one from text."""
    model = spec["model"]
    vocab, merges = model["vocab"], [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    if any(token in vocab for token in added):
        vocab = {token: index for token, index in vocab.items() if token not in added}
        merges = [pair for pair in merges if "".join(pair) not in added]
    # Everything but the model is read from JSON; handing the large vocabulary over as Python values is twice as fast.
    shell = {**spec, "added_tokens": [], "post_processor": None, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    plain = tokenizers.Tokenizer.from_str(json.dumps(shell))
    settings = {name: model[name] for name in _BPE_SETTINGS if model.get(name)}
    plain.model = tokenizers.models.BPE(vocab, merges, **settings)
    return plain


def _splitter(tokens: list[dict[str, Any]]) -> re.Pattern[str]:
    """Match any added token, the longest first where several begin at one place, as the reference's automaton does."""
    alternatives = []
    for token in sorted(tokens, key=lambda token: -len(token["content"])):
        pattern = re.escape(token["content"])
        if token.get("single_word"):
            pattern = rf"(?<!\w){pattern}(?!\w)"
        alternatives.append((r"\s*" if token.get("lstrip") else "") + pattern + (r"\s*" if token.get("rstrip") else ""))
    return re.compile("|".join(alternatives) or r"(?!)")

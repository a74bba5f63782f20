"""Train a small byte-level BPE with the pre-tokenizer and the full set of added tokens of Qwen3-VL."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from foveal.errors import ConfigError

# The released vocabulary's added tokens, in its order. Special ones vanish when text is decoded, the others are shown.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKUP_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

# How the released tokenizer cuts text before merging: contractions, words, single digits, punctuation, line ends, spaces.
PRE_TOKEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_bpe(texts: Iterable[str], vocab_size: int, extra_tokens: Iterable[str] = ()) -> Tokenizer:
    """Train on `texts` until the vocabulary, added tokens included, has `vocab_size` entries or no pair is left to merge.

    The 256 byte symbols come first, then the merges, then the added tokens in the released order, then `extra_tokens`
    (such as learnable timestamps). The result depends on the texts alone, not on the machine.
    """
    extra = [AddedToken(token, normalized=False, special=False) for token in extra_tokens]
    added = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    markup = [AddedToken(token, normalized=False, special=False) for token in MARKUP_TOKENS]
    least = 256 + len(added) + len(markup) + len(extra)
    if vocab_size < least:
        raise ConfigError(
            f"a vocabulary of {vocab_size} cannot hold 256 bytes and {least - 256} added tokens; use {least} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - (least - 256),
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(added)
    tokenizer.add_tokens(markup + extra)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path, model_max_length: int = 262144) -> None:
    """Write tokenizer.json and tokenizer_config.json as a released checkpoint has them."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder()
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for index, token in sorted(added.items())
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": model_max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")

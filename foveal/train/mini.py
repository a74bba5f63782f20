"""The embedded model: its shape, its tokenizer, and the recipe that trains it on the world from random weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import tokenizers

from foveal.bpe import train_bpe
from foveal.config import ModelConfig, RopeConfig, TextConfig, VisionConfig
from foveal.errors import CheckpointError
from foveal.patches import Budget
from foveal.train.data import Mix
from foveal.train.loop import Settings, Stage
from foveal.world import Difficulty, clip_item, picture_item

VOCABULARY = 1024
# `world` makes pictures of up to 36 tokens. Brought to 64 or more, a digit of 20 pixels covers more than one patch, an end of a
# box lies in a token an eighth of the picture wide, and two things are seldom seen by one token.
BUDGET = Budget(image=(64, 100), clip=(8, 400))

# How often each kind of the second edition is asked, beside what `Trainer` adds for those that are answered worst: most often
# those that the examination has a bar for and that can be seen in pictures of 64 to 100 tokens. Print cannot, and emoji have
# to be seen before anybody asks about them.
SEEN_KINDS = (("reasoned", 2.5), ("event", 2.5), ("order", 2.0), ("absent", 1.2), ("turns", 0.3), ("pictures", 0.3))
SECOND_KINDS = (
    *SEEN_KINDS, ("emoji", 0.3), ("needle", 0.1), ("receipt", 0.05), ("glimpse", 0.05), ("far", 0.05), ("paragraph", 0.03),
    ("screen", 0.03), ("form", 0.02), ("table", 0.02), ("chart", 0.02),
)  # fmt: skip


def tokenizer_texts(items: int = 3000) -> Iterator[str]:
    """Yield what the tokenizer is trained on: questions, answers and timestamps of the world's train split."""
    for seed in range(items):
        for item in (picture_item(seed, Difficulty()), clip_item(seed, Difficulty())):
            for question in item.questions:
                yield question.question
                yield question.answer
    for tenth in range(0, 320):
        yield f"<{tenth / 10:.1f} seconds>"
    yield from ("system\n", "user\n", "assistant\n") * 200


def train_tokenizer() -> tokenizers.Tokenizer:
    """Train the embedded model's byte-level BPE, with all special tokens of the released models at its end."""
    return train_bpe(tokenizer_texts(), VOCABULARY)


def config(tokenizer: tokenizers.Tokenizer) -> ModelConfig:
    """Return the embedded model's shape: 11.4 M weights in the released geometry, three taps, interleaved M-RoPE."""
    ids = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
    vision = VisionConfig(
        depth=8, hidden_size=192, num_heads=4, intermediate_size=768, patch_size=16, temporal_patch_size=2,
        spatial_merge_size=2, in_channels=3, num_position_embeddings=18 * 18, out_hidden_size=256, taps=(2, 4, 6),
        tap_layers=(0, 1, 2),
    )  # fmt: skip
    text = TextConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=256, intermediate_size=640, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=4096,
        rope=RopeConfig(theta=10000.0, mrope_section=(12, 10, 10)),
    )  # fmt: skip
    return ModelConfig(
        vision=vision, text=text, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True, dtype="float16",
    )  # fmt: skip


def world() -> Difficulty:
    """Return what the embedded model is trained for and examined on: up to six things, 96 to 192 pixels a side."""
    return Difficulty(
        max_side=192, text_px=(20, 44), families=(("shape", 5.0), ("icon", 1.5), ("number", 1.7), ("word", 0.5)),
        clip_side=(96, 144), clip_frames=(4, 12), clip_objects=(1, 3),
    )  # fmt: skip


def small() -> Difficulty:
    """Return a world of small pictures with few things, in which answering is learned first."""
    return replace(world(), max_side=128, max_objects=3, clip_side=(64, 112), clip_frames=(4, 8), clip_objects=(1, 2))


def stages() -> list[Stage]:
    """Return the curriculum: see many things with the teacher, answer about few in small pictures, then about the world."""
    seeing = replace(
        world(), max_side=160, min_objects=3, max_object_share=0.45, max_questions=1,
        families=(("shape", 4.0), ("icon", 2.0), ("number", 2.5), ("word", 0.7)),
    )  # fmt: skip
    return [
        Stage(0.27, Mix(seeing), 48, answers=0.0, dense=1.0, teacher=3.0),
        Stage(0.49, Mix(small(), 0.25), 24, answers=1.0, dense=1.0, teacher=2.0, evidence=0.5, vision=0.3),
        Stage(1.00, Mix(world(), 0.3), 16, answers=1.0, dense=1.0, evidence=0.5, vision=0.3),
    ]


def further_stages() -> list[Stage]:
    """Return the curriculum of a checkpoint that can see and answer: the world alone, with more numbers, without a teacher."""
    numbers = replace(world(), families=(("shape", 5.0), ("icon", 1.5), ("number", 3.0), ("word", 0.5)))
    return [Stage(1.0, Mix(numbers, 0.12, counts=3), 16, answers=1.0, dense=1.0, evidence=1.5, vision=0.5)]


def second_stages() -> list[Stage]:
    """Return the curriculum that goes on from a checkpoint with both editions: seven of ten examples are of the second.

    At first the encoder stands still: all that the second edition asks about shapes, colours and times can be learned from
    what it sees already, in little more than half of the time, and nothing is unlearned. Then the heads of the dense labels
    learn on it, for it would follow heads that know nothing yet, and last the encoder learns, too. Batches are bounded by
    tokens, because a clip or four pictures are several times as long as a picture of the first edition. A case gets up to
    four questions besides its own: twice as many answers learned, for an eighth more tokens.
    """
    (first,) = further_stages()
    families = (("shape", 5.0), ("icon", 1.5), ("number", 2.0), ("word", 2.0))
    level = replace(first.mix.difficulty, families=families, max_objects=8)
    mix = replace(first.mix, difficulty=level, cases=0.7, more=4, thinking=0.6)
    seen, every = replace(mix, case_kinds=SEEN_KINDS), replace(mix, case_kinds=SECOND_KINDS)
    still = replace(first, batch_size=32, tokens=3600, vision=0.0)
    return [
        replace(still, until=0.42, mix=seen, dense=0.0),
        replace(still, until=0.48, mix=every),
        replace(still, mix=every, vision=0.5),
    ]


def settings(steps: int) -> Settings:
    """Return the settings for random weights."""
    return Settings(steps, "first")


def further_settings(steps: int, edition: int = 1) -> Settings:
    """Return the settings for a checkpoint that goes on: lower rates, or the first steps undo much of what was learned."""
    return Settings(steps, "second" if edition == 2 else "further", lr=6e-4, muon_lr=0.004)


def folder_tokenizer(folder: Path, start: Path | None = None) -> Path:
    """Return where a run keeps its tokenizer, copying it from the checkpoint it starts from, or training it, if need be."""
    from foveal.bpe import save_tokenizer

    if not (folder / "tokenizer.json").is_file() and start is not None:
        if not (start / "tokenizer.json").is_file():
            raise CheckpointError(f"{start} has no tokenizer.json; --start takes a checkpoint folder of this shape")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(start / name, folder / name)
    elif not (folder / "tokenizer.json").is_file():
        save_tokenizer(train_tokenizer(), folder, model_max_length=4096)
    return folder / "tokenizer.json"

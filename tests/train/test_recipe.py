"""The recipe of the shipped weights goes on giving the batches they were trained on."""

from __future__ import annotations

import hashlib
from itertools import islice

import tokenizers

from foveal.hub import EMBEDDED
from foveal.prompt import ChatTemplate
from foveal.tokenizer import Tokenizer
from foveal.train import mini
from foveal.train.data import Example, ExampleMaker, Feed
from foveal.train.loop import EMPHASIS, Stage
from foveal.world import QUESTION_KINDS

# Of the two first batches of each stage, since words are read letter by letter and asked about as often as shapes.
DIGESTS = [
    "afa28093f39339adf62b8031452430c7d8c443d13de6fdfdf5a1e891727a5bbf",
    "f0ff547ca6a6498a1826ec8ede94945b292e5a1b0ba39fda6ea61dbf6eb1aa9f",
    "0697cf435d8f4754c6e00d5fcfeeca3de559a896bb242a5f16a21a1b41037ca3",
    "bad21668d30dacf4ea04de86ae9c6f380e9255ed932ec13790708a4893fa1595",
]


def mini_maker() -> ExampleMaker:
    file = EMBEDDED / "tokenizer.json"
    tokenizer = Tokenizer.from_file(file)
    config = mini.config(tokenizers.Tokenizer.from_file(str(file)))
    return ExampleMaker(config, tokenizer, ChatTemplate.builtin("instruct", tokenizer), mini.BUDGET)


def digest(batches: list[list[Example]]) -> str:
    """Name everything of the examples but their pixels, which tests of the world and of resizing hold."""
    found = hashlib.sha256()
    for batch in batches:
        for e in batch:
            for array in (e.sequence.token_ids, e.sequence.position_ids, e.labels, e.turns, e.patches.coords):
                found.update(array.tobytes())
            for array in (e.cells.classes, e.cells.chars, e.cells.boxes, e.cells.marks):
                found.update(array.tobytes())
            looks = [(k.layer, k.row, k.head, [p.tolist() for p in k.parts], k.weight, k.place, k.counts) for k in e.looks]
            found.update(repr((len(batch), e.kinds, e.patches.grids, e.patches.times_s, looks)).encode())
    return found.hexdigest()


def fed(stage: Stage, seed: int) -> list[list[Example]]:
    weights = {kind: EMPHASIS.get(kind, 1.0) for kind in QUESTION_KINDS}
    feed = Feed(mini_maker(), stage.batch_size, seed, stage.mix, weights)
    try:
        return list(islice(feed, 2))
    finally:
        feed.close()


def test_the_first_editions_batches_stay_as_they_were() -> None:
    stages = [*mini.stages(), *mini.further_stages()]
    assert [digest(fed(stage, 1000 * i)) for i, stage in enumerate(stages)] == DIGESTS

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

# Of the two first batches of each stage, on the day before the second edition could be trained on.
DIGESTS = [
    "ada2292c2e4254456b35e27003208240d4abf2994bbefd2eee0b6d97d0411874",
    "d7d471789d97484d0765ef07e9f92652feedfea0fd6ccbd2cecf9402ce78833f",
    "be0d088fa183b3c35cb34a5f413f508ab8bd2edf7b272999c247ba0301b976b1",
    "ef10bf90a68b9c7e2fdbfa836d828b3cb771cdbc17b3ad14942b7c796ad50af1",
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

"""However a prompt is cut, packed and cached, the model says the same: tested for every tiny configuration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.batch import Batch, VisionTokens
from foveal.model import Qwen3VL
from foveal.sequence import Sequence
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

# The order of float32 sums changes with the shape of a product. The largest logits here are near 10; the worst difference
# measured over all laws of this file is 5.3e-5.
CLOSE = {"atol": 3e-4, "rtol": 0.0}

every_model = pytest.mark.parametrize("name", list(CONFIGS))
every_scene = pytest.mark.parametrize("scene", list(SCENES))


def _request(model: Qwen3VL, scene: str, seed: int = 0) -> tuple[Sequence, VisionTokens | None]:
    media = new_media(model.config.vision, SCENES[scene], seed)
    sequence = new_sequence(media, model.config.vision.spatial_merge_size, seed)
    return sequence, model.encode(media) if media else None


@every_model
@every_scene
@torch.no_grad()
def test_chunked_prefill_is_the_whole(name: str, scene: str) -> None:
    """Chunks cut through pictures and through the frames of clips."""
    model = new_model(CONFIGS[name])
    sequence, vision = _request(model, scene)
    whole = model(Batch.pack([sequence], [vision]))
    for size in (1, 5, 16, len(sequence)):
        cache = model.new_cache(capacity=4)
        rows = [model(Batch.pack([window], [vision]), [cache]) for window in sequence.windows(size)]
        torch.testing.assert_close(torch.cat(rows), whole, **CLOSE)
        assert cache.length == len(sequence)


@every_model
@torch.no_grad()
def test_batched_is_alone(name: str) -> None:
    """Sequences of all kinds packed together, whole, in windows, and while decoding, do not see one another."""
    model = new_model(CONFIGS[name])
    requests = [_request(model, scene, seed) for seed, scene in enumerate(SCENES)]
    sequences, vision = [s for s, _ in requests], [v for _, v in requests]
    lengths = [len(s) for s in sequences]
    alone = [model(Batch.pack([s], [v])) for s, v in requests]
    packed = model(Batch.pack(sequences, vision))
    torch.testing.assert_close(packed, torch.cat(alone), **CLOSE)
    last = model(Batch.pack(sequences, vision, output="last"))
    torch.testing.assert_close(last, torch.stack([rows[-1] for rows in alone]), **CLOSE)

    # Continue all of them at once: one window each, at unlike places, then tokens one by one.
    caches = [model.new_cache() for _ in sequences]
    cuts = [1 + n // 3 for n in lengths]
    first = model(Batch.pack([s.window(0, c) for s, c in zip(sequences, cuts, strict=True)], vision), caches)
    rest = model(Batch.pack([s.window(c, len(s)) for s, c in zip(sequences, cuts, strict=True)], vision), caches)
    ends = rest.split([n - c for n, c in zip(lengths, cuts, strict=True)])
    for one, begin, end in zip(alone, first.split(cuts), ends, strict=True):
        torch.testing.assert_close(torch.cat([begin, end]), one, **CLOSE)
    for step in range(3):
        tokens = [(7 * step + 11 * i) % 200 for i in range(len(sequences))]
        batch = Batch.step(tokens, [s.next_position + step for s in sequences])
        together = model(batch, caches)
        if step == 0:
            for i, (s, v) in enumerate(requests):
                cache = model.new_cache()
                model(Batch.pack([s], [v]), [cache])
                single = model(Batch.step([tokens[i]], [s.next_position]), [cache])
                torch.testing.assert_close(together[i : i + 1], single, **CLOSE)


@every_model
@torch.no_grad()
def test_encoding_together_is_encoding_alone(name: str) -> None:
    model = new_model(CONFIGS[name])
    media = new_media(model.config.vision, SCENES["mixed"])
    together, alone = model.encode(media), VisionTokens.cat([model.encode([m]) for m in media])
    torch.testing.assert_close(together.embeddings, alone.embeddings, **CLOSE)
    torch.testing.assert_close(together.taps, alone.taps, **CLOSE)
    assert torch.equal(together.coords, alone.coords)


@every_model
@torch.no_grad()
def test_training_log_probabilities_are_those_of_decoding(name: str) -> None:
    """One packed forward over prompt and answer scores the answer as prefill and 12 decode steps do."""
    model = new_model(CONFIGS[name])
    media = new_media(model.config.vision, SCENES["mixed"])
    sequence = new_sequence(media, model.config.vision.spatial_merge_size)
    vision = model.encode(media)
    prompt = len(sequence) - 12
    # The answer is the end of the sequence; it must be text for one token to follow another.
    while (sequence.vision_rows[prompt:] >= 0).any():
        prompt += 1
    ids = torch.from_numpy(sequence.token_ids)

    def log_probability(logits: Tensor, token: Tensor) -> Tensor:
        return F.log_softmax(logits, dim=-1)[..., token]

    scores = F.log_softmax(model(Batch.pack([sequence], [vision])), dim=-1)
    trained = scores[torch.arange(prompt - 1, len(ids) - 1), ids[prompt:]]

    cache = model.new_cache()
    logits = model(Batch.pack([sequence.window(0, prompt)], [vision], output="last"), [cache])[0]
    decoded = []
    for at in range(prompt, len(ids)):
        decoded.append(log_probability(logits, ids[at]))
        position = int(sequence.position_ids[0, at])
        logits = model(Batch.step([int(ids[at])], [position]), [cache])[0]
    assert len(decoded) >= 3
    torch.testing.assert_close(trained, torch.stack(decoded), **CLOSE)


@every_model
@torch.no_grad()
def test_growing_a_cache_changes_nothing(name: str) -> None:
    """A cache that grows five times holds, bit for bit, what one that was large enough holds."""
    model = new_model(CONFIGS[name])
    sequence, vision = _request(model, "mixed")
    small, large = model.new_cache(capacity=1), model.new_cache(capacity=4096)
    for window in sequence.windows(9):
        batch = Batch.pack([window], [vision])
        assert torch.equal(model(batch, [small]), model(batch, [large]))
    assert small.length == large.length == len(sequence)
    assert small.num_bytes < large.num_bytes


@torch.no_grad()
def test_a_truncated_cache_continues_from_where_it_was_cut() -> None:
    model = new_model(CONFIGS["dense-tied"])
    sequence, vision = _request(model, "picture")
    cache = model.new_cache()
    first = model(Batch.pack([sequence], [vision], output="last"), [cache])
    model(Batch.step([5], [sequence.next_position]), [cache])
    cache.truncate(len(sequence) - 4)
    again = model(Batch.pack([sequence.window(len(sequence) - 4, len(sequence))], [vision], output="last"), [cache])
    torch.testing.assert_close(again, first, **CLOSE)

"""The decoder's tables survive casts, moves and meta builds; caches must match the sequences."""

from __future__ import annotations

import pytest
import torch

from foveal.batch import Batch
from foveal.model import Qwen3VL
from foveal.model.rope import inverse_frequencies
from tests.tiny import CONFIGS, new_media, new_model, new_sequence

CONFIG = CONFIGS["dense-yarn"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_leaves_the_frequencies_alone(dtype: torch.dtype) -> None:
    exact, _ = inverse_frequencies(CONFIG.text.rope, CONFIG.text.head_dim)
    text = Qwen3VL(CONFIG).to(dtype).language_model
    assert text.embed_tokens.weight.dtype == dtype
    assert text.inv_freq.dtype == torch.float32
    assert torch.equal(text.inv_freq, exact)


def test_a_meta_build_has_real_tables() -> None:
    exact, _ = inverse_frequencies(CONFIG.text.rope, CONFIG.text.head_dim)
    with torch.device("meta"):
        model = Qwen3VL(CONFIG)
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(model.language_model.inv_freq, exact)
    allocated = model.to_empty(device="cpu")
    assert torch.equal(allocated.language_model.inv_freq, exact)
    assert torch.equal(allocated.language_model.axes, Qwen3VL(CONFIG).language_model.axes)


def test_tables_are_no_part_of_a_checkpoint() -> None:
    names = new_model(CONFIG).state_dict()
    assert not [name for name in names if "inv_freq" in name or "axes" in name]


@torch.no_grad()
def test_output_rows_choose_the_logits() -> None:
    model = new_model(CONFIG)
    media = new_media(CONFIG.vision, (("image", 1, 2, 3),))
    sequence = new_sequence(media, 2)
    batch = Batch.pack([sequence], [model.encode(media)])
    whole = model(batch)
    rows = torch.tensor([3, 0, len(sequence) - 1])
    torch.testing.assert_close(model(batch.with_output(rows)), whole[rows], atol=1e-5, rtol=0)
    assert model.logits(model.hidden(batch.with_output(rows))).shape == (3, CONFIG.text.vocab_size)


@torch.no_grad()
def test_every_sequence_needs_its_own_cache() -> None:
    model = new_model(CONFIG)
    sequences = [new_sequence([], 2, seed) for seed in range(2)]
    with pytest.raises(ValueError, match=r"2 sequences.*1 caches"):
        model(Batch.pack(sequences), [model.new_cache()])
    with pytest.raises(ValueError, match=r"1 sequences.*2 caches"):
        model(Batch.pack(sequences[:1]), [model.new_cache(), model.new_cache()])

"""Taps added after decoder layers that no released model uses, still against the reference.

transformers adds tap j after layer j and cannot be told otherwise; but a tap of zeros adds nothing. So its decoder is given
one tap a layer, zeros except where ours go.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foveal.batch import Batch
from tests.parity.reference import Worst, new_reference
from tests.parity.runs import request
from tests.tiny import CONFIGS, new_model


@pytest.mark.parametrize("tap_layers", [(0, 2, 4), (1, 3, 4), (4, 0, 2)])
@pytest.mark.parametrize("name", ["dense-tied", "moe"])
def test_taps_after_chosen_layers(name: str, tap_layers: tuple[int, ...]) -> None:
    config = replace(CONFIGS[name], vision=replace(CONFIGS[name].vision, tap_layers=tap_layers))
    ours = new_model(config)
    theirs = new_reference(ours)
    media, sequence = request(config, "mixed")
    slots = torch.from_numpy(sequence.vision_rows) >= 0
    worst = Worst(bound=1e-4, stages={})
    with torch.no_grad():
        tokens = ours.encode(media)
        logits = ours(Batch.pack([sequence], [tokens]))
        embeddings = theirs.get_input_embeddings()(torch.from_numpy(sequence.token_ids))
        embeddings[slots] = tokens.embeddings
        taps = [torch.zeros_like(tokens.embeddings) for _ in range(config.text.num_hidden_layers)]
        for tap, layer in enumerate(tap_layers):
            taps[layer] = tokens.taps[tap]
        hidden = theirs.get_submodule("model.language_model")(
            inputs_embeds=embeddings[None], position_ids=torch.from_numpy(sequence.position_ids)[:, None],
            visual_pos_masks=slots[None], deepstack_visual_embeds=taps,
        ).last_hidden_state  # fmt: skip
        worst.compare("logits", logits, theirs.get_submodule("lm_head")(hidden)[0])
        released = replace(config, vision=replace(config.vision, tap_layers=(0, 1, 2)))
        elsewhere = new_model(released)(Batch.pack([sequence], [tokens]))
    assert float((logits - elsewhere).abs().max()) > 0.01, "where the taps go makes no difference"

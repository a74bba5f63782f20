"""Training is the same too: the loss and the gradient of every parameter equal the reference's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from foveal.batch import Batch
from tests.parity.reference import model_inputs, new_reference
from tests.parity.runs import compare_gradients, request
from tests.tiny import CONFIGS, new_model


@pytest.mark.parametrize("name", list(CONFIGS))
def test_gradients(name: str) -> None:
    ours = new_model(CONFIGS[name])
    theirs = new_reference(ours)
    media, sequence = request(ours.config, "mixed")
    labels = torch.from_numpy(sequence.token_ids)[1:]

    loss = F.cross_entropy(ours(Batch.pack([sequence], [ours.encode(media)]))[:-1], labels)
    loss.backward()
    reference = F.cross_entropy(theirs(**model_inputs(sequence, media, ours.config)).logits[0, :-1], labels)
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    compare_gradients("9 gradients of a training step", ours, theirs)

"""Both models on the same request, every stage recorded, once for all tests that look at it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.batch import Batch
from foveal.config import ModelConfig
from foveal.model import Qwen3VL
from foveal.patches import Patches
from foveal.sequence import Sequence
from tests.parity.reference import Recorder, Worst, model_inputs, new_reference
from tests.tiny import CONFIGS, SCENES, new_media, new_model, new_sequence

WORST = Worst(bound=1e-4, stages={})


@dataclass(frozen=True)
class Pair:
    config: ModelConfig
    ours: Qwen3VL
    theirs: nn.Module


@dataclass(frozen=True)
class Run:
    """One request through both: what every named module received and returned, and the logits (T, R)."""

    config: ModelConfig
    media: list[Patches]
    sequence: Sequence
    ours: Recorder
    theirs: Recorder
    logits: Tensor
    reference_logits: Tensor


@functools.cache
def pair(name: str) -> Pair:
    """Build foveal's and transformers' model of a tiny configuration, with the same weights."""
    ours = new_model(CONFIGS[name])
    return Pair(ours.config, ours, new_reference(ours))


def request(config: ModelConfig, scene: str) -> tuple[list[Patches], Sequence]:
    media = new_media(config.vision, SCENES[scene])
    return media, new_sequence(media, config.vision.spatial_merge_size)


@functools.cache
def run(name: str, scene: str) -> Run:
    """Run a scene through both models of a configuration."""
    both = pair(name)
    config = both.config
    media, sequence = request(config, scene)
    layers = range(config.text.num_hidden_layers)
    names = [f"language_model.layers.{i}{part}" for i in layers for part in ("", ".self_attn", ".mlp")]
    names.append("language_model.norm")
    if media:
        names += ["visual.patch_embed", "visual.merger"]
        names += [f"visual.blocks.{i}" for i in range(config.vision.depth)]
        names += [f"visual.deepstack_merger_list.{i}" for i in range(len(config.vision.taps))]
    with torch.no_grad():
        with Recorder(both.ours, names) as ours:
            logits = both.ours(Batch.pack([sequence], [both.ours.encode(media) if media else None]))
        with Recorder(both.theirs.get_submodule("model"), names) as theirs:
            reference_logits = both.theirs(**model_inputs(sequence, media, config)).logits[0]
    return Run(config, media, sequence, ours, theirs, logits, reference_logits)


def compare_gradients(stage: str, ours: Qwen3VL, theirs: nn.Module) -> None:
    """Compare the gradient of every parameter; the reference keeps experts transposed."""
    named = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        expected = named[key if key.startswith("lm_head") else f"model.{key}"].grad
        assert parameter.grad is not None and expected is not None, key
        WORST.compare(stage, parameter.grad, expected.transpose(1, 2) if ".experts." in key else expected)

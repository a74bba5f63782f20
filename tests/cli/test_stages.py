"""What --stats says of each stage: its work in closed form, beside given limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foveal import choice, kernels
from foveal.cli.ask import weights
from foveal.cli.stages import Stage, stages
from foveal.config import preset
from foveal.cost import estimate
from foveal.generate import Pipeline
from foveal.limits import PATHS, Limits
from foveal.model.checkpoint import skeleton
from foveal.model.quantize import num_bytes, packed_bits, quantize, save_packed, step_bytes
from foveal.sampler import Sampling
from foveal.standin import new_checkpoint
from tests.command import tiny_config
from tests.tiny import CONFIGS, new_model

MEASURED = Limits(1e10, dict(zip(PATHS, [(1e9, 5e9, 1e11), (1e9, 2e9, 3e9), (1e9, 2e9, 4e11), (1e9,) * 3], strict=True)))
needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")


@pytest.mark.parametrize("name", ["2B", "8B", "30B-A3B"])
def test_a_step_reads_the_weights_a_token_passes_through(name: str) -> None:
    config = preset(name)
    model = skeleton(config)
    assert step_bytes(model) == 4 * config.num_active_parameters and packed_bits(model) is None


@needs_kernels
@pytest.mark.parametrize("name", ["dense-tied", "moe-mixed"])
def test_of_a_packed_model_too(name: str) -> None:
    model = quantize(new_model(CONFIGS[name]), 4)
    moe, experts = model.config.text.moe, 0
    if moe is not None:
        experts = sum(num_bytes(layer.mlp.experts) for layer in model.language_model.layers if hasattr(layer.mlp, "experts"))
    outside = num_bytes(model.language_model.embed_tokens) if model.lm_head is not None else 0
    unread = 0 if moe is None else experts - experts * moe.num_experts_per_tok // moe.num_experts
    assert step_bytes(model) == num_bytes(model) - num_bytes(model.visual) - outside - unread
    assert packed_bits(model) == 4 and packed_bits(quantize(new_model(CONFIGS[name]), 8)) == 8


def test_stages_of_a_reply(checkpoint: str, photo: str) -> None:
    pipeline = Pipeline.load(checkpoint)
    reply = pipeline.ask("Why?", photo, sampling=Sampling(max_tokens=4, ignore_end=True))
    stats, config = reply.answer.stats, pipeline.model.config
    prepare, encode, prefill, decode = stages(pipeline.model, reply.request, stats, MEASURED)
    cost = estimate(
        config, [(p.kind, p.lengths()) for p in reply.request.patches], stats.prompt_tokens, new_tokens=4, dtype="float32"
    )
    assert (encode.ops, prefill.ops, decode.ops) == (cost.encode.total, cost.prefill.total, cost.answer.total)
    assert encode.ops_s == pytest.approx(cost.encode.total / 1e11)
    cached = config.text.kv_bytes_per_token("float32") * (3 * stats.prompt_tokens + 1 + 2 + 3)
    assert decode.num_bytes == 3 * step_bytes(pipeline.model) + cached
    assert decode.bytes_s == pytest.approx(decode.num_bytes / 1e10)
    assert prepare.row() == ("prepare", prepare.row()[1], "", "")
    assert all("% of" in stage.row()[3] and 0 < stage.share < 1 for stage in (encode, prefill, decode))
    blind = stages(pipeline.model, reply.request, stats, None)
    assert blind[3].row()[2].endswith("B/s") and blind[2].row()[2].endswith("OP/s") and blind[2].row()[3] == ""
    pipeline.model.to(torch.float16)
    assert stages(pipeline.model, reply.request, stats, MEASURED)[2].share == 0  # no limit is known for it


@needs_kernels
def test_a_packed_model_goes_by_the_native_limits(checkpoint: str, photo: str) -> None:
    plain, packed = Pipeline.load(checkpoint), Pipeline.load(checkpoint, bits=8)
    reply = packed.ask("Why?", photo, sampling=Sampling(max_tokens=1))
    before = stages(plain.model, reply.request, reply.answer.stats, MEASURED)
    after = stages(packed.model, reply.request, reply.answer.stats, MEASURED)
    assert [one.ops for one in before] == [one.ops for one in after]
    assert before[2].ops_s > after[2].ops_s > before[2].ops_s / 4  # the attention of prompts stays float32


def test_rows_for_people() -> None:
    reads = Stage("decode", 2.0, ops=10, num_bytes=4 * 10**9, ops_s=0.1, bytes_s=1.0)
    assert reads.row() == ("decode", "2.00 s", "2.00 GB/s", "50% of 4.00 GB/s")
    counts = Stage("prefill", 0.5, ops=10**11, num_bytes=10, ops_s=0.4, bytes_s=0.1)
    assert counts.row() == ("prefill", "500 ms", "200 GOP/s", "80% of 250 GOP/s")
    assert Stage("encode", 0.0).row() == ("encode", "0 µs", "", "")


def test_what_was_chosen_and_what_overrules_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the choice is by measurement: in bfloat16 files bfloat16, packed only when that is allowed; asking decides."""
    config = tiny_config()
    new_checkpoint(config, tmp_path / "own", seed=1, dtype="bfloat16")
    monkeypatch.setattr(choice, "SMALL", 0)
    fast = Limits(1e10, {path: (n * 1e11,) * 3 for path, n in zip(PATHS, (1, 2, 4, 5), strict=True)})
    monkeypatch.setattr(choice, "limits", lambda: fast)
    chosen = Pipeline.load(tmp_path / "own")
    assert chosen.model.dtype == torch.bfloat16 and weights(chosen).startswith("bfloat16: takes")
    asked = Pipeline.load(tmp_path / "own", dtype="float32")
    assert asked.choice is None and weights(asked) == "float32"
    monkeypatch.setattr(choice, "ACCURATE_BITS", (8,))
    assert Pipeline.load(tmp_path / "own", bits=0).model.dtype == torch.bfloat16
    if kernels.available():
        assert packed_bits(Pipeline.load(tmp_path / "own").model) == 8
        four = Pipeline.load(tmp_path / "own", bits=4)
        assert weights(four) == "4 bits" and four.choice is None
        save_packed(four.model, tmp_path / "packed", 4, copy_from=tmp_path / "own")
        assert weights(Pipeline.load(tmp_path / "packed")) == "4 bits"

"""transformers as the oracle: the one place that knows how to import it, build it, and copy weights into it."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.config import ModelConfig, VisionConfig
from foveal.model import Qwen3VL
from foveal.patches import Patches
from foveal.sequence import Sequence

_libraries: list[torch.library.Library] = []  # an operator lives as long as the object that declared it


@functools.cache
def transformers() -> ModuleType:
    """Import transformers with its torchvision processors on a CPU build of torch.

    torchvision's published file is built for another torch: its compiled operators do not load, and its Python code then
    fails at import because it registers shape functions for two of them. Declaring those two is enough: the processors use
    `resize` and `normalize` only, which are plain torch.
    """
    if torch.version.cuda is None:  # with a CUDA build, as Python 3.13 gets from the registry, they load
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
    with warnings.catch_warnings():
        # Deprecations inside other packages at import are not ours to mend.
        warnings.simplefilter("ignore")
        import transformers
        from transformers.models.qwen2_vl import image_processing_qwen2_vl as _images
        from transformers.models.qwen3_vl import modeling_qwen3_vl as _dense
        from transformers.models.qwen3_vl import video_processing_qwen3_vl as _videos
        from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as _moe

        del _images, _dense, _videos, _moe
    transformers.logging.set_verbosity_error()
    return transformers


def new_reference(model: Qwen3VL, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build transformers' model of the same configuration and copy our weights into it, by name."""
    theirs = _empty_reference(model)
    theirs.load_state_dict(reference_weights(model), strict=True)
    tables = {name: buffer.clone() for name, buffer in theirs.named_buffers() if name.endswith("inv_freq")}
    theirs.to(dtype)
    for name, table in tables.items():
        # A cast rounds the rotary frequencies too; loading a checkpoint in half precision, as people do, does not.
        theirs.get_buffer(name).data = table
    return theirs.eval()


def shared_reference(model: Qwen3VL) -> nn.Module:
    """Build transformers' model on the very tensors of a dense model of ours: no second copy of the weights."""
    with torch.device("meta"):
        theirs = _empty_reference(model)
    theirs.load_state_dict(reference_weights(model), strict=True, assign=True)
    # Tables that no checkpoint holds are still on the meta device: build their modules anew.
    for place in (theirs.model.language_model, theirs.model.visual):
        name, old = next((name, module) for name, module in place.named_children() if "rotary" in name)
        setattr(place, name, type(old)(old.config))
    assert not any(t.is_meta for t in (*theirs.parameters(), *theirs.buffers()))
    return theirs.eval()


def _empty_reference(model: Qwen3VL) -> Any:
    hf, config = transformers(), model.config
    raw = config.to_dict("5")
    # foveal's own key, and the only thing the reference cannot be told: it always adds tap j after layer j.
    raw["vision_config"].pop("deepstack_decoder_layers", None)
    moe = config.text.moe is not None
    kind = hf.Qwen3VLMoeConfig if moe else hf.Qwen3VLConfig
    return (hf.Qwen3VLMoeForConditionalGeneration if moe else hf.Qwen3VLForConditionalGeneration)(kind(**raw))


def image_processor(vision: VisionConfig, tokens: tuple[int, int]) -> Any:
    """Build the released image processor for a patch geometry and a budget of vision tokens."""
    transformers()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    low, high = (n * vision.factor**2 for n in tokens)
    return Qwen2VLImageProcessor(**processor_options(vision, low, high))


def processor_options(vision: VisionConfig, shortest: int, longest: int) -> dict[str, Any]:
    """Say a patch geometry and a size in pixels as the released processors want them."""
    return {
        "patch_size": vision.patch_size, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "size": {"shortest_edge": shortest, "longest_edge": longest},
    }  # fmt: skip


def reference_weights(model: Qwen3VL) -> dict[str, Tensor]:
    """Name our weights as transformers does in memory: below `model.`, experts as (E, out, in), a tied head repeated."""
    state = {}
    for name, value in model.state_dict().items():
        if ".experts." in name:
            value = value.transpose(1, 2).contiguous()
        state[name if name.startswith("lm_head") else f"model.{name}"] = value
    if model.lm_head is None:
        state["lm_head.weight"] = model.language_model.embed_tokens.weight
    return state


def pixel_values(patches: Patches, vision: VisionConfig) -> Tensor:
    """Normalise our uint8 rows as the released processors do: (x - 127.5) / 127.5 in float32, a picture's frame repeated."""
    frames = 1 if patches.kind == "image" else vision.temporal_patch_size
    rows = torch.from_numpy(patches.pixels).view(-1, vision.in_channels, frames, vision.patch_size**2)
    rows = rows.expand(-1, -1, vision.temporal_patch_size, -1).flatten(1)
    return (rows.float() - 127.5) / 127.5


def model_inputs(sequence: Sequence, media: list[Patches], config: ModelConfig) -> dict[str, Tensor]:
    """Phrase a request as the reference's forward takes it."""
    ids = torch.from_numpy(sequence.token_ids)[None]
    kinds = torch.zeros_like(ids, dtype=torch.int32)
    kinds[ids == config.image_token_id] = 1
    kinds[ids == config.video_token_id] = 2
    inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [m for m in media if m.kind == kind]
        if chosen:
            inputs[pixels] = torch.cat([pixel_values(m, config.vision) for m in chosen])
            inputs[grid] = torch.tensor([[len(m.grids), *m.grids[0]] for m in chosen])
    return inputs


def in_request_order(parts: list[Tensor], media: list[Patches], *, merged: bool) -> Tensor:
    """Put the reference's rows, first those of all pictures and then those of all clips, into the request's order.

    `parts` holds the pictures' and the clips' result, whichever exist, in that order.
    """
    kinds = [kind for kind in ("image", "video") if any(m.kind == kind for m in media)]
    rows = {}
    for kind, part in zip(kinds, parts, strict=True):
        lengths = [len(m.pixels) // (m.merge**2 if merged else 1) for m in media if m.kind == kind]
        rows[kind] = iter(part.split(lengths))
    return torch.cat([next(rows[m.kind]) for m in media])


class Recorder:
    """Keep what chosen modules of a model received and returned, call by call."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in names}
        self.outputs: dict[str, list[Tensor]] = {name: [] for name in names}
        self._hooks = [model.get_submodule(name).register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor):
                self.inputs[name].append(args[0].detach())
            self.outputs[name].append((output if isinstance(output, Tensor) else output[0]).detach())

        return hook

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclass
class Worst:
    """The largest difference from the reference seen at each stage, as a share of the reference's largest value."""

    bound: float
    stages: dict[str, float]

    def compare(self, stage: str, ours: Tensor, theirs: Tensor) -> None:
        """Record the difference; fail where it exceeds the bound."""
        assert ours.shape == theirs.shape, f"{stage}: {tuple(ours.shape)} against {tuple(theirs.shape)}"
        assert torch.isfinite(ours).all(), f"{stage}: not finite"
        scale = float(theirs.abs().max())
        assert scale > 1e-3, f"{stage}: the reference is all but zero, the comparison would prove nothing"
        error = float((ours - theirs).abs().max()) / scale
        self.stages[stage] = max(error, self.stages.get(stage, 0.0))
        assert error <= self.bound, f"{stage}: off by {error:.2e} of the reference's scale, allowed {self.bound:.0e}"


def same(ours: np.ndarray, theirs: Tensor) -> bool:
    """Tell whether integers are equal in shape and value."""
    return ours.shape == tuple(theirs.shape) and bool((torch.from_numpy(np.ascontiguousarray(ours)) == theirs).all())

"""Everything a checkpoint needs on the host: messages and files in, one Request out. No torch until something is resized."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveal.config import ModelConfig, VisionConfig, read_json
from foveal.errors import CheckpointError, ContextError
from foveal.media import ClipSampling, Frames, Limits, load_clip, load_image
from foveal.media import load as load_media
from foveal.messages import MediaInfo, MediaPart, split_media
from foveal.patches import Budget, Patches, patchify, target_size
from foveal.prompt import ChatTemplate
from foveal.sequence import Sequence, TextSegment, VisionSegment, build
from foveal.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, ready for the model: its sequence, and the patches of its media in order.

    text: the rendered prompt, for people. opens_thinking: the reply starts inside a thought.
    """

    sequence: Sequence
    patches: tuple[Patches, ...]
    segments: tuple[TextSegment | VisionSegment, ...]
    text: str
    names: tuple[str, ...]
    opens_thinking: bool

    def tokens_by_kind(self) -> dict[str, int]:
        """Count prompt tokens: text, image, video."""
        counts = {"image": 0, "video": 0}
        for patches in self.patches:
            counts[patches.kind] += patches.num_tokens
        return {"text": len(self.sequence) - sum(counts.values()), **counts}


class Processor:
    """A checkpoint's tokenizer, chat template, budgets and sampling defaults."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate, budget: Budget,
        generation: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.template, self.budget = config, tokenizer, template, budget
        self.generation = dict(generation or {})

    @classmethod
    def from_checkpoint(cls, directory: str | Path) -> Processor:
        """Read a checkpoint folder; a missing generation or video file falls back on the released defaults."""
        directory = Path(directory)
        config = ModelConfig.from_file(directory)
        tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
        template = ChatTemplate.from_checkpoint(directory, tokenizer)
        vision, budget = read_preprocessors(directory, config.vision)
        file = directory / "generation_config.json"
        generation = read_json(file) if file.is_file() else {}
        return cls(replace(config, vision=vision), tokenizer, template, budget, generation)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the generation config's, else the chat's own end mark."""
        ids = self.generation.get("eos_token_id")
        if ids is None:
            return (self.tokenizer.token_id("<|im_end|>"),)
        return (ids,) if isinstance(ids, int) else tuple(ids)

    def __call__(
        self, messages: SequenceOf[Mapping[str, Any]], *, tools: SequenceOf[Mapping[str, Any]] | None = None,
        budget: Budget | None = None, clip_sampling: ClipSampling | None = None, limits: Limits | None = None,
        add_vision_id: bool = False, thinking: bool = True, max_visual_share: float = 0.9,
    ) -> Request:  # fmt: skip
        """Load the media in `messages`, cut them into patches within the budget, and lay out the prompt.

        All visual tokens together take at most `max_visual_share` of the context: every media's budget is capped by its
        even share of that.
        """
        bare, media = split_media(messages)
        budget = self.shared_budget(budget, len(media), max_visual_share)
        patches, names = [], []
        for part in media:
            frames = self._load(part, budget, clip_sampling, limits)
            patches.append(patchify(frames, self.config.vision, budget))
            names.append(frames.name)
        return self.lay_out(bare, patches, names=names, tools=tools, add_vision_id=add_vision_id, thinking=thinking)

    def shared_budget(self, budget: Budget | None, media: int, max_visual_share: float = 0.9) -> Budget:
        """Cap a budget by one medium's even share of the context; raise ContextError when there is not a token each."""
        budget = budget or self.budget
        if not media:
            return budget
        room = int(self.config.text.max_position_embeddings * max_visual_share)
        if room < media:
            raise ContextError(f"{media} pictures and clips do not fit {room} vision tokens; give fewer")
        return budget.capped(room // media)

    def open(
        self, files: SequenceOf[Any], *, budget: Budget | None = None, clip_sampling: ClipSampling | None = None,
        limits: Limits | None = None,
    ) -> list[Frames]:  # fmt: skip
        """Load files of any kind, as their bytes say; frames of a clip are resized as they arrive."""
        budget = self.shared_budget(budget, len(files))

        def fit(n: int, h: int, w: int) -> tuple[int, int]:
            return target_size(n, h, w, "video", self.config.vision, budget)

        return [load_media(file, sampling=clip_sampling, limits=limits, fit=fit) for file in files]

    def lay_out(
        self, messages: SequenceOf[Mapping[str, Any]], patches: SequenceOf[Patches], *, names: SequenceOf[str] = (),
        tools: SequenceOf[Mapping[str, Any]] | None = None, add_vision_id: bool = False, thinking: bool = True,
    ) -> Request:  # fmt: skip
        """Lay out messages with bare placeholders for patches that exist already."""
        prompt = self.template.render(
            messages, media=[MediaInfo(p.kind, p.times_s) for p in patches], tools=tools, add_vision_id=add_vision_id,
            timestamps=self.config.timestamps, think=thinking,
        )  # fmt: skip
        sequence = build(
            prompt.segments, [p.grids for p in patches], kinds=[p.kind for p in patches],
            merge=self.config.vision.spatial_merge_size, image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
        )  # fmt: skip
        return Request(sequence, tuple(patches), tuple(prompt.segments), prompt.text, tuple(names), prompt.opens_thinking)

    def _load(self, part: MediaPart, budget: Budget, sampling: ClipSampling | None, limits: Limits | None) -> Frames:
        def fit(n: int, h: int, w: int) -> tuple[int, int]:
            return target_size(n, h, w, "video", self.config.vision, budget)

        if isinstance(part.source, Frames):
            return part.source
        if part.kind == "image":
            return load_image(part.source, limits=limits)
        return load_clip(part.source, sampling=sampling, limits=limits, fit=fit)


def read_preprocessors(directory: Path, vision: VisionConfig) -> tuple[VisionConfig, Budget]:
    """Read a checkpoint's preprocessor files: budgets in tokens, pixel normalisation into the vision config.

    Raise CheckpointError when their patch geometry is not the model's.
    """
    sizes: dict[str, tuple[int, int] | None] = {}
    for name, key in (("preprocessor_config.json", "image"), ("video_preprocessor_config.json", "clip")):
        file = directory / name
        raw = read_json(file) if file.is_file() else {}
        for theirs, ours in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"),
                             ("temporal_patch_size", "temporal_patch_size")):  # fmt: skip
            if raw.get(theirs, getattr(vision, ours)) != getattr(vision, ours):
                raise CheckpointError(f"{file}: {theirs} is {raw[theirs]}, but config.json says {getattr(vision, ours)}")
        size = raw.get("size") or {}
        low = size.get("shortest_edge", raw.get("min_pixels"))
        high = size.get("longest_edge", raw.get("max_pixels"))
        sizes[key] = None if low is None or high is None else (int(low), int(high))
        if key == "image" and raw.get("image_mean") and raw.get("image_std"):
            vision = replace(vision, image_mean=tuple(raw["image_mean"]), image_std=tuple(raw["image_std"]))
    return vision, Budget.from_pixels(
        sizes["image"], sizes["clip"], factor=vision.factor, temporal_patch_size=vision.temporal_patch_size
    )

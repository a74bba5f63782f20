"""Everything a checkpoint needs on the host: messages and files in, one Request out. No torch until something is resized."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveal.config import ModelConfig
from foveal.errors import CheckpointError, ContextError, PromptError
from foveal.media import DEFAULT_FPS, ClipSampling, Frames, Limits, load_clip, load_image
from foveal.media import load as load_media
from foveal.media.values import Fit
from foveal.messages import MediaInfo, MediaPart, split_media
from foveal.patches import Budget, Patches, patchify, target_size
from foveal.preprocessor import read_clip_sampling, read_optional, read_preprocessors
from foveal.prompt import ChatTemplate
from foveal.sequence import Kind, Sequence, TextSegment, VisionSegment, build
from foveal.sizing import VISUAL_SHARE, MediaShape, fair_cap, part_options, shared_budget, visual_room
from foveal.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, ready for the model: its sequence, and the patches of its media in order.

    text: the rendered prompt, for people. names: what to call each media. opens_thinking: the reply starts inside a thought.
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
    """A checkpoint's tokenizer, chat template, budgets, clip sampling and (in `generation`) its generation defaults."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        budget: Budget,
        generation: Mapping[str, Any] | None = None,
        clip_sampling: ClipSampling | None = None,
    ) -> None:
        self.config, self.tokenizer, self.template, self.budget = config, tokenizer, template, budget
        self.generation = dict(generation or {})
        self.clip_sampling = clip_sampling or ClipSampling()

    @classmethod
    def from_checkpoint(cls, directory: str | Path) -> Processor:
        """Read a checkpoint folder; a missing generation or preprocessor file falls back on the released defaults."""
        directory = Path(directory)
        config = ModelConfig.from_file(directory)
        tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
        _check_ids(config, tokenizer)
        template = ChatTemplate.from_checkpoint(directory, tokenizer)
        vision, budget = read_preprocessors(directory, config.vision)
        generation = read_optional(directory / "generation_config.json")
        clips = read_clip_sampling(directory)
        return cls(replace(config, vision=vision), tokenizer, template, budget, generation, clips)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the generation config's, else the chat's own end mark."""
        ids = self.generation.get("eos_token_id")
        if ids is None:
            return (self.tokenizer.token_id("<|im_end|>"),)
        return (ids,) if isinstance(ids, int) else tuple(ids)

    def __call__(
        self,
        messages: SequenceOf[Mapping[str, Any]],
        *,
        media: SequenceOf[Any] = (),
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        budget: Budget | None = None,
        clip_sampling: ClipSampling | None = None,
        limits: Limits | None = None,
        max_visual_share: float = VISUAL_SHARE,
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
        thinking: bool = True,
    ) -> Request:
        """Load the media in `messages`, cut them into patches within the budget, and lay out the prompt.

        A part may bring its source ({"type": "image", "image": source} and the spellings of the OpenAI API) or be a bare
        placeholder, which takes the next of `media`. A part's own keys (min_tokens, max_pixels, fps, ...) come before `budget`
        and `clip_sampling`, and those before the checkpoint's. All visual tokens together take at most `max_visual_share` of
        the context: media that want more than their fair share are made smaller. `thinking=False` closes at once a thought
        the template opens.
        """
        bare, parts = split_media(messages)
        patches, names = self._read(_filled(parts, media), budget, clip_sampling, limits, max_visual_share)
        return self.lay_out(
            bare, patches, names=names, tools=tools, add_generation_prompt=add_generation_prompt,
            add_vision_id=add_vision_id, thinking=thinking,
        )  # fmt: skip

    def ask(
        self,
        question: str,
        files: SequenceOf[Any] = (),
        *,
        system: str | None = None,
        budget: Budget | None = None,
        clip_sampling: ClipSampling | None = None,
        limits: Limits | None = None,
        thinking: bool = True,
    ) -> Request:
        """Prepare a question about files, pictures or clips as their bytes say, which come before it in the prompt."""
        patches, names = self.read(files, budget=budget, clip_sampling=clip_sampling, limits=limits)
        return self.lay_out(conversation(question, [p.kind for p in patches], system), patches, names=names, thinking=thinking)

    def read(
        self,
        files: SequenceOf[Any],
        *,
        budget: Budget | None = None,
        clip_sampling: ClipSampling | None = None,
        limits: Limits | None = None,
        max_visual_share: float = VISUAL_SHARE,
    ) -> tuple[list[Patches], list[str]]:
        """Load files of any kind and cut them into patches; return them with their names."""
        parts = [_Part(file, None, {}) for file in files]
        return self._read(parts, budget, clip_sampling, limits, max_visual_share)

    def open(
        self,
        files: SequenceOf[Any],
        *,
        budget: Budget | None = None,
        clip_sampling: ClipSampling | None = None,
        limits: Limits | None = None,
    ) -> tuple[list[Frames], Budget]:
        """Load files of any kind; return their frames, those of clips resized already, and the budget to patchify them with.

        For those who want to see the frames: pictures stay in memory at full size.
        """
        whole, sampling = budget or self.budget, clip_sampling or self.clip_sampling

        def load(file: Any, budget: Budget) -> Frames:
            return load_media(file, sampling=sampling, limits=limits, fit=self._fit(budget))

        alone = whole.capped(visual_room(self.config))
        frames = [load(file, alone) for file in files]
        shared = shared_budget(self.config, whole, [MediaShape(f.kind, len(f.pixels), f.source_size) for f in frames])
        if shared != alone:
            frames = [load(file, shared) if f.kind == "video" else f for file, f in zip(files, frames, strict=True)]
        return frames, shared

    def lay_out(
        self,
        messages: SequenceOf[Mapping[str, Any]],
        patches: SequenceOf[Patches],
        *,
        names: SequenceOf[str] = (),
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
        thinking: bool = True,
    ) -> Request:
        """Lay out messages with bare placeholders for patches that exist already."""
        prompt = self.template.render(
            messages, media=[MediaInfo(p.kind, p.times_s) for p in patches], tools=tools,
            add_generation_prompt=add_generation_prompt, add_vision_id=add_vision_id,
            timestamps=self.config.timestamps, think=thinking,
        )  # fmt: skip
        sequence = build(
            prompt.segments, [p.grids for p in patches], kinds=[p.kind for p in patches],
            merge=self.config.vision.spatial_merge_size, image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
        )  # fmt: skip
        return Request(sequence, tuple(patches), tuple(prompt.segments), prompt.text, tuple(names), prompt.opens_thinking)

    def room(self, request: Request) -> int:
        """Return how many tokens the context leaves for a reply; raise ContextError if there is not one.

        Nothing is ever cut off a prompt: visual tokens without their picture's others, or the other way round, are noise.
        """
        context, sequence = self.config.text.max_position_embeddings, request.sequence
        # Where vision tokens were dropped, positions run ahead of the number of tokens.
        used = max(len(sequence), sequence.next_position)
        if used < context:
            return context - used
        counts = request.tokens_by_kind()
        kinds = " + ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        ways = ["shorter text"]
        if counts["video"]:
            ways.insert(0, "fewer frames of its clips (clip_sampling)")
        if counts["image"] or counts["video"]:
            ways.insert(0, "fewer vision tokens (budget)")
        raise ContextError(
            f"the prompt has {len(sequence)} tokens ({kinds}) on {sequence.next_position} positions, but the context holds "
            f"{context} and one is needed for the reply; give {' or '.join(ways)}"
        )

    def _read(
        self,
        parts: SequenceOf[_Part],
        budget: Budget | None,
        sampling: ClipSampling | None,
        limits: Limits | None,
        share: float,
    ) -> tuple[list[Patches], list[str]]:
        budget, sampling = budget or self.budget, sampling or self.clip_sampling
        vision, room = self.config.vision, visual_room(self.config, share)
        budgets = [part_options(part.kind, part.options, budget, sampling, vision)[0] for part in parts]
        read: list[tuple[Patches, str, MediaShape]] = []
        cap, tokens, due = room, 0, 0

        def fair() -> int:
            return fair_cap(vision, [(one[2], b) for one, b in zip(read, budgets, strict=False)], room)

        for part in parts:
            # The share of those so far is at least that of all. Without it, hundreds of pages would each be kept at the size
            # of a request that has one.
            if tokens > room and len(read) >= due:
                cap, due = fair(), len(read) * 5 // 4 + 1
            read.append(self._read_one(part, budget, sampling, limits, cap))
            tokens += read[-1][0].num_tokens
        if tokens > room:
            cap = fair()
            # Only what has another size than its share is read again: from its source, since a clip's frames came resized.
            for i, (part, own) in enumerate(zip(parts, budgets, strict=True)):
                patches, _, shape = read[i]
                if patches.num_tokens != shape.tokens(vision, own.capped(cap)):
                    read[i] = self._read_one(part, budget, sampling, limits, cap)
        return [patches for patches, _, _ in read], [name for _, name, _ in read]

    def _fit(self, budget: Budget) -> Fit:
        """Return the rule by which frames of a clip are resized as they arrive."""
        return lambda frames, height, width: target_size(frames, height, width, "video", self.config.vision, budget)

    def _read_one(
        self, part: _Part, budget: Budget, sampling: ClipSampling, limits: Limits | None, cap: int
    ) -> tuple[Patches, str, MediaShape]:
        vision = self.config.vision
        budget, sampling, sample_fps = part_options(part.kind, part.options, budget, sampling, vision)
        budget = budget.capped(cap)
        fit = self._fit(budget)
        if isinstance(part.source, Frames):
            frames = part.source
        elif part.kind == "image":
            frames = load_image(part.source, limits=limits)
        elif part.kind == "video":
            rate = DEFAULT_FPS if sample_fps is None else sample_fps
            frames = load_clip(part.source, sampling=sampling, limits=limits, fit=fit, sample_fps=rate)
        else:
            frames = load_media(part.source, sampling=sampling, limits=limits, fit=fit)
        if part.kind not in (None, frames.kind):
            raise PromptError(f"{frames.name} is a {frames.kind} where the messages say {part.kind}; change the part's type")
        return patchify(frames, vision, budget), frames.name, MediaShape(frames.kind, len(frames.pixels), frames.source_size)


@dataclass(frozen=True, eq=False)
class _Part:
    """A picture or clip to be read; kind None: as its bytes say."""

    source: Any
    kind: Kind | None
    options: Mapping[str, Any]


def conversation(question: str, kinds: SequenceOf[Kind], system: str | None = None) -> list[dict[str, Any]]:
    """Write a question as messages, with a bare placeholder for every picture and clip before it."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    content: list[dict[str, Any]] = [{"type": kind} for kind in kinds]
    return [*messages, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _filled(parts: SequenceOf[MediaPart], media: SequenceOf[Any]) -> list[_Part]:
    """Give bare placeholders the sources that stand beside the messages."""
    bare = sum(part.source is None for part in parts)
    if bare != len(media):
        raise PromptError(
            f"the messages hold {bare} pictures and clips without a source, but {len(media)} were given beside them; "
            'write the source into the part ({"type": "image", "image": path}) or give one for each placeholder'
        )
    rest = iter(media)
    return [_Part(next(rest) if part.source is None else part.source, part.kind, part.options) for part in parts]


def _check_ids(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Require that tokenizer and config.json mean the same ids."""
    for name, index in (
        ("<|image_pad|>", config.image_token_id), ("<|video_pad|>", config.video_token_id),
        ("<|vision_start|>", config.vision_start_token_id), ("<|vision_end|>", config.vision_end_token_id),
    ):  # fmt: skip
        found = tokenizer.added.get(name, index)
        if found != index:
            raise CheckpointError(f"{tokenizer.name}: {name} is {found}, but config.json says {index}")
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"{tokenizer.name} has ids up to {tokenizer.vocab_size - 1}, but config.json has a vocab_size of "
            f"{config.text.vocab_size}"
        )

"""Segments and grids to a `Sequence`: placeholder ids, 3-D positions and vision rows, decided together in one pass.

Positions have three axes: time, row, column. Text moves all three alike. What a picture or a clip does depends on the rule:

"interleaved"   Qwen3-VL. Every picture, and every temporal patch of a clip, is a grid of its own: t stands still at the
                start, rows and columns count from it, and the clock then advances by the longer side of the grid.
"frame-index"   Qwen2-VL. The frames of a clip form one block with one start; t counts the frames.
"seconds"       Qwen2.5-VL. As before, but t is the frame's time: int(frame * seconds_per_grid * tokens_per_second).

The two older rules need a clip's frames next to each other. Text between two frames (timestamps) ends the block, and the
next frame opens a new one whose t axis starts again at the clock.

Under every rule the clock advances by the full grid, whether or not all of its tokens are kept: dropping vision tokens
moves no other position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from foveal.errors import PromptError

Kind = Literal["image", "video"]
Rule = Literal["interleaved", "frame-index", "seconds"]
Grid = tuple[int, int]

RULES: tuple[Rule, ...] = ("interleaved", "frame-index", "seconds")


@dataclass(frozen=True)
class TextSegment:
    """Hold ids of ordinary tokens: words, timestamps, chat and vision markers; never a picture or clip placeholder."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class VisionSegment:
    """Stand for one temporal patch `frame` of media number `media`.

    `tokens` names the vision tokens that are kept, as (row, column) in merged units, in the order of their vision rows;
    None keeps the whole grid in row-major order.
    """

    media: int
    frame: int
    tokens: tuple[tuple[int, int], ...] | None = None


Segment = TextSegment | VisionSegment


@dataclass(frozen=True, eq=False)
class Window:
    """Hold the tokens start..start+T of a sequence, for one step of a chunked prefill."""

    start: int
    token_ids: np.ndarray  # (T,) int64
    position_ids: np.ndarray  # (3, T) int64
    vision_rows: np.ndarray  # (T,) int64

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, eq=False)
class Sequence:
    """Hold a prompt ready for the model.

    token_ids       (T,) int64, with one placeholder id for every vision token
    position_ids    (3, T) int64: time, row, column
    vision_rows     (T,) int64: -1 for text, else the row among all vision tokens of the request, its media in order
    next_position   the position of the first token that follows, equal on all three axes
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    vision_rows: np.ndarray
    next_position: int

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_vision_tokens(self) -> int:
        return int(np.count_nonzero(self.vision_rows >= 0))

    @property
    def num_text_tokens(self) -> int:
        return len(self) - self.num_vision_tokens

    def window(self, start: int, stop: int) -> Window:
        """Return the tokens start..stop as views; raise IndexError outside 0 <= start <= stop <= T."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"window {start}..{stop} lies outside a sequence of {len(self)} tokens")
        at = slice(start, stop)
        return Window(start, self.token_ids[at], self.position_ids[:, at], self.vision_rows[at])

    def windows(self, size: int) -> Iterator[Window]:
        """Yield consecutive windows of `size` tokens; the last may be shorter."""
        if size < 1:
            raise ValueError(f"a window needs at least one token, not {size}")
        for start in range(0, len(self), size):
            yield self.window(start, min(start + size, len(self)))


@dataclass
class _Layout:
    """Grow the three arrays of a sequence and its clock, segment by segment."""

    merge: int
    rule: Rule
    clock: int = 0
    ids: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    block_start: int = 0
    block_of: tuple[int, int] | None = None  # (media, frame) that would continue the open block
    block_first: int = 0

    def text(self, token_ids: tuple[int, ...]) -> None:
        count = len(token_ids)
        if not count:
            return
        self.block_of = None
        self.ids.append(np.asarray(token_ids, dtype=np.int64))
        self.positions.append(np.broadcast_to(np.arange(self.clock, self.clock + count), (3, count)))
        self.rows.append(np.full(count, -1, dtype=np.int64))
        self.clock += count

    def vision(self, segment: VisionSegment, grid: Grid, pad_id: int, first_row: int, interval: np.float32) -> None:
        height, width = grid[0] // self.merge, grid[1] // self.merge
        start, t = self._open(segment, interval)
        if segment.tokens is None:
            at = np.indices((height, width)).reshape(2, -1)
        else:
            at = np.asarray(segment.tokens, dtype=np.int64).reshape(-1, 2).T
        count = at.shape[1]
        self.ids.append(np.full(count, pad_id, dtype=np.int64))
        self.positions.append(np.stack([np.full(count, start + t), start + at[0], start + at[1]]))
        self.rows.append(np.arange(first_row, first_row + count))
        self.clock = max(self.clock, start + max(height, width, t + 1))

    def _open(self, segment: VisionSegment, interval: np.float32) -> tuple[int, int]:
        """Return the start of the segment's block and its offset on the t axis."""
        if self.rule == "interleaved":
            return self.clock, 0
        if self.block_of != (segment.media, segment.frame):
            self.block_start, self.block_first = self.clock, segment.frame
        self.block_of = (segment.media, segment.frame + 1)
        # float32, then cut towards zero: Qwen2.5-VL's rope index multiplies an integer range with a float32 interval.
        return self.block_start, int(np.float32(segment.frame - self.block_first) * interval)


def build(
    segments: Seq[Segment],
    grids: Seq[Seq[Grid]],
    *,
    image_token_id: int,
    video_token_id: int,
    kinds: Seq[Kind],
    merge: int,
    rule: Rule = "interleaved",
    seconds_per_grid: Seq[float] | None = None,
    tokens_per_second: float | None = None,
) -> Sequence:
    """Lay out a prompt.

    `grids[m]` lists (height, width) in patches for every temporal patch of media `m`, `kinds[m]` says what it is, and
    `merge` patches a side make one vision token. Every frame of every media must appear once, a media's frames in order.
    The rule "seconds" also needs `seconds_per_grid` (one value a media; pictures ignore theirs) and `tokens_per_second`.
    Raise PromptError when segments and media do not belong together.
    """
    if rule not in RULES:
        raise PromptError(f"unknown position rule {rule!r}; choose one of {', '.join(RULES)}")
    _check_grids(grids, kinds, merge)
    intervals = _intervals(rule, kinds, seconds_per_grid, tokens_per_second)
    vision = [segment for segment in segments if isinstance(segment, VisionSegment)]
    _check_frames(vision, grids)
    first_rows = _first_rows(vision, grids, merge)
    layout = _Layout(merge, rule)
    placeholders = {image_token_id, video_token_id}
    for segment in segments:
        if isinstance(segment, TextSegment):
            if not placeholders.isdisjoint(segment.token_ids):
                found = next(token for token in segment.token_ids if token in placeholders)
                raise PromptError(f"a text segment holds the placeholder id {found}; pictures and clips are VisionSegments")
            layout.text(segment.token_ids)
        else:
            at = segment.media, segment.frame
            pad_id = image_token_id if kinds[segment.media] == "image" else video_token_id
            layout.vision(segment, grids[at[0]][at[1]], pad_id, first_rows[at], intervals[segment.media])
    if not layout.ids:
        raise PromptError("the prompt is empty; at least one token is needed")
    return Sequence(
        token_ids=np.concatenate(layout.ids),
        position_ids=np.concatenate(layout.positions, axis=1),
        vision_rows=np.concatenate(layout.rows),
        next_position=layout.clock,
    )


def _check_grids(grids: Seq[Seq[Grid]], kinds: Seq[Kind], merge: int) -> None:
    if len(grids) != len(kinds):
        raise PromptError(f"{len(grids)} media have grids but {len(kinds)} have a kind; every media needs both")
    for media, (frames, kind) in enumerate(zip(grids, kinds, strict=True)):
        if kind not in ("image", "video"):
            raise PromptError(f"media {media + 1} is of kind {kind!r}; a media is an image or a video")
        if not frames or (kind == "image" and len(frames) != 1):
            raise PromptError(f"media {media + 1} ({kind}) has {len(frames)} grids; an image has one, a video at least one")
        for height, width in frames:
            if height < merge or width < merge or height % merge or width % merge:
                raise PromptError(
                    f"media {media + 1} has a grid of {height}x{width} patches; both sides must be multiples of {merge}"
                )


def _check_frames(vision: Seq[VisionSegment], grids: Seq[Seq[Grid]]) -> None:
    """Require every frame of every media exactly once, the frames of one media in order."""
    seen: Counter[int] = Counter()
    for segment in vision:
        if not 0 <= segment.media < len(grids):
            raise PromptError(f"the prompt refers to media {segment.media + 1}, but {len(grids)} were given")
        expected = seen[segment.media]
        if segment.frame != expected or expected >= len(grids[segment.media]):
            total = len(grids[segment.media])
            raise PromptError(
                f"media {segment.media + 1} has {total} frames, each used once and in order; found frame {segment.frame + 1} "
                + (f"where frame {expected + 1} belongs" if expected < total else "after the last")
            )
        seen[segment.media] += 1
    for media, frames in enumerate(grids):
        if seen[media] != len(frames):
            raise PromptError(
                f"media {media + 1} has {len(frames)} frames but the prompt uses {seen[media]} of them; "
                "add the missing placeholders or remove the media"
            )


def _first_rows(vision: Seq[VisionSegment], grids: Seq[Seq[Grid]], merge: int) -> dict[tuple[int, int], int]:
    """Number the kept vision tokens over all media in order; return the first row of every frame."""
    counts: dict[tuple[int, int], int] = {}
    for segment in vision:
        height, width = (side // merge for side in grids[segment.media][segment.frame])
        if segment.tokens is not None:
            outside = [at for at in segment.tokens if not (0 <= at[0] < height and 0 <= at[1] < width)]
            where = f"media {segment.media + 1}, frame {segment.frame + 1},"
            if outside:
                raise PromptError(f"{where} keeps token {outside[0]}, outside its grid of {height}x{width} tokens")
            if len(set(segment.tokens)) != len(segment.tokens):
                raise PromptError(f"{where} keeps {len(segment.tokens)} tokens, {len(set(segment.tokens))} of them distinct")
        counts[segment.media, segment.frame] = height * width if segment.tokens is None else len(segment.tokens)
    first, total = {}, 0
    for at in sorted(counts):
        first[at] = total
        total += counts[at]
    return first


def _intervals(
    rule: Rule, kinds: Seq[Kind], seconds_per_grid: Seq[float] | None, tokens_per_second: float | None
) -> list[np.float32]:
    """Return how far the t axis moves from one temporal patch to the next, for every media."""
    if rule != "seconds":
        return [np.float32(1)] * len(kinds)
    if tokens_per_second is None or seconds_per_grid is None or len(seconds_per_grid) != len(kinds):
        given = "none" if seconds_per_grid is None else len(seconds_per_grid)
        raise PromptError(
            f"the rule 'seconds' needs tokens_per_second (found {tokens_per_second}) and one seconds_per_grid for each "
            f"of {len(kinds)} media (found {given})"
        )
    rate = np.float32(tokens_per_second)
    return [
        rate * np.float32(seconds) if kind == "video" else np.float32(1)
        for kind, seconds in zip(kinds, seconds_per_grid, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Padded:
    """Hold several sequences as the rectangles that batch-major code expects."""

    token_ids: np.ndarray  # (B, L) int64
    position_ids: np.ndarray  # (3, B, L) int64, 0 where padded
    attention_mask: np.ndarray  # (B, L) int64: 1 for a token, 0 for padding
    deltas: np.ndarray  # (B,) int64: next_position - number of tokens, the reference's rope_deltas


def padded(sequences: Seq[Sequence], pad_id: int, side: Literal["left", "right"] = "left") -> Padded:
    """Pad sequences to the longest; left is what batched generation with the reference needs."""
    if side not in ("left", "right"):
        raise PromptError(f"pad on the left or on the right, not on {side!r}")
    if not sequences:
        raise PromptError("nothing to pad; at least one sequence is needed")
    batch, length = len(sequences), max(len(sequence) for sequence in sequences)
    token_ids = np.full((batch, length), pad_id, dtype=np.int64)
    position_ids = np.zeros((3, batch, length), dtype=np.int64)
    attention_mask = np.zeros((batch, length), dtype=np.int64)
    for b, sequence in enumerate(sequences):
        at = slice(length - len(sequence), length) if side == "left" else slice(0, len(sequence))
        token_ids[b, at] = sequence.token_ids
        position_ids[:, b, at] = sequence.position_ids
        attention_mask[b, at] = 1
    deltas = np.array([sequence.next_position - len(sequence) for sequence in sequences], dtype=np.int64)
    return Padded(token_ids, position_ids, attention_mask, deltas)

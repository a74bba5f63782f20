"""Pictures and clips to vision tokens: each once, for whoever asks; waiting ones together; a piece at a time beside decoding.

The key of a picture or clip is a SHA-256 over its pixels, framed with their shape, kind, grids and coordinates: the same
pixels in another shape, or with rows dropped, are another medium. So are those of another salt: how soon an answer begins
would otherwise tell one asker what another has shown.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from foveal.batch import VisionTokens
from foveal.engine.pace import LEAST_ROWS, Rhythm
from foveal.model.pieces import Piece
from foveal.patches import Patches

WORTH_A_PIECE = 0.2  # of a step's share of encoding: what is left below that is not used


def digest(patches: Patches, salt: str = "") -> bytes:
    """Return the SHA-256 of all that a medium's vision tokens depend on, the model aside, and of what keeps askers apart."""
    out = hashlib.sha256()
    names = [np.frombuffer(text.encode(), np.uint8) for text in (salt, patches.kind)]
    shape = np.asarray([patches.merge, *patches.pixels.shape], "<i8")
    for part in (*names, shape, np.asarray(patches.grids, "<i8"), np.asarray(patches.coords, "<i4"), patches.pixels):
        # Not made bytes of: that copies a large picture with the interpreter's lock held, and steps would wait for it.
        data = np.ascontiguousarray(part)
        out.update(data.nbytes.to_bytes(8, "little"))
        out.update(data.data)
    return out.digest()


def num_bytes(tokens: VisionTokens) -> int:
    return tokens.embeddings.nbytes + tokens.taps.nbytes + tokens.coords.nbytes


@dataclass
class _Entry:
    tokens: VisionTokens
    pins: int = 0


class VisionCache:
    """Vision tokens by digest, least recently used first to go. Pinned ones stay, and count.

    limit_bytes bounds what is kept for later: entries that are in use may exceed it for as long as they are.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.num_bytes, self.hits, self.misses = limit_bytes, 0, 0, 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    @property
    def pinned(self) -> int:
        """How many pins there are in all."""
        return sum(entry.pins for entry in self._entries.values())

    @property
    def pinned_bytes(self) -> int:
        return sum(num_bytes(entry.tokens) for entry in self._entries.values() if entry.pins)

    def pin(self, key: bytes) -> VisionTokens:
        """Return an entry, which stays until it is unpinned as often as it was pinned."""
        entry = self._entries[key]
        entry.pins += 1
        self._entries.move_to_end(key)
        return entry.tokens

    def peek(self, key: bytes) -> VisionTokens:
        """Return an entry that is pinned."""
        assert self._entries[key].pins
        return self._entries[key].tokens

    def unpin(self, key: bytes) -> None:
        self._entries[key].pins -= 1
        assert self._entries[key].pins >= 0
        self.shrink()

    def put(self, key: bytes, tokens: VisionTokens) -> None:
        """Keep an entry. Unless it is pinned before the next, and there is no room, it is gone then."""
        if key not in self._entries:
            self._entries[key] = _Entry(tokens)
            self.num_bytes += num_bytes(tokens)

    def shrink(self) -> None:
        """Let go of what nobody uses, the least recently used first, down to the limit."""
        for key in [key for key, entry in self._entries.items() if not entry.pins]:
            if self.num_bytes <= self.limit_bytes:
                return
            self.num_bytes -= num_bytes(self._entries.pop(key).tokens)


class Encoder(Protocol):
    """The part of a model that the stage needs."""

    def encode(self, media: SequenceOf[Patches]) -> VisionTokens: ...
    def encode_in_pieces(self, media: SequenceOf[Patches]) -> Generator[Piece, int, VisionTokens]: ...


@dataclass(eq=False)
class _Wanted:
    """A medium somebody waits for. `owners` are called with its tokens, or with why there are none."""

    key: bytes
    patches: Patches
    owners: dict[int, Callable[[BaseException | None], None]] = field(default_factory=dict)


class VisionStage:
    """Encode what is wanted, first come first served, at most `pack_patches` patches of several media at once.

    `took` is told, after every piece of work, each owner of a medium in it and the seconds spent on that medium: the piece's,
    by the medium's share of the patches.
    """

    def __init__(
        self, model: Encoder, cache: VisionCache, took: Callable[[int, float], None] | None = None, *, pack_patches: int = 4096
    ) -> None:
        self.cache, self.encoded_tokens, self.seconds = cache, 0, 0.0
        self._model, self._took, self._pack_patches = model, took, pack_patches
        self._wanted: OrderedDict[bytes, _Wanted] = OrderedDict()
        self._current: list[_Wanted] = []
        self._pieces: Generator[Piece, int, VisionTokens] | None = None
        self._next: Piece | None = None  # what the pieces come to next
        self._rhythm = Rhythm()
        self._alone: set[bytes] = set()  # failed in company, to be tried by themselves

    def __len__(self) -> int:
        """Count the media that are waited for."""
        return len(self._wanted) + len(self._current)

    @property
    def under_way(self) -> bool:
        """Tell whether a pack was begun."""
        return bool(self._current)

    def expected_s(self) -> float:
        """Expect the seconds that encoding what is waited for takes, by what the rest took; 0 before anything was measured."""
        tokens = sum(waiting.patches.num_tokens for waiting in self._wanted.values())
        return self.seconds / max(self.encoded_tokens, 1) * tokens

    def want(self, key: bytes, patches: Patches, owner: int, done: Callable[[BaseException | None], None]) -> None:
        """Ask for a medium; `done` is called once, with None when its tokens are in the cache, else with the error."""
        if key in self.cache:
            self.cache.hits += 1
            done(None)
            return
        for waiting in (*self._current, *self._wanted.values()):
            if waiting.key == key:
                self.cache.hits += owner not in waiting.owners
                waiting.owners[owner] = done
                return
        self.cache.misses += 1
        self._wanted[key] = _Wanted(key, patches, {owner: done})

    def drop(self, owner: int) -> None:
        """Forget everything an owner waits for; what nobody waits for is not encoded, or not to the end."""
        for waiting in (*self._current, *list(self._wanted.values())):
            waiting.owners.pop(owner, None)
            if not waiting.owners:
                self._wanted.pop(waiting.key, None)
                self._alone.discard(waiting.key)
        if self._current and not any(waiting.owners for waiting in self._current):
            self._current, self._pieces = [], None

    def work(self, seconds: float | None = None) -> float:
        """Encode for about so many seconds, in pieces; None: one whole pack in one go. Return the seconds it took."""
        if not self._current and not self._wanted:
            return 0.0
        began = time.perf_counter()
        if not self._current:
            self._begin()
        pack = list(self._current)
        try:
            tokens = self._advance(seconds)
        except Exception as error:
            self._fail(error)
        else:
            if tokens is not None:
                self._finish(tokens)
        took = time.perf_counter() - began
        self.seconds += took
        if self._took is not None:
            rows = [len(waiting.patches.pixels) for waiting in pack]
            for waiting, own in zip(pack, rows, strict=True):
                for owner in waiting.owners:
                    self._took(owner, took * own / sum(rows))
        return took

    def _begin(self) -> None:
        """Choose the next media: the first that is wanted, and what fits beside it."""
        total = 0
        for waiting in list(self._wanted.values()):
            rows = len(waiting.patches.pixels)
            alone = waiting.key in self._alone
            if self._current and (alone or total + rows > self._pack_patches):
                break
            total += rows
            self._current.append(self._wanted.pop(waiting.key))
            if alone:
                break

    def _advance(self, seconds: float | None) -> VisionTokens | None:
        """Do at least one piece, of the smallest size if need be, and stop before the seconds are over."""
        if self._pieces is None:
            media = [waiting.patches for waiting in self._current]
            if seconds is None:
                return self._model.encode(media)
            self._pieces = self._model.encode_in_pieces(media)
            self._next = next(self._pieces)
        spent, first = 0.0, True
        while True:
            assert self._next is not None
            rows = self._next.rows
            if seconds is not None:
                rows = self._rhythm.rows(self._next, seconds - spent)
                if not first and (rows < min(LEAST_ROWS, self._next.rows) or spent > (1 - WORTH_A_PIECE) * seconds):
                    return None
                rows = min(max(rows, LEAST_ROWS), self._next.rows)
            done, began = self._next, time.perf_counter()
            try:
                self._next = self._pieces.send(rows)
            except StopIteration as ended:
                tokens: VisionTokens = ended.value
                return tokens
            took = time.perf_counter() - began
            self._rhythm.note(done, rows, took)
            spent, first = spent + took, False

    def _finish(self, tokens: VisionTokens) -> None:
        done, self._current, self._pieces = self._current, [], None
        self.encoded_tokens += len(tokens)
        start = 0
        for waiting in done:
            count = waiting.patches.num_tokens
            own = tokens
            if len(done) > 1:
                # A copy: a view would keep all of the pack in memory for as long as one of it is kept.
                part = tokens.take(slice(start, start + count))
                own = VisionTokens(part.embeddings.clone(), part.taps.clone(), part.coords.clone())
            start += count
            self._alone.discard(waiting.key)
            self.cache.put(waiting.key, own)
            for call in list(waiting.owners.values()):
                call(None)
        self.cache.shrink()

    def _fail(self, error: Exception) -> None:
        """Let each of several be tried alone, so that the one at fault fails alone."""
        failed, self._current, self._pieces = self._current, [], None
        if len(failed) == 1:
            self._alone.discard(failed[0].key)
            for call in list(failed[0].owners.values()):
                call(error)
            return
        for waiting in reversed(failed):
            self._alone.add(waiting.key)
            self._wanted[waiting.key] = waiting
            self._wanted.move_to_end(waiting.key, last=False)

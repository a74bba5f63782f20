"""What each step does: first come, first served, as far as blocks go.

Samples that run are visited in the order their requests came in. Each takes the blocks its next rows need; where none are
left, the youngest running one gives all of its up, and is computed again later, mostly from cached blocks. So the oldest always
gets on, and nobody overtakes a sample that waits: there is no starvation.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

from foveal.engine.blocks import BlockPool
from foveal.engine.metrics import Metrics
from foveal.engine.pace import FIRST_CHUNK, LEAST_ROWS, Pace
from foveal.engine.request import Job, Sample
from foveal.engine.runner import Work
from foveal.engine.speculate import useful
from foveal.model.paged import KVPool

SPENT = 0.5  # of the time newcomers may take: the rest is what measurements are off by, so that the worst step keeps to it
WHOLE_BLOCKS = 0.75  # of a chunk's rows must be left where it is cut at the end of a block
WORTH_A_STEP = 64  # rows before a picture that is not encoded yet that are read without waiting for it


@dataclass
class Plan:
    """One step: its work, how long the encoder may take before it (None: until a pack is done), and newcomers' whole share."""

    work: list[Work] = field(default_factory=list)
    encode_s: float | None = None
    spare_s: float = 0.0


class Scheduler:
    """Keep who waits and who runs, and hand out blocks.

    step_tokens: rows of prompts a step reads at most. slowdown: how many times longer than alone a step of decoding may take
    because of prompts and pictures beside it; None does not look at the clock. forbidden: ids that are not guessed.
    """

    def __init__(
        self, pool: BlockPool, store: KVPool, metrics: Metrics, *, max_running: int, step_tokens: int, slowdown: float | None,
        speculate: bool, prefix_caching: bool, forbidden: frozenset[int] = frozenset(),
    ) -> None:  # fmt: skip
        self.waiting: list[Sample] = []
        self.running: list[Sample] = []
        self.pace = Pace()
        self.pool, self.store, self.metrics = pool, store, metrics
        self._max_running, self._step_tokens, self._slowdown = max_running, step_tokens, slowdown
        self._speculate, self._prefix_caching, self._forbidden = speculate, prefix_caching, forbidden

    def add(self, sample: Sample) -> None:
        """Let a sample wait at its place in the order of arrival."""
        bisect.insort(self.waiting, sample, key=lambda s: s.order)

    def run(self, sample: Sample) -> None:
        """Let a sample that has its blocks run."""
        bisect.insort(self.running, sample, key=lambda s: s.order)

    @property
    def free_places(self) -> int:
        return self._max_running - len(self.running)

    def remove(self, sample: Sample) -> None:
        """Take a sample out, wherever it is, with its blocks back in the pool."""
        if sample in self.running:
            self.running.remove(sample)
        if sample in self.waiting:
            self.waiting.remove(sample)
        sample.reached = max(sample.reached, sample.cache.length)
        self.pool.give_back(sample.cache.replace(()))
        sample.cache.length = sample.registered = 0

    def plan(self, encoded: Callable[[Job, int], bool], encoding: bool) -> Plan:
        """Choose the work of a step.

        encoded(job, medium): are its vision tokens there, asked for where not. encoding: the encoder has something to do.
        """
        plan = Plan()
        decoding = sum(sample.decodes for sample in self.running)
        budget = self._step_tokens
        if decoding and self._slowdown is not None:
            alone = self.pace.decode_s(decoding)
            plan.spare_s = (self._slowdown - 1) * SPENT * (alone or 0.0)
            spare = None if alone is None else plan.spare_s / self.pace.excess
            rows = None if spare is None else self.pace.prefill_rows(spare / 2 if encoding else spare)
            budget = min(budget, FIRST_CHUNK if rows is None else max(rows, LEAST_ROWS))
            plan.encode_s = spare if spare and encoding else 0.0
        computing: set[bytes] = set()
        for sample in list(self.running):
            if sample not in self.running:  # gave its blocks to an older one
                continue
            if sample.decodes:
                self._decode(plan, sample, decoding)
            elif budget > 0:
                budget -= self._prefill(plan, sample, budget, encoded, computing)
        while self.waiting and budget > 0 and self.free_places > 0:
            sample = self.waiting[0]
            if not self._admit(sample):
                break
            self.run(self.waiting.pop(0))
            if sample.decodes:
                self._decode(plan, sample, decoding + 1)
            else:
                budget -= self._prefill(plan, sample, budget, encoded, computing)
            if sample not in self.running:
                break
        if plan.encode_s and any(not work.sample.decodes for work in plan.work):
            plan.encode_s /= 2  # the other half is a chunk's
        return plan

    def keep(self, sample: Sample) -> None:
        """Register the blocks a sample has filled."""
        if not self._prefix_caching:
            return
        full = sample.cache.length // self.pool.block_size
        if full > sample.registered:
            sample.keys.extend(sample.reply.token_ids)
            for block in range(sample.registered, full):
                self.pool.register(sample.cache.blocks[block], sample.keys[block])
            sample.registered = full

    def fork(self, sample: Sample, child: Sample) -> bool:
        """Let a child that has read nothing share what a sample has read; False where a block or a place is lacking."""
        size, length = self.pool.block_size, sample.cache.length
        whole = length // size
        copies: list[int] | None = []
        if self.free_places < 1 or (length % size and (copies := self.pool.take(1)) is None):
            return False
        for block in sample.cache.blocks[:whole]:
            self.pool.share(block)
        if copies:
            self.store.copy([sample.cache.blocks[whole]], copies)
        child.cache.extend([*sample.cache.blocks[:whole], *(copies or [])])
        child.cache.length, child.registered = length, min(sample.registered, whole)
        self.run(child)
        return True

    def _decode(self, plan: Plan, sample: Sample, decoding: int) -> None:
        start, stop = sample.cache.length, sample.known
        draft: tuple[int, ...] = ()
        if self._speculate and sample.job.request.speculate and sample.reply.token_ids:
            most = sample.room - 1
            draft = useful(sample.speculation.draft(sample.tokens(), most, decoding, self.pace), self._forbidden)
            more = self.pool.blocks_for(stop + len(draft)) - len(sample.cache.blocks)
            if draft and more > self.pool.num_free:
                draft = ()  # a guess is not worth anybody's blocks
        if self._give(plan, sample, stop + len(draft)):
            self._unscatter(sample)
            plan.work.append(Work(sample, start, stop, draft, 1 + len(draft)))

    def _prefill(
        self, plan: Plan, sample: Sample, budget: int, encoded: Callable[[Job, int], bool], computing: set[bytes]
    ) -> int:
        """Add the next chunk of a prompt; return its rows."""
        size, job, before = self.pool.block_size, sample.job, sample.cache.length
        self._adopt(sample)
        self._count(sample, before)
        start, known = sample.cache.length, sample.known
        if start % size == 0 and start // size < len(sample.keys) and sample.keys[start // size] in computing:
            return 0  # an older sample computes the same block in this step
        reach = known
        for medium, (first, last) in enumerate(job.spans):
            if last > start and not encoded(job, medium):
                reach = min(reach, max(first, start))
        if reach < known and reach - start < WORTH_A_STEP:
            return 0  # the few words before a picture wait for it: a step of their own would cost more than they
        stop = min(reach, start + budget)
        if stop < known and stop // size * size - start >= WHOLE_BLOCKS * (stop - start):
            stop = stop // size * size
        if stop <= start or not self._give(plan, sample, stop):
            return 0
        # The block it stops in, too: whoever needs the same waits until it is full.
        computing.update(
            sample.keys[block] for block in range(start // size, min(self.pool.blocks_for(stop), len(sample.keys)))
        )
        plan.work.append(Work(sample, start, stop, (), int(stop == known)))
        return stop - start

    def _admit(self, sample: Sample) -> bool:
        """Take what is cached of a waiting sample's tokens, if all of the rest would fit beside those who run."""
        self._adopt(sample)
        needed = self.pool.blocks_for(sample.known) - len(sample.cache.blocks)
        # A block for each that runs: whoever comes in must not be sent out by the next step.
        if needed + len(self.running) > self.pool.available:
            self.pool.give_back(sample.cache.replace(()))
            sample.cache.length = sample.registered = 0
            return False
        self._count(sample, 0)
        sample.job.admitted = True
        return True

    def _count(self, sample: Sample, start: int) -> None:
        """Count tokens from `start` on that need not be computed, as its own only what was not read for it before."""
        length = sample.cache.length
        self.metrics.tokens["cached"] += length - start
        if not sample.reply.token_ids:
            sample.job.cached_tokens += max(0, length - max(start, sample.reached))

    def _adopt(self, sample: Sample) -> None:
        """Take known blocks for the tokens that come next, all but the last token's."""
        size, cache = self.pool.block_size, sample.cache
        if not self._prefix_caching or cache.length % size or len(cache.blocks) * size != cache.length:
            return
        sample.keys.extend(sample.reply.token_ids)
        while cache.length + size < sample.known:
            at = cache.length // size
            block = self.pool.lookup(sample.keys[at])
            if block is None:
                return
            self.pool.share(block)
            cache.extend([block])
            cache.length += size
            sample.registered = at + 1

    def _give(self, plan: Plan, sample: Sample, tokens: int) -> bool:
        """Give a running sample blocks for so many tokens, from the youngest if need be; False where that was itself.

        One whose rows are in the plan keeps its blocks: a sample that came back in this step, though older, waits once more.
        """
        while True:
            blocks = sample.cache.blocks
            more = self.pool.blocks_for(tokens) - len(blocks)
            if more <= 0:
                return True
            taken = self.pool.take(more, after=blocks[-1] if blocks else None)
            if taken is not None:
                sample.cache.extend(taken)
                return True
            youngest = self.running[-1]
            if any(work.sample is youngest for work in plan.work):
                youngest = sample
            self.preempt(youngest)
            if youngest is sample:
                return False

    def preempt(self, sample: Sample) -> None:
        """Send a running sample back to wait; its blocks go, and what they held is computed again."""
        self.metrics.preemptions += 1
        self.remove(sample)
        self.add(sample)

    def _unscatter(self, sample: Sample) -> None:
        """Copy a scattered sample that decodes into blocks in a row, where the pool has room for that and as much again.

        A step in one call needs that of every sample, so one that is scattered would slow down all; and copying takes less
        than what a single step takes. Tried again only once it has another block: elsewhere others may have ended.
        """
        cache = sample.cache
        if cache.in_a_row or sample.tried == len(cache.blocks) or 4 * len(cache.blocks) > self.pool.available:
            return
        sample.tried = len(cache.blocks)
        run = self.pool.take_run(len(cache.blocks))
        if run is not None:
            self.store.copy(cache.blocks, run)
            self.pool.give_back(cache.replace(run))

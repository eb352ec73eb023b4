"""Decodes image targets: each step asks for some positions at once, and keeps some of the answers."""

import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fourm.decoding.branches import Branches, branch_inputs, count_known
from fourm.decoding.sampling import Noise, draw
from fourm.decoding.steps import DRAW, ORDER, Progress, StepNumbers
from fourm.networks.graphs import Graphs
from fourm.networks.model import Embedded
from fourm.networks.state import Batch, Slot, stack_batches
from fourm.schedule.chain import Chain, Step
from fourm.schedule.schemes import SCHEMES


@dataclass(frozen=True, slots=True)
class GridDecoder:
    """Decodes the image targets of a chain."""

    branches: Branches
    chain: Chain
    graphs: Graphs | None = None

    def decode(
        self, batch: Batch, steps: Sequence[Step], masks: Batch, numbers: dict[int, StepNumbers], noise: Noise
    ) -> Generator[Progress, None, Batch]:
        """All steps of one target; yields what each did, returns the last batch.

        masks: the masks of the batch on the host, so that no step waits for the device to count what each
        row of each pass may read.
        """
        target, reads, seen = steps[0].target, self.branches.network.reads, None
        slot, mask = batch.slots[target], masks.slots[target]
        uniforms = self._uniforms(noise, steps, slot, numbers[steps[0].index].ranks)
        known, others = list[int](), dict[str, Parts]()
        for step in steps:
            started, own = time.perf_counter(), numbers[step.index]
            if not own.fixed:
                continue
            with torch.inference_mode():
                if step.visibility != seen:
                    seen = step.visibility
                    known = count_known(branch_inputs(masks.with_slot(target, mask), step), reads)
                    others = self._embed_others(batch, step)
                slot, sound = self._step(batch, step, known, own, others, uniforms[step.index])
                batch = batch.with_slot(target, slot)
            known = [count + (own.fixed if target in reads else 0) for count in known]
            mask = fix_first(mask, own.fixed)
            total, left = mask.known.shape[1], int(mask.wanted[:1].sum())
            seconds = time.perf_counter() - started
            yield Progress(step, batch, own.fixed, total - left, total, seconds, sound)
        return batch

    def _uniforms(
        self, noise: Noise, steps: Sequence[Step], slot: Slot, ranks: Tensor | None
    ) -> dict[int, Tensor]:
        """For each step by index, uniforms (2, B, L): those for the order of positions, and for drawing.

        ranks: those of a fixed order (`StepNumbers`), which are then in place of the former.
        """
        places = torch.arange(slot.known.shape[1], device=slot.known.device).expand_as(slot.known)
        indices = [step.index for step in steps]
        if not self.branches.shapes(places.device).is_fixed:
            both = [
                torch.stack([noise.uniforms(index, use, places) for use in (ORDER, DRAW)])
                for index in indices
            ]
        else:  # all at once, since each call starts many kernels
            rows = torch.arange(indices[0], indices[-1] + 1, device=places.device).unsqueeze(1)
            both = [*torch.stack([noise.uniforms(rows, use, places) for use in (ORDER, DRAW)], dim=1)]
        if ranks is not None:
            both = [torch.stack([ranks.expand_as(one[DRAW]), one[DRAW]]) for one in both]
        return dict(zip(indices, both, strict=True))

    def _embed_others(self, batch: Batch, step: Step) -> dict[str, "Parts"]:
        """The embeddings of all modalities for all branches; a step changes that of the target only."""
        if self.branches.plain:
            return {}
        return dict(self.branches.network.embed(stack_batches(branch_inputs(batch, step))))

    def _step(
        self, batch: Batch, step: Step, known: list[int], numbers: StepNumbers, others: Embedded,
        uniforms: Tensor,
    ) -> tuple[Slot, Tensor]:  # fmt: skip
        """One step: the target's slot, and (B,) bool, True where all logits were finite."""
        slot, shapes = batch.slots[step.target], self.branches.shapes(batch.device)
        asks_all = SCHEMES[step.scheme].rank is not None
        size = shapes.num_asked(numbers.asked, slot.known.shape[1], asks_all)
        if self.branches.plain:
            ask = partial(self._ask_plain, batch, step)
            return self._fix(slot, step, size, ask, uniforms, numbers.counts, numbers.scales)
        own, count = slot.tensors(), 3 * len(others)

        def work(*tensors: Tensor) -> Sequence[Tensor]:
            fields = [iter(tensors[:count])] * 3
            parts = dict(zip(others, zip(*fields, strict=True), strict=True))
            state = slot.with_tensors(tensors[count : count + len(own)])
            ask = partial(self._ask, Batch(batch.keys, {step.target: state}), step, known, parts)
            made, sound = self._fix(state, step, size, ask, *tensors[-3:])
            return made.values, made.known, made.wanted, sound

        embedded = [one for part in others.values() for one in part]
        inputs = (*embedded, *own, uniforms, numbers.counts, numbers.scales)
        if self.graphs is None or not shapes.is_fixed:
            made = work(*inputs)
        else:
            made = self.graphs.run(self._key(step, known, size, others, slot), work, *inputs)
        values, is_known, wanted, sound = made
        return replace(slot, values=values, known=is_known, wanted=wanted), sound

    def _key(self, step: Step, known: list[int], size: int, others: Embedded, slot: Slot) -> Hashable:
        """All that a step's work depends on besides tensors: their shapes, and what the host decides."""
        shapes = tuple((name, *(tuple(one.shape) for one in part)) for name, part in others.items())
        own = tuple(tuple(one.shape) for one in slot.tensors())
        budget, room = self.branches.sizes(others, known)
        chain = self.chain.top_k, self.chain.top_p
        return step.kind, chain, size, budget, room, min(known) == budget, min(known) == 0, shapes, own

    def _fix(
        self, slot: Slot, step: Step, size: int, ask: Callable[[Tensor, Tensor | None, Tensor], Tensor],
        uniforms: Tensor, counts: Tensor, scales: Tensor,
    ) -> tuple[Slot, Tensor]:  # fmt: skip
        """Ask for positions, draw tokens, keep some: the target's slot, and (B,) bool `sound`.

        size: positions that are asked for, at least `counts[0]`; those beyond it have no effect. ask: gives
        the logits (B, size, V) of positions, of which some are asked, with weights of branches. counts and
        scales are those of `StepNumbers`.
        """
        scheme, asked = SCHEMES[step.scheme], None
        positions = scheme.order(slot.wanted, uniforms[ORDER])[:, :size]
        if self.branches.shapes(positions.device).is_fixed:
            asked = (torch.arange(size, device=positions.device) < counts[0]).expand_as(positions)
        else:
            positions = positions.sort(dim=1).values
        logits, temperature = ask(positions, asked, scales[1:]), 0.0 if step.is_greedy else scales[0]
        uniforms = uniforms[DRAW].gather(1, positions)
        chain = self.chain
        ids, confidence, raw_prob = draw(logits, uniforms, temperature, chain.top_k, chain.top_p)
        sound, chosen = raw_prob.isfinite(), asked
        if asked is not None:
            sound = sound | ~asked
        if scheme.rank is not None:
            if asked is not None:
                confidence, raw_prob = (one.masked_fill(~asked, -1) for one in (confidence, raw_prob))
            ranked = scheme.rank(confidence, raw_prob)
            best = (torch.arange(size, device=ranked.device) < counts[1]).expand_as(ranked)
            chosen = torch.zeros_like(best).scatter(1, ranked, best)
        return slot.fill(positions, ids, chosen), sound.all(dim=1)

    def _ask_plain(
        self, batch: Batch, step: Step, positions: Tensor, asked: Tensor | None, weights: Tensor
    ) -> Tensor:
        contexts = self.branches.encode(branch_inputs(batch, step), [])
        return self.branches.logits(step, positions, None, contexts)

    def _ask(
        self, target: Batch, step: Step, known: list[int], others: Embedded,
        positions: Tensor, asked: Tensor | None, weights: Tensor,
    ) -> Tensor:  # fmt: skip
        now = self.branches.network.embed(stack_batches(branch_inputs(target, step)))
        context = self.branches.encode_embedded({**others, **now}, known)
        return self.branches.logits(step, positions, None, [context], asked=asked, weights=weights)


def fix_first(mask: Slot, count: int) -> Slot:
    """The masks of a target, on the host, after `count` more tokens of each row are fixed.

    The host does not know which these are; for counting, it marks the first ones.
    """
    first = mask.wanted & (mask.wanted.cumsum(dim=1) <= count)
    return replace(mask, known=mask.known | first, wanted=mask.wanted & ~first)


Parts = tuple[Tensor, Tensor, Tensor]  # of a modality, see `Embedded`

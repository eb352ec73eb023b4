"""Runs a chain over a batch; the fast path is tested against a slow reference path.

The engine sees tensors only: it opens no file and loads no model. Each decoding step yields a `Progress`
with a new batch; the last one holds the finished batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

from fourm.decoding.branches import Branches, branch_inputs, count_known
from fourm.decoding.grids import GridDecoder, fix_first
from fourm.decoding.sampling import Noise
from fourm.decoding.steps import Progress, numbers_of
from fourm.decoding.texts import TextDecoder
from fourm.modalities.registry import Kind, Registry
from fourm.modalities.text import FIRST_SENTINEL
from fourm.networks.graphs import Graphs
from fourm.networks.model import FourM
from fourm.networks.state import Batch, Slot, pending
from fourm.schedule.chain import Chain
from fourm.schedule.cost import MOST_ROWS

RELEASED_SENTINELS = range(FIRST_SENTINEL, FIRST_SENTINEL + 200)  # of the released text tokenizer


@dataclass(frozen=True, slots=True)
class Engine:
    """Decodes the targets of a chain with a network."""

    network: FourM  # tests pass a fake with encode, decode, start_cache and room_for
    sentinels: range = RELEASED_SENTINELS  # ids of [S_0], [S_1], ... in the model's text tokenizer
    plain: bool = False  # True: the slow reference path; branches run one by one, without cache and padding
    graphs: Graphs | None = None  # where devices have them, steps are captured there
    max_rows: int = MOST_ROWS  # texts decoded together where a step has several passes; no effect on results

    def run(self, batch: Batch, chain: Chain, noise: Noise) -> Iterator[Progress]:
        """Decode the targets of a chain in order; each must be in the batch (see `with_targets`).

        ValueError: the rows of an image target have different numbers of tokens to decode (see
        `equal_counts`).
        """
        count, branches = len(batch.keys), Branches(self.network, self.plain)
        if (rows := branches.shapes(batch.device).num_rows(count)) > count:
            batch, noise = batch.filled(rows), noise.filled(rows)
        for progress in self._run(batch, chain, noise):
            faults = {row: fault for row, fault in progress.faults.items() if row < count}
            shown = progress.batch.first(count)
            yield replace(progress, batch=shown, sound=progress.sound[:count], faults=faults)

    def _run(self, batch: Batch, chain: Chain, noise: Noise) -> Iterator[Progress]:
        masks = Batch(batch.keys, {name: _masks_on_host(slot) for name, slot in batch.slots.items()})
        numbers, branches = numbers_of(chain, masks, batch.device), Branches(self.network, self.plain)
        grids = GridDecoder(branches, chain, self.graphs)
        texts = TextDecoder(branches, chain, self.sentinels, self.max_rows, self.graphs)
        for target, group in groupby(chain.steps, key=attrgetter("target")):
            steps = [*group]
            if batch.slots[target].kind is Kind.GRID:
                batch = yield from grids.decode(batch, steps, masks, numbers, noise)
                fixed = sum(numbers[step.index].fixed for step in steps)
                masks = masks.with_slot(target, fix_first(masks.slots[target], fixed))
                continue
            for step in steps:
                known = count_known(branch_inputs(masks, step), self.network.reads)
                batch = yield from texts.decode(batch, step, noise, known)
                masks = masks.with_slot(target, _masks_on_host(batch.slots[target]))


def group_by_counts(batch: Batch, chain: Chain) -> list[tuple[list[int], Chain]]:
    """Groups of rows that want equally many tokens in each target, and the chain for each group.

    A step fixes equally many tokens in each row, so only the rows of a group can be decoded together. How
    many it fixes follows from the number that is wanted, as if the row were alone. Texts with something to
    fill and texts without are in different groups.
    """
    present = [target for target in chain.targets if target in batch.slots]
    if not present:
        return [([*range(len(batch.keys))], chain)]
    limits, columns = {spec.target: spec.num_tokens for spec in chain.specs}, list[Tensor]()
    for target in present:
        wanted = batch.slots[target].wanted.sum(dim=1)
        is_grid = batch.slots[target].kind is Kind.GRID
        columns.append(wanted if is_grid else (wanted > 0) * limits[target])
    groups = dict[tuple[int, ...], list[int]]()
    for row, counts in enumerate(torch.stack(columns, dim=1).tolist()):
        groups.setdefault(tuple(counts), []).append(row)
    return [(rows, chain.for_counts(dict(zip(present, n, strict=True)))) for n, rows in groups.items()]


def with_targets(batch: Batch, chain: Chain, registry: Registry) -> Batch:
    """The batch with a pending slot for each target of the chain; slots that it already has are kept."""
    for target, num_tokens in chain.num_tokens.items():
        if target not in batch.slots:
            slot = pending(registry.get(target).kind, len(batch.keys), num_tokens)
            batch = batch.with_slot(target, slot)
    return batch


def _masks_on_host(slot: Slot) -> Slot:
    """The masks of a slot, on the CPU. Its values are not copied: a mask stands in their place."""
    known, given = slot.known.cpu(), None if slot.given is None else slot.given.cpu()
    return Slot(slot.kind, known, known, slot.wanted.cpu(), given=given)

"""Runs a chain over a batch; the fast path is tested against a slow reference path.

The engine sees tensors only: it opens no file and loads no model. Each decoding step yields a `Progress`
with a new batch; the last one holds the finished batch.
"""

import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fourm.decoding.sampling import Noise, draw, guide
from fourm.modalities.registry import MAX_SIZE, Kind, Registry
from fourm.modalities.text import FIRST_SENTINEL, PAD_ID, merge_spans
from fourm.networks.model import FourM
from fourm.networks.state import S1_ID, Batch, Context, DecoderCache, Slot, pending, stack_batches
from fourm.schedule.chain import Chain, Step
from fourm.schedule.cost import MOST_ROWS
from fourm.schedule.schemes import SCHEMES

ORDER, DRAW = 0, 1  # independent streams of noise: for the order of positions, for drawing tokens
# Rows are padded to a multiple of this many tokens, so that the rounding of a sample's sums does not depend
# on the length of other rows of its batch: a vector register on CPUs (16 floats), a matrix-unit tile on GPUs.
PAD_MULTIPLE = {"cpu": 16}
PAD_MULTIPLE_ELSEWHERE = 64
RELEASED_SENTINELS = range(FIRST_SENTINEL, FIRST_SENTINEL + 200)  # of the released text tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What one decoding step did; for a sequence, one is yielded after every token."""

    step: Step
    batch: Batch  # after the step; while a sequence is decoded, without its new tokens
    fixed: int  # tokens of each sample fixed since the last report, in all passes of a sequence together
    done: int  # tokens of each sample's target fixed so far
    total: int  # tokens of the target; for a sequence the limit, times its passes
    seconds: float  # time on the host since the last report
    sound: Tensor  # (B,) bool, False for rows of meaningless tokens: their logits were not finite
    faults: Mapping[int, str] = field(default_factory=dict)  # by row: why no later step can be run for it


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts that are decoded together: P of each of B samples, in adjacent rows.

    A pass is one prediction of a text; a dense target has several of each sample (`Step.passes`).
    """

    batch: Batch
    step: Step
    numbers: range  # (P) of these passes, among all passes of the step
    limit: int  # largest number of tokens of a text
    slot: Slot  # B * P rows: the target before it is decoded
    contexts: list[Context]  # one, with all branches stacked; in the reference path one for each branch
    cache: DecoderCache | None  # None in the reference path


@dataclass(frozen=True, slots=True)
class Engine:
    """Decodes the targets of a chain with a network."""

    network: FourM  # tests pass a fake with encode, decode, start_cache and room_for
    sentinels: range = RELEASED_SENTINELS  # ids of [S_0], [S_1], ... in the model's text tokenizer
    plain: bool = False  # True: the slow reference path; branches run one by one, without cache and padding
    max_rows: int = MOST_ROWS  # texts decoded together where a step has several passes; no effect on results

    def run(self, batch: Batch, chain: Chain, noise: Noise) -> Iterator[Progress]:
        """Decode the targets of a chain in order; each must be in the batch (see `with_targets`).

        ValueError: the rows of an image target have different numbers of tokens to decode (see
        `group_by_counts`).
        """
        # The masks are kept on the host, so that no step waits for the device to count how many tokens each
        # row of each branch may read (`num_known`), and how many of each target are left (`num_left`).
        masks = Batch(batch.keys, {name: _masks_on_host(slot) for name, slot in batch.slots.items()})
        num_known, num_left = list[int](), dict[str, int]()
        for step in chain.steps:
            started = time.perf_counter()
            target, slot = step.target, batch.slots[step.target]
            if slot.kind is Kind.SEQUENCE:
                counts = _count_known(_branch_inputs(masks, step))
                batch = yield from self._decode_sequence(batch, step, chain, noise, counts)
                masks = masks.with_slot(target, _masks_on_host(batch.slots[target]))
                continue
            mask = masks.slots[target]
            if target not in num_left:
                fewest, most = (int(count) for count in mask.wanted.sum(dim=1).aminmax())
                if fewest != most:
                    raise ValueError(
                        f"{target}: rows have {fewest} to {most} tokens to decode; group equal ones"
                    )
                num_left[target] = most
                num_known = _count_known(_branch_inputs(masks, step))
            fixed = min(step.num_tokens, num_left[target])
            if fixed == 0:
                continue
            with torch.inference_mode():
                batch, sound = self._decode_grid(batch, step, chain, noise, num_known, num_left[target])
            num_known = [count + fixed for count in num_known]
            num_left[target] -= fixed
            # The host does not know which tokens were fixed; for counting, it marks the first ones.
            first = mask.wanted & (mask.wanted.cumsum(dim=1) <= fixed)
            mask = replace(mask, known=mask.known | first, wanted=mask.wanted & ~first)
            masks = masks.with_slot(target, mask)
            total, seconds = slot.known.shape[1], time.perf_counter() - started
            yield Progress(step, batch, fixed, total - num_left[target], total, seconds, sound)

    def _decode_grid(
        self, batch: Batch, step: Step, chain: Chain, noise: Noise, num_known: list[int], num_left: int
    ) -> tuple[Batch, Tensor]:
        """One step of an image target: ask for positions, draw tokens, keep some. Returns `sound`, too."""
        scheme, slot = SCHEMES[step.scheme], batch.slots[step.target]
        places = torch.arange(slot.known.shape[1], device=slot.known.device).expand_as(slot.known)
        order = noise.uniforms(step.index, ORDER, places)
        positions = scheme.ask(slot.wanted, num_left, step.num_tokens, order)
        logits = self._ask(_branch_inputs(batch, step), step, positions, num_known)
        uniforms = noise.uniforms(step.index, DRAW, positions)
        drawn = draw(logits, uniforms, step.temperature, chain.top_k, chain.top_p)
        ids = drawn.ids
        if scheme.keep is not None:
            picks = scheme.keep(drawn.confidence, drawn.raw_prob, step.num_tokens)
            positions, ids = positions.gather(1, picks), ids.gather(1, picks)
        return batch.with_slot(step.target, slot.fill(positions, ids)), drawn.raw_prob.isfinite().all(dim=1)

    def _ask(self, inputs: list[Batch], step: Step, positions: Tensor, num_known: list[int]) -> Tensor:
        """Guided logits (B, K, V) of the target at positions (B, K); inputs: of the base and each branch."""
        if self.plain:
            return self._decode(step, positions, None, [self.network.encode(one) for one in inputs])
        return self._decode(step, positions, None, [self._encode(inputs, num_known)])

    def _encode(self, inputs: list[Batch], num_known: list[int]) -> Context:
        """Encode the base and all branches as one padded batch; num_known: of each row of the stacked batch.

        Rows are padded to a multiple of PAD_MULTIPLE tokens.
        """
        batch = stack_batches(inputs)
        multiple = PAD_MULTIPLE.get(batch.device.type, PAD_MULTIPLE_ELSEWHERE)
        budget = math.ceil(max(num_known) / multiple) * multiple
        return self.network.encode(batch, budget, sum(num_known))

    def _decode_sequence(
        self, batch: Batch, step: Step, chain: Chain, noise: Noise, num_known: list[int]
    ) -> Generator[Progress, None, Batch]:
        """Decode one or more texts of each sample; yields and returns the batch with the joined texts."""
        slot, inputs, count = batch.slots[step.target], _branch_inputs(batch, step), len(batch.keys)
        sound = torch.ones(count, dtype=torch.bool, device=batch.device)
        decoded: list[list[list[int]]] = [[] for _ in batch.keys]  # of each sample, the texts of its passes
        num_decoded = 0  # tokens per sample
        limit = int(_bounds(slot, step.num_tokens)[2].max())
        with torch.inference_mode():
            stacked = None if self.plain else self._encode(inputs, num_known)
        size = max(1, self.max_rows // max(count, 1))
        for first in range(0, step.passes, size):
            numbers = range(first, min(first + size, step.passes))
            rows = torch.arange(count, device=batch.device).repeat_interleave(len(numbers))
            with torch.inference_mode():
                if stacked is None:
                    contexts, cache = [self.network.encode(one.select(rows)) for one in inputs], None
                else:  # the passes of a sample share one computation of keys and values
                    cache = self.network.start_cache(stacked, limit, len(numbers))
                    visible = stacked.visible.repeat_interleave(len(numbers), dim=0)
                    contexts = [Context(stacked.tokens, visible)]
            texts = Texts(batch, step, numbers, limit, slot.select(rows), contexts, cache)
            ids, finite = yield from self._decode_texts(texts, chain, noise)
            sound = sound & finite
            num_decoded += (ids.shape[1] - 1) * len(numbers)
            merged = _merge(texts.slot, ids, self.sentinels)
            for row, sample in enumerate(decoded):
                sample += merged[row * len(numbers) : (row + 1) * len(numbers)]
        faults = self._faults(decoded, step, chain)
        decoded = [[[]] * step.passes if row in faults else sample for row, sample in enumerate(decoded)]
        joined = batch.with_slot(step.target, _joined(decoded).to(batch.device))
        yield Progress(step, joined, 0, num_decoded, limit * step.passes, 0.0, sound, faults)
        return joined

    def _decode_texts(
        self, texts: Texts, chain: Chain, noise: Noise
    ) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
        """Decode token by token. Returns ids (B * P, 1 + n), the given first one included, and (B,) sound."""
        started = time.perf_counter()
        step, numbers, count = texts.step, texts.numbers, len(texts.batch.keys)
        # The noise of pass p starts at position p * MAX_SIZE: no text is that long, so passes share no noise,
        # and the first one equals a step of one pass.
        begins = torch.arange(numbers.start, numbers.stop, device=texts.slot.values.device) * MAX_SIZE
        starts, stops, room = _bounds(texts.slot, step.num_tokens)
        ids, active = starts.unsqueeze(1), (room > 0) & (starts != stops)
        sound = torch.ones(count, dtype=torch.bool, device=ids.device)
        for j in range(texts.limit):
            if not bool(active.any()):
                break
            with torch.inference_mode():
                logits = self._next_logits(texts, ids)
                uniforms = noise.uniforms(step.index, DRAW, (begins + j).expand(count, -1)).flatten()
                drawn = draw(logits, uniforms, step.temperature, chain.top_k, chain.top_p)
                sound = sound & (drawn.raw_prob.isfinite() | ~active).view(count, -1).all(dim=1)
                # A finished row gets padding, whatever was drawn for it.
                new = torch.where(active, drawn.ids, torch.full_like(drawn.ids, PAD_ID))
                ids = torch.cat([ids, new.unsqueeze(1)], dim=1)
                active = active & (new != stops) & (j + 1 < room)
            done = numbers.start * texts.limit + (j + 1) * len(numbers)
            total = texts.limit * step.passes
            seconds = time.perf_counter() - started
            yield Progress(step, texts.batch, len(numbers), done, total, seconds, sound)
            started = time.perf_counter()
        return ids, sound

    def _faults(self, decoded: list[list[list[int]]], step: Step, chain: Chain) -> dict[int, str]:
        """By row: why joined texts are longer than the network reads; {} where no later step sees them."""
        reader = next((s.target for s in chain.steps[step.index + 1 :] if s.sees(step.target)), None)
        if step.passes == 1 or reader is None or (room := self.network.room_for(step.target)) is None:
            return {}
        faults = dict[int, str]()
        for row, texts in enumerate(decoded):
            if (length := sum(map(len, texts))) > room:
                faults[row] = (
                    f"{step.target}: its {step.passes} passes have {length:,} tokens, but the model can read "
                    f"{room} for {reader}; make {step.target} the last target, or ask for fewer passes"
                )
        return faults

    def _next_logits(self, texts: Texts, ids: Tensor) -> Tensor:
        """Guided logits (B * P, V) of the token after ids (B * P, 1 + j)."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        if not self.plain:  # the reference path computes everything anew for each token
            positions, ids = positions[:, -1:], ids[:, -1:]
        return self._decode(texts.step, positions, ids, texts.contexts, texts.cache)[:, -1]

    def _decode(
        self, step: Step, positions: Tensor, ids: Tensor | None, contexts: list[Context],
        cache: DecoderCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Guided logits (B, K, V) float32 of the target at positions (B, K); ids as in `FourM.decode`."""
        count = 1 + len(step.branches)
        copies = count // len(contexts)  # all branches are stacked in one context, or each has its own
        positions, ids = positions.repeat(copies, 1), None if ids is None else ids.repeat(copies, 1)
        parts = [self.network.decode(step.target, positions, ids, context, cache) for context in contexts]
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]
        weights = torch.tensor([branch.weight for branch in step.branches])
        return guide(logits.float().view(count, -1, *logits.shape[1:]), weights)


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


def _branch_inputs(batch: Batch, step: Step) -> list[Batch]:
    """What the encoder reads in a step: one batch for the base, then one for each branch."""
    if not step.guided:
        return [batch]
    hide = batch.without if step.removes_hidden else batch.hide
    return [hide(step.guided), *(hide(step.guided - branch.visible) for branch in step.branches)]


def _count_known(inputs: list[Batch]) -> list[int]:
    """How many tokens the encoder may read in each row of the stacked batches."""
    return torch.cat([one.num_known() for one in inputs]).tolist()


def _bounds(slot: Slot, max_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """First id, stop id and number of tokens to decode, each (B,) int64, of a pending text.

    A pending text has both ids at its first and last wanted position (see `typed_text`).
    """
    order = slot.wanted.long().argsort(dim=1, descending=True, stable=True)
    counts = slot.wanted.sum(dim=1)
    first, last = order[:, :1], order.gather(1, (counts - 1).clamp_min(0).unsqueeze(1))
    starts, stops = slot.values.gather(1, first)[:, 0], slot.values.gather(1, last)[:, 0]
    return starts, stops, counts.clamp_max(max_tokens)


def _merge(slot: Slot, ids: Tensor, sentinels: range) -> list[list[int]]:
    """The ids of each text of a slot of R rows, in which the decoded ids (R, 1 + n) replace the sentinels."""
    slot = slot.to("cpu")  # one copy for all texts
    rows, stops = [], _bounds(slot, ids.shape[1])[1]
    for values, known, new, stop in zip(slot.values, slot.known, ids.tolist(), stops.tolist(), strict=True):
        visible = values[known].tolist() or [S1_ID]
        end = new.index(stop, 1) + 1 if stop in new[1:] else len(new)
        rows.append(merge_spans(visible, new[:end], sentinels))
    return rows


def _joined(decoded: list[list[list[int]]]) -> Slot:
    """The texts of each sample, one after the other, as a slot without tokens to decode."""
    rows = [[token for text in texts for token in text] for texts in decoded]
    length = max((1, *map(len, rows)))
    padded = torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows], dtype=torch.int64)
    lengths = torch.tensor([[*map(len, texts)] for texts in decoded], dtype=torch.int64)
    known = torch.arange(length) < lengths.sum(dim=1, keepdim=True)
    several = lengths if lengths.shape[1] > 1 else None
    return Slot(Kind.SEQUENCE, padded, known, torch.zeros_like(known), several)

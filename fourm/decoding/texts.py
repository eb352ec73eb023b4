"""Decodes texts token by token, several of a sample side by side, and fills them into what was given."""

import time
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fourm.decoding.branches import Branches, branch_inputs
from fourm.decoding.sampling import Noise, draw
from fourm.decoding.steps import DRAW, Progress
from fourm.modalities.registry import MAX_SIZE, Kind
from fourm.modalities.text import PAD_ID, merge_spans
from fourm.networks.attention import KVCache, Mask
from fourm.networks.graphs import Graphs
from fourm.networks.model import Context, DecoderCache
from fourm.networks.state import S1_ID, Batch, Slot, to_device
from fourm.schedule.chain import Chain, Step

MOST_CAPTURED_ROWS = 64  # with more, kernels take longer than it takes to start them


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
    key: Hashable = None  # of what is captured for one token; None: nothing is


@dataclass(frozen=True, slots=True)
class TextDecoder:
    """Decodes the texts of a chain."""

    branches: Branches
    chain: Chain
    sentinels: range  # ids of [S_0], [S_1], ... in the model's text tokenizer
    max_rows: int  # texts decoded together where a step has several passes; no effect on results
    graphs: Graphs | None = None

    def decode(
        self, batch: Batch, step: Step, noise: Noise, known: list[int]
    ) -> Generator[Progress, None, Batch]:
        """Decode one or more texts of each sample; yields and returns the batch with the joined texts."""
        slot, states, count = batch.slots[step.target], branch_inputs(batch, step), len(batch.keys)
        sound = torch.ones(count, dtype=torch.bool, device=batch.device)
        decoded: list[list[list[int]]] = [[] for _ in batch.keys]  # of each sample, the texts of its passes
        num_decoded = 0  # tokens per sample
        limit = int(_bounds(slot, step.num_tokens)[2].max())
        room = self.branches.shapes(batch.device).num_places(limit)
        with torch.inference_mode():
            stacked = None if self.branches.plain else self.branches.encode(states, known)[0]
        size = max(1, self.max_rows // max(count, 1))
        for first in range(0, step.passes, size):
            numbers = range(first, min(first + size, step.passes))
            rows = torch.arange(count, device=batch.device).repeat_interleave(len(numbers))
            with torch.inference_mode():
                if stacked is None:
                    contexts, cache = self.branches.encode([one.select(rows) for one in states], []), None
                else:  # the passes of a sample share one computation of keys and values
                    cache = self.branches.network.start_cache(stacked, room, len(numbers))
                    contexts = [stacked.repeated(len(numbers))]
                texts = Texts(batch, step, numbers, limit, slot.select(rows), contexts, cache)
            with self._held(texts) as texts:
                ids, finite = yield from self._decode_texts(texts, noise)
            sound = sound & finite
            num_decoded += (ids.shape[1] - 1) * len(numbers)
            merged = _merge(texts.slot, ids, self.sentinels)
            for row, sample in enumerate(decoded):
                sample += merged[row * len(numbers) : (row + 1) * len(numbers)]
        faults = self._faults(decoded, step)
        decoded = [[[]] * step.passes if row in faults else sample for row, sample in enumerate(decoded)]
        joined = batch.with_slot(step.target, _joined(decoded).to(batch.device))
        yield Progress(step, joined, 0, num_decoded, limit * step.passes, 0.0, sound, faults)
        return joined

    def _decode_texts(self, texts: Texts, noise: Noise) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
        """Decode token by token. Returns ids (B * P, 1 + n), the given first one included, and (B,) sound."""
        started = time.perf_counter()
        step, numbers, count = texts.step, texts.numbers, len(texts.batch.keys)
        starts, stops, room = _bounds(texts.slot, step.num_tokens)
        ids, active, device = [starts], (room > 0) & (starts != stops), starts.device
        uniforms, ats = self._uniforms(texts, noise), torch.arange(texts.limit, device=device)
        sound = torch.ones(count, dtype=torch.bool, device=device)
        num_needed = torch.zeros((), dtype=torch.int64, device=device)
        every = self.branches.shapes(device).tokens_per_wait
        temperature = to_device(torch.tensor(step.temperature), device)
        for j in range(texts.limit):
            if j % every == 0 and not bool(active.any()):
                break
            with torch.inference_mode():
                num_needed = num_needed + active.any()
                last = torch.stack(ids, dim=1) if self.branches.plain else ids[-1].unsqueeze(1)
                inputs = (last, ats[j : j + 1], uniforms[j], active, stops, room, temperature)
                new, active, is_finite = self._run(texts, inputs)
                sound = sound & is_finite.view(count, -1).all(dim=1)
                ids.append(new)
            done = numbers.start * texts.limit + (j + 1) * len(numbers)
            total, seconds = texts.limit * step.passes, time.perf_counter() - started
            yield Progress(step, texts.batch, len(numbers), done, total, seconds, sound)
            started = time.perf_counter()
        # What was decoded behind the end of all texts is cut.
        return torch.stack(ids[: int(num_needed) + 1], dim=1), sound

    @contextmanager
    def _held(self, texts: Texts) -> Iterator[Texts]:
        """The texts with keys and values in memory that stays, which captured work can read and write."""
        context, cache, device = texts.contexts[0], texts.cache, texts.slot.values.device
        rows = len(texts.slot.values) * (1 + len(texts.step.branches))
        if cache is None or self.graphs is None or device.type != "cuda" or rows > MOST_CAPTURED_ROWS:
            yield texts
            return
        held = [one for block in cache for one in (*block.cross, block.held)]
        mask = context.mask
        masks = [] if mask is None else [one for one in (mask.bias, mask.seen) if one is not None]
        shapes = tuple(tuple(one.shape) for one in (*held, *masks))
        weights = tuple(branch.weight for branch in texts.step.branches)
        key = (texts.step.kind, weights, self.chain.top_k, self.chain.top_p, rows, shapes, mask is None)
        with self.graphs.hold(key, [*held, *masks]) as tensors:
            if tensors is None:
                yield texts
                return
            stays = iter(tensors)
            cache = tuple(KVCache((next(stays), next(stays)), held=next(stays)) for _ in cache)
            if mask is not None:
                mask = Mask(next(stays), None if mask.seen is None else next(stays))
            yield replace(texts, cache=cache, contexts=[replace(context, mask=mask)], key=key)

    def _uniforms(self, texts: Texts, noise: Noise) -> Tensor:
        """The uniform of each token of each text, (limit, B * P)."""
        numbers, count = texts.numbers, len(texts.batch.keys)
        # The noise of pass p starts at position p * MAX_SIZE: no text is that long, so passes share no noise,
        # and the first one equals a step of one pass.
        device = texts.slot.values.device
        begins = torch.arange(numbers.start, numbers.stop, device=device) * MAX_SIZE
        places = (begins.unsqueeze(1) + torch.arange(texts.limit, device=device)).flatten()
        drawn = noise.uniforms(texts.step.index, DRAW, places.expand(count, -1))
        return drawn.reshape(count * len(numbers), texts.limit).T.contiguous()

    def _run(self, texts: Texts, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """`_next` for these inputs, where it pays as a captured graph."""
        work = partial(self._next, texts)
        if texts.key is None or self.graphs is None:
            return work(*inputs)
        return self.graphs.run(texts.key, work, *inputs)

    def _next(
        self, texts: Texts, ids: Tensor, at: Tensor, uniforms: Tensor, active: Tensor, stops: Tensor,
        room: Tensor, temperature: Tensor,
    ) -> Sequence[Tensor]:  # fmt: skip
        """The next token of each of R texts, which texts go on, and which met no meaningless logits.

        ids: (R, 1) the tokens before, of the reference path (R, 1 + j), all so far; at: (1,) place of the
        last of them; uniforms (R,); active (R,) bool; stops (R,) ids; room (R,) numbers of tokens.
        """
        step, chain, length = texts.step, self.chain, None
        if self.branches.plain:  # computes everything anew for each token
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        else:
            positions = at.expand_as(ids)
            length = None if self.branches.shapes(ids.device).is_fixed else int(at) + 1
        logits = self.branches.logits(step, positions, ids, texts.contexts, texts.cache, length)[:, -1]
        heat = 0.0 if step.is_greedy else temperature
        drawn = draw(logits, uniforms, heat, chain.top_k, chain.top_p)
        # A finished row gets padding, whatever was drawn for it.
        new = torch.where(active, drawn.ids, torch.full_like(drawn.ids, PAD_ID))
        goes_on = active & (new != stops) & (at + 1 < room)
        return new, goes_on, drawn.raw_prob.isfinite() | ~active

    def _faults(self, decoded: list[list[list[int]]], step: Step) -> dict[int, str]:
        """By row: why joined texts are longer than the network reads; {} where no later step sees them."""
        reader = next((s.target for s in self.chain.steps[step.index + 1 :] if s.sees(step.target)), None)
        if (
            step.passes == 1
            or reader is None
            or (room := self.branches.network.room_for(step.target)) is None
        ):
            return {}
        faults = dict[int, str]()
        for row, texts in enumerate(decoded):
            if (length := sum(map(len, texts))) > room:
                faults[row] = (
                    f"{step.target}: its {step.passes} passes have {length:,} tokens, but the model can read "
                    f"{room} for {reader}; make {step.target} the last target, or ask for fewer passes"
                )
        return faults


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

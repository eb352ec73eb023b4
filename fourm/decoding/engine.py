"""Runs a chain over a batch: one loop for every scheme; the fast path is tested against a reference path.

The engine sees tensors only: it opens no file and loads no model. Each decoding step yields a `Progress`
with a new, independent state; the last one holds the finished batch.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fourm.decoding.sampling import Noise, draw, guide
from fourm.modalities.registry import MAX_SIZE, Kind, Registry
from fourm.modalities.text import FIRST_SENTINEL, PAD_ID, merge_spans
from fourm.networks.layers import DecoderCache
from fourm.networks.model import FourM
from fourm.networks.state import S1_ID, Batch, Context, Slot, pending, stack_batches
from fourm.schedule.chain import Chain, Step
from fourm.schedule.cost import MOST_ROWS
from fourm.schedule.schemes import SCHEMES

ORDER, DRAW = 0, 1  # purposes of noise: which positions come first, which token is drawn
# Rows are padded to a multiple of this, so that a sample's sums do not depend on how long the other rows
# of its batch are: a vector register on CPUs (16 floats), a tile of the matrix units elsewhere.
PAD_MULTIPLE = {"cpu": 16}
PAD_MULTIPLE_ELSEWHERE = 64
RELEASED_SENTINELS = range(FIRST_SENTINEL, FIRST_SENTINEL + 200)


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What one decoding step did; a sequence reports after every token."""

    step: Step
    batch: Batch  # the state after the step
    fixed: int  # tokens fixed now, per sample, over all passes
    done: int  # tokens of the target fixed so far, per sample
    total: int  # tokens of the target; for a sequence the limit, times its passes
    seconds: float
    sound: Tensor  # (B,) bool, False for rows whose logits were not finite: their tokens mean nothing
    faults: Mapping[int, str] = field(default_factory=dict)  # rows that cannot go on, and why


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts that are decoded together: P passes of each sample; those of one sample are neighbours."""

    batch: Batch
    step: Step
    numbers: range  # (P) which passes, of all of the step
    limit: int  # tokens of a text at most
    slot: Slot  # B * P rows: the state of each text before it is decoded
    contexts: list[Context]  # one that stacks all guided passes; one for each of them in the reference path
    cache: DecoderCache | None  # None in the reference path


@dataclass(frozen=True, slots=True)
class Engine:
    """A network and how to ask it."""

    network: FourM  # or a few lines in a test: encode, decode, start_cache and room_for
    sentinels: range = RELEASED_SENTINELS  # ids of [S_0], [S_1], ... in the model's text tokenizer
    plain: bool = False  # True: every pass alone, nothing cached or padded; slow and easy to read
    max_rows: int = MOST_ROWS  # texts decoded together where a sample has several; it changes no result

    def run(self, batch: Batch, chain: Chain, noise: Noise) -> Iterator[Progress]:
        """Decode the targets of a chain in order; each must be in the batch (see `with_targets`)."""
        # Counted on the host, so that no step waits for the device: what each row of each pass may read,
        # and how many tokens of each target are left.
        masks = Batch(batch.keys, {name: _on_host(slot) for name, slot in batch.slots.items()})
        known, left = list[int](), dict[str, int]()
        for step in chain.steps:
            started, target, slot = time.perf_counter(), step.target, batch.slots[step.target]
            if slot.kind is Kind.SEQUENCE:
                counts = _num_known(_passes(masks, step))
                batch = yield from self._decode_sequence(batch, step, chain, noise, counts)
                masks = masks.with_slot(target, _on_host(batch.slots[target]))
                continue
            mask = masks.slots[target]
            if target not in left:
                fewest, left[target] = (int(count) for count in mask.wanted.sum(dim=1).aminmax())
                if fewest != left[target]:
                    found = f"{fewest} to {left[target]} tokens to decode"
                    raise ValueError(f"{target}: rows have {found}; group equal ones")
                known = _num_known(_passes(masks, step))
            if not (fixed := min(step.num_tokens, left[target])):
                continue
            with torch.inference_mode():
                batch, sound = self._decode_together(batch, step, chain, noise, known, left[target])
            known = [count + fixed for count in known]
            left[target] -= fixed
            # Which tokens were fixed only the device knows: for the counts, the first ones do as well.
            now = mask.wanted & (mask.wanted.cumsum(dim=1) <= fixed)
            masks = masks.with_slot(target, replace(mask, known=mask.known | now, wanted=mask.wanted & ~now))
            total, seconds = slot.known.shape[1], time.perf_counter() - started
            yield Progress(step, batch, fixed, total - left[target], total, seconds, sound)

    def _decode_together(
        self, batch: Batch, step: Step, chain: Chain, noise: Noise, known: list[int], left: int
    ) -> tuple[Batch, Tensor]:
        """One step of an image target: ask some positions, draw, keep some answers; and which are sound."""
        scheme, slot = SCHEMES[step.scheme], batch.slots[step.target]
        places = torch.arange(slot.known.shape[1], device=slot.known.device).expand_as(slot.known)
        positions = scheme.ask(slot.wanted, left, step.num_tokens, noise.uniforms(step.index, ORDER, places))
        logits = self._ask(_passes(batch, step), step, positions, known)
        uniforms = noise.uniforms(step.index, DRAW, positions)
        drawn = draw(logits, uniforms, step.temperature, chain.top_k, chain.top_p)
        ids = drawn.ids
        if scheme.keep is not None:
            picks = scheme.keep(drawn.confidence, drawn.raw_prob, step.num_tokens)
            positions, ids = positions.gather(1, picks), ids.gather(1, picks)
        filled = slot.fill(positions, ids)
        return batch.with_slot(step.target, filled), drawn.raw_prob.isfinite().all(dim=1)

    def _ask(self, passes: list[Batch], step: Step, positions: Tensor, known: list[int]) -> Tensor:
        """Guided logits (B, K, V) of the target's positions (B, K), in one stacked pass or one by one."""
        if self.plain:
            contexts = [self.network.encode(one) for one in passes]
            logits = torch.cat([self.network.decode(step.target, positions, None, c) for c in contexts])
        else:
            context = self._encode(passes, known)
            logits = self.network.decode(step.target, positions.repeat(len(passes), 1), None, context)
        return _guide(logits, step)

    def _encode(self, passes: list[Batch], known: list[int]) -> Context:
        """All passes in one batch, padded to what the device's sums are insensitive to."""
        batch = stack_batches(passes)
        multiple = PAD_MULTIPLE.get(batch.device.type, PAD_MULTIPLE_ELSEWHERE)
        return self.network.encode(batch, -(-max(known) // multiple) * multiple, sum(known))

    def _decode_sequence(
        self, batch: Batch, step: Step, chain: Chain, noise: Noise, known: list[int]
    ) -> Generator[Progress, None, Batch]:
        """Decode a text of each sample, or several; returns the state with them, which is reported too."""
        slot, states, count = batch.slots[step.target], _passes(batch, step), len(batch.keys)
        sound, made = torch.ones(count, dtype=torch.bool, device=batch.device), 0
        found: list[list[list[int]]] = [[] for _ in batch.keys]  # of each sample, the texts of its passes
        limit = int(_places(slot, step.num_tokens)[2].max())
        with torch.inference_mode():
            stacked = None if self.plain else self._encode(states, known)
        size = max(1, self.max_rows // max(count, 1))
        for first in range(0, step.passes, size):
            numbers = range(first, min(first + size, step.passes))
            rows = torch.arange(count, device=batch.device).repeat_interleave(len(numbers))
            with torch.inference_mode():
                if stacked is None:
                    contexts, cache = [self.network.encode(one.select(rows)) for one in states], None
                else:
                    contexts, cache = [stacked], self.network.start_cache(stacked, limit)
                    if len(numbers) > 1:  # what a sample's passes read is computed once
                        cache = tuple(block.repeated(len(numbers)) for block in cache)
                        visible = stacked.visible.repeat_interleave(len(numbers), dim=0)
                        contexts = [Context(stacked.tokens, visible)]
            texts = Texts(batch, step, numbers, limit, slot.select(rows), contexts, cache)
            ids, good = yield from self._decode_texts(texts, chain, noise)
            sound, made = sound & good, made + (ids.shape[1] - 1) * len(numbers)
            merged = iter(_merge(texts.slot, ids, self.sentinels))
            for sample in found:
                sample += [next(merged) for _ in numbers]
        faults = self._faults(found, step, chain)
        found = [[[]] * step.passes if row in faults else one for row, one in enumerate(found)]
        joined = batch.with_slot(step.target, _joined(found).to(batch.device))
        yield Progress(step, joined, 0, made, limit * step.passes, 0.0, sound, faults)
        return joined

    def _decode_texts(
        self, texts: Texts, chain: Chain, noise: Noise
    ) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
        """Token by token: returns ids (B * P, 1 + j), the first one given, and which samples are sound."""
        step, numbers, count, started = texts.step, texts.numbers, len(texts.batch.keys), time.perf_counter()
        # Each pass has noise of its own, the first that of a single text: no text reaches MAX_SIZE positions.
        begins = torch.arange(numbers.start, numbers.stop, device=texts.slot.values.device) * MAX_SIZE
        starts, stops, room = _places(texts.slot, step.num_tokens)
        ids, active = starts.unsqueeze(1), (room > 0) & (starts != stops)
        sound = torch.ones(count, dtype=torch.bool, device=ids.device)
        for j in range(texts.limit):
            if not bool(active.any()):
                break
            with torch.inference_mode():
                logits, positions = self._next_logits(texts, ids), (begins + j).expand(count, -1)
                uniforms = noise.uniforms(step.index, DRAW, positions).flatten()
                drawn = draw(logits, uniforms, step.temperature, chain.top_k, chain.top_p)
                sound = sound & (drawn.raw_prob.isfinite() | ~active).view(count, -1).all(dim=1)
                # A finished row is fed padding: nothing sampled after its end may touch it.
                new = torch.where(active, drawn.ids, torch.full_like(drawn.ids, PAD_ID))
                ids = torch.cat([ids, new.unsqueeze(1)], dim=1)
                active = active & (new != stops) & (j + 1 < room)
            done, total = numbers.start * texts.limit + (j + 1) * len(numbers), texts.limit * step.passes
            seconds = time.perf_counter() - started
            yield Progress(step, texts.batch, len(numbers), done, total, seconds, sound)
            started = time.perf_counter()
        return ids, sound

    def _faults(self, found: list[list[list[int]]], step: Step, chain: Chain) -> dict[int, str]:
        """Samples whose joined texts are longer than the network takes, where a later step would see them."""
        reader = next((s.target for s in chain.steps[step.index + 1 :] if s.sees(step.target)), None)
        if step.passes == 1 or reader is None or (room := self.network.room_for(step.target)) is None:
            return {}
        said = f"{step.target}: its {step.passes} passes have"
        rule = f"the model can read {room} for {reader}; make {step.target} the last target, or ask for fewer"
        counts = [sum(map(len, texts)) for texts in found]
        return {row: f"{said} {n:,} tokens, but {rule} passes" for row, n in enumerate(counts) if n > room}

    def _next_logits(self, texts: Texts, ids: Tensor) -> Tensor:
        """Guided logits (B * P, V) of the token after ids (B * P, 1 + j)."""
        target = texts.step.target
        if self.plain:  # everything is computed anew for each token
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            logits = torch.cat([self.network.decode(target, positions, ids, c) for c in texts.contexts])
        else:
            newest = ids[:, -1:].repeat(1 + len(texts.step.branches), 1)
            positions = torch.full_like(newest, ids.shape[1] - 1)
            logits = self.network.decode(target, positions, newest, texts.contexts[0], texts.cache)
        return _guide(logits, texts.step)[:, -1]


def with_targets(batch: Batch, chain: Chain, registry: Registry) -> Batch:
    """The batch with a pending slot for each target of the chain; a target that is there stays as it is."""
    for target, num_tokens in chain.num_tokens.items():
        if target not in batch.slots:
            slot = pending(registry.get(target).kind, len(batch.keys), num_tokens)
            batch = batch.with_slot(target, slot)
    return batch


def _on_host(slot: Slot) -> Slot:
    """The masks of a slot, from which tokens can be counted without waiting for a device; without values."""
    known = slot.known.cpu()
    return Slot(slot.kind, known, known, slot.wanted.cpu())


def _passes(batch: Batch, step: Step) -> list[Batch]:
    """The states that a step asks: the base, then one for each branch."""
    if not step.guided:
        return [batch]
    hide = batch.without if step.removes_hidden else batch.hide
    return [hide(step.guided), *(hide(step.guided - branch.visible) for branch in step.branches)]


def _guide(logits: Tensor, step: Step) -> Tensor:
    """Combine the passes in logits ((1 + n) * B, K, V) by the step's weights, in float32: (B, K, V)."""
    weights = torch.tensor([branch.weight for branch in step.branches])
    return guide(logits.float().view(1 + len(weights), -1, *logits.shape[1:]), weights)


def _num_known(passes: list[Batch]) -> list[int]:
    return torch.cat([one.num_known() for one in passes]).tolist()


def _places(slot: Slot, max_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """First id, stop id and number of tokens to decode, each (B,), of a pending text."""
    order = slot.wanted.long().argsort(dim=1, descending=True, stable=True)
    counts = slot.wanted.sum(dim=1)
    first, last = order[:, :1], order.gather(1, (counts - 1).clamp_min(0).unsqueeze(1))
    starts, stops = slot.values.gather(1, first)[:, 0], slot.values.gather(1, last)[:, 0]
    return starts, stops, counts.clamp_max(max_tokens)


def _merge(slot: Slot, ids: Tensor, sentinels: range) -> list[list[int]]:
    """Each text of a slot with the decoded spans (B, 1 + j) where their sentinels stand."""
    slot = slot.to("cpu")  # once, not text by text
    rows, stops = [], _places(slot, ids.shape[1])[1]
    for values, known, new, stop in zip(slot.values, slot.known, ids.tolist(), stops.tolist(), strict=True):
        visible = values[known].tolist() or [S1_ID]
        end = new.index(stop, 1) + 1 if stop in new[1:] else len(new)
        rows.append(merge_spans(visible, new[:end], sentinels))
    return rows


def _joined(found: list[list[list[int]]]) -> Slot:
    """The texts of each sample, one after the other, as a slot of which nothing is left to decode."""
    rows = [[token for text in texts for token in text] for texts in found]
    length = max((1, *map(len, rows)))
    padded = torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows], dtype=torch.int64)
    lengths = torch.tensor([[*map(len, texts)] for texts in found], dtype=torch.int64)
    real = torch.arange(length) < lengths.sum(dim=1, keepdim=True)
    several = lengths if lengths.shape[1] > 1 else None
    return Slot(Kind.SEQUENCE, padded, real, torch.zeros_like(real), several)

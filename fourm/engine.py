"""Runs a chain over a batch: one loop for every scheme, a fast query and a plain one that judges it.

The engine sees tensors only: it opens no file and loads no model. Each decoding step yields a `Progress`
with a new, independent state; the last one holds the finished batch.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fourm.blocks import DecoderCache
from fourm.modalities import Kind, Registry
from fourm.sampling import draw, guide
from fourm.schedule import Chain, Step
from fourm.schemes import SCHEMES
from fourm.state import S1_ID, Batch, Context, Slot, pending, stack
from fourm.wordpiece import FIRST_SENTINEL, PAD_ID, merge_spans

ORDER, DRAW = 0, 1  # purposes of noise: which positions come first, which token is drawn
# Rows are padded to a multiple of this, so that a sample's sums do not depend on how long the other rows
# of its batch are: a vector register on CPUs (16 floats), a tile of the matrix units elsewhere.
PAD_MULTIPLE = {"cpu": 16}
PAD_MULTIPLE_ELSEWHERE = 64
RELEASED_SENTINELS = range(FIRST_SENTINEL, FIRST_SENTINEL + 200)


class Network(Protocol):
    """A model as the engine sees it: `FourM`, or a few lines in a test."""

    def encode(self, batch: Batch, budget: int | None = None, total: int | None = None) -> Context: ...
    def decode(
        self,
        target: str,
        positions: Tensor,
        ids: Tensor | None,
        context: Context,
        cache: DecoderCache | None = None,
    ) -> Tensor: ...
    def start_cache(self, context: Context, max_tokens: int) -> DecoderCache: ...


class NoiseSource(Protocol):
    """Uniforms (B, K) in [0, 1) for positions (B, K) of a step; `fourm.sampling.Noise`, or a test's own."""

    def uniforms(self, step: int, purpose: int, positions: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What one decoding step did; a sequence reports after every token."""

    step: Step
    batch: Batch  # the state after the step
    fixed: int  # tokens fixed now, per sample
    done: int  # tokens of the target fixed so far, per sample
    total: int  # tokens of the target; for a sequence the limit
    seconds: float
    sound: Tensor  # (B,) bool, False for rows whose logits were not finite: their tokens mean nothing


@dataclass(frozen=True, slots=True)
class Engine:
    """A network and how to ask it."""

    network: Network
    sentinels: range = RELEASED_SENTINELS  # ids of [S_0], [S_1], ... in the model's text tokenizer
    plain: bool = False  # True: every pass alone, nothing cached or padded; slow and easy to read

    def run(self, batch: Batch, chain: Chain, noise: NoiseSource) -> Iterator[Progress]:
        """Decode the targets of a chain in order; each must be in the batch (see `with_targets`)."""
        # Counted on the host, so that no step waits for the device: what each row of each pass may read,
        # and how many tokens of each target are left.
        known, left = list[int](), dict[str, int]()
        for step in chain.steps:
            started, slot = time.perf_counter(), batch.slots[step.target]
            if slot.kind is Kind.SEQUENCE:
                for progress in self._decode_sequence(batch, step, chain, noise):
                    yield progress
                batch = progress.batch
                continue
            if step.target not in left:
                left[step.target] = _num_wanted(slot, step.target)
                known = _num_known(_passes(batch, step))
            fixed = min(step.num_tokens, left[step.target])
            if not fixed:
                continue
            with torch.inference_mode():
                batch, sound = self._decode_together(batch, step, chain, noise, known, left[step.target])
            known = [count + fixed for count in known]
            left[step.target] -= fixed
            total = slot.known.shape[1]
            done, seconds = total - left[step.target], time.perf_counter() - started
            yield Progress(step, batch, fixed, done, total, seconds, sound)

    def _decode_together(
        self, batch: Batch, step: Step, chain: Chain, noise: NoiseSource, known: list[int], left: int
    ) -> tuple[Batch, Tensor]:
        """One step of an image target: ask some positions, draw, keep some answers; and which are sound."""
        scheme, slot = SCHEMES[step.scheme], batch.slots[step.target]
        places = torch.arange(slot.known.shape[1], device=slot.known.device).expand_as(slot.known)
        positions = scheme.ask(slot.wanted, left, step.num_tokens, noise.uniforms(step.index, ORDER, places))
        logits = self._ask(_passes(batch, step), step, positions, known)
        uniforms = noise.uniforms(step.index, DRAW, positions)
        drawn = draw(logits, uniforms, step.temperature, chain.top_k, chain.top_p)
        picks = scheme.keep(drawn.confidence, drawn.certainty, step.num_tokens)
        filled = batch.fill(step.target, positions.gather(1, picks), drawn.ids.gather(1, picks))
        return filled, drawn.certainty.isfinite().all(dim=1)

    def _ask(self, passes: list[Batch], step: Step, positions: Tensor, known: list[int]) -> Tensor:
        """Guided logits (B, K, V) of the target's positions (B, K), in one stacked pass or one by one."""
        if self.plain:
            contexts = [self.network.encode(one) for one in passes]
            logits = torch.stack([self.network.decode(step.target, positions, None, c) for c in contexts])
        else:
            context = self._encode(passes, known)
            flat = self.network.decode(step.target, positions.repeat(len(passes), 1), None, context)
            logits = flat.view(len(passes), -1, *flat.shape[1:])
        return _guide(logits, step)

    def _encode(self, passes: list[Batch], known: list[int]) -> Context:
        """All passes in one batch, padded to what the device's sums are insensitive to."""
        batch = stack(passes)
        device = next(iter(batch.slots.values())).known.device
        multiple = PAD_MULTIPLE.get(device.type, PAD_MULTIPLE_ELSEWHERE)
        return self.network.encode(batch, -(-max(known) // multiple) * multiple, sum(known))

    def _decode_sequence(
        self, batch: Batch, step: Step, chain: Chain, noise: NoiseSource
    ) -> Iterator[Progress]:
        """Decode a text token by token; the last report carries the text merged into the state."""
        slot, passes = batch.slots[step.target], _passes(batch, step)
        starts, stops, room = _places(slot, step.num_tokens)
        limit = int(room.max())
        ids, active = starts.unsqueeze(1), (room > 0) & (starts != stops)
        sound = torch.ones_like(active)
        with torch.inference_mode():
            ask = self._plain_asker(passes, step) if self.plain else self._asker(passes, step, limit)
        for j in range(limit):
            started = time.perf_counter()
            if not bool(active.any()):
                break
            with torch.inference_mode():
                uniforms = noise.uniforms(step.index, DRAW, torch.full_like(starts, j).unsqueeze(1))
                logits = ask(ids)[:, -1]
                drawn = draw(logits, uniforms[:, 0], step.temperature, chain.top_k, chain.top_p)
                sound = sound & (drawn.certainty.isfinite() | ~active)
                # A finished row is fed padding: nothing sampled after its end may touch it.
                new = torch.where(active, drawn.ids, torch.full_like(drawn.ids, PAD_ID))
                ids = torch.cat([ids, new.unsqueeze(1)], dim=1)
                active = active & (new != stops) & (j + 1 < room)
            yield Progress(step, batch, 1, j + 1, limit, time.perf_counter() - started, sound)
        merged = batch.with_slot(step.target, _merge(slot, ids, stops, self.sentinels))
        yield Progress(step, merged, 0, ids.shape[1] - 1, limit, 0.0, sound)

    def _plain_asker(self, passes: list[Batch], step: Step) -> "Asker":
        """Logits from the whole text so far, everything computed anew for each token."""
        contexts = [self.network.encode(one) for one in passes]

        def ask(ids: Tensor) -> Tensor:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            logits = [self.network.decode(step.target, positions, ids, c) for c in contexts]
            return _guide(torch.stack(logits), step)

        return ask

    def _asker(self, passes: list[Batch], step: Step, limit: int) -> "Asker":
        """Logits from the newest token, the ones before it remembered in a cache."""
        context = self._encode(passes, _num_known(passes))
        cache = self.network.start_cache(context, limit)

        def ask(ids: Tensor) -> Tensor:
            newest = ids[:, -1:].repeat(len(passes), 1)
            positions = torch.full_like(newest, ids.shape[1] - 1)
            flat = self.network.decode(step.target, positions, newest, context, cache)
            return _guide(flat.view(len(passes), -1, *flat.shape[1:]), step)

        return ask


Asker = Callable[[Tensor], Tensor]  # ids so far (B, j) -> guided logits (B, 1 or j, V), the newest last


def with_targets(batch: Batch, chain: Chain, registry: Registry) -> Batch:
    """The batch with a pending slot for each target of the chain; a target that is there stays as it is."""
    for target, num_tokens in chain.num_tokens.items():
        if target not in batch.slots:
            slot = pending(registry.get(target).kind, len(batch.keys), num_tokens)
            batch = batch.with_slot(target, slot)
    return batch


def _num_wanted(slot: Slot, target: str) -> int:
    """How many tokens of an image target are to be decoded: equally many in every row."""
    counts = slot.wanted.sum(dim=1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest != most:
        raise ValueError(f"{target}: rows have {fewest} to {most} tokens to decode; group equal ones")
    return most


def _passes(batch: Batch, step: Step) -> list[Batch]:
    """The states that a step asks: the base, then one for each branch."""
    if not step.guided:
        return [batch]
    hide = batch.without if step.leaves_out else batch.hide
    return [hide(step.guided), *(hide(step.guided - branch.visible) for branch in step.branches)]


def _guide(logits: Tensor, step: Step) -> Tensor:
    """Combine passes (1 + n, B, K, V) by the step's weights, in float32."""
    return guide(logits.float(), torch.tensor([branch.weight for branch in step.branches]))


def _num_known(passes: list[Batch]) -> list[int]:
    """How many tokens each row of each pass may read."""
    return torch.cat([one.num_known() for one in passes]).tolist()


def _places(slot: Slot, max_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """First id, stop id and number of tokens to decode, each (B,), of a pending text."""
    order = slot.wanted.long().argsort(dim=1, descending=True, stable=True)
    counts = slot.wanted.sum(dim=1)
    first, last = order[:, :1], order.gather(1, (counts - 1).clamp_min(0).unsqueeze(1))
    starts, stops = slot.values.gather(1, first)[:, 0], slot.values.gather(1, last)[:, 0]
    return starts, stops, counts.clamp_max(max_tokens)


def _merge(slot: Slot, ids: Tensor, stops: Tensor, sentinels: range) -> Slot:
    """Put decoded spans (B, 1 + j) where their sentinels stand in the text; nothing is left to decode."""
    rows = []
    for values, known, new, stop in zip(slot.values, slot.known, ids.tolist(), stops.tolist(), strict=True):
        visible = values[known].tolist() or [S1_ID]
        end = new.index(stop, 1) + 1 if stop in new[1:] else len(new)
        rows.append(merge_spans(visible, new[:end], sentinels))
    length = max(1, *(len(row) for row in rows)) if rows else 1
    padded = torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(length) < lengths.unsqueeze(1)
    device = slot.values.device
    return Slot(Kind.SEQUENCE, padded.to(device), real.to(device), torch.zeros_like(real, device=device))

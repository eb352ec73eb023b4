"""The state of a generation: an immutable slot per modality, and the batch of them."""

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourm.modalities.registry import Kind
from fourm.modalities.text import EOS_ID, FIRST_SENTINEL, PAD_ID
from fourm.schedule.chain import KEPT

S1_ID = FIRST_SENTINEL + 1  # [S_1]; [S_k] is FIRST_SENTINEL + k in every 4M text tokenizer
S2_ID = FIRST_SENTINEL + 2


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One modality of a batch, partly decoded. A position is known, wanted, or neither; never both."""

    kind: Kind
    values: Tensor  # GRID, SEQUENCE (B, L) int64 | PIXELS (B, 3, H, W) float | EMBEDDING (B, L, E) float
    known: Tensor  # (B, L) bool, True where the encoder may read; for PIXELS one entry per patch
    wanted: Tensor  # (B, L) bool, True where a token is still to be decoded
    # (B, P) int64: known tokens of each of P predictions that stand one after the other; None = one text
    lengths: Tensor | None = None
    # (B, L) bool, True where a token of a target was given beforehand; None = nothing was
    given: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All of its tensors."""
        return [
            one for one in (self.values, self.known, self.wanted, self.lengths, self.given) if one is not None
        ]

    def with_tensors(self, tensors: Iterable[Tensor]) -> "Slot":
        """The same with other tensors, in the order of `tensors`."""
        left = iter(tensors)
        return self._mapped(lambda _: next(left))

    def fill(self, positions: Tensor, ids: Tensor, chosen: Tensor | None = None) -> "Slot":
        """Fix ids at positions, both (B, K) int64; chosen: (B, K) bool, which of them, by default all.

        Returns a new slot; self is untouched.
        """
        yes = torch.ones_like(positions, dtype=torch.bool)
        if chosen is None:
            known, wanted = self.known.scatter(1, positions, yes), self.wanted.scatter(1, positions, ~yes)
            return replace(self, values=self.values.scatter(1, positions, ids), known=known, wanted=wanted)
        new = torch.zeros_like(self.known).scatter(1, positions, chosen)
        values = torch.where(new, self.values.scatter(1, positions, ids), self.values)
        return replace(self, values=values, known=self.known | new, wanted=self.wanted & ~new)

    def hide(self) -> "Slot":
        """What an unconditional pass sees: nothing of an image, one empty marker of a sequence.

        The marker is [S_1] or, of embeddings, a zero vector: what 4M models saw for it in training.
        """
        if self.kind in (Kind.PIXELS, Kind.GRID):
            return self.blank()
        values, known = torch.zeros_like(self.values), torch.zeros_like(self.known)
        values[:, 0] = S1_ID if self.kind is Kind.SEQUENCE else 0
        known[:, 0] = True
        return replace(self, values=values, known=known, wanted=torch.zeros_like(known))

    def hide_given(self) -> "Slot":
        """What a pass sees that may read the decoded tokens of a target, and not its given part."""
        if self.given is None or self.kind is not Kind.GRID:
            return self if self.given is None else self.hide()
        return replace(self, known=self.known & ~self.given)

    def blank(self) -> "Slot":
        """The same rows with nothing known and nothing wanted: what is not there at all."""
        nothing = torch.zeros_like(self.known)
        return replace(self, known=nothing, wanted=nothing)

    def select(self, rows: Tensor) -> "Slot":
        """The rows with these indices, (B',) int64 on any device, as a slot of B' rows."""
        rows = to_device(rows, self.values.device)
        return self._mapped(lambda tensor: tensor[rows])

    def filled(self, more: int) -> "Slot":
        """The rows, and the last one `more` times."""
        return self._mapped(lambda x: torch.cat([x, x[-1:].expand(more, *x.shape[1:])]))

    def first(self, count: int) -> "Slot":
        """The first rows, as views."""
        return self._mapped(lambda tensor: tensor[:count])

    def to(self, device: torch.device | str) -> "Slot":
        """The same slot on another device."""
        return self._mapped(lambda tensor: to_device(tensor, device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Slot":
        values, known, wanted = change(self.values), change(self.known), change(self.wanted)
        lengths, given = (None if x is None else change(x) for x in (self.lengths, self.given))
        return Slot(self.kind, values, known, wanted, lengths, given)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Slots by modality name, one row per sample; rows are the same in every slot."""

    keys: tuple[str, ...]  # (B) names of the samples, for events and errors
    slots: Mapping[str, Slot]

    def __post_init__(self) -> None:
        for name, slot in self.slots.items():
            if slot.known.shape[0] != len(self.keys):
                raise ValueError(f"{name}: {slot.known.shape[0]} rows for {len(self.keys)} samples")

    def with_slot(self, name: str, slot: Slot) -> "Batch":
        """A batch with this slot added or replaced; the order of modalities is kept."""
        return Batch(self.keys, {**self.slots, name: slot})

    def hide(self, names: Iterable[str]) -> "Batch":
        """A batch in which these modalities tell nothing; unknown names are ignored.

        TARGET + KEPT stands for the part of a target that was given.
        """
        hidden = {name: self.slots[name].hide() for name in names if name in self.slots}
        return Batch(self.keys, {**self._without_given(names).slots, **hidden})

    def without(self, names: Collection[str]) -> "Batch":
        """A batch in which these modalities are not there at all; TARGET + KEPT as in `hide`."""
        slots = self._without_given(names).slots
        return Batch(self.keys, {name: slot for name, slot in slots.items() if name not in names})

    def _without_given(self, names: Iterable[str]) -> "Batch":
        targets = {name.removesuffix(KEPT) for name in names if name.endswith(KEPT)} & self.slots.keys()
        return Batch(self.keys, {**self.slots, **{name: self.slots[name].hide_given() for name in targets}})

    def first(self, count: int) -> "Batch":
        """The first rows, as views."""
        if count == len(self.keys):
            return self
        return Batch(self.keys[:count], {name: slot.first(count) for name, slot in self.slots.items()})

    def filled(self, count: int) -> "Batch":
        """As many rows, the last one repeated."""
        more = count - len(self.keys)
        slots = {name: slot.filled(more) for name, slot in self.slots.items()}
        return Batch((*self.keys, *[self.keys[-1]] * more), slots)

    def select(self, rows: Tensor) -> "Batch":
        """The rows with these indices, (B',) int64; best on the CPU, since the host has to know them."""
        keys = tuple(self.keys[i] for i in rows.tolist())
        return Batch(keys, {name: slot.select(rows) for name, slot in self.slots.items()})

    @property
    def device(self) -> torch.device:
        """Where the tensors of a batch with slots are."""
        return next(iter(self.slots.values())).values.device

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.keys, {name: slot.to(device) for name, slot in self.slots.items()})

    def num_known(self, names: Container[str] | None = None) -> Tensor:
        """(B,) int64: how many tokens the encoder may read in each row; names: of these modalities only."""
        slots = [slot for name, slot in self.slots.items() if names is None or name in names]
        counts = [slot.known.sum(dim=1) for slot in slots]
        return torch.stack(counts).sum(dim=0) if counts else torch.zeros(len(self.keys), dtype=torch.int64)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; the host does not wait for a copy to a CUDA device."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all batches in order; what one of them lacks tells nothing there."""
    slots, templates = dict[str, Slot](), dict[str, Slot]()
    for batch in batches:
        templates = {**batch.slots, **templates}
    for name, template in templates.items():
        parts = [batch.slots.get(name, template.blank()) for batch in batches]
        values, known, wanted = (
            torch.cat([getattr(part, field) for part in parts]) for field in ("values", "known", "wanted")
        )
        given = [part.given for part in parts if part.given is not None]
        parts_given = torch.cat(given) if len(given) == len(parts) else None
        slots[name] = Slot(template.kind, values, known, wanted, given=parts_given)
    return Batch(tuple(key for batch in batches for key in batch.keys), slots)


def full_grid(ids: Tensor) -> Slot:
    """A finished image modality: ids (B, L) of any integer type, all known."""
    known = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
    return Slot(Kind.GRID, ids.long(), known, ~known)


def full_pixels(image: Tensor, patch_size: int) -> Slot:
    """An image as condition: (B, 3, H, W) float, ImageNet-normalised; every patch is known."""
    batch, _, height, width = image.shape
    patches = height // patch_size * (width // patch_size)
    known = torch.ones(batch, patches, dtype=torch.bool, device=image.device)
    return Slot(Kind.PIXELS, image, known, ~known)


def full_embedding(vectors: Tensor, valid: Tensor) -> Slot:
    """A sequence of outside vectors as condition: (B, L, E) float and valid (B, L) bool."""
    return Slot(Kind.EMBEDDING, vectors, valid, torch.zeros_like(valid))


def full_sequence(ids: Tensor, known: Tensor | None = None) -> Slot:
    """A text as condition: ids (B, L), per row known up to and including its first [EOS].

    A row without [EOS], which was cut short, keeps all that `known` marks (by default, all but padding).
    """
    real = ids != PAD_ID if known is None else known
    is_eos = ((ids == EOS_ID) & real).long()
    shown = real & (is_eos.cumsum(dim=1) == is_eos)  # no [EOS] before it
    return Slot(Kind.SEQUENCE, ids.long(), shown, torch.zeros_like(shown))


def pending(kind: Kind, batch_size: int, num_tokens: int) -> Slot:
    """A target of which nothing is decoded yet.

    GRID: every position wanted. SEQUENCE, of two positions at least: one readable [S_1], then the places to
    decode, [S_1] first and [S_2] (where decoding stops) last.
    """
    if kind is Kind.GRID:
        wanted = torch.ones(batch_size, num_tokens, dtype=torch.bool)
        return Slot(kind, torch.zeros(batch_size, num_tokens, dtype=torch.int64), ~wanted, wanted)
    if kind is not Kind.SEQUENCE:
        raise ValueError(f"{kind.name} cannot be decoded")
    return typed_text(torch.full((batch_size, 1), S1_ID), max(num_tokens - 1, 1), S1_ID, S2_ID)


def partly_given(ids: Tensor, keep: Tensor) -> Slot:
    """An image target of which a part is given: ids (B, L) of any integer type, keep (B, L) bool.

    Where `keep` is False, the token is decoded and `ids` is not read.
    """
    return Slot(Kind.GRID, torch.where(keep, ids.long(), 0), keep, ~keep, given=keep)


def typed_text(
    ids: Tensor, room: int = 50, start_id: int = S1_ID, end_id: int = EOS_ID, known: Tensor | None = None
) -> Slot:
    """Texts (B, L), known as typed, and `room` places to decode what their sentinels stand for (infilling).

    known: (B, L) bool, False for padding; default: all of it is text.
    """
    shown = torch.ones_like(ids, dtype=torch.bool) if known is None else known
    tail = torch.full((ids.shape[0], room), PAD_ID, dtype=torch.int64)
    tail[:, 0], tail[:, -1] = start_id, end_id
    values = torch.cat([ids.long(), tail], dim=1)
    given = torch.cat([shown, torch.zeros_like(tail, dtype=torch.bool)], dim=1)
    wanted = torch.cat([torch.zeros_like(shown), torch.ones_like(tail, dtype=torch.bool)], dim=1)
    return Slot(Kind.SEQUENCE, values, given, wanted, given=given)

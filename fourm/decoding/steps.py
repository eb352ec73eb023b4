"""What is known of steps before the first of them, their sizes and numbers, and what each of them did.

A CPU takes the sizes that are needed; other devices get few fixed ones, and numbers as tensors, so that a
step is one function of tensors whose shapes are known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fourm.modalities.registry import Kind
from fourm.networks.state import Batch, to_device
from fourm.schedule.chain import Chain, Step
from fourm.schedule.schemes import SCHEMES


@dataclass(frozen=True, slots=True)
class Shapes:
    """How a device wants the sizes of a step. Padding changes results in their last bits only."""

    # Encoder rows are padded to a multiple of this many tokens, so that the rounding of a sample's sums does
    # not depend on the length of other rows of its batch.
    multiple: int
    is_fixed: bool  # True: each new shape costs, since kernels are chosen and graphs captured for each
    tokens_per_wait: int  # of a text: so many are decoded before the host asks whether all texts have ended

    def num_rows(self, count: int) -> int:
        """Rows of a batch of `count` samples."""
        return 1 << max(count - 1, 0).bit_length() if self.is_fixed else count

    def num_tokens(self, known: int, room: int) -> int:
        """Encoder tokens of a row, of which `known` are known in the longest row and `room` at most."""
        multiple = self._multiple(room)
        return math.ceil(known / multiple) * multiple

    def num_packed(self, known: Sequence[int], room: int) -> int:
        """Places for the encoder tokens of all rows, packed one after the other; see `num_tokens`."""
        if not self.is_fixed:
            return max(sum(known), FEWEST_PLACES)
        share = len(known) * self._multiple(room) // PARTS  # equally many sizes whatever the number of rows
        return math.ceil(sum(known) / share) * share

    def num_places(self, limit: int) -> int:
        """Room for the tokens of a text, of which there are `limit` at most."""
        return math.ceil(limit / self.multiple) * self.multiple if self.is_fixed else limit

    def num_asked(self, count: int, length: int, asks_all: bool) -> int:
        """Positions that a step asks for, of which it needs `count`; length: those of the target.

        asks_all: steps ask for all that is left, and not for a few.
        """
        if not self.is_fixed:
            return count
        shares = ASKED_OF_ALL if asks_all else ASKED_OF_FEW
        return next(size for share in shares if (size := math.ceil(length * share)) >= count)

    def _multiple(self, room: int) -> int:
        """What tokens of rows are padded to multiples of."""
        if not self.is_fixed:
            return self.multiple
        return self.multiple * (math.ceil(room / (self.multiple * MOST_LENGTHS)) or 1)


ORDER, DRAW = 0, 1  # independent streams of noise: for the order of positions, for drawing tokens
FEWEST_PLACES = (
    4  # on CPUs: products of fewer rows have other last bits, on AMD's whatever the kernels are told
)
MOST_LENGTHS = 12  # fixed shapes: different lengths of encoder rows
PARTS = 2  # fixed shapes: packed rows have so many sizes for each of these lengths
ASKED_OF_ALL, ASKED_OF_FEW = (1 / 4, 1 / 2, 3 / 4, 1), (1 / 16, 1 / 8, 1 / 4, 1)  # shares of a target
# A vector register on CPUs (16 floats); elsewhere whole tiles of a matrix unit.
SHAPES = {"cpu": Shapes(16, is_fixed=False, tokens_per_wait=1)}
SHAPES_ELSEWHERE = Shapes(64, is_fixed=True, tokens_per_wait=8)


def shapes_of(device: str) -> Shapes:
    """The shapes for a type of device."""
    return SHAPES.get(device, SHAPES_ELSEWHERE)


@dataclass(frozen=True, slots=True, eq=False)
class StepNumbers:
    """The numbers of one step of an image target, on the host and on the device."""

    asked: int  # positions that the step asks for
    fixed: int  # tokens that it fixes
    counts: Tensor  # (2,) int64: `asked` and `fixed`
    scales: Tensor  # (1 + n,) float32: the temperature, and the weights of the branches
    ranks: Tensor | None  # (L,) float32: the place of each position where the scheme has a fixed order


def numbers_of(chain: Chain, masks: Batch, device: torch.device) -> dict[int, StepNumbers]:
    """The numbers of all steps of image targets by index; tensors go to the device in few copies.

    masks: a batch on the host. ValueError: rows have different numbers of tokens to decode.
    """
    left, pairs = dict[str, int](), dict[int, tuple[int, int]]()
    steps = [step for step in chain.steps if masks.slots[step.target].kind is Kind.GRID]
    for step in steps:
        target = step.target
        if target not in left:
            left[target] = _num_wanted(target, masks)
        fixed = min(step.num_tokens, left[target])
        asked = left[target] if SCHEMES[step.scheme].rank else fixed
        pairs[step.index] = asked, fixed
        left[target] -= fixed
    wide = max((len(step.branches) for step in steps), default=0)
    counts = torch.tensor([pairs[step.index] for step in steps], dtype=torch.int64).view(-1, 2)
    scales = torch.zeros(len(steps), 1 + wide)
    for row, step in enumerate(steps):
        numbers = [step.temperature, *(branch.weight for branch in step.branches)]
        scales[row, : len(numbers)] = torch.tensor(numbers)
    counts, scales = to_device(counts, device), to_device(scales, device)
    ranks = {
        spec.target: to_device(torch.tensor(number(*spec.grid), dtype=torch.float32), device)
        for spec in chain.specs
        if spec.grid and (number := SCHEMES[spec.scheme].ranks)
    }
    return {
        step.index: StepNumbers(
            *pairs[step.index], counts[row], scales[row, : 1 + len(step.branches)], ranks.get(step.target)
        )
        for row, step in enumerate(steps)
    }


def _num_wanted(target: str, masks: Batch) -> int:
    fewest, most = (int(count) for count in masks.slots[target].wanted.sum(dim=1).aminmax())
    if fewest != most:
        raise ValueError(f"{target}: rows have {fewest} to {most} tokens to decode; group equal ones")
    return most


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

"""The base and the branches of a step: what each of them sees, and their guided logits."""

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor

from fourm.decoding.sampling import guide
from fourm.decoding.steps import Shapes, shapes_of
from fourm.networks.attention import is_packed
from fourm.networks.model import Context, DecoderCache, Embedded, FourM
from fourm.networks.state import Batch, stack_batches
from fourm.schedule.chain import Step


@dataclass(frozen=True, slots=True)
class Branches:
    """Runs the network on the base and all branches of a step."""

    # Tests pass a fake with reads, attention, embed, encode, encode_embedded, decode and start_cache.
    network: FourM
    plain: bool = False  # True: the slow reference path; branches run one by one, without cache and padding

    def shapes(self, device: torch.device) -> Shapes:
        """The sizes that tensors should have there."""
        return shapes_of("cpu" if self.plain else device.type)

    def encode(self, inputs: list[Batch], known: list[int]) -> list[Context]:
        """What the decoder reads: one context for all inputs; in the reference path one for each.

        known: how many tokens the encoder reads of each row of the stacked inputs.
        """
        if self.plain:
            return [self.network.encode(one) for one in inputs]
        return [self.encode_embedded(self.network.embed(stack_batches(inputs)), known)]

    def encode_embedded(self, embedded: Embedded, known: list[int]) -> Context:
        """One padded batch of the base and all branches."""
        return self.network.encode_embedded(embedded, known, *self.sizes(embedded, known))

    def sizes(self, embedded: Embedded, known: list[int]) -> tuple[int, int | None]:
        """Encoder tokens of each row, and places for those of all rows where they are packed, else None."""
        masks = [one for _, _, one in embedded.values()]
        device = masks[0].device if masks else torch.device("cpu")
        shapes, room, total = self.shapes(device), sum(one.shape[1] for one in masks), sum(known)
        budget = shapes.num_tokens(max(known), room)
        packs = is_packed(self.network.attention, device, total / (len(known) * budget or 1))
        return budget, shapes.num_packed(known, room) if packs else None

    def logits(
        self, step: Step, positions: Tensor, ids: Tensor | None, contexts: list[Context],
        cache: DecoderCache | None = None, length: int | None = None, asked: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Guided logits (B, K, V) float32 of the target at positions (B, K).

        ids, cache, length, asked: as in `FourM.decode`. weights: (n,) those of the branches, on the device.
        """
        count = 1 + len(step.branches)
        copies = count // len(contexts)  # one context may be that of all branches
        positions = positions.repeat(copies, 1)
        ids, asked = (None if x is None else x.repeat(copies, 1) for x in (ids, asked))
        parts = [
            self.network.decode(step.target, positions, ids, context, cache, length, asked)
            for context in contexts
        ]
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]
        if weights is None:
            weights = torch.tensor([branch.weight for branch in step.branches])
        return guide(logits.float().view(count, -1, *logits.shape[1:]), weights)


def branch_inputs(batch: Batch, step: Step) -> list[Batch]:
    """What the encoder reads in a step: one batch for the base, then one for each branch."""
    if not step.guided:
        return [batch]
    hide = batch.without if step.removes_hidden else batch.hide
    return [hide(step.guided), *(hide(step.guided - branch.visible) for branch in step.branches)]


def count_known(inputs: list[Batch], reads: Container[str]) -> list[int]:
    """How many tokens the encoder may read in each row of the stacked batches."""
    return torch.cat([one.num_known(reads) for one in inputs]).tolist()

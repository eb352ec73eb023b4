"""How likely the network finds a condition, given what was generated of it: one teacher-forced pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fourm.decoding.branches import Branches, count_known
from fourm.modalities.registry import Kind
from fourm.networks.model import FourM
from fourm.networks.state import S1_ID, Batch, Slot, typed_text


@torch.inference_mode()
def log_likelihood(network: FourM, batch: Batch, name: str, given: Sequence[str]) -> Tensor:
    """The mean log-probability (B,) float32 per token of a modality, given some others and nothing else.

    A grid: all its tokens at once, as in a first step that decodes all of them. A text: each token after the
    true ones before it. Rows do not depend on their batch.
    """
    slot = batch.slots[name]
    seen = Batch(batch.keys, {one: batch.slots[one] for one in given if one in network.reads})
    is_text = slot.kind is Kind.SEQUENCE
    if is_text and name in network.reads:
        seen = Batch(batch.keys, {**seen.slots, name: _marker(slot)})
    branches = Branches(network)
    known, embedded = count_known([seen], network.reads), network.embed(seen)
    context = branches.encode_embedded(embedded, known)
    positions = torch.arange(slot.values.shape[1], device=slot.values.device).expand_as(slot.values)
    ids = None
    if is_text:  # the token at a position follows the ids up to there: [S_1], then all but the last
        starts = torch.full_like(slot.values[:, :1], S1_ID)
        ids = torch.cat([starts, slot.values[:, :-1]], dim=1)
    logits = network.decode(name, positions, ids, context).float()
    chosen = logits.log_softmax(dim=-1).gather(-1, slot.values.unsqueeze(-1)).squeeze(-1)
    return torch.where(slot.known, chosen, 0.0).sum(dim=1) / slot.known.sum(dim=1).clamp_min(1)


def _marker(slot: Slot) -> Slot:
    """A text of which the encoder sees the marker [S_1] alone, as where all of it is to be decoded."""
    count = len(slot.values)
    return typed_text(torch.full((count, 1), S1_ID), 2).to(slot.values.device)

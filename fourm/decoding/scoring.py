"""How likely the network finds a condition, given what was generated from it: one teacher-forced pass."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from fourm.decoding.branches import Branches, count_known
from fourm.modalities.registry import Kind
from fourm.modalities.text import PAD_ID
from fourm.networks.model import FourM
from fourm.networks.state import S1_ID, Batch, pending


@torch.inference_mode()
def log_likelihood(network: FourM, batch: Batch, name: str, targets: Iterable[str]) -> list[float]:
    """Of each row the mean log-probability of the tokens of a condition, given targets and nothing else.

    batch: the condition and the decoded targets. The network sees what it sees before the first step of a
    chain that makes the condition from the targets. A grid: all its tokens at once. A text: each token after
    the true ones before it. Rows are padded as in decoding; a row that is alone has the same bits everywhere.
    """
    count, branches, slot = len(batch.keys), Branches(network), batch.slots[name]
    shapes = branches.shapes(batch.device)
    if (rows := shapes.num_rows(count)) > count:
        batch, slot = batch.filled(rows), slot.filled(rows - count)
    made = {target: batch.slots[target] for target in targets}
    seen = Batch(batch.keys, {**made, name: pending(slot.kind, rows, slot.values.shape[1]).to(batch.device)})
    context = branches.encode_embedded(network.embed(seen), count_known([seen], network.reads))
    values, known, ids = slot.values, slot.known, None
    if slot.kind is Kind.SEQUENCE:
        length = shapes.num_tokens(int(known.sum(dim=1).max()), values.shape[1])
        padding = (0, length - values.shape[1])  # cuts what no row needs
        values, known = F.pad(values, padding, value=PAD_ID), F.pad(known, padding)
        ids = torch.cat([torch.full_like(values[:, :1], S1_ID), values[:, :-1]], dim=1)
    positions = torch.arange(values.shape[1], device=values.device).expand_as(values)
    logits = network.decode(name, positions, ids, context).float()
    chosen = logits.log_softmax(dim=-1).gather(-1, values.unsqueeze(-1)).squeeze(-1)
    # Exact sums, since the order in which torch adds depends on the shape.
    rows_found = zip(chosen.cpu(), known.cpu(), strict=True)
    return [math.fsum(row[seen].tolist()) / max(int(seen.sum()), 1) for row, seen in rows_found][:count]

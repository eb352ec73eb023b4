"""Features of samples: what the encoder makes of their tokens, the same in every batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fourm.decoding.branches import Branches, count_known
from fourm.networks.model import FourM
from fourm.networks.state import Batch


@torch.inference_mode()
def encode_features(network: FourM, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
    """Of each row the outputs (len(layers), N, D) float32 of encoder blocks, on the CPU.

    N: its known tokens, in the order of modalities in the batch. layers: as of `FourM.encode_layers`. Rows
    are padded as in decoding, so that a row does not depend on the others.
    """
    count, branches = len(batch.keys), Branches(network)
    if (rows := branches.shapes(batch.device).num_rows(count)) > count:
        batch = batch.filled(rows)
    known, embedded = count_known([batch], network.reads), network.embed(batch)
    budget, room = branches.sizes(embedded, known)
    outputs = network.encode_layers(embedded, known, budget, layers, room)[:, :count].float().cpu()
    return [outputs[:, row, : known[row]] for row in range(count)]

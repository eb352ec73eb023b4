"""`fourm embed`: samples in, the features of their conditions out, through the encoder alone."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.table import Codec
from fourm.decoding.features import encode_features
from fourm.inputs.conditions import ConditionReader, PreparedSample, Work
from fourm.networks.model import FourM
from fourm.networks.state import stack_batches
from fourm.results.events import Event, Failed, Noted, Saved
from fourm.results.job import Job
from fourm.results.portions import Portions
from fourm.schedule.features import Pool

NOT_FINITE = "the features are not finite numbers: the weights are damaged, or float16 is too narrow for them"


class FeatureWriter(Protocol):
    """Takes the features of samples: `Saver` writes files, `Collector` keeps them in memory."""

    job: Job
    codecs: Mapping[str, Codec]

    def begin(self, works: Sequence[Work]) -> None:
        """Called with samples before they are encoded together."""

    def save_features(self, work: Work, features: NDArray[np.float32]) -> Saved:
        """Keep the features of a sample; the event to report is returned."""

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample; the event to report is returned."""


def embed(network: FourM, writer: FeatureWriter, todo: Sequence[Work]) -> Iterator[Event]:
    """Encode samples in batches and hand their features to the writer."""
    job, size = writer.job, writer.job.batch_size
    groups = [todo[first : first + size] for first in range(0, len(todo), size)]
    portions = Portions(size, job.device, job.dtype)
    for prepared in ConditionReader(job.request, writer.codecs, job.dtype).read_groups(groups):
        for row in prepared:
            if row.problem:
                yield writer.fail(row.work, row.problem)
            yield from (Noted(*row.work.result, name, note) for name, note in row.notes.items() if note)
        readable = [row for row in prepared if not row.problem]
        yield from portions.each(readable, partial(_embed, network, writer))


def pool_tokens(tokens: NDArray[np.float32], pool: Pool) -> NDArray[np.float32]:
    """Features (layers, N, D) as they are, or their means over tokens, (layers, D)."""
    return tokens if pool == "tokens" else tokens.mean(axis=1, dtype=np.float64).astype(np.float32)


def _embed(network: FourM, writer: FeatureWriter, rows: Sequence[PreparedSample]) -> Iterator[Event]:
    """Encode some samples together. One that fails does not affect the others."""
    job, wanted = writer.job, writer.job.request.features
    assert wanted is not None
    batch = stack_batches([row.batch for row in rows]).to(job.device)
    outputs = encode_features(network, batch, wanted.layers)
    writer.begin([row.work for row in rows])
    for row, output in zip(rows, outputs, strict=True):
        tokens = output.numpy()
        if np.isfinite(tokens).all():
            yield writer.save_features(row.work, pool_tokens(tokens, wanted.pool))
        else:
            yield writer.fail(row.work, NOT_FINITE)

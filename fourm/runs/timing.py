"""How long a run will take: one step of each target is done for real, and counted up."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import torch

from fourm.codecs.images import Diffusion, GridCodec, rows_at_once
from fourm.codecs.table import Codec
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.features import encode_features
from fourm.decoding.sampling import Noise
from fourm.decoding.scoring import log_likelihood
from fourm.inputs.conditions import ConditionReader, Work
from fourm.modalities.registry import Kind, Modality
from fourm.networks.state import (
    S1_ID,
    Batch,
    Slot,
    full_embedding,
    full_grid,
    full_pixels,
    full_sequence,
    stack_batches,
)
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.results.job import Job

T = TypeVar("T")
_TEXT_TOKENS = 8  # of a text that are decoded to learn what one of them takes
_WARM = 1.0  # seconds; what takes less is done once more, since the first time is slower
_TEXT_LENGTH = 16  # tokens of a text that is not made yet


def estimate_seconds(job: Job, todo: Sequence[Work], engine: Engine, codecs: Mapping[str, Codec]) -> float:
    """Seconds for all results in `todo`, without starting and loading; texts count with their full length.

    Measured on this machine as it is now: reading one sample, the middle step of each target with a whole
    batch, and the values of one result.
    """
    best, samples = job.request.best, {work.sample.key for work in todo}
    count = len(todo) if best is None else len(samples) * best.of  # that are decoded
    trial = _Trial(job, engine, codecs, min(job.batch_size, count))
    reading, row = trial.read(todo[0])
    decoding = math.fsum(trial.decode(row, target) for target in job.request.chain.targets)
    decoding += 0.0 if best is None else math.fsum(trial.score(row, name) for name in best.by)
    decoding += trial.encode(row) if job.request.features is not None else 0.0
    made = [place.modality for place in job.written if place.form == "value" and not place.is_condition]
    values = math.fsum(trial.finish(codecs[name]) for name in made)
    return math.ceil(count / job.batch_size) * decoding + len(todo) * (reading + values)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Does a small part of a run's work and looks at the clock."""

    job: Job
    engine: Engine
    codecs: Mapping[str, Codec]
    size: int  # samples of a batch

    def read(self, work: Work) -> tuple[float, Batch]:
        """Seconds of reading a sample, and its conditions, (1, ...); blank ones if they are not there yet."""
        chain, registry = self.job.request.chain, self.job.request.model.registry
        reader = ConditionReader(self.job.request, self.codecs, self.job.dtype)
        seconds, (row,) = self._timed(lambda: reader.read_group([work]))
        if not row.problem:
            return seconds, row.batch.without(chain.targets)
        slots = {name: _blank(registry.get(name)) for name in chain.conditions}
        return 0.0, Batch((work.sample.key.text,), slots)

    def encode(self, row: Batch) -> float:
        """Seconds of making the features of a batch."""
        wanted = self.job.request.features
        assert wanted is not None
        batch = stack_batches([row] * self.size).to(self.job.device)
        return self._timed(lambda: encode_features(self.engine.network, batch, wanted.layers))[0]

    def score(self, row: Batch, name: str) -> float:
        """Seconds of finding how likely a condition is under all variations of a batch."""
        chain, registry = self.job.request.chain, self.job.request.model.registry
        slots = {**row.slots, **{target: _blank(registry.get(target)) for target in chain.targets}}
        batch = stack_batches([Batch(row.keys, slots)] * self.size).to(self.job.device)
        return self._timed(lambda: log_likelihood(self.engine.network, batch, name, chain.targets))[0]

    def decode(self, row: Batch, target: str) -> float:
        """Seconds of all steps of a target for a batch; all conditions and earlier targets are known."""
        chain, registry = self.job.request.chain, self.job.request.model.registry
        before = chain.targets[: chain.targets.index(target)]
        slots = {**row.slots, **{name: _blank(registry.get(name)) for name in before}}
        batch = with_targets(stack_batches([Batch(row.keys, slots)] * self.size), chain, registry)
        steps = [step for step in chain.steps if step.target == target]
        middle = steps[len(steps) // 2]
        is_text = batch.slots[target].kind is Kind.SEQUENCE
        if not is_text:
            known = sum(step.num_tokens for step in steps[: len(steps) // 2])
            first = torch.arange(known).expand(self.size, -1)
            batch = batch.with_slot(target, batch.slots[target].fill(first, torch.zeros_like(first)))
        batch = batch.to(self.job.device)
        noise = Noise.for_samples(0, [(row.keys[0], number) for number in range(self.size)])
        noise, part = noise.to(self.job.device), replace(chain, steps=(middle,))
        if not is_text:
            return len(steps) * self._timed(lambda: [*self.engine.run(batch, part, noise)])[0]
        seconds, made = self._timed(lambda: [*islice(self.engine.run(batch, part, noise), _TEXT_TOKENS)])
        decoding = math.fsum(progress.seconds for progress in made)  # the rest is encoding
        return seconds - decoding + decoding * made[-1].total / made[-1].done

    def finish(self, codec: Codec) -> float:
        """Seconds of making one value of tokens."""
        if not isinstance(codec, GridCodec):
            return 0.0  # texts are read off
        rows = min(self.size, rows_at_once(self.job.device))
        slot = stack_batches([Batch(("",), {"": _blank(codec.row)})] * rows).slots[""]
        diffusion = Diffusion(1, Noise.for_samples(0, [("", number) for number in range(rows)]))
        steps = self.job.request.diffusion_steps if isinstance(codec.tokenizer, DiVAE) else 1
        return steps * self._timed(lambda: codec.decode(slot, diffusion))[0] / rows

    def _timed(self, work: Callable[[], T]) -> tuple[float, T]:
        """The seconds that something takes, and what it gives."""
        seconds = math.inf
        for _ in range(2):
            started = time.perf_counter()
            made = work()
            if self.job.device.type == "cuda":
                torch.cuda.synchronize(self.job.device)
            seconds = min(seconds, time.perf_counter() - started)
            if seconds > _WARM:
                break
        return seconds, made


def _blank(row: Modality) -> Slot:
    """One row of a modality with all its tokens known; what they are doesn't matter for time."""
    if row.kind is Kind.PIXELS:
        return full_pixels(torch.zeros(1, 3, row.image_size, row.image_size), row.patch_size)
    if row.kind is Kind.EMBEDDING:
        return full_embedding(
            torch.zeros(1, row.max_tokens, row.embedding_width),
            torch.ones(1, row.max_tokens, dtype=torch.bool),
        )
    if row.kind is Kind.SEQUENCE:
        return full_sequence(torch.full((1, min(_TEXT_LENGTH, row.max_tokens)), S1_ID))
    return full_grid(torch.zeros(1, row.max_tokens, dtype=torch.int64))

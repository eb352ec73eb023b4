"""Makes what a call asks for: an event for each of its decoding steps, and one with its results; features."""

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fourm.api.calls import Call
from fourm.api.results import Part, Result
from fourm.codecs.images import GridCodec
from fourm.data.layout import FRAME, Sample
from fourm.decoding.steps import Progress
from fourm.errors import SampleError, UsageError, near_match, shown
from fourm.hub.files import ModelFiles
from fourm.inputs.conditions import Work
from fourm.inputs.request import Request
from fourm.modalities.registry import Kind
from fourm.networks.precision import arithmetic
from fourm.output.record import BASE, SR
from fourm.results.events import Event, Stepped
from fourm.results.values import Collector, picture_of
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import collect
from fourm.schedule.chain import Chain

Watch = Callable[[Event], None]  # called with each event of the runs of a call
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """The state of a call after a decoding step; of the last one, with the results of the call."""

    target: str  # full name of what is being decoded: "tok_rgb@64"; "" if nothing was decoded at all
    step: int  # of the chain, from 1
    steps: int  # of the chain
    done: int  # tokens of the target so far, of each sample
    total: int  # tokens of the target; of a text the limit
    keys: tuple[str, ...]  # of the samples that are decoded together
    stage: str = BASE  # or "sr"
    results: Result | list[Result] | None = None  # of the last event: what the call returns; else None
    _state: "_State | None" = field(default=None, repr=False, compare=False)

    def preview(self, name: str | None = None, sample: int = 0) -> Image.Image:
        """A modality as it is after this step, drawn; tokens that are not decided yet are grey.

        name: of a condition or target, short or full; None: what is being decoded. sample: its place in
        `keys`, from 0. UsageError: there is no such modality or sample.
        """
        if self._state is None:
            raise UsageError("nothing was decoded, so there is nothing to show")
        return self._state.picture(name or self.target, sample)


@dataclass(frozen=True, slots=True)
class _State:
    """The batch after a decoding step, and what it is drawn with."""

    loaded: LoadedModel
    collector: Collector
    progress: Progress
    works: Sequence[Work]

    def picture(self, name: str, sample: int) -> Image.Image:
        slots, job = self.progress.batch.slots, self.collector.job
        rows = [job.request.model.registry.get(one) for one in slots]
        found = [row.name for row in rows if name in (row.name, row.key, *row.value_names)]
        if not found:
            near = near_match(name, slots) or f"; there are {', '.join(slots)}"
            raise UsageError(f"no '{name}' is given or made{near}")
        if isinstance(sample, bool) or not isinstance(sample, int | np.integer):
            raise UsageError(f"sample {shown(repr(sample))}: a whole number belongs here")
        if not 0 <= sample < len(self.works):
            raise UsageError(f"sample {sample}: {len(self.works)} are decoded together, counted from 0")
        with self.loaded.lock, arithmetic(self.loaded.dtype):
            # Of several with this name the last: conditions come before targets.
            return picture_of(job, self.collector.codecs, self.progress, self.works, found[-1], sample)


def make(call: Call, watch: Watch = lambda event: None) -> Iterator[StreamEvent]:
    """Yields the state after each decoding step of a call, and a last event with its results, in order.

    SampleError: all samples failed. Where some did, a warning says so.
    """
    last = StreamEvent("", 0, 0, 0, 0, ())
    base, last = yield from _collected(call.request, call.loaded, watch, last)
    collectors = {result: [base] for result in (*base.made, *base.failures)}  # by key and variation
    if call.sr is not None:
        loaded, chain = call.sr
        for request in _sr_requests(call.request, loaded.files, chain, base):
            collector, last = yield from _collected(request, loaded, watch, last)
            for result in (*collector.made, *collector.failures):
                collectors[result].append(collector)
    works = [Work(sample, number) for sample in call.request.samples for number in call.request.variations]
    results = [_result(call, work, collectors[work.result]) for work in works]
    _report_failures(results)
    yield replace(last, results=results if call.is_list else results[0])


def embed(call: Call, watch: Watch) -> Vectors | list[Vectors]:
    """The features that a call asks for, in order. SampleError: a sample cannot be read or encoded."""
    collector, events = collect(call.request, call.loaded)
    for event in events:
        watch(event)
    for (key, _), reason in collector.failures.items():
        raise SampleError(f"{key}: {reason}" if call.is_list else reason)
    made = [collector.features[sample.key.text, 0] for sample in call.request.samples]
    return made if call.is_list else made[0]


def _report_failures(results: Sequence[Result]) -> None:
    """SampleError: all results failed. Warns if some did."""
    failed = [one for one in results if one.problem]
    if len(failed) == len(results):
        raise SampleError(failed[0].problem)
    if failed:
        what = f"{len(failed)} of {len(results)} results failed; {failed[0].key}: {failed[0].problem}"
        warnings.warn(what, stacklevel=4)  # names the line that calls `Model.generate`


def _collected(
    request: Request, loaded: LoadedModel, watch: Watch, last: StreamEvent
) -> Generator[StreamEvent, None, tuple[Collector, StreamEvent]]:
    """Yields the states of one run; returns what it made, and the last state (`last` if it had none)."""
    collector, events = collect(request, loaded)
    for event in events:
        watch(event)
        if isinstance(event, Stepped) and collector.latest is not None:
            last = StreamEvent(
                event.target, event.step + 1, event.steps, event.done, event.total, event.keys, request.stage,
                _state=_State(loaded, collector, *collector.latest),
            )  # fmt: skip
            yield last
    return collector, last


def _sr_requests(request: Request, model: ModelFiles, chain: Chain, base: Collector) -> Iterator[Request]:
    """Requests for super-resolution of all that the base made, one for each variation.

    request: that of the base.
    """
    for variation in request.variations:
        samples = list[Sample]()
        for sample in request.samples:
            if (made := base.made.get((sample.key.text, variation))) is not None:
                values = dict[str, Any]()
                for name in chain.conditions:
                    is_grid = model.registry.get(name).kind is Kind.GRID  # read as tokens
                    values[name] = (made.tokens if is_grid else made.values)[name]
                if made.frame is not None:
                    values[FRAME] = made.frame
                samples.append(Sample(sample.key, values=values))
        if samples:
            number = variation if request.num_variations > 1 else None
            yield replace(
                request, model=model, chain=chain, samples=samples, stage=SR, variation=number, best=None
            )


def _result(call: Call, work: Work, collectors: Sequence[Collector]) -> Result:
    """The result of a sample and variation from what the base and super-resolution made."""
    key, variation = work.result
    about = f"{call.request.model.name}, seed {call.request.seed}"
    if problem := next((one.failures[work.result] for one in collectors if work.result in one.failures), ""):
        return Result(key, variation, [], about, problem=problem)
    parts = list[Part]()
    for collector in collectors:
        request, made = collector.job.request, collector.made[work.result]
        number = variation if request.num_variations > 1 else None
        request = replace(request, samples=(made.work.sample,), variation=number)
        # A result that is kept must not keep the memory of a model that is closed.
        codecs = {n: c.detached() if isinstance(c, GridCodec) else c for n, c in collector.codecs.items()}
        parts.append(Part(request, codecs, made))
    items = [item for part in parts for item in part.items()]
    items += [item for part in parts for item in part.kept()]
    scores = parts[0].made.scores
    return Result(key, variation, items, about, parts, scores=lambda: scores)

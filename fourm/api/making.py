"""Makes what a call asks for: events of its steps, then its results."""

import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from fourm.api.calls import Call
from fourm.api.results import Part, Result
from fourm.data.layout import FRAME, Sample
from fourm.decoding.engine import Progress
from fourm.errors import SampleError, UsageError, near_match
from fourm.inputs.conditions import Work
from fourm.inputs.request import Request
from fourm.modalities.registry import Kind
from fourm.networks.precision import arithmetic
from fourm.output.record import BASE, SR
from fourm.runs.events import Event, Stepped
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import collect
from fourm.runs.values import Collector, picture_of

Results = Result | list[Result]


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """The state of a call after a decoding step."""

    target: str  # full name of what is being decoded: "tok_rgb@64"
    step: int  # of the chain, from 1
    steps: int
    done: int  # tokens of the target so far, of each sample
    total: int  # tokens of the target; of a text the limit
    keys: tuple[str, ...]  # of the samples that are decoded together
    stage: str = BASE  # or "sr"
    results: Results | None = None  # of the last event: what the call returns
    _state: "_State | None" = field(default=None, repr=False, compare=False)

    def with_results(self, results: Results) -> "StreamEvent":
        """The last event of a call."""
        return replace(self, results=results)

    def preview(self, name: str | None = None, sample: int = 0) -> Image.Image:
        """A modality as it is after this step, drawn; tokens that are not decided yet are grey.

        name: of a condition or target, short or full; None: what is being decoded. sample: its place in
        `keys`.
        """
        if self._state is None:
            raise UsageError("nothing was decoded, so there is nothing to show")
        return self._state.picture(name or self.target, sample)


@dataclass(frozen=True, slots=True)
class _State:
    """A decoding step, and what its tokens are drawn with."""

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
        if not 0 <= sample < len(self.works):
            raise UsageError(f"sample {sample}: {len(self.works)} are decoded together, counted from 0")
        with self.loaded.lock, arithmetic(self.loaded.dtype):
            return picture_of(job, self.collector.codecs, self.progress, self.works, found[-1], sample)


def make(call: Call) -> Generator[tuple[Event, StreamEvent | None], None, list[Result]]:
    """Yields each event of a call, decoding steps with their state; returns the results in order."""
    base = yield from _collected(call.request, call.loaded)
    fine = dict[tuple[str, int], Collector]()
    for request in _sr_requests(call, base):
        assert call.sr_run is not None
        collector = yield from _collected(request, call.sr_run[0])
        fine |= dict.fromkeys((*collector.made, *collector.failures), collector)
    results = list[Result]()
    for sample in call.request.samples:
        for variation in call.request.variations:
            work = Work(sample, variation)
            results.append(_result(call, work, [base, *filter(None, [fine.get(work.result)])]))
    return results


def finish(call: Call, results: list[Result]) -> Results:
    """What a caller gets. SampleError: all samples failed; where some did, a warning says so."""
    failed = [one for one in results if one.problem]
    if len(failed) == len(results):
        raise SampleError(failed[0].problem)
    if failed:
        what = f"{len(failed)} of {len(results)} results failed; {failed[0].key}: {failed[0].problem}"
        warnings.warn(what, stacklevel=4)
    return results if call.is_list else results[0]


def _collected(
    request: Request, loaded: LoadedModel
) -> Generator[tuple[Event, StreamEvent | None], None, Collector]:
    collector, events = collect(request, loaded)
    for event in events:
        seen = None
        if isinstance(event, Stepped) and collector.latest is not None:
            seen = StreamEvent(
                event.target, event.step + 1, event.steps, event.done, event.total, event.keys, request.stage,
                _state=_State(loaded, collector, *collector.latest),
            )  # fmt: skip
        yield event, seen
    return collector


def _sr_requests(call: Call, base: Collector) -> Iterator[Request]:
    """Requests for super-resolution of all that the base made, one for each variation."""
    if call.sr_run is None:
        return
    loaded, chain = call.sr_run
    grids = {name for name in chain.conditions if loaded.files.registry.get(name).kind is Kind.GRID}
    for variation in call.request.variations:
        samples = []
        for sample in call.request.samples:
            if (made := base.made.get((sample.key.text, variation))) is not None:
                of = {name: made.tokens if name in grids else made.values for name in chain.conditions}
                values = {name: there[name] for name, there in of.items()}
                values |= {FRAME: made.frame} if made.frame is not None else {}
                samples.append(Sample(sample.key, values=values))
        several = call.request.num_variations > 1
        if samples:
            yield replace(
                call.request, model=loaded.files, chain=chain, samples=samples, stage=SR,
                variation=variation if several else None,
            )  # fmt: skip


def _result(call: Call, work: Work, collectors: Sequence[Collector]) -> Result:
    """The result of a sample and variation from what the base and super-resolution made."""
    key, variation = work.result
    about = f"{call.request.model.name}, seed {call.request.seed}"
    problem = next((one.failures[work.result] for one in collectors if work.result in one.failures), "")
    parts = list[Part]()
    for collector in [] if problem else collectors:
        request, made = collector.job.request, collector.made[work.result]
        number = variation if request.num_variations > 1 else None
        request = replace(request, samples=(made.work.sample,), variation=number)
        parts.append(Part(request, collector.codecs, made))
    items = [item for part in parts for item in part.items(only_targets=part.request.stage == SR)]
    items += [item for part in parts for item in part.kept()]
    return Result(key, variation, items, about, parts, problem)

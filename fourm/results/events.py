"""Events that a run yields while it works. A run writes files and yields events; it prints nothing."""

from dataclasses import asdict, dataclass
from pathlib import Path


def _to_json(event: "Event") -> dict[str, object]:
    """The event's name and its fields as numbers, strings and lists. Each event class has it as a method."""
    # Event logs have always called a decoding step "step"; the other events are named after their class.
    event_name = "step" if isinstance(event, Stepped) else type(event).__name__.lower()
    fields = {"event": event_name} | asdict(event)
    for name, value in fields.items():
        if isinstance(value, float):
            fields[name] = round(value, 6)
        elif isinstance(value, tuple):
            fields[name] = [str(item) for item in value]
    return fields


@dataclass(frozen=True, slots=True)
class Started:
    """The run has counted its work and starts decoding."""

    # Results (samples times variations) of this process, with those skipped; 0: not known, of a sharded run.
    total: int
    skipped: int  # results that an earlier run completed
    batch_size: int
    model: str
    device: str
    steps: int  # decoding steps of one batch
    evaluations: int = 0  # forward passes of diffusion decoders per sample
    stage: str = "base"  # "base", or "sr" for super-resolution of the base results
    variations: int = 1  # results per sample
    best_of: int = 0  # variations that are decoded per sample, where only the best become results; else 0
    dtype: str = ""  # of the networks
    shards: int = 0  # that this process makes of a sharded run; 0: results are files
    workers: int = 1  # processes that make them
    damaged: tuple[str, ...] = ()  # a sentence for each shard that is made again as it is not whole
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Loading:
    """A model or tokenizer is being loaded, which can take long enough to look like a hang."""

    what: str  # the part that is loaded, for display
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Stepped:
    """One decoding step of one batch is done."""

    keys: tuple[str, ...]  # names of the samples of the batch
    target: str
    scheme: str
    step: int  # index in the chain, from 0
    steps: int  # steps of the chain
    done: int  # tokens of the target decoded so far, per sample (the largest of the batch)
    total: int  # tokens of the target, per sample (the limit for a sequence)
    fixed: int  # tokens fixed by this step, over the whole batch
    temperature: float
    guidance: float  # 1.0 = no guidance
    seconds: float  # that the step took
    to_json = _to_json

    @property
    def share(self) -> float:
        """The decoded fraction of the chain, in [0, 1]. A text is one step with an event for each token."""
        is_over = self.fixed == 0 or self.scheme != "autoregressive"
        share_of_step = 1.0 if is_over else self.done / self.total
        return (self.step + share_of_step) / self.steps


@dataclass(frozen=True, slots=True)
class Halved:
    """The device ran out of memory; the run continues with smaller batches. Results do not change."""

    rows: int  # most samples that are decoded together from now on
    device: str
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Detokenized:
    """One step of a diffusion decoder, which turns tokens into pictures, is done."""

    keys: tuple[str, ...]  # names of the samples that are decoded together
    target: str
    done: int  # steps so far
    total: int  # steps in all
    seconds: float  # that the step took
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Saved:
    """All files of one sample and variation are written."""

    key: str
    variation: int
    files: tuple[Path, ...] = ()
    stage: str = "base"  # or "sr"
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Noted:
    """The model cannot read all that the file of a condition holds."""

    key: str
    variation: int
    condition: str  # a modality
    notes: tuple[str, ...]  # what is left out or changed
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Malformed:
    """A generated text violates its grammar; the part that can be parsed is saved, and the text beside it."""

    key: str
    variation: int
    target: str
    problems: tuple[str, ...]
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Failed:
    """One sample could not be read or decoded; the run continues with the others."""

    key: str
    variation: int
    reason: str
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker of a sharded run died; another one makes its shard again."""

    shard: str
    reason: str
    saved: int  # results of the shard that were reported as saved, and will be again
    failed: int
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over; the counts are of results."""

    saved: int
    skipped: int  # completed by an earlier run
    failed: int
    seconds: float  # that the run took
    stage: str = "base"  # or "sr"
    incomplete: int = 0  # samples of a sharded run that lack a file
    lacking: tuple[str, ...] = ()  # how many of those read now lack what: "7 lack a file in depth"
    to_json = _to_json

    @property
    def problem(self) -> str:
        """Why a sharded run has no results, where none of its samples has all files; else ""."""
        if not self.incomplete or self.saved or self.skipped or self.failed:
            return ""
        why = ", ".join(self.lacking) or "the markers below done/ say what they lack"
        return f"none of the {self.incomplete:,} samples in the shards has all files that are read: {why}"


Event = (
    Started | Loading | Stepped | Halved | Detokenized | Saved | Noted | Malformed | Failed | Lost | Finished
)

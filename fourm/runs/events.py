"""What a run reports while it goes on: one object per event. Besides its files, a run has no other output."""

from dataclasses import asdict, dataclass
from pathlib import Path


def _to_json(event: "Event") -> dict[str, object]:
    """The event's name and its fields, in numbers, strings and lists. Every event has it as a method."""
    fields = {"event": "step" if isinstance(event, Stepped) else type(event).__name__.lower()} | asdict(event)
    for name, value in fields.items():
        if isinstance(value, float):
            fields[name] = round(value, 6)
        elif isinstance(value, tuple):
            fields[name] = [str(item) for item in value]
    return fields


@dataclass(frozen=True, slots=True)
class Started:
    """The run knows what it has to do."""

    total: int  # results (samples times variations) of this process, the finished ones included
    skipped: int  # of these, finished by an earlier run
    batch_size: int
    model: str
    device: str
    steps: int  # decoding steps of one batch
    evaluations: int = 0  # of a network that turns tokens into a picture by diffusion, per sample
    stage: str = "base"  # or "sr": super-resolution of what was made
    variations: int = 1  # results of each sample
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Loading:
    """A model or tokenizer is being read; silence would look like a hang."""

    what: str
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
    seconds: float
    to_json = _to_json

    @property
    def share(self) -> float:
        """How much of its chain the batch has behind it. A text is one step, with an event for each token."""
        is_over = self.fixed == 0 or self.scheme != "autoregressive"
        return (self.step + (1.0 if is_over else self.done / self.total)) / self.steps


@dataclass(frozen=True, slots=True)
class Halved:
    """Memory ran out; from here on fewer samples are worked on together. Results are the same."""

    rows: int  # samples that there was room for
    device: str
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Detokenized:
    """One step of a diffusion that turns tokens into pictures is done."""

    keys: tuple[str, ...]  # samples whose pictures are made together
    target: str
    done: int  # steps so far
    total: int
    seconds: float
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Saved:
    """All files of one sample and variation are in place."""

    key: str
    variation: int
    files: tuple[Path, ...] = ()
    stage: str = "base"
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Noted:
    """The model reads less of a condition than its file says."""

    key: str
    variation: int
    condition: str
    notes: tuple[str, ...]
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Malformed:
    """A model's text does not keep to its grammar; what could be understood is saved, and the text beside."""

    key: str
    variation: int
    target: str
    problems: tuple[str, ...]
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Failed:
    """One sample could not be read or decoded; the others go on."""

    key: str
    variation: int
    reason: str
    to_json = _to_json


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over."""

    saved: int
    skipped: int
    failed: int
    seconds: float
    stage: str = "base"
    to_json = _to_json


Event = Started | Loading | Stepped | Halved | Detokenized | Saved | Noted | Malformed | Failed | Finished

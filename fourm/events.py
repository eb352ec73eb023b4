"""What a run reports while it goes on: one small object per event, each with a JSON-ready record.

Consumers (progress bars, plain lines, JSON lines, tests) read this stream; it is the only output of a run besides files.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Started:
    """The run knows what it has to do."""

    total: int  # samples times variations of this process, the finished ones included
    skipped: int  # of these, finished by an earlier run
    batch_size: int
    model: str
    device: str
    steps: int  # decoding steps of one batch

    def to_json(self) -> dict[str, Any]:
        """The event as a flat record."""
        return {"event": "started", "total": self.total, "skipped": self.skipped, "batch_size": self.batch_size,
                "model": self.model, "device": self.device, "steps": self.steps}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loading:
    """A model or tokenizer is being read; silence would look like a hang."""

    what: str

    def to_json(self) -> dict[str, Any]:
        """The event as a flat record."""
        return {"event": "loading", "what": self.what}


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

    def to_json(self) -> dict[str, Any]:
        """The event as a flat record."""
        return {"event": "step", "keys": list(self.keys), "target": self.target, "scheme": self.scheme,
                "step": self.step, "steps": self.steps, "done": self.done, "total": self.total, "fixed": self.fixed,
                "temperature": self.temperature, "guidance": self.guidance,
                "seconds": round(self.seconds, 6)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Saved:
    """All files of one sample and variation are in place."""

    key: str
    variation: int
    files: tuple[Path, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The event as a flat record."""
        return {
            "event": "saved",
            "key": self.key,
            "variation": self.variation,
            "files": [str(f) for f in self.files],
        }


@dataclass(frozen=True, slots=True)
class Failed:
    """One sample could not be read or decoded; the others go on."""

    key: str
    variation: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The event as a flat record."""
        return {"event": "failed", "key": self.key, "variation": self.variation, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over."""

    saved: int
    skipped: int
    failed: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The event as a flat record."""
        return {"event": "finished", "saved": self.saved, "skipped": self.skipped, "failed": self.failed,
                "seconds": round(self.seconds, 3)}  # fmt: skip


Event = Started | Loading | Stepped | Saved | Failed | Finished

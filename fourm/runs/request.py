"""What a run is asked for: everything that its results depend on, and where they go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fourm.data.dataset import Input
from fourm.data.layout import MAX_SAMPLES, Sample, check_apart
from fourm.data.opening import real
from fourm.errors import UsageError, near_match
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Modality
from fourm.output.record import BASE, RUN, SR, SR_RUN, RunRecord
from fourm.runs.inputs import shows_part
from fourm.runs.world import World
from fourm.schedule.chain import Chain
from fourm.schedule.settings import MAX_SEED

DETOKENIZER_STEPS = 50  # of tokenizers that decode by diffusion
MAX_DETOKENIZER_STEPS = 10_000_000  # what a picture says of them can be read back
ATTENTIONS = ("sdpa", "xformers")
MAX_CROPS = 10_000
PREVIEW_STEPS = 25  # the same for a picture that is still being decoded


@dataclass(frozen=True, slots=True)
class Origin:
    """What super-resolution goes on from."""

    record: RunRecord | None = None  # of the run that made its conditions; None: a dataset of another origin
    is_beside: bool = True  # results go into the folder that conditions are read from


@dataclass(frozen=True, slots=True)
class Request:
    """Everything about one run of `generate` or `sr`."""

    model: ModelFiles
    chain: Chain
    samples: Sequence[Sample]
    out: Path
    num_variations: int = 1
    seed: int = 0
    batch_size: int | None = None  # None: chosen from the size of the chain
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"  # "auto" is float32: the same result everywhere
    attention: str = "sdpa"  # one of ATTENTIONS; they differ in last bits
    decode: bool = True  # also write pictures and other values, not only tokens
    detokenizer_steps: int = DETOKENIZER_STEPS
    preview: int = 0  # keep the picture after every n-th step; 0 is never
    world: World = field(default_factory=World)
    resume: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()
    input: Input = field(default_factory=Input)  # what the samples were read from
    origin: Origin | None = None  # of super-resolution
    variation: int | None = None  # make only this one

    @property
    def stage(self) -> Literal["base", "sr"]:
        """BASE or SR."""
        return SR if self.origin else BASE

    @property
    def is_beside(self) -> bool:
        """True where conditions lie in the output folder already."""
        return self.origin is not None and self.origin.is_beside

    @property
    def record(self) -> str:
        """Name of the run's record in its folder."""
        return SR_RUN if self.is_beside else RUN

    @property
    def reads_pictures(self) -> bool:
        """Whether values are read of which a crop shows a part."""
        rows = [self.model.registry.get(name) for name in self.chain.conditions]
        return any(shows_part(row, self.chain.raw) for row in rows)

    @property
    def variations(self) -> Sequence[int]:
        """Numbers of the variations to make."""
        return range(self.num_variations) if self.variation is None else (self.variation,)

    def __post_init__(self) -> None:
        _check_seed_and_attention(self.seed, self.attention)
        if (count := len(self.samples) * self.num_variations) > MAX_SAMPLES:
            raise UsageError(f"{count:,} results are asked for; one run makes at most {MAX_SAMPLES:,}")
        if not 0 < self.detokenizer_steps <= MAX_DETOKENIZER_STEPS:
            limit = f"must lie in 1..{MAX_DETOKENIZER_STEPS:,}"
            raise UsageError(f"--detokenizer-steps {self.detokenizer_steps}: {limit}")
        if self.preview and not self.decode:
            raise UsageError("--preview needs pictures; leave out --no-decode")
        if self.overwrite and (self.resume or self.world.is_shard):
            other = "--resume" if self.resume else "--shard"
            raise UsageError(f"--overwrite and {other} exclude each other: one would delete the other's work")
        if not self.is_beside:
            check_apart(self.out, self.samples)
        if not self.overwrite or self.is_beside:
            return
        out = real(self.out)
        read = (path for s in self.samples for files in (s.files, *s.varied) for path in files.values())
        for folder in {path.parent for path in read}:
            if real(folder).is_relative_to(out):
                raise UsageError(f"--out {self.out}: --overwrite would delete {folder}, which this run reads")


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """Everything about one run of `tokenize`.

    The files of a sample are named by row; PICTURES, VALID_PIXELS and CROP_SETTINGS may be among them.
    """

    model: ModelFiles
    rows: tuple[Modality, ...]
    samples: Sequence[Sample]
    out: Path
    num_crops: int | None = None  # None: as many as the samples' crop settings have, else 1
    min_scale: float = 0.8  # smallest share of a picture's area that a random crop shows
    seed: int = 0
    batch_size: int | None = None  # samples that are read together; None: chosen by the device
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    overwrite: bool = False
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        _check_seed_and_attention(self.seed, self.attention)
        check_apart(self.out, self.samples)
        if not 0 < self.min_scale <= 1:
            raise UsageError(f"--min-scale {self.min_scale:g}: a share of the area lies above 0, up to 1")
        if self.num_crops is not None and not 1 <= self.num_crops <= MAX_CROPS:
            raise UsageError(f"--crops {self.num_crops}: a sample has 1 to {MAX_CROPS:,} crops")


def _check_seed_and_attention(seed: int, attention: str) -> None:
    if not 0 <= seed <= MAX_SEED:  # records and YAML files hold no others
        raise UsageError(f"--seed {seed}: must be a whole number, 0 to 2**64 - 1")
    if attention not in ATTENTIONS:
        near = near_match(attention, ATTENTIONS)
        raise UsageError(f"--attention: '{attention}' is not one of {', '.join(ATTENTIONS)}{near}")

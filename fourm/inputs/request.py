"""What a run is asked for: everything that its results depend on, and where they go."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_type_hints

from fourm.data.dataset import Input
from fourm.data.layout import FITS, FRAME, MAX_SAMPLES, Fit, Sample, check_apart
from fourm.data.storage import RemoteFolder, check_address
from fourm.errors import UsageError, check_choice
from fourm.files.opening import real
from fourm.hub.files import ModelFiles
from fourm.hub.header import AUTO, FULL, WEIGHTS, Weights
from fourm.inputs.world import World
from fourm.modalities.registry import Modality
from fourm.modalities.typed import Limits, to_type
from fourm.output.record import BASE, FEATURES, NEXT, RUN, SR_RUN, RunRecord
from fourm.output.samples import load_run
from fourm.schedule.best import Best, check_best
from fourm.schedule.chain import Chain
from fourm.schedule.features import Features
from fourm.schedule.settings import MAX_SEED
from fourm.schedule.solvers import DDIM, parse_solver
from fourm.sources.datasets import shows_part

R = TypeVar("R", "Request", "TokenizeRequest")
DETOKENIZER_STEPS = 25  # of tokenizers that decode by diffusion, where nothing else is asked
MAX_DETOKENIZER_STEPS = 10_000_000  # `--replay` refuses pictures that claim more
ATTENTIONS = ("sdpa", "xformers", "varlen")
MAX_CROPS = 10_000
# Fields of a request whose types are checked.
_PLAIN = ("num_variations", "batch_size", "decode", "detokenizer_steps", "detokenizer_solver", "preview",
          "blend", "resume", "overwrite", "restore")  # fmt: skip
_kinds = cache(partial(get_type_hints, include_extras=True))
NOWHERE = Path(os.devnull)  # `out` of results that are kept in memory


@dataclass(frozen=True, slots=True)
class Request:
    """Everything about one run of `generate` or `sr`; from `Model.request`, changed by `dataclasses.replace`.

    UsageError: a setting is out of its range, or two exclude each other.
    """

    model: ModelFiles
    chain: Chain
    samples: Sequence[Sample]
    out: Path = NOWHERE
    num_variations: Annotated[int, Limits(1)] = 1
    seed: int = 0
    batch_size: Annotated[int, Limits(1)] | None = None  # None: see `runs.device.fit_batch_size`
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = AUTO  # that of the run that is continued, else of the one before, else what suits the device
    attention: str = "sdpa"  # one of ATTENTIONS; they differ in last bits
    compile: bool = False  # blocks run as torch's compiler makes them; last bits differ
    # One of WEIGHTS. None: as in the run that is continued, else in the one before, else full.
    weights: Weights | None = None
    decode: bool = True  # also write pictures and other values, not only tokens
    # Of tokenizers that decode by diffusion. None: that of the run that is continued, else the usual one.
    detokenizer_steps: int | None = None
    detokenizer_solver: str | None = None  # see `parse_solver`
    preview: Annotated[int, Limits(0)] = 0  # keep the picture after every n-th step; 0 is never
    blend: bool = True  # lay what is kept in pixels over the generated picture
    world: World = field(default_factory=World)
    resume: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()
    input: Input = field(default_factory=Input)  # what the samples were read from
    stage: Literal["base", "sr", "features"] = BASE
    is_beside: bool = False  # of super-resolution: results go into the folder that conditions are read from
    origin: RunRecord | None = None  # of super-resolution: the run that made its conditions, if one did
    variation: int | None = None  # make only this one
    only: tuple[str, ...] = ()  # make only these samples now, by the texts of their keys; () is all
    fit: Fit = "crop"  # how pictures become squares: the centre, or all of them with a border
    restore: bool = False  # values are of the whole pictures, not of the squares that the model sees
    store: str = ""  # address of the folder that shards are uploaded to; `out` is a temporary one then
    features: Features | None = None  # of the encoder, which are made in place of targets
    best: Best | None = None  # variations are the best of more, which are made and scored

    @property
    def chosen(self) -> Sequence[Sample]:
        """The samples that are made now."""
        keys = frozenset(self.only)
        return [sample for sample in self.samples if sample.key.text in keys] if keys else self.samples

    @property
    def record(self) -> str:
        """Name of the run's record in its folder."""
        return SR_RUN if self.is_beside else RUN

    @property
    def reads_pictures(self) -> bool:
        """Whether conditions or kept parts are read of which the model sees a crop: pictures, maps, boxes."""
        rows = [self.model.registry.get(name) for name in self.chain.given]
        return any(shows_part(row, self.chain.values) for row in rows)

    @property
    def recorded_fit(self) -> str:
        """How pictures become squares, as records of samples say it; "" where no picture is read."""
        return self.fit if self.reads_pictures else ""

    def staged(self) -> "Request":
        """The request of this process: with a store, `out` is its temporary folder, and holds records."""
        return _staged(self)

    @property
    def variations(self) -> Sequence[int]:
        """Numbers of the variations to make."""
        return range(self.num_variations) if self.variation is None else (self.variation,)

    @property
    def num_drawn(self) -> int:
        """How many variations of a sample are decoded."""
        return len(self.variations) if self.best is None else self.best.of

    def joined_record(self) -> RunRecord | None:
        """The record in `out` of the run that is joined or continued; None if a new one begins."""
        return _joined_record(self)

    @property
    def diffusion_steps(self) -> int:
        """`detokenizer_steps`, or the usual number."""
        return DETOKENIZER_STEPS if self.detokenizer_steps is None else self.detokenizer_steps

    @property
    def diffusion_solver(self) -> str:
        """`detokenizer_solver`, or the usual one."""
        return DDIM if self.detokenizer_solver is None else self.detokenizer_solver

    def __post_init__(self) -> None:
        for name in _PLAIN:
            to_type(_kinds(Request)[name], getattr(self, name), f"`{name}`", error=UsageError)
        check_seed(self.seed)
        check_attention(self.attention)
        check_kept_weights(FULL if self.weights is None else self.weights)
        if (count := len(self.samples) * max(self.num_variations, self.num_drawn)) > MAX_SAMPLES:
            raise UsageError(f"{count:,} results are asked for; one run makes at most {MAX_SAMPLES:,}")
        if not 0 < self.diffusion_steps <= MAX_DETOKENIZER_STEPS:
            limit = f"must lie in 1..{MAX_DETOKENIZER_STEPS:,}"
            raise UsageError(f"`detokenizer_steps={self.detokenizer_steps}`: {limit}")
        parse_solver(self.diffusion_solver)
        if self.best is not None:
            check_best(self.best, self.chain, self.model)
            if self.num_variations > self.best.of:
                raise UsageError(f"`best`: {self.num_variations} of {self.best.of} variations cannot be kept")
            if self.preview:
                raise UsageError("`preview`: shows what is being made, and `best` chooses only later")
        if self.preview and not self.decode:
            raise UsageError("`preview` needs pictures; leave out `decode=False`")
        check_choice("fit", self.fit, FITS)
        self._check_frames()
        if (self.features is None) == (self.stage == FEATURES) or (self.features and self.chain.specs):
            raise ValueError("features have a stage of their own, and a chain without targets")
        is_shard = self.world.size > self.world.group_size  # others may start at another time
        if self.overwrite and (self.resume or is_shard):
            other = "`resume=True`" if self.resume else "`shard`"
            raise UsageError(
                f"`overwrite=True` and {other} exclude each other: one would delete the other's work"
            )
        if self.is_beside:
            return
        if self.input.kind != "pictures":  # among which the results of a run are passed over
            check_apart(self.out, self.samples)
        if self.overwrite:
            read = (path for s in self.samples for files in (s.files, *s.varied) for path in files.values())
            for folder in {path.parent for path in read}:
                if real(folder).is_relative_to(real(self.out)):
                    what = f"`overwrite=True` would delete {folder}, which this run reads"
                    raise UsageError(f"`out={self.out}`: {what}")

    def _check_frames(self) -> None:
        """Refuse what concerns frames of pictures where there are none."""
        if self.restore and not self.decode:
            raise UsageError("`restore` needs pictures and maps; leave out `decode=False`")
        is_asked = self.restore or self.fit == "pad"
        if not is_asked or self.reads_pictures or not self.samples:  # super-resolution gets samples later
            return
        if not any(FRAME in sample.files or FRAME in sample.values for sample in self.samples):
            name = "`restore=True`" if self.restore else "`fit=pad`"
            raise UsageError(f"{name}: no condition is a picture or map; texts and tokens have no size")


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
    dtype: str = AUTO
    attention: str = "sdpa"
    compile: bool = False  # see `Request`
    overwrite: bool = False
    world: World = field(default_factory=World)
    fit: Fit = "crop"  # what the first crop of a picture is: its centre, or all of it with a border
    resume: bool = False  # of shards; files that are there are kept in any case
    command: tuple[str, ...] = ()
    store: str = ""  # see `Request`

    @property
    def record(self) -> str:
        """Name of the record of a run in shards."""
        return RUN

    @property
    def variations(self) -> Sequence[int]:
        """Numbers of the results of each sample: one."""
        return range(1)

    @property
    def only(self) -> tuple[str, ...]:
        """See `Request`: all samples are tokenized."""
        return ()

    @property
    def weights(self) -> Weights | None:
        """See `Request`: the transformer is not loaded."""
        return None

    @property
    def is_beside(self) -> bool:
        """See `Request`."""
        return False

    def staged(self) -> "TokenizeRequest":
        """See `Request.staged`."""
        return _staged(self)

    def joined_record(self) -> RunRecord | None:
        """The record in `out` of the run in shards that is joined or continued; None if a new one begins."""
        return _joined_record(self)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_attention(self.attention)
        check_choice("fit", self.fit, FITS)
        check_apart(self.out, self.samples)
        if not 0 < self.min_scale <= 1:
            raise UsageError(f"`min_scale={self.min_scale:g}`: a share of the area lies above 0, up to 1")
        if self.num_crops is not None and not 1 <= self.num_crops <= MAX_CROPS:
            raise UsageError(f"`crops={self.num_crops}`: a sample has 1 to {MAX_CROPS:,} crops")


def _staged(request: R) -> R:
    """See `Request.staged`."""
    if not request.store:
        return request
    store = RemoteFolder(check_address(request.store))
    store.fetch_small((RUN, SR_RUN))
    if not (store.local() / RUN).exists():  # what an earlier run of this process left is of no use
        shutil.rmtree(store.local())
    return replace(request, out=store.local(), store=store.address)


def _joined_record(request: "Request | TokenizeRequest") -> RunRecord | None:
    """See `Request.joined_record`."""
    # One that was killed while it overwrote the folder is completed first.
    files = () if request.overwrite else (NEXT[request.record], request.record)[not request.resume :]
    there = [file for file in files if os.path.lexists(request.out / file)]
    return load_run(request.out, there[0]).record if there else None


def check_seed(seed: object) -> None:
    """Refuse what is no seed."""
    number = to_type(int, seed, "`seed`", error=UsageError)
    if not 0 <= number <= MAX_SEED:  # records and YAML files hold no others
        raise UsageError(f"`seed={seed}`: must be a whole number, 0 to 2**64 - 1")


def check_attention(attention: str) -> None:
    """Refuse an unknown kernel of attention."""
    check_choice("attention", attention, ATTENTIONS)


def check_kept_weights(weights: str) -> None:
    """Refuse an unknown way to keep the weights of a transformer."""
    check_choice("weights", weights, WEIGHTS)

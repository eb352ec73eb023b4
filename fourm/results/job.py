"""A request that is ready to run: what is written, which tokenizers it needs, and its record."""

import hashlib
import os
import platform
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from fourm import MKL_VARIABLE, __version__
from fourm.checks.formats import Tokens, find_flaw
from fourm.codecs.images import rows_at_once
from fourm.codecs.maps import FORMS
from fourm.codecs.table import check_codec
from fourm.data.layout import CROP_SETTINGS, Place, path_of
from fourm.errors import MissingError, UsageError
from fourm.files.opening import read_bytes
from fourm.hub.digests import sha256_of
from fourm.hub.files import ModelFiles, check_tokenizers, require_text_tokenizer, tokenizer_advice, weights_of
from fourm.hub.header import FULL, TokenizerPart
from fourm.inputs.conditions import Work
from fourm.inputs.request import DETOKENIZER_STEPS, Request, TokenizeRequest
from fourm.modalities.registry import Kind, Modality
from fourm.networks.checkpoint import tokenizer_config
from fourm.networks.tokenizers.config import DiVAEConfig
from fourm.networks.tokenizers.diffusion import check_steps
from fourm.output.processes import Listed, now
from fourm.output.record import TOKENS, RunRecord
from fourm.schedule.chain import joining_problem
from fourm.schedule.keeps import Keep
from fourm.schedule.solvers import DDIM, parse_solver

READ_BYTES = 1 << 16  # files up to this size are compared by checksum, larger ones by size only
CROPS = Place(CROP_SETTINGS, ".npy", form="extra")  # one row of each file for each row of its token files
ENCODED = Place("features", ".npy", form="features")  # what the encoder makes of the conditions
SCORES = Place("scores", ".json", shared=True, form="scores")  # of all variations, where the best are kept


@dataclass(frozen=True, slots=True)
class Job:
    """A request that passed all checks, with the device, dtype, batch size and files chosen for it."""

    request: Request
    places: list[Place]  # one for each kind of file that every sample has, conditions included
    device: torch.device
    dtype: str  # a key of DTYPES
    batch_size: int

    @property
    def steps(self) -> int:
        """Decoding steps of a batch."""
        return len(self.request.chain.steps)

    @property
    def evaluations(self) -> int:
        """How often networks that decode by diffusion are evaluated per sample."""
        return count_evaluations(self.request, self.places)

    @property
    def written(self) -> list[Place]:
        """The places that this run writes: features alone; else all but conditions that are there already."""
        if self.request.features is not None:
            return [ENCODED]
        return [place for place in self.places if not (self.request.is_beside and _is_there(place))]

    def paths(self, work: Work) -> tuple[Path, ...]:
        """All files that are written for a sample and variation."""
        return tuple(self.path(place, work) for place in self.written)

    def path(self, place: Place, work: Work) -> Path:
        """The path of one file of a sample; its name holds the variation if the run makes several."""
        variation = None if place.shared or self.request.num_variations == 1 else work.variation
        return path_of(self.request.out, place.folder, work.sample.key, place.suffix, variation)

    def is_complete(self, place: Place, work: Work, listed: Mapping[str, Listed]) -> bool:
        """True if a file matches its checksum in `listed` or, without one there, is valid by its format.

        Of a file larger than `READ_BYTES`, only the size is compared. A token file without a checksum must
        also have the length and the vocabulary of its modality. Not complete are an empty file without a
        checksum (a power failure can leave one), a link (its target may lie outside the folder), and a file
        that cannot be read.
        """
        path, tokens = self.path(place, work), None
        if place.form == "ids":
            row = self.request.model.registry.get(place.modality)
            tokens = Tokens(row.max_tokens, row.vocab_size)
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return False
            size = status.st_size
            expected = listed.get(path.relative_to(self.request.out).as_posix())
            if expected is None:
                return size > 0 and find_flaw(path, tokens) is None
            if expected.size is not None and (size != expected.size or size > READ_BYTES):
                return size == expected.size
            return hashlib.sha256(read_bytes(path, max(size, 1))).hexdigest() == expected.sha256
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class TokenJob:
    """A request of `tokenize` that passed all checks; its dtype and number of crops are chosen."""

    request: TokenizeRequest
    device: torch.device
    steps: Literal[0] = 0  # decoding steps; see `Job`
    evaluations: Literal[0] = 0

    @property
    def dtype(self) -> str:
        """A key of DTYPES."""
        return self.request.dtype

    @property
    def num_crops(self) -> int:
        """Crops of each sample."""
        return self.request.num_crops or 1

    @property
    def batch_size(self) -> int:
        """Samples that are read together."""
        return self.request.batch_size or rows_at_once(self.device)

    @property
    def places(self) -> list[Place]:
        """One for the tokens of each modality; one for crops, which features do not have."""
        has_maps = any(FORMS[row.codec].resample is not None for row in self.request.rows)
        return [*map(ids_place, self.request.rows), *([CROPS] if has_maps else [])]


def ids_place(row: Modality) -> Place:
    """Where the tokens that are made of a modality's values are written."""
    return Place(row.name, ".npy", modality=row.name, form="ids", is_condition=True)


def _is_there(place: Place) -> bool:
    """Whether super-resolution finds the files of a place in the folder that it goes on from."""
    return place.is_condition and place.form in ("ids", "value")


def kept_places(keep: Keep, row: Modality, shared: bool) -> list[Place]:
    """Where the given part of a target is written, as it was used, and the mask of what stays.

    shared: whether all variations of a sample are given the same.
    """
    folder = f"{row.folder if keep.raw or keep.is_text else row.name}_kept"
    if keep.is_text:
        return [Place(folder, ".txt", shared, row.name, "kept", is_condition=True)]
    shared = shared and keep.share is None  # each variation draws a share of its own
    form, suffix = ("kept", row.suffix) if keep.raw else ("kept_ids", ".npy")
    mask = Place(f"{folder}_mask", ".png", shared, row.name, "mask", is_condition=True)
    return [Place(folder, suffix, shared, row.name, form, is_condition=True), mask]


def preview_place(target: str, number: int) -> Place:
    """Where the picture of a target after a step is written. number: of the step in the chain, from 1."""
    return Place(f"preview/{target}", f"-step{number:03d}.png", modality=target, form="extra")


def order_place(target: str) -> Place:
    """Where the number of the decoding step of each token is written: (L,) int16, from 1; 0: it was given."""
    return Place(f"preview/{target}", "-order.npy", modality=target, form="extra")


def malformed_place(target: str) -> Place:
    """Where generated texts that violate their grammar are written unchanged."""
    return Place(f"malformed/{target}", ".json", modality=target, form="extra")


def plan_places(request: Request) -> list[Place]:
    """Where each kind of file of a sample is written.

    UsageError for a value that can never be decoded or encoded; MissingError for one whose tokenizer is not
    on this machine.
    """
    model = request.model
    places = list[Place]()
    for name in request.chain.conditions:
        row = model.registry.get(name)
        shared = not any(name in files for sample in request.samples for files in sample.varied)
        if row.kind is Kind.GRID:
            places.append(Place(row.name, ".npy", shared, row.name, form="ids", is_condition=True))
        if row.kind is not Kind.GRID or name in request.chain.raw:
            places.append(Place(row.folder, row.suffix, shared, row.name, is_condition=True))
    for keep in request.chain.keeps:
        shared = not any(keep.target in files for sample in request.samples for files in sample.varied)
        places += kept_places(keep, model.registry.get(keep.target), shared)
    # Folders of values that are given already; a decoded target must not be written over them.
    origin_places = request.origin.places if request.origin else ()
    taken = {place.folder for place in (origin_places if request.is_beside else places)}
    for spec in request.chain.specs:
        row = model.registry.get(spec.target)
        if spec.passes > 1 and (problem := joining_problem(row)):
            raise UsageError(problem)
        if row.kind is Kind.GRID:
            places.append(Place(row.name, ".npy", modality=row.name, form="ids"))
        if row.kind is Kind.SEQUENCE or request.decode:
            folder = row.folder if row.folder not in taken else f"{row.folder}_decoded"
            places.append(Place(folder, row.suffix, modality=row.name))
    for place in places:
        _check_place(model, place)
    valued = [place for place in places if place.form in ("value", "kept")]
    check_tokenizers(model, [model.registry.get(place.modality) for place in valued])
    count_evaluations(request, places)  # refuses a wrong number of steps
    places += [ENCODED] if request.features is not None else []
    return [*places, *([SCORES] if request.best is not None else [])]


def count_evaluations(request: Request, places: Sequence[Place]) -> int:
    """How often networks that decode by diffusion are evaluated per sample.

    UsageError if one of them cannot be decoded in the number of steps that is asked for.
    """
    model, steps, solver = request.model, request.diffusion_steps, parse_solver(request.diffusion_solver)
    decoders = filter(None, (_tokenizer_of(model, place) for place in places if not place.is_condition))
    configs = [tokenizer_config(model.tokenizers[key]) for key in decoders]
    diffusions = [config for config in configs if isinstance(config, DiVAEConfig)]
    for config in diffusions:
        try:
            check_steps(config, steps, solver)
        except UsageError as error:
            raise UsageError(f"`detokenizer_steps={steps}`: {error}") from error
    return steps * len(diffusions)


def fill_diffusion(request: Request) -> Request:
    """A request with steps and solver of a diffusion: as asked, of the run that it continues, or usual."""
    steps, solver = request.detokenizer_steps, request.detokenizer_solver
    before = request.joined_record() if steps is None or solver is None else None
    usual = (before.detokenizer_steps, before.detokenizer_solver) if before else (DETOKENIZER_STEPS, DDIM)
    return replace(
        request, detokenizer_steps=usual[0] if steps is None else steps,
        detokenizer_solver=usual[1] if solver is None else solver,
    )  # fmt: skip


def make_record(job: Job) -> RunRecord:
    """The contents of run.json. Reads all files of the model to compute their checksums."""
    request, model, chain = job.request, job.request.model, job.request.chain
    files = {"weights": model.weights}
    for key in tokenizers_of(model, job.places):
        files[f"tokenizers/{key}"] = weights_of(model.tokenizers[key])
    if model.text_tokenizer is not None:
        files["text_tokenizer"] = model.text_tokenizer
    rows = [model.registry.get(name) for name in chain.targets]
    # Targets and steps with preview pictures; none if `preview` is 0.
    grids = [row.name for row in rows if row.kind is Kind.GRID and request.preview]
    steps = [step for step in chain.steps if step.target in grids and step.number % request.preview == 0]
    extras = (  # files that only some samples have
        *(preview_place(step.target, step.number) for step in steps),
        *map(order_place, grids),
        *(malformed_place(row.name) for row in rows if row.kind is Kind.SEQUENCE),
    )
    return RunRecord(
        schedule=chain.to_json(), options=chain.to_text(), model=model.name, revision=model.revision,
        files={name: sha256_of(path) for name, path in sorted(files.items())},
        samples=len(request.samples), input=request.input, num_variations=request.num_variations,
        variation=request.variation, seed=request.seed, dtype=job.dtype, attention=request.attention,
        decode=request.decode, detokenizer_steps=request.diffusion_steps, preview=request.preview,
        detokenizer_solver=request.diffusion_solver, blend=request.blend, batch_size=job.batch_size,
        stage=request.stage, origin=request.origin.as_origin() if request.origin else {},
        fit=request.fit, restore=request.restore, compile=request.compile, weights=request.weights or FULL,
        features=request.features, best=request.best, places=(*job.written, *extras),
        device_type=job.device.type, device=_describe(job.device), versions=_versions(),
        command=request.command, created=now(),
    )  # fmt: skip


def make_token_record(job: TokenJob) -> RunRecord:
    """The contents of run.json of a run of `tokenize` in shards."""
    request, model = job.request, job.request.model
    keys = sorted({row.tokenizer for row in request.rows})
    return RunRecord(
        schedule={"conditions": [row.name for row in request.rows], "steps": []},
        model=model.name, revision=model.revision,
        files={f"tokenizers/{key}": sha256_of(weights_of(model.tokenizers[key])) for key in keys},
        samples=0, num_variations=1, seed=request.seed, dtype=job.dtype, attention=request.attention,
        decode=False, detokenizer_steps=DETOKENIZER_STEPS, preview=0, batch_size=job.batch_size,
        stage=TOKENS, fit=request.fit, compile=request.compile, places=tuple(job.places),
        num_crops=job.num_crops, min_scale=request.min_scale,
        device_type=job.device.type, device=_describe(job.device), versions=_versions(),
        command=request.command, created=now(),
    )  # fmt: skip


def tokenizers_of(model: ModelFiles, places: Sequence[Place]) -> dict[str, TokenizerPart]:
    """Tokenizers that encode conditions or decode targets, by name, and the part that is needed of each."""
    needed = dict[str, TokenizerPart]()
    for place in places:
        part = TokenizerPart.ENCODER if place.is_condition else TokenizerPart.DECODER
        if key := _tokenizer_of(model, place):
            needed[key] = part if needed.get(key, part) is part else TokenizerPart.WHOLE
    return dict(sorted(needed.items()))


def _check_place(model: ModelFiles, place: Place) -> None:
    """Refuse a value that needs a codec or a tokenizer that does not exist or is not on this machine."""
    row = model.registry.get(place.modality)
    if place.is_condition:
        setting = "keep" if place.form == "kept" else "cond"
        verb, way_out = "encodes", f", `{setting}={row.key}` reads tokens"
    else:
        verb, way_out = "decodes", ", `decode=False` keeps tokens only"
    check_codec(row)
    if place.form in ("value", "kept") and row.kind is Kind.GRID and not row.tokenizer:
        raise UsageError(f"{row.name}: its row in modalities.yaml names no tokenizer{way_out}")
    if place.form == "value" and row.kind is Kind.SEQUENCE:
        require_text_tokenizer(model, row.name)
    if (key := _tokenizer_of(model, place)) and key not in model.tokenizers:
        what = f"the tokenizer '{key}' that {verb} it is not here; {tokenizer_advice(model, key)}"
        raise MissingError(f"{row.name}: {what}{way_out}")


def _tokenizer_of(model: ModelFiles, place: Place) -> str:
    """The tokenizer that encodes or decodes the values of a place; "" for texts and for tokens."""
    if place.form not in ("value", "kept"):
        return ""
    row = model.registry.get(place.modality)
    return row.tokenizer if row.kind is Kind.GRID else ""


def _describe(device: torch.device) -> str:
    """A device, and the name of its processor."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.processor() or platform.machine()}"


def _versions() -> dict[str, str]:
    """What results may depend on in their last bits."""
    libraries = {name: version(name) for name in ("torch", "numpy", "tokenizers", "pillow")}
    own = {"fourm": __version__, "python": platform.python_version()}
    return {**own, **libraries, MKL_VARIABLE: os.environ.get(MKL_VARIABLE, "not set")}

"""Which files a run writes, which are complete already, what they need, and what its record says."""

import hashlib
import platform
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from fourm import __version__
from fourm.codecs.table import check_codec
from fourm.data.layout import Place, path_of
from fourm.data.opening import read_bytes
from fourm.errors import MissingError, SampleError, UsageError
from fourm.hub.files import ModelFiles, check_tokenizers, require_text_tokenizer, tokenizer_advice, weights_of
from fourm.hub.header import TokenizerPart
from fourm.modalities.registry import Kind
from fourm.networks.checkpoint import tokenizer_config
from fourm.networks.tokenizers.config import DiVAEConfig
from fourm.output.formats import Tokens, find_flaw
from fourm.output.processes import Listed, now, sha256_of
from fourm.output.record import RunRecord
from fourm.runs.conditions import Work
from fourm.runs.request import Request
from fourm.schedule.chain import joining_problem

READ_BYTES = 1 << 16  # larger files are compared by size only, others by checksum


def preview_place(target: str, number: int) -> Place:
    """Where the picture of a target after a step lies; number: of the step in the chain, from 1."""
    return Place(f"preview/{target}", f"-step{number:03d}.png", modality=target, form="extra")


def order_place(target: str) -> Place:
    """Where the decoding step of each token lies, from 1, (L,) int16."""
    return Place(f"preview/{target}", "-order.npy", modality=target, form="extra")


def malformed_place(target: str) -> Place:
    """Where texts lie that do not keep to their grammar, as the model wrote them."""
    return Place(f"malformed/{target}", ".json", modality=target, form="extra")


@dataclass(frozen=True, slots=True)
class Job:
    """A request that passed all checks, with its places, device and dtype."""

    request: Request
    places: list[Place]  # of files that every sample has, conditions included
    device: torch.device
    dtype: str  # a key of DTYPES

    @property
    def written(self) -> list[Place]:
        """All but the conditions that lie in the output folder already."""
        return [place for place in self.places if not (place.is_condition and self.request.is_beside)]

    def paths(self, work: Work) -> tuple[Path, ...]:
        """All files of a sample and variation."""
        return tuple(self.path(place, work) for place in self.written)

    def path(self, place: Place, work: Work) -> Path:
        """One file of a sample and variation; the variation is in its name where there are several."""
        variation = None if place.shared or self.request.num_variations == 1 else work.variation
        return path_of(self.request.out, place.folder, work.sample.key, place.suffix, variation)

    def is_complete(self, path: Path, listed: Mapping[str, Listed]) -> bool:
        """True if a file matches its checksum in a list, or if it has none, is a complete file of its format.

        Tokens without a checksum must also be as many as their modality has, and of its vocabulary. Only the
        size of a large file is compared. An empty file without a checksum is not complete: a power failure
        can leave one. Neither is a link: what it leads to does not belong to the folder.
        """
        try:
            told = path.lstat()
            if not stat.S_ISREG(told.st_mode):
                return False
            size = told.st_size
            name = path.relative_to(self.request.out).as_posix()
            said = listed.get(name)
            if said is None:
                ids = (place for place in self.places if place.form == "ids")
                place = next((place for place in ids if name.startswith(f"{place.folder}/")), None)
                row = self.request.model.registry.get(place.modality) if place else None
                tokens = Tokens(row.max_tokens, row.vocab_size) if row else None
                return size > 0 and find_flaw(path, tokens) is None
            if said.size is not None and (size != said.size or size > READ_BYTES):
                return size == said.size
            return hashlib.sha256(read_bytes(path, max(size, 1))).hexdigest() == said.sha256
        except (OSError, SampleError):
            return False


def plan_places(request: Request) -> list[Place]:
    """Where each kind of file of a sample lies; what cannot be made is refused here."""
    model, places = request.model, list[Place]()
    for name in request.chain.conditions:
        row = model.registry.get(name)
        shared = not any(name in files for sample in request.samples for files in sample.varied)
        if row.kind is Kind.GRID:
            places.append(Place(row.name, ".npy", shared, name, "ids", True))
        if row.kind is not Kind.GRID or name in request.chain.raw:
            places.append(Place(row.folder, row.suffix, shared, name, "value", True))
    others = request.origin.places if request.origin else ()
    taken = {place.folder for place in (others if request.is_beside else places)}
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
    check_tokenizers(model, [model.registry.get(place.modality) for place in places if place.form == "value"])
    count_evaluations(request, places)
    return places


def _tokenizer_of(model: ModelFiles, place: Place) -> str:
    """The tokenizer that a value is made of tokens with, or tokens of it; "" for texts and tokens."""
    row = model.registry.get(place.modality)
    return row.tokenizer if place.form == "value" and row.kind is Kind.GRID else ""


def _check_place(model: ModelFiles, place: Place) -> None:
    """Refuse a value that needs a tokenizer which is not here."""
    row, verb, way_out = model.registry.get(place.modality), "decodes", ", --no-decode keeps tokens only"
    if place.is_condition:
        verb, way_out = "encodes", f", --cond {row.key} reads tokens"
    check_codec(row)
    if place.form == "value" and row.kind is Kind.GRID and not row.tokenizer:
        raise UsageError(f"{row.name}: its row in modalities.yaml names no tokenizer{way_out}")
    if place.form == "value" and row.kind is Kind.SEQUENCE:
        require_text_tokenizer(model, row.name)
    if (key := _tokenizer_of(model, place)) and key not in model.tokenizers:
        advice = tokenizer_advice(model, key)
        raise MissingError(f"{row.name}: the tokenizer '{key}' that {verb} it is not here; {advice}{way_out}")


def count_evaluations(request: Request, places: Sequence[Place]) -> int:
    """Evaluations of networks that decode by diffusion, per sample.

    UsageError where the timesteps of a diffusion cannot be divided evenly into the steps that are asked for.
    """
    steps, count = request.detokenizer_steps, 0
    for key in (_tokenizer_of(request.model, place) for place in places if not place.is_condition):
        config = tokenizer_config(request.model.tokenizers[key]) if key else None
        if not isinstance(config, DiVAEConfig):
            continue
        trained, count = config.num_train_timesteps, count + steps
        if trained % steps:
            even = [n for n in range(1, trained + 1) if trained % n == 0]
            near = (*[n for n in even if n < steps][-1:], *[n for n in even if n > steps][:1])
            what = f"the {trained:,} timesteps of the tokenizer cannot be spaced evenly"
            raise UsageError(f"--detokenizer-steps {steps}: {what}; {' or '.join(map(str, near))} would do")
    return count


def make_record(job: Job) -> RunRecord:
    """What run.json says of this run. Reads all files of the model for their checksums."""
    request, model, chain, device = job.request, job.request.model, job.request.chain, job.device
    files = {"weights": model.weights}
    for key in tokenizers_of(model, job.places):
        files[f"tokenizers/{key}"] = weights_of(model.tokenizers[key])
    if model.text_tokenizer is not None:
        files["text_tokenizer"] = model.text_tokenizer
    rows = [model.registry.get(name) for name in chain.targets]
    grids = [row.name for row in rows if row.kind is Kind.GRID and request.preview]
    kept = [step for step in chain.steps if step.target in grids and step.number % request.preview == 0]
    occasional = (  # files that only some samples have
        *(preview_place(step.target, step.number) for step in kept),
        *map(order_place, grids),
        *(malformed_place(row.name) for row in rows if row.kind is Kind.SEQUENCE),
    )
    is_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine()
    versions = {name: version(name) for name in ("torch", "numpy", "tokenizers", "pillow")}
    return RunRecord(
        schedule=chain.to_json(), options=chain.to_text(), model=model.name, revision=model.revision,
        files={name: sha256_of(path) for name, path in sorted(files.items())},
        samples=len(request.samples), input=request.input, num_variations=request.num_variations,
        variation=request.variation, seed=request.seed, dtype=job.dtype, attention=request.attention,
        decode=request.decode, detokenizer_steps=request.detokenizer_steps, preview=request.preview,
        stage=request.stage, origin=request.origin.as_origin() if request.origin else {},
        places=(*job.written, *occasional),
        device_type=device.type, device=f"{device if is_gpu else device.type} {processor}",
        versions={"fourm": __version__, "python": platform.python_version()} | versions,
        command=request.command, created=now(),
    )  # fmt: skip


def tokenizers_of(model: ModelFiles, places: Sequence[Place]) -> dict[str, TokenizerPart]:
    """Tokenizers that conditions are read or targets written through, and the half that this takes."""
    needed = dict[str, TokenizerPart]()
    for place in places:
        part = TokenizerPart.ENCODER if place.is_condition else TokenizerPart.DECODER
        if key := _tokenizer_of(model, place):
            needed[key] = part if needed.get(key, part) is part else TokenizerPart.WHOLE
    return dict(sorted(needed.items()))

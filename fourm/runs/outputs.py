"""Which files a run will write, what they need, and what its record says."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from fourm import __version__
from fourm.codecs.table import check_codec
from fourm.data.layout import Place
from fourm.errors import MissingError, UsageError
from fourm.hub.files import ModelFiles, check_tokenizers, require_text_tokenizer, tokenizer_advice, weights_of
from fourm.hub.header import TokenizerPart
from fourm.modalities.registry import Kind, Modality
from fourm.networks.checkpoint import tokenizer_config
from fourm.networks.tokenizers.config import DiVAEConfig
from fourm.output.processes import now, sha256_of
from fourm.output.record import RunRecord
from fourm.runs.request import Request
from fourm.schedule.chain import joining_problem


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
class Output:
    """One kind of file that every sample gets."""

    place: Place
    modality: Modality
    is_written: bool = True  # False for conditions that lie in the output folder already

    @property
    def needs_tokenizer(self) -> bool:
        """True for values of a grid, which tokens become only through a tokenizer; texts are read without."""
        row = self.modality
        return self.place.form == "value" and row.kind is Kind.GRID and bool(row.tokenizer)


@dataclass(frozen=True, slots=True)
class Job:
    """A request that passed all checks, with its outputs, device and dtype."""

    request: Request
    outputs: list[Output]
    device: torch.device
    dtype: str  # a key of DTYPES


def plan_outputs(request: Request) -> list[Output]:
    """Every kind of file that a sample of this request gets; what cannot be made is refused here.

    Conditions that lie in the output folder already are not written again.
    """
    registry, outputs = request.model.registry, list[Output]()
    writes = not request.is_beside
    for name in request.chain.conditions:
        row = registry.get(name)
        shared = not any(name in files for sample in request.samples for files in sample.varied)
        if row.kind is Kind.GRID:
            outputs.append(Output(Place(row.name, ".npy", shared, name, "ids", True), row, writes))
        if row.kind is not Kind.GRID or name in request.chain.raw:
            outputs.append(Output(Place(row.folder, row.suffix, shared, name, "value", True), row, writes))
    taken = {output.place.folder for output in outputs if output.is_written}
    if request.is_beside and request.origin:
        taken |= {place.folder for place in request.origin.places}
    for name in request.chain.targets:
        row = registry.get(name)
        if row.kind is Kind.GRID:
            outputs.append(Output(Place(row.name, ".npy", modality=name, form="ids"), row))
        if row.kind is Kind.SEQUENCE or request.decode:
            folder = row.folder if row.folder not in taken else f"{row.folder}_decoded"
            outputs.append(Output(Place(folder, row.suffix, modality=name), row))
    for spec in request.chain.specs:
        if spec.passes > 1 and (problem := joining_problem(registry.get(spec.target))):
            raise UsageError(problem)
    for output in outputs:
        _check_output(request.model, output)
    check_tokenizers(request.model, [output.modality for output in outputs if output.place.form == "value"])
    count_evaluations(request, outputs)
    return outputs


def _check_output(model: ModelFiles, output: Output) -> None:
    """Refuse a value that needs a tokenizer which is not here."""
    row, verb, way_out = output.modality, "decodes", ", --no-decode keeps tokens only"
    if output.place.is_condition:
        verb, way_out = "encodes", f", --cond {row.key} reads tokens"
    check_codec(row)
    if output.place.form == "value" and row.kind is Kind.GRID and not row.tokenizer:
        raise UsageError(f"{row.name}: its row in modalities.yaml names no tokenizer{way_out}")
    if output.place.form == "value" and row.kind is Kind.SEQUENCE:
        require_text_tokenizer(model, row.name)
    if output.needs_tokenizer and row.tokenizer not in model.tokenizers:
        raise MissingError(
            f"{row.name}: the tokenizer '{row.tokenizer}' that {verb} it is not here; "
            f"{tokenizer_advice(model, row.tokenizer)}{way_out}"
        )


def count_evaluations(request: Request, outputs: Sequence[Output]) -> int:
    """Evaluations of networks that decode by diffusion, per sample.

    UsageError where the timesteps of a diffusion cannot be divided evenly into the steps that are asked for.
    """
    steps, count = request.detokenizer_steps, 0
    for output in outputs:
        if output.place.is_condition or not output.needs_tokenizer:
            continue
        config = tokenizer_config(request.model.tokenizers[output.modality.tokenizer])
        if not isinstance(config, DiVAEConfig):
            continue
        trained, count = config.num_train_timesteps, count + steps
        if trained % steps:
            even = [n for n in range(1, trained + 1) if trained % n == 0]
            near = (*[n for n in even if n < steps][-1:], *[n for n in even if n > steps][:1])
            raise UsageError(
                f"--detokenizer-steps {steps}: the {trained:,} timesteps of the tokenizer cannot be spaced "
                f"evenly; {' or '.join(map(str, near))} would do"
            )
    return count


def make_record(job: Job) -> RunRecord:
    """What run.json says of this run. Reads all files of the model for their checksums."""
    request, model, chain, device = job.request, job.request.model, job.request.chain, job.device
    files = {f"tokenizers/{key}": weights_of(model.tokenizers[key]) for key in tokenizers_of(job.outputs)}
    files["weights"] = model.weights
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
        places=(*(output.place for output in job.outputs if output.is_written), *occasional),
        device_type=device.type, device=f"{device if is_gpu else device.type} {processor}",
        versions={"fourm": __version__, "python": platform.python_version()} | versions,
        command=request.command, created=now(),
    )  # fmt: skip


def tokenizers_of(outputs: Sequence[Output]) -> dict[str, TokenizerPart]:
    """Tokenizers that conditions are read or targets written through, and the half that this takes."""
    needed = dict[str, TokenizerPart]()
    for output in outputs:
        key = output.modality.tokenizer
        part = TokenizerPart.ENCODER if output.place.is_condition else TokenizerPart.DECODER
        if output.needs_tokenizer:
            needed[key] = part if needed.get(key, part) is part else TokenizerPart.WHOLE
    return dict(sorted(needed.items()))

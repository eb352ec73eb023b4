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
from fourm.runs.device import name_device
from fourm.runs.request import Request
from fourm.schedule.chain import Step, joining_problem


def preview_place(target: str, number: int) -> Place:
    """Where the picture of a target after a step lies; number: of the step in the chain, from 1."""
    return Place(f"preview/{target}", f"-step{number:03d}.png", modality=target, form="extra")


def is_previewed(step: Step, every: int) -> bool:
    """Whether the picture after a step of a grid is kept; every: after which steps, 0 is never."""
    return every > 0 and step.number % every == 0


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
    if request.is_beside and request.origin and request.origin.record:
        taken |= {place.folder for place in request.origin.record.places}
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
    """Evaluations of networks that decode by diffusion, per sample; what cannot be decoded is refused."""
    steps, count = request.detokenizer_steps, 0
    for output in outputs:
        if output.place.is_condition or not output.needs_tokenizer:
            continue
        config = tokenizer_config(request.model.tokenizers[output.modality.tokenizer])
        if isinstance(config, DiVAEConfig):
            _check_steps(steps, config.num_train_timesteps)
            count += steps
    return count


def _check_steps(steps: int, trained: int) -> None:
    """Refuse numbers of steps that a diffusion of so many timesteps cannot take evenly."""
    if steps <= trained and trained % steps == 0:
        return
    even = [n for n in range(1, trained + 1) if trained % n == 0]
    near = [str(n) for n in (*[n for n in even if n < steps][-1:], *[n for n in even if n > steps][:1])]
    raise UsageError(
        f"--detokenizer-steps {steps}: the {trained:,} timesteps of the tokenizer cannot be spaced evenly; "
        f"{' or '.join(near)} would do"
    )


def make_record(request: Request, outputs: list[Output], device: torch.device, dtype: str) -> RunRecord:
    """What run.json says of this run."""
    model = request.model
    files = {
        "weights": model.weights,
        **{f"tokenizers/{key}": weights_of(model.tokenizers[key]) for key in tokenizers_of(outputs)},
    }
    if model.text_tokenizer is not None:
        files["text_tokenizer"] = model.text_tokenizer
    versions = {name: version(name) for name in ("torch", "numpy", "tokenizers", "pillow")}
    return RunRecord(
        schedule=request.chain.to_json(),
        model=model.name,
        revision=model.revision,
        files={name: sha256_of(path) for name, path in sorted(files.items())},
        samples=len(request.samples),
        input=request.input,
        num_variations=request.num_variations,
        seed=request.seed,
        dtype=dtype,
        device_type=device.type,
        attention=request.attention,
        decode=request.decode,
        detokenizer_steps=request.detokenizer_steps,
        preview=request.preview,
        stage=request.stage,
        variation=request.variation,
        origin=request.origin.record.as_origin() if request.origin and request.origin.record else {},
        options=request.chain.to_text(),
        places=(*(output.place for output in outputs if output.is_written), *_occasional(request)),
        device=name_device(device),
        versions={"fourm": __version__, "python": platform.python_version()} | versions,
        command=request.command,
        created=now(),
    )


def _occasional(request: Request) -> list[Place]:
    """Where files lie that only some samples have."""
    rows = [request.model.registry.get(name) for name in request.chain.targets]
    grids = [row.name for row in rows if row.kind is Kind.GRID and request.preview]
    kept = [s for s in request.chain.steps if s.target in grids and is_previewed(s, request.preview)]
    return [
        *(preview_place(step.target, step.number) for step in kept),
        *map(order_place, grids),
        *(malformed_place(row.name) for row in rows if row.kind is Kind.SEQUENCE),
    ]


def tokenizers_of(outputs: Sequence[Output]) -> dict[str, TokenizerPart]:
    """Tokenizers that conditions are read or targets written through, and the half that this takes."""
    needed = dict[str, TokenizerPart]()
    for output in outputs:
        key = output.modality.tokenizer
        part = TokenizerPart.ENCODER if output.place.is_condition else TokenizerPart.DECODER
        if output.needs_tokenizer:
            needed[key] = part if needed.get(key, part) is part else TokenizerPart.WHOLE
    return dict(sorted(needed.items()))

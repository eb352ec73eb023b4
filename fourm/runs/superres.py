"""Super-resolution of a folder: which of its files become the conditions of which model."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from fourm.data.dataset import Dataset, Input
from fourm.data.layout import Sample
from fourm.errors import FourMError, UsageError
from fourm.hub.files import DEMO, ModelFiles, find_model, find_sr
from fourm.modalities.registry import Kind
from fourm.output.record import BASE, RUN, RunRecord
from fourm.output.samples import Results, chain_names, open_results, samples_for
from fourm.runs.inputs import Source, read_samples
from fourm.schedule.chain import Chain
from fourm.schedule.plan import build_chain
from fourm.schedule.settings import Settings


def plan_finer(
    settings: Settings, model: ModelFiles, chain: Chain, name: str | None = None
) -> tuple[ModelFiles, Chain] | None:
    """Model and chain of the super-resolution that settings ask for, of what a chain makes; None if none.

    It is asked for by a model (`name`, or one of the settings) or by any setting of its own.
    """
    name = settings.run.sr_model if name is None else name
    if name is None and not settings.sr.settings:
        return None
    files = find_sr(model, name)
    return files, build_chain(settings.sr, files, chain.modalities)


def read_origin(root: Path) -> Results | None:
    """The run that made a folder; None for a dataset that no run made."""
    if not (root / RUN).exists():
        return None
    results = open_results(root)
    if (stage := results.runs[0].record.stage) != BASE:
        raise UsageError(f"{root}: holds results of a run of {stage}; name the folder that it went on from")
    return results


def find_finer(origin: Results | None, name: str | None) -> ModelFiles:
    """The super-resolution model of that name, else the one that belongs to the model of a run."""
    base_name = DEMO if origin is None else origin.runs[0].record.model
    try:
        base = find_model(base_name)
    except FourMError:
        if name is None:
            raise
        return find_model(name)  # its tokenizers must come from elsewhere
    return find_sr(base, name)


def names_made(root: Path, origin: Results | None, model: ModelFiles) -> list[str]:
    """Modalities (full names) that there are to go on from."""
    if origin is not None:
        conditions, targets = chain_names(origin.runs[0].record.schedule)
        return [*conditions, *targets]
    rows = [model.registry.get(name) for name in model.reads if name not in model.writes]
    folders = {row.name: row.name if row.kind is Kind.GRID else row.folder for row in rows}
    found = [name for name, folder in folders.items() if (root / folder).is_dir()]
    if not found:
        raise UsageError(
            f"{root}: holds nothing that model '{model.name}' reads; it reads the folders "
            f"{', '.join(folders.values())}"
        )
    return found


def read_finer(
    root: Path, origin: Results | None, chain: Chain, model: ModelFiles, stdin: BinaryIO
) -> Dataset:
    """The samples of a folder as conditions; of a run's, what is not there was not made, or has failed."""
    if origin is None:
        return read_samples(Source(data=str(root)), chain.conditions, model, stdin)
    run = origin.runs[0]
    ids = {name: model.registry.get(name).kind is Kind.GRID for name in chain.conditions}
    samples = samples_for(run, run.samples(), chain.conditions, ids)
    variations = run.record.num_variations if run.record.variation is None else 1
    lacking = run.record.samples * variations - _count(samples, run.record)
    if samples and not _count(samples, run.record):
        raise UsageError(
            f"{root}: none of the results that its run made are there; --resume makes them again"
        )
    incomplete = (f"{lacking} of {run.record.samples * variations} results are not there",) if lacking else ()
    return Dataset(tuple(samples), incomplete, input=Input("run"))


def _count(samples: Sequence[Sample], record: RunRecord) -> int:
    """Results whose files are all there."""
    variations = range(record.num_variations) if record.variation is None else (record.variation,)
    return sum(
        all(path.is_file() for path in sample.files_of(v).values()) for sample in samples for v in variations
    )

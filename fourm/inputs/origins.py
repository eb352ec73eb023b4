"""What a run goes on from: results of which super-resolution is made, or a file that is made once more."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from fourm.data.containers import ending_of, is_there, read_member, split_path
from fourm.data.dataset import Dataset, Input
from fourm.data.layout import MAX_SAMPLES, Key, Place, Sample, parse_key
from fourm.errors import FourMError, SampleError, UsageError, printable
from fourm.files.opening import read_bytes, real, strip_metadata
from fourm.hub.catalogue import DEMO, DEMO_SR
from fourm.hub.digests import sha256_of
from fourm.hub.files import ModelFiles, find_model, find_sr
from fourm.hub.header import FULL, INT8
from fourm.inputs.request import MAX_DETOKENIZER_STEPS
from fourm.modalities.registry import Kind
from fourm.output.processes import read_checksums, sha256_of_file
from fourm.output.record import BASE, FEATURES, RUN, SR, SR_RUN, TOKENS, RunRecord
from fourm.output.samples import Run, chain_names, open_runs, samples_for
from fourm.schedule.best import MOST, Best
from fourm.schedule.chain import Chain
from fourm.schedule.keeps import Keep
from fourm.schedule.plan import build_chain, parse_chain
from fourm.schedule.settings import MAX_SEED, Settings
from fourm.schedule.solvers import DDIM
from fourm.sources.datasets import CAPTION
from fourm.sources.reading import read_samples
from fourm.sources.results import add_kept, conditions_from, forms_kept, read_kept, with_files
from fourm.sources.source import Source

MAX_BYTES = 1 << 30  # of a picture that is made once more
_OLDER_STEPS = "50"  # of pictures of versions that did not record the steps of their diffusion
# Stages of runs that are not repeated, and the command of each.
_COMMANDS = {TOKENS: ("tokenize", "tokens"), FEATURES: ("embed", "features")}


def plan_sr(
    settings: Settings, model: ModelFiles, chain: Chain, name: str | None = None, needs_weights: bool = True
) -> tuple[ModelFiles, Chain] | None:
    """Model and chain of the super-resolution that settings ask for, of what a chain makes; None if none.

    It is asked for by a model (`name`, or one of the settings) or by any setting of its own. needs_weights:
    as of `find_model`.
    """
    name = settings.run.sr_model if name is None else name
    if name is None and not settings.sr.settings:
        return None
    files = find_sr(model, name, needs_weights)
    return files, build_chain(settings.sr, files, chain.modalities)


def read_origin(root: Path) -> Run | None:
    """The run that made a folder; None for a dataset that no run made."""
    if not (root / RUN).exists():
        return None
    run = open_runs(root)[0]
    if run.record.stage == SR:
        raise UsageError(f"{root}: holds results of a run of sr; name the folder that it went on from")
    return run


def find_sr_model(origin: Run | None, name: str | None) -> ModelFiles:
    """The super-resolution model of that name, else the one that belongs to the model of a run."""
    base_name = DEMO if origin is None else origin.record.model
    try:
        base = find_model(base_name)
    except FourMError:
        if name is None:
            raise
        return find_model(name)  # its tokenizers must come from elsewhere
    return find_sr(base, name)


def names_made(root: Path, origin: Run | None, model: ModelFiles) -> list[str]:
    """Full names of the modalities in a folder that super-resolution can read. UsageError if there are none.

    origin: the run that made the folder; None: a dataset, in whose folders the conditions lie.
    """
    if origin is not None:
        conditions, targets = chain_names(origin.record.schedule)
        return [*conditions, *targets]
    rows = [model.registry.get(name) for name in model.reads if name not in model.writes]
    folders = {row.name: row.name if row.kind is Kind.GRID else row.folder for row in rows}
    found = [name for name, folder in folders.items() if (root / folder).is_dir()]
    if not found:
        reads = f"model '{model.name}' reads; it reads the folders {', '.join(folders.values())}"
        raise UsageError(f"{root}: holds nothing that {reads}")
    return found


def read_sr_input(
    root: Path, origin: Run | None, chain: Chain, model: ModelFiles, stdin: BinaryIO,
    data: Sequence[str] = (),
) -> Dataset:  # fmt: skip
    """The samples of a folder as conditions of super-resolution.

    origin: the run that made the folder, or None. Results of a run whose files are missing are counted in a
    note, as they were not made or have failed. data: see `check_kept_data`. UsageError if all results or all
    pictures of which a part is kept are missing.
    """
    if origin is None:
        return read_samples(Source(data=str(root)), chain.conditions, model, stdin, keeps=chain.keeps)
    samples = conditions_from(origin, origin.samples(), chain, model)
    wanted = origin.record.samples * len(origin.variations)
    results = [sample.files_of(v) for sample in samples for v in origin.numbers]
    there = sum(all(is_there(files[name]) for name in chain.conditions) for files in results)
    if samples and not there:
        what = "none of the results that its run made are there; `resume=True` makes them again"
        raise UsageError(f"{root}: {what}")
    incomplete = [f"{wanted - there} of {wanted} results are not there"] if there < wanted else []
    if chain.keeps:
        given = read_kept(origin, chain, model, stdin, data)
        samples, lacking = add_kept(samples, given, chain.keeps)
        incomplete += lacking
        if not samples:
            raise UsageError(f"`data={data[0]}`: {incomplete[-1]}, as all samples of {root} do")
    return Dataset(tuple(samples), tuple(incomplete), input=Input("run"))


def check_kept_data(root: Path, origin: Run | None, chain: Chain, data: Sequence[str]) -> None:
    """UsageError if `data` does not say where the pictures are of which a part is kept, or says it in vain.

    A folder that no run made holds its own.
    """
    if data and (origin is None or not chain.keeps):
        why = f"{root} holds the pictures, as no run made it" if origin is None else "no part of them is kept"
        raise UsageError(f"`data={data[0]}`: is not read: {why}; leave it out")
    if origin is not None and chain.keeps and not data:
        what = f"{root} does not hold the picture of which a part is to stay"
        ways = "`data=SOURCE` names it: the dataset, folder or file that the run has read"
        raise UsageError(f"`keep={chain.keeps[0].to_text()}`: {what}; {ways}")


@dataclass(frozen=True, slots=True)
class Replay:
    """Everything that made a file, or all files of a run."""

    source: Path
    base: RunRecord  # of a picture: as much of it as the picture tells
    sr_run: RunRecord | None  # likewise, of super-resolution
    run: Run | None = None  # whose conditions are read
    key: Key | None = None  # None: all samples of the run
    prompt: str | None = None  # where there is no run

    def chain_and_samples(self, model: ModelFiles) -> tuple[Chain, list[Sample]]:
        """The chain of the base, all its grids read as tokens, and the samples that are made again."""
        chain = replace(parse_chain(self.base.options, model), raw=frozenset())
        if self.run is not None:
            if self.run.record.best is not None and any(map(_is_part_of_one, self.run.places)):
                why = (
                    "each variation kept another part of what was given, and only those of the best are there"
                )
                raise _refusal(self.source, why)
            found = self.run.samples() if self.key is None else filter(None, [self.run.find(self.key)])
            samples = conditions_from(self.run, found, chain, model, chain.keeps)
            return chain, self._with_sr(samples) if self.sr_run is not None else samples
        others = [name for name in chain.given if model.registry.get(name).codec != CAPTION]
        if others:
            why = f"was made from {', '.join(others)}, which a picture alone does not hold"
            raise _refusal(self.source, f"{why}; it can be repeated from the folder that it was made in")
        return chain, [Sample(self.key, self.prompt)] if self.key is not None else []

    def _with_sr(self, samples: list[Sample]) -> list[Sample]:
        """The samples with the files of what super-resolution has kept of its targets."""
        assert self.run is not None
        fine = next((run for run in open_runs(self.run.root) if run.record.stage == SR), None)
        kept = fine.record.schedule.get("kept", ()) if fine is not None else ()
        if fine is None or not kept:
            return samples
        recorded = [one for sample in samples if (one := fine.find(sample.key)) is not None]
        keeps = [Keep(one["target"], one["where"], one["tokenised"]) for one in kept]
        forms = {name: form for keep in keeps for name, form in forms_kept(keep).items()}
        there = {sample.key: sample for sample in samples_for(fine, recorded, forms)}
        return with_files(samples, [there.get(one.key, Sample(one.key)) for one in samples], forms)

    def doubts(self, models: Sequence[tuple[RunRecord, ModelFiles]]) -> list[str]:
        """A sentence for each model that is not the one that made the file."""
        return [
            f"note: the weights of {files.name} are not those that made {printable(str(self.source))}"
            for record, files in models
            if record.files.get("weights", "") not in ("", sha256_of(files.weights))
        ]


def sr_name(base: ModelFiles, sr_run: RunRecord) -> str | None:
    """The model of a recorded super-resolution, as `find_sr` takes it: None if it belongs to the base."""
    return None if sr_run.model in (DEMO_SR, f"{base.name}/sr") else sr_run.model


def read_replay(path: Path) -> Replay:
    """From a picture that this program wrote, or from the record of a run."""
    if not (os.path.exists(path) or is_there(path)):
        raise _refusal(path, "no such file")
    if _ending_of(path) == ".png":
        return _one_picture(path)
    if path.name not in (RUN, SR_RUN):
        raise _refusal(path, f"is neither a PNG nor {RUN} or {SR_RUN}")
    runs = open_runs(path.parent)
    if found := next((_COMMANDS[run.record.stage] for run in runs if run.record.stage in _COMMANDS), None):
        what = f"is the record of `fourm {found[0]}`, whose command makes the same {found[1]} again"
        raise _refusal(path, what)
    run = next((r for r in runs if r.record.stage == BASE), None)
    sr_run = next((r.record for r in runs if r.file == path.name and r.record.stage == SR), None)
    if run is None or (path.name == SR_RUN and sr_run is None):
        raise _refusal(path, "the run that super-resolution went on from is not recorded here")
    if run.is_older:
        raise _refusal(path, "an older version of this program wrote it; its runs cannot be repeated")
    return Replay(path, run.record, sr_run, run)


def _is_part_of_one(place: Place) -> bool:
    """Whether a place holds what was kept of a target, and other variations kept other parts."""
    return place.form in ("kept", "kept_ids", "mask") and not place.shared


def _ending_of(path: Path) -> str:
    try:
        return ending_of(path)
    except (OSError, SampleError) as error:
        raise _refusal(path, f"cannot be read ({error})") from error


def _refusal(path: Path, why: str) -> UsageError:
    return UsageError(f"`replay={path}`: {why}")


def _one_picture(path: Path) -> Replay:
    said = _PictureTexts(path, _read_texts(path))
    key, record, sr_run = parse_key(said.text("sample")), said.record(""), None
    if "base schedule" in said.texts:
        record, sr_run = said.record("base "), record
    # The run whose folder the picture lies in, if it is the one that made it.
    root = next((folder for folder in real(path).parents if (folder / RUN).is_file()), None)
    if root is not None:
        run = open_runs(root)[0]
        is_its_own = _is_as_written(root, key, real(path))
        there = run.record
        same = (there.stage, there.options, there.seed) == (BASE, record.options, record.seed)
        if same and is_its_own and not run.is_older and run.find(key):
            record = replace(record, num_variations=there.num_variations, batch_size=there.batch_size)
            return Replay(path, record, sr_run, run, key)
    return Replay(path, record, sr_run, key=key, prompt=said.texts.get("prompt"))


def _is_as_written(root: Path, key: Key, path: Path) -> bool:
    """Whether a file, or the shard that it is in, has the checksum that its run noted, if there is one."""
    file = (split_path(path) or (path, ""))[0]
    name, listed = file.relative_to(root).as_posix(), read_checksums(root)
    shards = [shard for run in open_runs(root) if run.record.is_sharded and (shard := run.shard_of(key))]
    sums = {one: sha256 for shard in shards for one, (sha256, _) in shard.marker.files.items()}
    due = listed[name].sha256 if name in listed else sums.get(name)
    return due is None or due == sha256_of_file(file)


def _read_texts(path: Path) -> dict[str, str]:
    """The text chunks of a PNG that this program wrote."""
    try:
        place = split_path(path)
        data = read_bytes(path, MAX_BYTES) if place is None else read_member(*place, MAX_BYTES)
        data = strip_metadata(data, keep_texts=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            texts = {str(name): str(text) for name, text in getattr(picture, "text", {}).items()}
    except (OSError, ValueError, SyntaxError, SampleError, Image.DecompressionBombError) as error:
        is_other = isinstance(error, UnidentifiedImageError)  # whose text names a buffer in memory
        why = "" if is_other else f" ({getattr(error, 'strerror', None) or error})"
        raise _refusal(path, f"is not a PNG that can be read{why}") from error
    if not texts.get("software", "").startswith("fourm ") or "schedule" not in texts:
        raise _refusal(path, "does not say how it was made; fourm did not write it")
    return {"detokenizer steps": _OLDER_STEPS, "detokenizer solver": DDIM} | texts


@dataclass(frozen=True, slots=True)
class _PictureTexts:
    """What the text chunks of a picture say of how it was made; UsageError for what they lack."""

    path: Path
    texts: Mapping[str, str]

    def text(self, name: str) -> str:
        if not self.texts.get(name, "").strip():
            raise _refusal(self.path, f"does not say its {name}")
        return self.texts[name]

    def number(self, name: str, most: int, least: int = 0) -> int:
        """A whole number, least to most."""
        text = self.texts.get(name, "")
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SEED))
        if not is_number or not least <= int(text) <= most:
            what = f"is not a whole number, {least} to {most}"
            raise _refusal(self.path, f"its {name} {what}: '{printable(text[:40])}'")
        return int(text)

    def best(self, name: str) -> Best | None:
        """How variations were chosen, if they were."""
        if not (text := self.texts.get(name, "")):
            return None
        found = re.fullmatch(r"([0-9]{1,5}) by (\S+)", text)
        if found is None or not 1 <= int(found[1]) <= MOST:
            raise _refusal(self.path, f"its {name} is not N by NAMES: '{printable(text[:40])}'")
        return Best(int(found[1]), tuple(found[2].split(",")))

    def record(self, prefix: str) -> RunRecord:
        """Of the run whose facts have this prefix: "" for the picture's own, "base " for the first one."""
        count = self.number("variations", MAX_SAMPLES, 1)
        variation = self.number("variation", count - 1)
        return RunRecord(
            schedule={}, options=self.text(prefix + "schedule"), model=self.text(prefix + "model"),
            revision="", files={"weights": self.texts.get(prefix + "weights", "")}, samples=1,
            num_variations=count, variation=variation if count > 1 else None,
            seed=self.number(prefix + "seed", MAX_SEED), dtype=self.texts.get(prefix + "dtype", "float32"),
            device_type="", attention="sdpa", decode=True, preview=0, places=(),
            fit="pad" if self.texts.get("fit") == "pad" else "crop",
            restore=self.texts.get("restore") == "1",
            weights=INT8 if self.texts.get(prefix + "kept weights") == INT8 else FULL,
            detokenizer_steps=self.number("detokenizer steps", MAX_DETOKENIZER_STEPS, 1),
            detokenizer_solver=self.text("detokenizer solver"),
            blend=self.texts.get("blend") != "no",
            best=self.best(prefix + "best of"),
        )  # fmt: skip

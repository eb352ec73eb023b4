"""What made a file, read back from the file: enough to make it again."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from fourm.data.layout import MAX_SAMPLES, Key, Sample
from fourm.data.opening import read_bytes, real, strip_metadata
from fourm.errors import UsageError, printable
from fourm.hub.files import DEMO_SR, ModelFiles
from fourm.modalities.registry import Kind
from fourm.output.processes import read_checksums, sha256_of, sha256_of_file
from fourm.output.record import BASE, RUN, SR, SR_RUN, RunRecord
from fourm.output.samples import Run, open_results, samples_for
from fourm.runs.inputs import CAPTION
from fourm.runs.request import DETOKENIZER_STEPS, MAX_DETOKENIZER_STEPS
from fourm.schedule.chain import Chain
from fourm.schedule.plan import parse_chain
from fourm.schedule.settings import MAX_SEED

MAX_BYTES = 1 << 30  # of a picture


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of what is repeated: the base, or super-resolution."""

    model: str
    options: str  # the schedule
    seed: int
    dtype: str
    detokenizer_steps: int
    attention: str = "sdpa"
    decode: bool = True
    preview: int = 0
    weights: str = ""  # sha256; "" if it is not known


@dataclass(frozen=True, slots=True)
class Replay:
    """Everything that made a file, or all files of a run."""

    source: Path
    base: Stage
    finer: Stage | None
    num_variations: int
    variation: int | None  # None: all
    run: Run | None = None  # whose conditions are read
    key: Key | None = None  # None: all samples of the run
    prompt: str | None = None  # where there is no run

    def chain(self, model: ModelFiles) -> Chain:
        """The schedule of the base; conditions that were tokenised then are read as tokens."""
        return replace(parse_chain(self.base.options, model), raw=frozenset())

    def samples(self, chain: Chain, model: ModelFiles) -> list[Sample]:
        """What is made again."""
        if self.run is not None:
            ids = {name: model.registry.get(name).kind is Kind.GRID for name in chain.conditions}
            found = self.run.samples() if self.key is None else filter(None, [self.run.find(self.key)])
            return samples_for(self.run, found, chain.conditions, ids)
        others = [name for name in chain.conditions if model.registry.get(name).codec != CAPTION]
        if others:
            raise UsageError(
                f"--replay {printable(str(self.source))}: was made from {', '.join(others)}, which a picture "
                "alone does not hold; it can be repeated from the folder that it was made in"
            )
        return [Sample(self.key, self.prompt)] if self.key is not None else []

    def doubts(self, models: Sequence[tuple[Stage, ModelFiles]]) -> list[str]:
        """A sentence for each model that is not the one that made the file."""
        return [
            f"note: the weights of {files.name} are not those that made {printable(str(self.source))}"
            for stage, files in models
            if stage.weights and stage.weights != sha256_of(files.weights)
        ]


def sr_name(base: ModelFiles, stage: Stage) -> str | None:
    """The name of a super-resolution model for `find_sr`: None for the one that belongs to the base."""
    return None if stage.model in (DEMO_SR, f"{base.name}/sr") else stage.model


def read_replay(path: Path) -> Replay:
    """From a picture that this program wrote, or from the record of a run."""
    if not os.path.exists(path):
        raise UsageError(f"--replay {printable(str(path))}: no such file")
    if path.name in (RUN, SR_RUN):
        return _whole_run(path)
    if path.suffix.lower() == ".png":
        return _one_picture(path)
    raise UsageError(f"--replay {printable(str(path))}: is neither a PNG nor {RUN} or {SR_RUN}")


def _whole_run(path: Path) -> Replay:
    results = open_results(path.parent)
    run = next((r for r in results.runs if r.record.stage == BASE), None)
    finer = next((r for r in results.runs if r.file == path.name and r.record.stage == SR), None)
    if run is None or (path.name == SR_RUN and finer is None):
        raise UsageError(f"--replay {path}: the run that super-resolution went on from is not recorded here")
    if run.is_older:
        raise UsageError(
            f"--replay {printable(str(path))}: an older version of this program wrote it, and its runs "
            "cannot be repeated; generate it anew"
        )
    record = run.record
    return Replay(
        path, _stage(record), _stage(finer.record) if finer else None, record.num_variations,
        record.variation, run,
    )  # fmt: skip


def _stage(record: RunRecord) -> Stage:
    return Stage(
        record.model, record.options, record.seed, record.dtype, record.detokenizer_steps, record.attention,
        record.decode, record.preview, record.files.get("weights", ""),
    )  # fmt: skip


def _one_picture(path: Path) -> Replay:
    said = _chunks(path)
    key, count = _key(path, said), _number(path, said, "variations", least=1)
    variation = _number(path, said, "variation", count - 1)
    base, finer = _stage_of(path, said, ""), None
    if "base schedule" in said:
        base, finer = _stage_of(path, said, "base "), base
    only = variation if count > 1 else None
    if (run := _home(path, base, key)) is None:
        return Replay(path, base, finer, count, only, key=key, prompt=said.get("prompt"))
    return Replay(path, base, finer, run.record.num_variations, only, run, key)


def _chunks(path: Path) -> dict[str, str]:
    """The text chunks of a PNG that this program wrote."""
    try:
        data = strip_metadata(read_bytes(path, MAX_BYTES), keep_texts=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            found: dict[str, Any] = dict(getattr(picture, "text", {}))
    except UnidentifiedImageError:
        raise UsageError(f"--replay {printable(str(path))}: is not a PNG that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--replay {printable(str(path))}: is not a PNG that can be read ({reason})"
        ) from error
    said = {str(name): str(text) for name, text in found.items()}
    if not said.get("software", "").startswith("fourm ") or "schedule" not in said:
        raise UsageError(
            f"--replay {printable(str(path))}: does not say how it was made; fourm did not write it"
        )
    return {"detokenizer steps": str(DETOKENIZER_STEPS), **said}


def _stage_of(path: Path, said: Mapping[str, str], prefix: str) -> Stage:
    return Stage(
        _text(path, said, prefix + "model"), _text(path, said, prefix + "schedule"),
        _number(path, said, prefix + "seed", MAX_SEED), said.get(prefix + "dtype", "float32"),
        _number(path, said, "detokenizer steps", MAX_DETOKENIZER_STEPS, least=1),
        weights=said.get(prefix + "weights", ""),
    )  # fmt: skip


def _key(path: Path, said: Mapping[str, str]) -> Key:
    folder, _, name = _text(path, said, "sample").rpartition("/")
    return Key(folder, name)


def _home(path: Path, base: Stage, key: Key) -> Run | None:
    """The run whose folder a picture lies in, if it is the one that made it."""
    for folder in real(path).parents:
        if not (folder / RUN).is_file():
            continue
        results = open_results(folder)
        name = real(path).relative_to(folder).as_posix()
        run, listed = results.runs[0], read_checksums(folder).get(name)
        same = (run.record.stage, run.record.options, run.record.seed) == (BASE, base.options, base.seed)
        is_its_own = listed is None or listed.sha256 == sha256_of_file(path)
        return run if same and is_its_own and not run.is_older and run.find(key) else None
    return None


def _text(path: Path, said: Mapping[str, str], name: str) -> str:
    if not said.get(name, "").strip():
        raise UsageError(f"--replay {printable(str(path))}: does not say its {name}")
    return said[name]


def _number(path: Path, said: Mapping[str, str], name: str, most: int = MAX_SAMPLES, least: int = 0) -> int:
    text = said.get(name, "")
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SEED))
    if not is_number or not least <= int(text) <= most:
        raise UsageError(
            f"--replay {printable(str(path))}: its {name} is not a whole number, {least} to {most}: "
            f"'{printable(text[:40])}'"
        )
    return int(text)

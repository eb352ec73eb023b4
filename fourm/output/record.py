"""The text of `run.json`, the record of a run: its fields, and how it is written, parsed and checked."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from fourm.data.dataset import Input
from fourm.data.layout import FRAME, MAX_SAMPLES, PLACE_FORMS, Fit, Place
from fourm.data.shards import FILES, Format
from fourm.errors import shown
from fourm.files.writing import PARTIAL
from fourm.hub.header import FULL, Weights
from fourm.modalities.typed import Limits, to_type
from fourm.output.processes import FAILURES, PROCESSES, RUN_IDENTITY, seal
from fourm.schedule.best import Best
from fourm.schedule.features import Features
from fourm.schedule.settings import MAX_SEED
from fourm.schedule.solvers import DDIM

RUN = "run.json"
SR_RUN = "run.sr.json"  # record of super-resolution in the folder of the run that it reads
PLOTS = "plots"  # folder of the pictures that `fourm plot` draws
# The new record while --overwrite deletes the old run; then it is renamed to replace the old record.
NEXT = {RUN: "run.next.json", SR_RUN: "run.sr.next.json"}
# Results of `fourm eval`: of all samples, of each; the folder of what its processes collect and draw.
EVAL_JSON, EVAL_CSV, EVAL = "eval.json", "eval.csv", "eval"
EVAL_SHARES, EVAL_DRAWINGS = ("[0-9]*-of-[0-9]*.npz",), ("histograms.png", "worst-*.png")  # patterns in it
# Where the samples of a run are recorded, NNNNN.jsonl for each thousand of them.
SAMPLES = {RUN: Place("samples", ".jsonl", form="extra"), SR_RUN: Place("samples.sr", ".jsonl", form="extra")}
# Where the square of each sample lies in its picture. Not among the places of records, so that folders of
# versions without it can be resumed.
FRAMES = Place(FRAME, ".json", shared=True, form="extra")
DONE = {RUN: "done", SR_RUN: "done.sr"}  # folders of the markers of shards
# No folder of results may have these names.
RESERVED_NAMES = (
    *NEXT, *DONE.values(), *NEXT.values(), *(place.folder for place in SAMPLES.values()), FRAME, PROCESSES,
    FAILURES, PLOTS, EVAL_JSON, EVAL_CSV, EVAL, PARTIAL,
)  # fmt: skip
BASE: Literal["base"] = "base"  # stages of making a sample
SR: Literal["sr"] = "sr"
TOKENS: Literal["tokens"] = "tokens"  # of a run that turns values into tokens
FEATURES: Literal["features"] = "features"  # of a run of `fourm embed`
FORMAT = 3  # of run.json; fields may be added to it
OLDER_FORMATS = (1, 2)  # are read, but such runs cannot be continued
MAX_FOLDER_BYTES, MAX_SUFFIX_BYTES = 255, 24  # of a place; with the longest name a file system takes both
# Fields of a record that the super-resolution of its run depends on; older versions did not record the input.
_ORIGIN = ("model", "revision", "files", "options", "num_variations", "seed", "dtype", "input")
_Count = Annotated[int, Limits(1, MAX_SAMPLES)]
# Fields of a record that may differ between a run and the one that resumes it.
NOT_COMPARED = ("versions", "command", "device", "created", "options", "batch_size")


@dataclass(frozen=True, slots=True)
class _Step:  # the fields of a recorded step that are read
    index: int
    target: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Kept:  # what a recorded schedule says of a target of which a part is given
    target: str
    where: str
    tokenised: bool


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All that the files of a run depend on, and how to repeat it."""

    schedule: Mapping[str, Any]  # Chain.to_json()
    model: str
    revision: str
    files: Mapping[str, str]  # weights, tokenizers, text tokenizer -> sha256
    samples: Annotated[int, Limits(0)]  # of all processes together; 0: not known, of a sharded run
    num_variations: _Count
    seed: Annotated[int, Limits(0, MAX_SEED)]
    dtype: str
    device_type: str  # "cpu", "cuda", "mps"; they round differently
    attention: str  # the kernel; they round differently
    decode: bool
    detokenizer_steps: Annotated[int, Limits(1)]
    preview: Annotated[int, Limits(0)]
    places: tuple[Place, ...]
    stage: Literal["base", "sr", "tokens", "features"] = BASE
    variation: Annotated[int, Limits(0)] | None = None  # if only this one was made
    origin: Mapping[str, Any] = field(default_factory=dict)  # `as_origin` of the run that this reads
    options: str = ""  # the schedule as command line options
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    created: str = ""
    blend: bool = True  # what was kept in pixels was laid over the generated picture
    input: Input | None = None  # what the samples were read from; None: an older version made the folder
    fit: Fit = "crop"  # how pictures became squares
    restore: bool = False  # values are of whole pictures, not of squares
    batch_size: Annotated[int, Limits(1)] | None = None  # None: an older version made the folder
    compile: bool = False  # torch's compiler made the networks' blocks; they round differently
    detokenizer_solver: str = DDIM  # how tokenizers decoded by diffusion
    weights: Weights = FULL  # how the transformer's were kept
    layout: Format = "files"  # what results are in; `format` is the version of the record
    shard_size: Annotated[int, Limits(1)] | None = None  # samples of a shard, at most
    shards: Annotated[int, Limits(1)] | None = None  # of all processes together
    num_crops: _Count = 1  # of each sample, of a run that tokenizes
    min_scale: float | None = None  # smallest share of a picture that a random crop shows, likewise
    features: Features | None = None  # of the encoder, of a run that makes these
    best: Best | None = None  # how variations were chosen of more

    @property
    def is_sharded(self) -> bool:
        """Whether results are in shards."""
        return self.layout != FILES

    def to_json(self) -> dict[str, Any]:
        """The fields as `run.json` contains them."""
        return json.loads(json.dumps(asdict(self)))

    def as_origin(self) -> dict[str, Any]:
        """What the results of this run depend on, for the record of their super-resolution."""
        facts = self.to_json()
        # Older versions knew full weights and all variations alone, and did not record it.
        own = {} if self.weights == FULL else {"weights": self.weights}
        own |= {} if self.best is None else {"best": facts["best"]}
        return {name: facts[name] for name in _ORIGIN} | own


def format_run(run: RunRecord, identity: str) -> str:
    """The text of a record."""
    return seal({"format": FORMAT, "identity": identity, **run.to_json()})


def parse_run(text: str) -> tuple[RunRecord, str, bool]:
    """The record in a text, its identity ("" in older formats), and True if nobody changed it since.

    Unknown fields are ignored. ValueError, KeyError, ...: a value that no run has, or none where one is due.
    """
    said = json.loads(text)
    if said["format"] in OLDER_FORMATS:
        return _run_of(_upgraded(said)), "", True
    if said["format"] != FORMAT:
        raise ValueError(f"another version of this program wrote format {said['format']!r}")
    identity = to_type(str, said["identity"], "identity")
    if not RUN_IDENTITY.fullmatch(identity):
        raise ValueError(f"its identity is {identity!r}")
    return _run_of(said), identity, text == seal(said)


def _run_of(said: Mapping[str, Any]) -> RunRecord:
    """The record that parsed JSON of format 3 holds."""
    run: RunRecord = to_type(RunRecord, said, "run", strict=False)
    if not run.is_sharded and not 1 <= run.samples * run.num_variations <= MAX_SAMPLES:
        raise ValueError(f"its counts are {run.samples} samples and {run.num_variations} variations")
    if run.variation is not None and run.variation >= run.num_variations:
        raise ValueError(f"there is no variation {run.variation}")
    to_type(tuple[str, ...], run.schedule["conditions"], "schedule.conditions")
    to_type(tuple[_Step, ...], run.schedule["steps"], "schedule.steps", strict=False)
    to_type(tuple[_Kept, ...], run.schedule.get("kept", []), "schedule.kept", strict=False)
    if run.origin:
        if missing := [name for name in _ORIGIN[:-1] if name not in run.origin]:
            raise ValueError(f"origin has no {missing[0]!r}")
        to_type(RunRecord, {**said, **run.origin}, "origin", strict=False)
    for folder, suffix, form in ((place.folder, place.suffix, place.form) for place in run.places):
        parts = folder.split("/")
        is_below = not {"", ".", ".."} & set(parts) and not os.path.isabs(folder)
        if not is_below or parts[0] in RESERVED_NAMES or len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
            raise ValueError(f"no run has results in the folder {shown(repr(folder))}")
        is_suffix = suffix.isprintable() and suffix.strip(".") and "/" not in suffix
        if not is_suffix or len(os.fsencode(suffix)) > MAX_SUFFIX_BYTES or form not in PLACE_FORMS:
            raise ValueError(f"no run writes files {shown(repr(suffix))} of the form {shown(repr(form))}")
    return run


def _upgraded(said: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a record of format 1 or 2 as format 3 has them, without the list of its processes."""
    schedule, places = said["schedule"], list[dict[str, Any]]()
    names = [*schedule["conditions"], *dict.fromkeys(step["target"] for step in schedule["steps"])]
    for place in said["places"]:
        if "form" not in place:  # format 1: the folder's name says what is there, such as `rgb_decoded`
            folder = place["folder"]
            alike = [name for name in names if _stem(name) == _stem(folder)]
            modality = folder if folder in names else next(iter(alike), "")
            is_ids = folder == modality and folder.startswith("tok_")
            form = "extra" if not modality else "ids" if is_ids else "value"
            place = {**place, "modality": modality, "form": form, "is_condition": place["shared"]}
        places.append(place)
    return {"attention": "sdpa", **said, "places": places}


def _stem(name: str) -> str:
    """`rgb` of the folders and names `rgb`, `rgb_decoded`, `tok_rgb@64`."""
    return name.partition("@")[0].removeprefix("tok_").removesuffix("_decoded")

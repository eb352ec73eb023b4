"""`fourm generate`: strings in, one library call, its events shown."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from fourm.data.dataset import Dataset
from fourm.data.opening import real
from fourm.errors import UsageError
from fourm.hub.files import DEMO, ModelFiles, find_model, with_parts
from fourm.hub.header import read_header
from fourm.runs.inputs import EMPTY, Source, note_unknown_words, read_samples
from fourm.runs.replay import read_replay
from fourm.runs.request import DETOKENIZER_STEPS, Origin, Request
from fourm.runs.superres import plan_finer
from fourm.runs.world import World, parse_world
from fourm.schedule.plan import build_chain
from fourm.schedule.settings import RunSettings, Settings
from fourm_cli import console
from fourm_cli.follow import make
from fourm_cli.options import (
    Config,
    DataConfig,
    Device,
    Dtype,
    GenConfig,
    Model,
    SrConfig,
    SrModel,
    parse_batch_size,
    parse_device,
    parse_dtype,
    parse_tokenizers,
    schedule_options,
    settings_from,
)
from fourm_cli.replay import refuse, repeat
from fourm_cli.run_options import (
    AsJson,
    Attention,
    BatchSize,
    Column,
    Data,
    Decode,
    DetokenizerSteps,
    LogJson,
    NumSamples,
    NumVariations,
    Out,
    Overwrite,
    Preview,
    Prompts,
    Quiet,
    ReplayFile,
    Resume,
    Seed,
    Shard,
    SubsetSeed,
    Tokenizers,
)

INCOMPLETE_SHOWN = 5  # samples without a file for each condition that get a line of their own
EXAMPLES = """
[bold]Examples[/bold]

fourm generate

fourm generate "a small red circle above a blue square" --temps 3.0-0.5 --out out

cat prompts.txt | fourm generate --data - --targets tok_clip-tok_rgb --out out

fourm generate --data DATASET --cond rgb --targets tok_depth-tok_normal --out out

fourm generate --data prompts.txt --num-variations 4 --seed 7 --out out --resume

fourm generate --data prompts.txt --sr-targets tok_clip-tok_rgb --out out

fourm generate --replay out/rgb/00000/000003.png --out again

torchrun --nproc-per-node=8 -m fourm_cli generate --data prompts.txt --out out
"""


@schedule_options
def generate(
    *, prompts: Prompts = None, data: Data = None, column: Column = None, num_samples: NumSamples = None,
    subset_seed: SubsetSeed = None, replay: ReplayFile = None, schedule: Mapping[str, object],
    model: Model = None, sr_model: SrModel = None, tokenizers: Tokenizers = None, device: Device = None,
    dtype: Dtype = None, attention: Attention = "sdpa", config: Config = None, data_config: DataConfig = None,
    gen_config: GenConfig = None, sr_config: SrConfig = None, num_variations: NumVariations = None,
    seed: Seed = None, batch_size: BatchSize = "auto", shard: Shard = None, out: Out = None,
    resume: Resume = False, overwrite: Overwrite = False, decode: Decode = True,
    detokenizer_steps: DetokenizerSteps = None, preview: Preview = 0, quiet: Quiet = False,
    as_json: AsJson = False, log_json: LogJson = None,
) -> None:  # fmt: skip
    """Generate pictures, depth, captions ... from captions or other conditions, target after target."""
    if data == EMPTY and schedule.get("cond_domains") is None:
        schedule = {**schedule, "cond_domains": "none"}
    settings = settings_from((config, data_config, gen_config, sr_config), schedule)
    given, world = settings.run, parse_world(shard, os.environ)
    again = None if replay is None else read_replay(replay)
    named = again.base.model if again else given.model or DEMO
    files = with_named_parts(find_model(named if model is None else model), given, tokenizers)
    folder = _output_folder(out or given.folder, world, resume or overwrite)
    run = partial(
        Request, out=folder, world=world, command=("fourm", *sys.argv[1:]), resume=resume,
        overwrite=overwrite, batch_size=parse_batch_size(batch_size),
        device=parse_device(device, given.device),
    )  # fmt: skip
    if again is not None:
        refuse({"prompts": prompts, "--data": data, "--num-samples": num_samples, "--seed": seed is not None,
                "--num-variations": num_variations, "options of a schedule": schedule, "--dtype": dtype,
                "configuration files": config or data_config or gen_config or sr_config,
                "--sr-model": sr_model, "--no-decode": not decode, "--preview": preview,
                "--detokenizer-steps": detokenizer_steps})  # fmt: skip
        request, finer, doubts = repeat(again, files, run)
        dataset = Dataset(tuple(request.samples), tuple(doubts))
    else:
        chain = build_chain(settings.base, files)
        data = given.data_path if data is None and not prompts else data
        if overwrite and data is not None:
            _check_kept(Path(data), folder)
        subset_seed = given.subset_seed if num_samples is None and subset_seed is None else subset_seed
        num_variations = num_variations or given.num_variations or 1
        source = Source(
            tuple(prompts or ()), data, column, num_samples or given.num_samples, subset_seed, num_variations
        )  # fmt: skip
        dataset = read_samples(source, chain.conditions, files, sys.stdin.buffer, chain.raw)
        request = run(
            model=files, chain=chain, samples=dataset.samples,
            num_variations=num_variations,
            seed=seed if seed is not None else given.seed or 0,
            dtype=parse_dtype(dtype, given.dtype), attention=attention, decode=decode,
            detokenizer_steps=detokenizer_steps or given.detokenizer_steps or DETOKENIZER_STEPS,
            preview=preview,
        )  # fmt: skip
        finer = _finer(request, settings, sr_model)
    notes = partial(say_notes, dataset, files)
    make(request, finer, notes, quiet=quiet, as_json=as_json, log_json=log_json)


def _check_kept(data: Path, out: Path) -> None:
    """Refuse a file of prompts among the results that --overwrite deletes; one beside their folders stays."""
    path, root = real(data), real(out)
    if path.is_relative_to(root) and path.parent != root and path.is_file():
        raise UsageError(f"--out {out}: --overwrite would delete {data}, which this run reads")


def _finer(request: Request, settings: Settings, sr_model: str | None) -> Request | None:
    """The super-resolution that is asked for, still without samples."""
    planned = plan_finer(settings, request.model, request.chain, sr_model)
    if planned is None:
        return None
    files, chain = planned
    read_header(files.weights)
    return replace(request, model=files, chain=chain, samples=(), origin=Origin())


def with_named_parts(files: ModelFiles, given: RunSettings, tokenizers: list[str] | None) -> ModelFiles:
    """A model with the tokenizers that YAML files and options name."""
    read_header(files.weights)  # a damaged file is told before torch is imported, which takes seconds
    own = parse_tokenizers(tokenizers or [], files)
    files = with_parts(files, dict(given.tokenizers), given.text_tok_path)
    return replace(files, tokenizers={**files.tokenizers, **own})


def say_notes(dataset: Dataset, files: ModelFiles) -> None:
    """What is worth knowing of samples before they are made."""
    lacking = list(dataset.incomplete[:INCOMPLETE_SHOWN])
    if rest := len(dataset.incomplete) - len(lacking):
        lacking.append(f"{rest:,} more samples lack a file")
    notes = [f"note: {text}" for text in dataset.notes]
    for note in (*lacking, *notes, note_unknown_words(dataset.samples, files)):
        if note:
            console.note(note)


def _output_folder(out: Path | None, world: World, is_there: bool) -> Path:
    """The folder that was asked for, or the first free one."""
    if out is not None:
        return out
    if world.size > 1:
        raise UsageError("--out is missing; several processes need to agree on it")
    if is_there:
        raise UsageError("--out is missing; it says which folder --resume or --overwrite means")
    numbers = (Path("out", f"{number:03d}") for number in range(1, 1_000_000))
    return next(path for path in numbers if not path.exists())

"""The commands `generate`, `sr` and `tokenize`: options become one request, whose events are shown."""

import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fourm.data.shards import FILES
from fourm.errors import UsageError, as_addresses, near_match
from fourm.files.opening import local_name, output_path, real
from fourm.hub.catalogue import DEMO
from fourm.hub.header import AUTO
from fourm.schedule.settings import RunSettings, merge, read_settings
from fourm_cli import options, sample_options
from fourm_cli.making import make, make_tokens
from fourm_cli.options import INPUT, OUTPUT, RUN, argument, option, parse_folder, with_options
from fourm_cli.sharding import Sharded

if TYPE_CHECKING:
    from fourm.data.dataset import Dataset
    from fourm.hub.files import ModelFiles
    from fourm.inputs.origins import Replay
    from fourm.inputs.request import Request
    from fourm.output.samples import Run
    from fourm.schedule.chain import Chain
    from fourm.schedule.keeps import Keep
    from fourm.sources.source import Source


@with_options(
    **sample_options.OPTIONS,
    best=option("Of N variations keep the K that suit --by best: 1/8.", "K/N", RUN),
    by=option("Conditions whose likelihood chooses: caption.", "NAME,...", RUN),
    out=option("Output folder, by default the first free of out/001, out/002, ... "
               "With --format shards, webdataset or parquet also s3://bucket/x.", "DIR", OUTPUT,
               parser=options.parse_out),
)  # fmt: skip
def generate(
    *, inputs: sample_options.SampleOptions, schedule: options.ScheduleWithSr, model: str | None = None,
    sr_model: str | None = None, machine: options.Machine, engine: options.Execution,
    configs: options.ConfigFiles, num_variations: int | None = None, seed: int | None = None,
    best: str | None = None, by: str | None = None, fit: str | None = None, weights: str | None = None,
    out: options.Out | None = None, layout: options.Layout, writing: options.Writing,
    dry_run: bool = False, report: options.Reporting,
) -> None:  # fmt: skip
    """Generate pictures, depth, captions ... from captions, pictures or more, target after target.

    Examples:
        fourm generate
        fourm generate "a small red circle above a blue square" --temps 3.0-0.5 --out out
        cat prompts.txt | fourm generate --data - --targets tok_clip-tok_rgb --out out
        fourm generate cat.jpg --targets caption-depth-normal
        fourm generate --data DATASET --cond rgb --targets tok_depth-tok_normal --out out
        fourm generate --data prompts.txt --num-variations 4 --seed 7 --out out --resume
        fourm generate --data prompts.txt --sr-targets tok_clip-tok_rgb --out out
        fourm generate --replay out/rgb/00000/000003.png --out again
        torchrun --nproc-per-node=8 -m fourm_cli generate --data prompts.txt --out out
    """
    from fourm.hub.files import find_model
    from fourm.inputs.origins import plan_sr, read_replay
    from fourm.schedule.plan import build_chain, condition_files, fill_texts, texts_to_fill
    from fourm.sources.notes import marked_texts
    from fourm.sources.reading import choose_keys

    schedule = {"cond_domains": "none", **schedule} if inputs.is_empty else schedule
    settings = read_settings(configs.paths, schedule)
    run_settings = settings.run
    out = layout.choose_out(out, run_settings.folder)
    replay = None if inputs.replay is None else read_replay(inputs.replay)
    name = replay.base.model if replay else run_settings.model or DEMO
    files = choose_parts(find_model(name if model is None else model), machine, run_settings)
    if replay is not None:
        _check_replay({
            **inputs.named(), "--seed": seed is not None, "--num-variations": num_variations, "--best": best,
            "options of a schedule": schedule, "--dtype": machine.dtype, "--weights": weights, "--fit": fit,
            "configuration files": configs.paths, "--sr-model": sr_model, **layout.named(), **writing.named(),
        })  # fmt: skip
        again = _repeat(replay, files, requester(machine, layout, writing, run_settings, out))
        make(*again, report, engine, dry_run)
        return
    source = inputs.source(run_settings, num_variations or run_settings.num_variations or 1, files)
    settings = replace(settings, base=sample_options.with_conditions(settings.base, source))
    chain = build_chain(fill_texts(settings.base, asked := texts_to_fill(settings.base, files)), files)
    source = replace(source, files=condition_files(settings.base, files))
    sr_run = plan_sr(settings, files, chain, sr_model)
    dataset, sharded = read_input(source, chain, files, sr_run[1].keeps if sr_run else (), inputs, layout)
    if (marked := marked_texts(dataset.samples, [*chain.conditions, *asked], files)) or asked:
        chain = build_chain(fill_texts(settings.base, marked), files)
        sr_run = plan_sr(settings, files, chain, sr_model)
    requests = [_with_best(requester(machine, layout, writing, run_settings, out, source.data)(
        model=files, chain=chain, samples=() if sharded else dataset.samples, input=dataset.input,
        num_variations=source.num_variations, seed=seed if seed is not None else run_settings.seed or 0,
        only=choose_keys(dataset.samples, inputs.only), fit=options.parse_fit(fit), weights=weights,
    ).staged(), best, by, num_variations)]  # fmt: skip
    if sr_run:
        requests.append(replace(requests[0], model=sr_run[0], chain=sr_run[1], samples=(), best=None))
    make(requests, dataset, report, engine, dry_run, sharded)


@with_options(
    model="Name, Hub id, folder or .safetensors file of a model for super-resolution. Without it, the one "
    "that belongs to the model of the run, or to demo.",
    data=option(
        "Pictures of which --keep keeps a part: the dataset, folder or file that the run has read, "
        "repeatable. One file serves all samples.", "SOURCE", INPUT, parser=local_name),
    target_domains="Targets in the order of decoding: tok_clip-tok_rgb. By default tokens that are given, at "
    "another resolution; to make a picture finer that the run was given: tok_rgb.",
    num_variations="Results per sample. By default as many as the run has.",
    seed="Seed of all random draws. By default that of the run.",
    out=option("Output folder, also in an object store. By default DIR, beside the files that are read.",
               "DIR", OUTPUT, parser=options.parse_out),
)  # fmt: skip
def sr(
    *, folder: str, data: list[str] | None = None, schedule: options.Schedule, model: str | None = None,
    machine: options.Machine, engine: options.Execution, config: Path | None = None,
    sr_config: Path | None = None, num_variations: int | None = None, seed: int | None = None,
    weights: str | None = None, out: options.Out | None = None, layout: options.Layout,
    writing: options.Writing, dry_run: bool = False, report: options.Reporting,
) -> None:  # fmt: skip
    """Make pictures of a folder finer: super-resolution of what a run has made, or of a dataset of tokens.

    Conditions are what the run was given and what it made. Results go beside them, or to --out.

    Examples:
        fourm sr out
        fourm generate "a small red circle above a blue square" --out out | fourm sr -
        fourm sr out --targets tok_clip-tok_rgb --steps 8 --cfg 3.0
        fourm sr out --keep rgb:mask.png --data cat.jpg
        fourm sr DATASET --model 4m-7-sr-l --out finer
    """
    from fourm.inputs.origins import find_sr_model, names_made, read_origin
    from fourm.schedule.plan import build_chain

    one = f"; for a picture: `fourm generate {shlex.quote(folder)} --keep rgb:1 --sr-targets rgb`"
    root = parse_folder(folder, sys.stdin.buffer, one)
    settings = read_settings([path for path in (config, sr_config) if path is not None], {})
    own, origin = read_settings([], schedule), read_origin(root)
    made = origin.record if origin else None
    files = find_sr_model(origin, settings.run.sr_model if model is None else model)
    files, layer = choose_parts(files, machine, settings.run), merge([settings.base, settings.sr, own.base])
    chain = build_chain(layer, files, names_made(root, origin, files))
    beside = options.parse_out(as_addresses(str(root)))
    is_beside = real((out := out or beside).folder) == real(beside.folder)
    dataset, sharded = _read_sr(root, origin, chain, files, data or (), layout, out.store, is_beside)
    variations = made.num_variations if made and made.num_variations > 1 else num_variations or 1
    if num_variations not in (None, variations):
        why = f"the run made {variations} variations, each of which gets one result"
        raise UsageError(f"--num-variations {num_variations}: {why}; leave it out")
    make_request = requester(machine, layout, writing, settings.run, out)
    restore = writing.restore or (made is not None and made.restore)
    if made is not None and restore != made.restore and is_beside:
        what = "holds results in the square that the model sees; --out puts restored ones elsewhere"
        raise UsageError(f"--restore: {root} {what}")
    request = make_request(
        model=files, chain=chain, samples=dataset.samples[: 1 if sharded else None], input=dataset.input,
        num_variations=variations, variation=made.variation if made else None,
        seed=seed if seed is not None else made.seed if made else 0,
        dtype=machine.dtype or AUTO, weights=weights,
        stage="sr", origin=made, is_beside=is_beside,
        fit=made.fit if made else "crop", restore=restore,
    )  # fmt: skip
    make([request.staged()], dataset, report, engine, dry_run, sharded)


@with_options(
    data=argument(
        "A dataset, or a split of one: DIR/MODALITY/FOLDER/NAME.EXT; tars with KEY.jpg, KEY.depth.png ... "
        "('{00000..00099}.tar'), Parquet files, a folder of them, hf://datasets/OWNER/NAME, s3://bucket/x.",
        "DATA", parser=sample_options.parse_data, show_default=False),
    modalities=option("Folders or modalities: rgb-depth. By default all that the model has a tokenizer for.",
                      "NAMES", INPUT),
    map=sample_options.OPTIONS["map"],
    crops=option(
        "Crops of each sample: the centre, then random ones. By default as many as crop_settings has, "
        "else 1.", "N", RUN),
    min_scale=option("Smallest share of a picture's area that a random crop shows.", "SHARE", RUN),
    batch_size="Samples read together. It changes no result.",
    out=option("Where tokens go. By default DATA, if that is a folder of folders and results are files; else "
               "the first free of out/001, out/002, ... Shards also go to an object store.", "DIR", OUTPUT,
               parser=options.parse_out),
    resume="Do what an earlier run in shards left undone; token files are always continued.",
    overwrite="Make tokens anew that are there.",
    dry_run="Only say what would be made; nothing is written.",
)  # fmt: skip
def tokenize(
    *, data: str, modalities: str | None = None, map: list[str] | None = None, model: str | None = None,
    machine: options.Machine, engine: options.Execution, crops: int | None = None, min_scale: float = 0.8,
    fit: str | None = None, seed: int | None = None, out: options.Out | None = None, layout: options.Layout,
    dry_run: bool = False, report: options.Reporting,
) -> None:  # fmt: skip
    """Turn pictures, depth, normals ... of a dataset into token files, with the same crops for all of them.

    Files that are there and whole are left as they are: the same command goes on where it was interrupted.

    Examples:
        fourm tokenize DATASET
        fourm tokenize DATASET/train --modalities rgb-depth-normal --model 4m-21-b
        fourm tokenize DATASET --crops 10 --min-scale 0.5 --out tokens
        fourm tokenize 'in/{00000..00099}.tar' --format shards --workers 4 --out tokens
        fourm generate --data DATASET --cond tok_rgb --targets tok_depth --out out
    """
    from fourm.data.dataset import Dataset
    from fourm.hub.files import find_model
    from fourm.inputs.request import TokenizeRequest
    from fourm.inputs.world import parse_world
    from fourm.sources.raw import find_raw

    files = find_model(DEMO if model is None else model, needs_weights=False)
    files = choose_parts(files, machine, RunSettings())
    names = None if modalities is None else re.split(r"\s*[,-]\s*", modalities.strip())
    raw, is_sharded = find_raw(data, sample_options.parse_map(map or ()), files, names), layout.check_format()
    out = layout.choose_out(out, None if is_sharded or not raw.is_folder else output_path(data))
    world = parse_world(machine.shard, os.environ)
    folder = _choose_folder(layout, out.folder if out else None, world.size, data)
    dataset, sharded = (Dataset(()) if is_sharded else raw.samples(folder)), None
    if is_sharded:
        shards = raw.shards(layout.size)
        dataset = Dataset((), shards.incomplete, shards.notes)
        sharded = Sharded(shards, layout.format, layout.size, layout.retry_failed)
    request = TokenizeRequest(
        files, tuple(raw.places), dataset.samples, folder, num_crops=crops, min_scale=min_scale,
        seed=seed or 0, batch_size=options.parse_batch_size(machine.batch_size),
        device=machine.device or "auto", dtype=machine.dtype or AUTO, attention=machine.attention,
        compile=machine.compile_blocks, overwrite=layout.overwrite, world=world,
        fit=options.parse_fit(fit), resume=layout.resume, command=("fourm", *sys.argv[1:]),
        store=out.store if out else "",
    ).staged()  # fmt: skip
    make_tokens(request, raw, dataset, report, dry_run, sharded, engine)


def read_input(
    source: "Source", chain: "Chain", files: "ModelFiles", later: "Sequence[Keep]",
    inputs: sample_options.SampleOptions, layout: options.Layout,
) -> "tuple[Dataset, Sharded | None]":  # fmt: skip
    """The samples; of an input in shards, only those that had to be listed, and its shards."""
    from fourm.data.dataset import Dataset
    from fourm.sources.reading import read_samples
    from fourm.sources.shards import list_shards

    asked = source, chain.conditions, files, sys.stdin.buffer, chain.raw, chain.keeps, later
    if not layout.check_format():
        return read_samples(*asked), None
    if inputs.only is not None:
        raise UsageError(f"--only {inputs.only}: chooses samples, but shards are made whole")
    found = list_shards(*asked, layout.size)
    dataset = Dataset(tuple(found.listed), found.incomplete, found.notes, found.input)
    return dataset, Sharded(found, layout.format, layout.size, layout.retry_failed)


def _read_sr(
    root: Path, origin: "Run | None", chain: "Chain", files: "ModelFiles", data: Sequence[str],
    layout: options.Layout, store: str, is_beside: bool,
) -> "tuple[Dataset, Sharded | None]":  # fmt: skip
    """The samples of a folder as conditions of super-resolution; with shards, one of them."""
    from fourm.data.dataset import Dataset
    from fourm.inputs.origins import check_kept_data, read_sr_input
    from fourm.sources.results import shards_of_run, some_sample
    from fourm.sources.shards import shards_of_samples

    check_kept_data(root, origin, chain, data)
    made = origin.record if origin else None
    there = made.layout if made is not None else FILES
    form = there if layout.format == FILES else layout.format
    is_asked = replace(layout, format=form).check_format()
    if is_beside and form != there:
        raise UsageError(f"--format {form}: {root} holds {there}; --out puts the results elsewhere")
    if store and form == FILES:
        ways = "--out names one, or --format shards, webdataset or parquet makes others"
        raise UsageError(f"{store}: single files go into folders of this machine only; {ways}")
    size = layout.shard_size or (made.shard_size if made else None) or layout.size
    if origin is None or there == FILES:
        dataset = read_sr_input(root, origin, chain, files, sys.stdin.buffer, data)
        if not is_asked:
            return dataset, None
        return dataset, Sharded(shards_of_samples(dataset, size), form, size, layout.retry_failed)
    found = shards_of_run(origin, chain, files, sys.stdin.buffer, data)
    some = Dataset((some_sample(found, origin, data),), (), found.notes, found.input)
    return some, Sharded(found, form, size, layout.retry_failed)


def _with_best(request: "Request", best: str | None, by: str | None, given: int | None) -> "Request":
    """The request with what --best and --by ask for; given: --num-variations."""
    from fourm.schedule.best import parse_best

    if best is None and by is None:
        return request
    if best is None or by is None:
        raise UsageError("--best K/N and --by NAME belong together: --best 1/8 --by caption")
    if given is not None:
        raise UsageError(f"--num-variations {given}: --best {best} says how many are made and kept")
    kept, chosen = parse_best(best, re.split(r"[,\s]+", by.strip()), request.chain, request.model)
    return replace(request, num_variations=kept, best=chosen)


def _check_replay(used: Mapping[str, object]) -> None:
    """Refuse options that a replay takes from the run that it repeats; used: by name for the message."""
    if refused := [name for name, value in used.items() if value]:
        raise UsageError(f"--replay repeats what was made as it was; leave out {', '.join(refused)}")


def requester(
    machine: options.Machine, layout: options.Layout, writing: options.Writing, settings: RunSettings,
    out: options.Out | None, data: str | None = None,
) -> "Callable[..., Request]":  # fmt: skip
    """`Request` with the arguments that options and YAML files (`settings`) decide; callers add the others.

    data: what the run reads.
    """
    from fourm.inputs.request import Request
    from fourm.inputs.world import parse_world

    world = parse_world(machine.shard, os.environ)
    folder = _choose_folder(layout, out.folder if out else None, world.size, data)
    return partial(
        Request, out=folder, store=out.store if out else "", world=world,
        command=("fourm", *sys.argv[1:]), resume=layout.resume, overwrite=layout.overwrite,
        batch_size=options.parse_batch_size(machine.batch_size),
        device=machine.device or options.parse_device(settings.device or "auto"),
        dtype=machine.dtype or settings.dtype or AUTO,
        attention=machine.attention, compile=machine.compile_blocks, decode=writing.decode,
        preview=writing.preview, blend=writing.blend,
        restore=writing.restore,
        detokenizer_steps=writing.detokenizer_steps or settings.detokenizer_steps,
        detokenizer_solver=writing.detokenizer_solver or settings.detokenizer_solver,
    )  # fmt: skip


def _choose_folder(layout: options.Layout, out: Path | None, num_ranks: int, data: str | None) -> Path:
    """The output folder: `out`, or the first of out/001, out/002, ... that does not exist."""
    if out is None:
        if num_ranks > 1:
            raise UsageError("--out is missing; several processes need to agree on it")
        if layout.resume or layout.overwrite:
            raise UsageError("--out is missing; it says which folder --resume or --overwrite means")
        numbers = (Path("out", f"{number:03d}") for number in itertools.count(1))
        return next(path for path in numbers if not path.exists())
    if layout.overwrite and data is not None:
        path, root = real(Path(data)), real(out)
        # --overwrite deletes folders of results; a file directly in the output folder stays.
        if path.is_file() and path.is_relative_to(root) and path.parent != root:
            raise UsageError(f"--out {out}: --overwrite would delete {data}, which this run reads")
    return out


def choose_parts(files: "ModelFiles", machine: options.Machine, settings: RunSettings) -> "ModelFiles":
    """A model with the tokenizers and the text tokenizer that YAML files (`settings`) and options name."""
    from fourm.hub.files import resolve_tokenizer, with_parts

    own, keys = dict[str, Path](), {row.tokenizer for row in files.registry.rows.values() if row.tokenizer}
    for text in machine.tokenizers or ():
        key, _, name = text.partition("=")
        if not name or key not in keys:
            near = near_match(key, keys) or f"; keys are {', '.join(sorted(keys))}"
            raise UsageError(f"--tokenizer: '{text}' is not KEY=NAME{near}")
        if key in own:
            raise UsageError(f"--tokenizer: '{key}' is given twice")
        # Another of the model's own (`--tokenizer rgb=rgb_divae`), or one by name, folder or file.
        own[key] = files.tokenizers.get(name) or resolve_tokenizer(local_name(name))
    files = with_parts(files, dict(settings.tokenizers), settings.text_tok_path)
    return replace(files, tokenizers={**files.tokenizers, **own})


def _repeat(
    replay: "Replay", files: "ModelFiles", make_request: "Callable[..., Request]"
) -> "tuple[list[Request], Dataset]":
    """Requests that repeat the run of a file, and its super-resolution; samples, and notes on models."""
    from fourm.data.dataset import Dataset
    from fourm.hub.files import find_sr
    from fourm.inputs.origins import sr_name
    from fourm.schedule.plan import parse_chain

    base = replay.base
    runs = [(base, files, *replay.chain_and_samples(files))]
    if (made := replay.sr_run) is not None:
        sr_files = find_sr(files, sr_name(files, made))
        runs.append((made, sr_files, parse_chain(made.options, sr_files), []))
    requests = [
        make_request(
            model=model, chain=chain, samples=samples, num_variations=base.num_variations,
            variation=base.variation, seed=record.seed, dtype=record.dtype, attention=record.attention,
            compile=record.compile, weights=record.weights,
            decode=record.decode, detokenizer_steps=record.detokenizer_steps, preview=record.preview,
            detokenizer_solver=record.detokenizer_solver,
            blend=record.blend, fit=record.fit, restore=record.restore,
            best=record.best,
        )
        for record, model, chain, samples in runs
    ]  # fmt: skip
    requests = [
        replace(request, batch_size=request.batch_size or record.batch_size)
        for request, (record, *_) in zip(requests, runs, strict=True)
    ]
    doubts = replay.doubts([(record, model) for record, model, _, _ in runs])
    return requests, Dataset(tuple(requests[0].samples), tuple(doubts))

"""The command `embed`: features of the encoder, of any mix of modalities."""

from dataclasses import replace

from fourm.hub.catalogue import DEMO
from fourm.schedule.settings import RunSettings, read_settings
from fourm_cli import options, sample_options
from fourm_cli.generate import choose_parts, read_input, requester
from fourm_cli.making import make
from fourm_cli.options import INPUT, OUTPUT, RUN, argument, option, with_options

_SHARED = {name: sample_options.OPTIONS[name]
           for name in ("column", "map", "upright", "num_samples", "subset_seed")}  # fmt: skip


@with_options(
    data=argument(
        "Pictures, captions or a dataset, as --data of `fourm generate` takes them: a folder, a picture, a "
        ".txt, .tsv, .csv or .jsonl file, - for standard input, tars, Parquet files, "
        "hf://datasets/OWNER/NAME.",
        "DATA", parser=sample_options.parse_data, show_default=False),
    cond=option(
        "What the encoder reads of each sample: rgb,caption. By default the captions of texts, the RGB of "
        "pictures.", "NAME,...", INPUT, autocompletion=options.modality_names(False, "none")),
    **_SHARED,
    batch_size="Samples encoded together. It changes no result.",
    pool=option("mean (over the tokens of a sample) or tokens (each of them).", "NAME", RUN,
                autocompletion=options.one_of("mean", "tokens")),
    layers=option("last (the output of the encoder), or numbers of its blocks: 0,5,11.", "N,...", RUN),
    out=option("Output folder, by default the first free of out/001, out/002, ... With --format shards, "
               "webdataset or parquet also one in an object store (s3://bucket/x).", "DIR", OUTPUT,
               parser=options.parse_out),
)  # fmt: skip
def embed(
    *, data: str, cond: str | None = None, column: str | None = None, map: list[str] | None = None,
    upright: bool | None = None, num_samples: int | None = None, subset_seed: int | None = None,
    model: str | None = None, machine: options.Machine, engine: options.Execution, pool: str = "mean",
    layers: str = "last", fit: str | None = None, weights: str | None = None,
    out: options.Out | None = None, layout: options.Layout, dry_run: bool = False,
    report: options.Reporting,
) -> None:  # fmt: skip
    """Write the features that the encoder makes of pictures, captions, depth ...: OUT/features/NAME.npy.

    Float32: layers x width, or with --pool tokens layers x tokens x width. For training, search and probes.

    Examples:
        fourm embed photos --out features
        fourm embed DATASET --cond rgb,caption --layers 0,5,last --out features
        fourm embed DATASET --cond tok_rgb,depth --pool tokens --format parquet --out features
        fourm embed prompts.txt --out words
        fourm retrieve features --among features --by embed --metric cosine
    """
    from fourm.hub.files import find_model
    from fourm.output.record import FEATURES
    from fourm.schedule.features import parse_features
    from fourm.schedule.plan import condition_chain, condition_files

    files = choose_parts(find_model(DEMO if model is None else model), machine, RunSettings())
    features = parse_features(pool, layers, files)
    inputs = sample_options.SampleOptions(
        data=data, column=column, map=map, upright=upright, num_samples=num_samples, subset_seed=subset_seed
    )
    source = inputs.source(RunSettings(), 1, files)
    typed = read_settings([], {} if cond is None else {"cond_domains": cond}).base
    layer = sample_options.with_conditions(typed, source)
    chain = condition_chain(layer, files)
    source = replace(source, files=condition_files(layer, files))
    writing = options.Writing(decode=False)
    make_request = requester(machine, layout, writing, RunSettings(), layout.choose_out(out, None), data)
    dataset, sharded = read_input(source, chain, files, (), inputs, layout)
    request = make_request(
        model=files, chain=chain, samples=() if sharded else dataset.samples, input=dataset.input,
        fit=options.parse_fit(fit), weights=weights, features=features, stage=FEATURES,
    ).staged()  # fmt: skip
    make([request], dataset, report, engine, dry_run, sharded)

"""`fourm models` lists known models and which of them are in the cache; `fourm download` fetches them."""

import json
from pathlib import Path

import typer

from fourm.errors import UsageError
from fourm.files.opening import local_name
from fourm.hub.catalogue import LICENCES
from fourm.schedule.configs import list_configs, option_of, title_of
from fourm.schedule.settings import read_names
from fourm_cli.console import note, print_json, print_table, size_text
from fourm_cli.help import help_of
from fourm_cli.options import (
    PLAIN_JSON,
    argument,
    config_option,
    download_names,
    known_names,
    option,
    with_options,
)

CHOICE = "What to fetch"  # the title of a panel of the help text
TO_RECORD = "..., as its name says; the first download records the rest"  # of digits of a checksum
models_app = typer.Typer()


@with_options(
    configs=option("The configuration files that come with the package, and the option for each."),
    as_json=PLAIN_JSON,
)
def models(*, context: typer.Context, configs: bool = False, as_json: bool = False) -> None:
    """List every known model and tokenizer, or show one whole.

    Examples:
        fourm models
        fourm models --configs
        fourm models show 4m-21-xl
        fourm models show 4m-7-b --json
    """
    if context.invoked_subcommand is not None:
        return
    if configs:
        _print_configs(as_json)
        return
    from fourm.hub.about import list_models
    from fourm.hub.cache import cache_folder

    found = list_models()
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = list[tuple[str, ...]]()
    for one in found:
        entry = one.entry
        modalities = f"{len(entry.reads)} in, {len(entry.writes)} out"
        if not entry.reads:
            modalities = ", ".join(dict.fromkeys(name.partition("@")[0] for name in entry.writes))
        cached = "" if one.path is None else one.revision[:7] if entry.hub_id else "yes"
        rows.append((entry.name, entry.kind, size_text(entry.num_bytes), modalities, cached))
    print_table(("name", "kind", "size", "modalities", "cached"), rows, numbers=("size",))
    of_hub = [one for one in found if one.entry.hub_id]
    here = [one for one in of_hub if one.path is not None]
    size = size_text(sum(one.entry.num_bytes for one in here))
    note(f"{len(here)} of {len(of_hub)} are in {cache_folder()} ({size})")


@with_options(
    name=argument("Short name, Hub id, folder or .safetensors file.", "NAME", parser=local_name,
                  autocompletion=known_names),
    as_json=PLAIN_JSON,
)  # fmt: skip
def show(*, name: str, as_json: bool = False) -> None:
    """Show one model or tokenizer: configuration, parameters, modalities, parts, memory, licence, files.

    Examples:
        fourm models
        fourm models show 4m-21-xl
        fourm models show 4m-7-b --json
    """
    from fourm.hub.about import describe

    info = describe(name)
    if as_json:
        print_json(info.to_json(is_whole=True))
        return
    one, tokenizers, names = info.entry, info.tokenizers.items(), [part.name for part in info.missing]
    fetch = f"fourm download {' '.join(names)}"
    facts = {
        "title": one.title, "kind": one.kind, "repository": one.hub_id, "licence": LICENCES[one.licence],
        "parameters": f"{one.num_params:,}" if one.num_params else "",
        "size on disk": f"{size_text(one.num_bytes)} ({one.num_bytes:,} bytes)",
        "memory for weights": ", ".join(f"{size_text(size)} in {key}" for key, size in info.memory.items()),
        "revision": info.revision,
        "file": str(info.path or "not here"),
        **{f"tokenizer {key}": str(path or f"{part}: not here") for key, (part, path) in tokenizers},
        "text tokenizer": str(info.text_tokenizer or "text-tokenizer: not here") if one.reads else "",
        **{f"source {n}": f"{url} (sha256 {sha256}{'' if len(sha256) > 8 else TO_RECORD})"
           for n, (url, sha256) in enumerate(info.sources.items(), 1)},
        "to fetch": f"{size_text(sum(part.num_bytes for part in info.missing))}: {fetch}" if names else "",
    }  # fmt: skip
    print_table(("what", one.name), [(what, text) for what, text in facts.items() if text])
    if info.rows:
        print()
        columns = ("modality", "tokens", "vocabulary", "read", "written", "tokenizer")
        rows = [
            (row.name, str(row.max_tokens), f"{row.vocab_size:,}" if row.vocab_size else "",
             *("yes" if one else "" for one in info.uses(row)), row.tokenizer)
            for row in info.rows
        ]  # fmt: skip
        print_table(columns, rows, numbers=("tokens", "vocabulary"))
    settings = [
        (key, value if isinstance(value, str) else json.dumps(value))
        for key, value in info.config.items() if key not in ("domains_in", "domains_out")
    ]  # fmt: skip
    if settings:
        print()
        print_table(("configuration", "value"), settings)


@with_options(
    names=argument("Short names, Hub ids (either also as NAME@REVISION), or a group: models, tokenizers.",
                   "NAME", parser=local_name, autocompletion=download_names, show_default=False),
    config=config_option("YAML with models: all that it names.", "-c", "--config", panel=CHOICE),
    revision=option("Branch, tag or commit. By default the one fetched before, else main.", "REVISION",
                    CHOICE),
    dry_run=option("Only say files and sizes.", None, CHOICE),
    verify=option("Compare what is here with the record; no network. Without names, all.", None, CHOICE),
    list_all=option("Print all names.", None, CHOICE, "--list"),
    as_json="On stdout, JSON in place of paths or tables.",
)  # fmt: skip
def download(
    *, names: list[str] | None = None, config: Path | None = None, revision: str | None = None,
    dry_run: bool = False, verify: bool = False, list_all: bool = False, quiet: bool = False,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Fetch models, tokenizers, the text tokenizer and prompts into the Hub's cache, once, and check them.

    Examples:
        fourm download 4m-21-xl tokenizers text-tokenizer
        fourm download -c 4m-xl_mod7+sr_4m-l_mod7 --dry-run
        fourm download EPFL-VILAB/4M-21_B --revision main
        fourm download --verify
    """
    from fourm.hub.download import read_wanted
    from fourm_cli.transfers import fetch_all, print_names, print_plan, verify_all

    if list_all:
        print_names(as_json)
        return
    wanted = read_wanted(names or (), read_names(config) if config else None, str(config), revision)
    if verify:
        if revision is not None or dry_run:
            raise UsageError("--verify compares what is here; it takes neither --revision nor --dry-run")
        verify_all([one.record for one in wanted] if names or config else None, as_json, quiet)
    elif not names and not config:
        raise UsageError("name what to fetch, such as 4m-21-b; `fourm download --list` shows all names")
    elif dry_run:
        print_plan(wanted, as_json, quiet)
    else:
        fetch_all(wanted, as_json, quiet)


def _print_configs(as_json: bool) -> None:
    rows = [(name, option_of(path), title_of(path), str(path)) for name, path in list_configs().items()]
    if as_json:
        print_json([dict(zip(("name", "option", "title", "path"), row, strict=True)) for row in rows])
        return
    print_table(("name", "option", "what"), [row[:3] for row in rows])


models_app.callback(invoke_without_command=True, **help_of(models))(models)
models_app.command(**help_of(show))(show)

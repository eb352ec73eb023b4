"""`fourm models`: what there is, what of it is here, and all about one of them."""

import json
from typing import Annotated

import typer

from fourm.data.opening import local_name
from fourm.hub.cache import cache_folder
from fourm.hub.inventory import Item, Sheet, describe, list_items
from fourm_cli.completion import known_names
from fourm_cli.console import note, print_json, print_table, size_text
from fourm_cli.options import AsJson

EXAMPLES = """
[bold]Examples[/bold]

fourm models

fourm models show 4m-21-xl

fourm models show 4m-7-b --json
"""
models_app = typer.Typer(help="List every known model and tokenizer, or show one whole.", epilog=EXAMPLES)
SHOWN_ABOVE = ("domains_in", "domains_out")  # as a table of modalities
SHOWN_COMMIT = 7  # characters of a commit in tables
Name = Annotated[
    str,
    typer.Argument(
        parser=local_name,
        metavar="NAME",
        help="Short name, Hub id, folder or .safetensors file.",
        autocompletion=known_names,
    ),
]


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List every known model and tokenizer: size, modalities, and whether it is here."""
    if context.invoked_subcommand is not None:
        return
    items = list_items()
    if as_json:
        print_json([item.to_json() for item in items])
        return
    columns = ("name", "kind", "size", "modalities", "cached")
    print_table(columns, [_line(item) for item in items], numbers=("size",))
    here = [item for item in items if item.path is not None and item.hub_id]
    size = size_text(sum(item.num_bytes for item in here))
    note(f"{len(here)} of {sum(1 for i in items if i.hub_id)} are in {cache_folder()} ({size})")


@models_app.command(epilog=EXAMPLES)
def show(name: Name, as_json: AsJson = False) -> None:
    """Show one model or tokenizer: configuration, parameters, modalities, parts, memory, licence, files."""
    sheet = describe(name)
    if as_json:
        print_json(sheet.to_json())
        return
    print_table(("what", sheet.item.name), _facts(sheet))
    if sheet.uses:
        print()
        print_table(
            ("modality", "tokens", "vocabulary", "read", "written", "tokenizer"),
            [_use_line(sheet, index) for index in range(len(sheet.uses))],
            numbers=("tokens", "vocabulary"),
        )
    settings = [(key, _plain(value)) for key, value in sheet.config.items() if key not in SHOWN_ABOVE]
    if settings:
        print()
        print_table(("configuration", "value"), settings)


def _line(item: Item) -> tuple[str, ...]:
    """One row of the list."""
    if item.reads:
        modalities = f"{len(item.reads)} in, {len(item.writes)} out"
    else:
        modalities = ", ".join(dict.fromkeys(name.partition("@")[0] for name in item.writes))
    cached = "" if item.path is None else item.revision[:SHOWN_COMMIT] if item.hub_id else "yes"
    return (item.name, item.kind, size_text(item.num_bytes), modalities, cached)


def _facts(sheet: Sheet) -> list[tuple[str, str]]:
    item = sheet.item
    facts = [("title", item.title), ("kind", item.kind)]
    facts += [("repository", item.hub_id)] if item.hub_id else []
    facts += [("licence", item.licence)] if item.licence else []
    facts += [("parameters", f"{item.num_params:,}")] if item.num_params else []
    facts.append(("size on disk", f"{size_text(item.num_bytes)} ({item.num_bytes:,} bytes)"))
    if sheet.memory:
        sizes = [f"{size_text(size)} in {dtype}" for dtype, size in sheet.memory.items()]
        facts.append(("memory for weights", ", ".join(sizes)))
    facts += [("revision", item.revision)] if item.revision else []
    facts.append(("file", str(item.path or "not here")))
    for key, (name, path) in sheet.tokenizers.items():
        facts.append((f"tokenizer {key}", str(path) if path else f"{name}: not here"))
    if item.reads:
        facts.append(("text tokenizer", str(sheet.text_tokenizer or "text-tokenizer: not here")))
    facts += [("to fetch", f"fourm download {' '.join(sheet.missing)}")] if sheet.missing else []
    return facts


def _use_line(sheet: Sheet, index: int) -> tuple[str, ...]:
    use = sheet.uses[index]
    vocabulary = f"{use.vocabulary:,}" if use.vocabulary else ""
    marks = ("yes" if use.reads else "", "yes" if use.writes else "")
    return (use.name, str(use.tokens), vocabulary, *marks, use.tokenizer)


def _plain(value: object) -> str:
    """A setting as JSON has it; text bare."""
    return value if isinstance(value, str) else json.dumps(value)

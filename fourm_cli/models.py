"""`fourm models`: what there is, what of it is here, and all about one of them."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fourm.data.opening import local_name
from fourm_cli.console import note, print_json, print_table, size_text
from fourm_cli.options import AsJson, known_names

if TYPE_CHECKING:
    from fourm.hub.inventory import ModelInfo

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
        parser=local_name, metavar="NAME", help="Short name, Hub id, folder or .safetensors file.",
        autocompletion=known_names,
    ),
]  # fmt: skip


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List every known model and tokenizer: size, modalities, and whether it is here."""
    if context.invoked_subcommand is not None:
        return
    from fourm.hub.cache import cache_folder
    from fourm.hub.inventory import list_models

    found = list_models()
    if as_json:
        print_json([one.to_json() for one in found])
        return
    columns = ("name", "kind", "size", "modalities", "cached")
    print_table(columns, [_line(one) for one in found], numbers=("size",))
    of_hub = [one for one in found if one.entry.hub_id]
    here = [one for one in of_hub if one.path is not None]
    size = size_text(sum(one.entry.num_bytes for one in here))
    note(f"{len(here)} of {len(of_hub)} are in {cache_folder()} ({size})")


@models_app.command(epilog=EXAMPLES)
def show(name: Name, as_json: AsJson = False) -> None:
    """Show one model or tokenizer: configuration, parameters, modalities, parts, memory, licence, files."""
    from fourm.hub.inventory import describe

    info = describe(name)
    if as_json:
        print_json(info.to_json(is_whole=True))
        return
    print_table(("what", info.entry.name), _facts(info))
    if info.rows:
        print()
        columns = ("modality", "tokens", "vocabulary", "read", "written", "tokenizer")
        rows = [
            (row.name, str(row.max_tokens), f"{row.vocab_size:,}" if row.vocab_size else "",
             *("yes" if one else "" for one in info.uses(row)), row.tokenizer)
            for row in info.rows
        ]  # fmt: skip
        print_table(columns, rows, numbers=("tokens", "vocabulary"))
    settings = {key: value for key, value in info.config.items() if key not in SHOWN_ABOVE}
    if settings:
        print()
        texts = [(k, value if isinstance(value, str) else json.dumps(value)) for k, value in settings.items()]
        print_table(("configuration", "value"), texts)


def _line(info: "ModelInfo") -> tuple[str, ...]:
    """One row of the list."""
    one = info.entry
    if one.reads:
        modalities = f"{len(one.reads)} in, {len(one.writes)} out"
    else:
        modalities = ", ".join(dict.fromkeys(name.partition("@")[0] for name in one.writes))
    cached = "" if info.path is None else info.revision[:SHOWN_COMMIT] if one.hub_id else "yes"
    return (one.name, one.kind.value, size_text(one.num_bytes), modalities, cached)


def _facts(info: "ModelInfo") -> list[tuple[str, str]]:
    """What the first table says; facts without a value are left out."""
    one = info.entry
    memory = [f"{size_text(size)} in {dtype}" for dtype, size in info.memory.items()]
    facts = [
        ("title", one.title),
        ("kind", one.kind.value),
        ("repository", one.hub_id),
        ("licence", one.licence.sentence),
        ("parameters", f"{one.num_params:,}" if one.num_params else ""),
        ("size on disk", f"{size_text(one.num_bytes)} ({one.num_bytes:,} bytes)"),
        ("memory for weights", ", ".join(memory)),
        ("revision", info.revision),
        ("file", str(info.path or "not here")),
    ]
    for key, (name, path) in info.tokenizers.items():
        facts.append((f"tokenizer {key}", str(path) if path else f"{name}: not here"))
    if one.reads:
        facts.append(("text tokenizer", str(info.text_tokenizer or "text-tokenizer: not here")))
    facts.append(("to fetch", f"fourm download {' '.join(info.missing)}" if info.missing else ""))
    return [(what, text) for what, text in facts if text]

"""What `--help` and `--help-all` print, and Typer's own errors as sentences of this program."""

import re
from collections.abc import Callable, Sequence
from inspect import Parameter, getdoc
from typing import Annotated, Any

import typer

from fourm.errors import UsageError, near_match
from fourm.modalities.registry import RELEASED
from fourm.schedule.settings import OPTIONS, SR_PREFIX

# Parameters of commands that `--help` leaves out, where there is `--help-all`.
RARE = frozenset(
    "column map subset_seed tokens_per_target autoregression_schemes token_decoding_schedules temp_schedules "
    "cfg_schedules sam_passes keep_guided cfg_grow_conditioning tokenizers attention decode blend "
    "detokenizer_steps detokenizer_solver compile_blocks log_json cond_weights upright shard_size "
    "retry_failed executor workers gpus_per_worker sbatch".split()
)
SCHEDULE, SR_SCHEDULE = "Schedule", "Schedule of super-resolution"  # panels
SR_OPTIONS = tuple(SR_PREFIX + option.key for option in OPTIONS)  # one line of `--help` stands for them


def help_of(command: Callable[..., None]) -> dict[str, Any]:
    """Help for Typer from the docstring of a command; what follows `Examples:` stands at the end."""
    text, _, lines = (getdoc(command) or "").partition("\n\nExamples:\n")
    examples = "\n".join(["[bold]Examples[/bold]", *(f"  {line.strip()}" for line in lines.splitlines())])
    return {"help": text, "epilog": examples if lines else None}


def help_parameters(names: set[str]) -> list[Parameter]:
    """The options `--help` and, of a command with rare ones among these parameters, `--help-all`."""
    rows = {"help_common": typer.Option("--help", "-h", help="Show this message and exit.")}
    if names & RARE:
        rows["help_common"].help = "Show the common options and exit."
        rows["help_all"] = typer.Option("--help-all", help="Show all options and exit.")
    for row in rows.values():
        row.is_eager, row.callback = True, _print_help
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, row])
        for name, row in rows.items()
    ]


def show_help(context: typer.Context, is_whole: bool = False) -> None:
    """Print the help of a command, with its rare options or without. The program ends after it."""
    for one in context.command.params:
        if getattr(one, "is_flag", False):
            one.metavar = ""  # in place of its type
        if one.param_type_name == "argument":
            one.display_type_rich = lambda ctx: None  # type: ignore[attr-defined]  # its name says what it is
        if not is_whole:
            _shorten(one)
    typer.echo(context.get_help())


def show_group(context: typer.Context) -> None:
    """Print the help of a group of commands of which none was named, and end as with wrong usage."""
    if context.invoked_subcommand is None:
        show_help(context)
        raise typer.Exit(UsageError.exit_code)


def reword(error: Any) -> UsageError:
    """An error that Typer raised, as a sentence like all others.

    error: of Click, which Typer keeps private; so its kind is known by its attributes, not by its class.
    """
    text = error.format_message().strip().rstrip(".")
    text, context = f"{text[:1].lower()}{text[1:]}", getattr(error, "ctx", None)
    if context is None:
        return UsageError(text.replace("option '", "'", 1))
    named = f"{name}: " if (name := context.command_path.partition(" ")[2]) else ""
    command, advice = context.command, f"; `{context.command_path} --help` shows what there is"
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        known = [flag for one in command.params for flag in (*one.opts, *one.secondary_opts)]
        near = near_match(error.option_name, [flag for flag in known if flag.startswith("--")])
        near = _as_modality(error.option_name.lstrip("-"), known) or near
        return UsageError(f"{named}there is no option {error.option_name}{near or advice}")
    if found := re.match("no such command '(.*?)'", text):
        near = near_match(found[1], command.commands)
        made = "" if named else "; `fourm generate` makes pictures, depth, captions ..."
        return UsageError(f"{named}there is no command '{found[1]}'{near or made + advice}")
    if (param := getattr(error, "param", None)) is None:
        return UsageError(f"{named}{text}{advice}")
    name = param.opts[0] if param.param_type_name == "option" else param.metavar or param.name.upper()
    if what := error.message.rstrip("."):
        return UsageError(f"{name}: {what[0].lower()}{what[1:]}")
    return UsageError(f"{named}{name} is missing{advice}")


def _as_modality(name: str, known: Sequence[str]) -> str:
    """How a modality is given and made, where its name was taken for an option; else an empty string."""
    names = {one for row in RELEASED.rows.values() for one in (row.key, *row.value_names)}
    if "--cond" not in known or name not in names:
        return ""
    return f"; --cond {name}=FILE gives it, --targets {name} makes it"


def _print_help(context: typer.Context, param: typer.CallbackParam, value: bool) -> None:
    if value:
        show_help(context, is_whole=param.name == "help_all")
        raise typer.Exit


def _shorten(one: Any) -> None:
    """Hide or shorten a parameter for `--help`. It is changed in place, as the program ends after that."""
    one.hidden = one.name in RARE or one.name in SR_OPTIONS[1:]
    if one.name == SR_OPTIONS[0]:
        one.opts, one.metavar, one.rich_help_panel = ["--sr-OPTION"], "VALUE", SCHEDULE
        one.help = "Any of these for super-resolution: --sr-targets tok_rgb."
    one.min = None  # limits are shown by --help-all

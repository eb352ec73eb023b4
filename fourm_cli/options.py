"""Options that several commands share, each declared once; the options of a schedule come from its table."""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from fourm.data.opening import local_name, local_path
from fourm.data.writing import output_path
from fourm.errors import UsageError, near_match
from fourm.hub.files import ModelFiles, resolve_tokenizer
from fourm.hub.header import DTYPES
from fourm.schedule.settings import OPTIONS, SR_PREFIX, Item, Option, Settings, read_settings
from fourm_cli.completion import model_names, of_setting, one_of

MODEL_PANEL, CONFIG_PANEL = "Model", "Configuration files"
MAX_PATH = 1 << 16  # bytes that are read where a path is expected
DEVICES = ("auto", "cpu", "cuda", "mps")
_YAML: dict[str, Any] = {"parser": local_path, "metavar": "FILE", "rich_help_panel": CONFIG_PANEL}
SCHEDULE_PANEL, SR_PANEL = "Schedule", "Schedule of super-resolution"

Model = Annotated[
    str | None,
    typer.Option(
        help="Name, Hub id, folder or .safetensors file. Without it, demo.",
        parser=local_name,
        metavar="NAME",
        autocompletion=model_names,
        rich_help_panel=MODEL_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto (without it), cpu, cuda or mps.",
        autocompletion=one_of(*DEVICES),
        rich_help_panel=MODEL_PANEL,
    ),
]
SrModel = Annotated[
    str | None,
    typer.Option(
        help="Super-resolution after generation, by this model. With -src or an option --sr-..., the one "
        "that belongs to the model.",
        parser=local_name,
        autocompletion=model_names,
        metavar="NAME",
        rich_help_panel=MODEL_PANEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="auto, float32, tf32 (NVIDIA GPUs: coarser, faster), bfloat16 or float16.",
        autocompletion=one_of("auto", *dict.fromkeys(dtype.name for dtype in DTYPES.values())),
        rich_help_panel=MODEL_PANEL,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="YAML with model settings.", **_YAML),
]
DataConfig = Annotated[Path | None, typer.Option("-dc", "--data-config", help="YAML with data.", **_YAML)]
GenConfig = Annotated[
    Path | None,
    typer.Option("-gc", "--gen-config", help="YAML with a schedule.", **_YAML),
]
SrConfig = Annotated[
    Path | None,
    typer.Option("-src", "--sr-config", help="YAML with the sr_ schedule.", **_YAML),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of a table.")]
Folder = Annotated[
    str, typer.Argument(metavar="DIR", help="Output folder of a run, or - to read its path from stdin.")
]


def schedule_options(command: Callable[..., None], *, sr: bool = True) -> Callable[..., None]:
    """A command with an option for each row of the schedule's table, and for each row with `--sr-`.

    The command itself takes one parameter `schedule`: what was given, by key (`temps`, `sr_temps`).
    The options stand in its place, so that the order of parameters is the order of the help text.
    """
    added = [_parameter(o.key, o, "--", SCHEDULE_PANEL) for o in OPTIONS]
    if sr:
        added += [_parameter(SR_PREFIX + o.key, o, "--sr-", SR_PANEL) for o in OPTIONS]

    @wraps(command)
    def with_schedule(**values: Any) -> None:
        schedule = {parameter.name: values.pop(parameter.name) for parameter in added}
        command(**values, schedule={key: value for key, value in schedule.items() if value not in (None, [])})

    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command).parameters.values():
        is_place = own.name == "schedule"
        parameters += added if is_place else [own.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    with_schedule.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_schedule.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_schedule


def settings_from(
    configs: tuple[Path | None, Path | None, Path | None, Path | None], schedule: Mapping[str, object]
) -> Settings:
    """The settings of the files given as `-c`, `-dc`, `-gc` and `-src`, in this order, and of the options."""
    return read_settings([path for path in configs if path is not None], schedule)


def parse_folder(text: str, stdin: BinaryIO) -> Path:
    """A folder that is there: a path, or `-` for the line that the command before a pipe has printed."""
    if text != "-":
        folder, where = output_path(text), text
    else:
        lines = os.fsdecode(stdin.read(MAX_PATH)).splitlines()
        if len(lines) != 1 or not lines[0].strip():
            found = f"{len(lines)} lines" if lines else "nothing"
            raise UsageError(f"standard input: the path of a folder was expected, in one line, not {found}")
        folder, where = output_path(lines[0]), f"standard input: {lines[0]}"
    if not os.path.isdir(folder):
        raise UsageError(f"{where}: no such folder")
    return folder


def parse_dtype(*texts: str | None) -> str:
    """The full name of a dtype: of an option, else of a file, else auto."""
    text = next((one for one in texts if one is not None), "auto")
    if text not in DTYPES:
        raise UsageError(f"--dtype: '{text}' is not one of {', '.join(DTYPES)}{near_match(text, DTYPES)}")
    return DTYPES[text].name


def parse_batch_size(text: str) -> int | None:
    """The number of a `--batch-size`; None for auto."""
    if text == "auto":
        return None
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise UsageError(f"--batch-size: '{text}' is neither auto nor a whole number above 0")
    return int(text)


def parse_device(*texts: str | None) -> str:
    """A device that may exist: of an option, else of a file, else auto."""
    text = next((one for one in texts if one is not None), "auto")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text):
        near = near_match(text, DEVICES)
        raise UsageError(f"--device: '{text}' is not one of auto, cpu, cuda, cuda:N, mps{near}")
    return text


def parse_tokenizers(texts: list[str], files: ModelFiles) -> dict[str, Path]:
    """`--tokenizer rgb=rgb_divae`: one of the model's own, or one by name, folder or file."""
    found, keys = dict[str, Path](), {row.tokenizer for row in files.registry.rows.values() if row.tokenizer}
    for text in texts:
        key, _, name = text.partition("=")
        if not name or key not in keys:
            near = near_match(key, keys) or f"; keys are {', '.join(sorted(keys))}"
            raise UsageError(f"--tokenizer: '{text}' is not KEY=NAME{near}")
        if key in found:
            raise UsageError(f"--tokenizer: '{key}' is given twice")
        found[key] = files.tokenizers.get(name) or resolve_tokenizer(local_name(name))
    return found


def _parameter(key: str, option: Option, prefix: str, panel: str) -> inspect.Parameter:
    """One row as a parameter of a command."""
    name = option.flag.removeprefix("--")
    flag = prefix + name
    kind: Any = str | None
    if option.item is Item.FLAG:
        kind, flag = bool | None, f"{flag}/{prefix}no-{name}"
    elif option.item is Item.TEXT:
        kind = list[str] | None
    help_text = option.help if prefix == "--" else f"As {option.flag}, for super-resolution"
    metavar = None if option.item is Item.FLAG else _METAVARS[option.item]
    annotation = Annotated[
        kind,
        typer.Option(
            flag, help=help_text + ".", metavar=metavar, show_default=False, rich_help_panel=panel,
            autocompletion=of_setting(option.key),
        ),
    ]  # fmt: skip
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_METAVARS = {
    Item.NAME: "NAMES", Item.COUNT: "COUNTS", Item.NUMBER: "NUMBERS", Item.CURVE: "CURVES",
    Item.COUNT_OR_SHARE: "NUMBER", Item.TEXT: "NAME:KEY=VALUE,...",
}  # fmt: skip

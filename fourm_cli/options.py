"""Options that several commands share: their help, their values, and what the shell offers after Tab."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import astuple, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from fourm.data.shards import FILES, FORMATS, SHARD_SIZE
from fourm.errors import FourMError, UsageError, check_choice, near_match
from fourm.files.opening import local_name, local_path, no_folder, output_path, scheme_problem
from fourm.hub.catalogue import CATALOGUE, DEMO, DEMO_SR, GROUPS, find_entry
from fourm.hub.header import AUTO, DTYPES, FULL, WEIGHTS
from fourm.modalities.registry import RELEASED, TOKENS
from fourm.schedule.configs import find_config, list_configs, option_of
from fourm.schedule.schemes import SCHEMES, TOKEN_CURVES
from fourm.schedule.settings import OPTIONS, REPEATABLE, SR_PREFIX, Item
from fourm_cli.help import SCHEDULE, SR_SCHEDULE, help_parameters

if TYPE_CHECKING:
    from fourm.data.layout import Fit

INPUT, MODEL, CONFIG, RUN, OUTPUT = "Input", "Model", "Configuration files", "Run", "Output"  # panels of help
EXECUTORS = ("local", "slurm", "ray")
DEVICES = ("auto", "cpu", "cuda", "mps")

Complete = Callable[..., list[str]]  # of the context and the incomplete word, or of the word alone


def one_of(*words: str) -> Complete:
    """Completes a single value out of these."""
    return lambda incomplete: [word for word in dict.fromkeys(words) if word.startswith(incomplete)]


def list_of(*words: str) -> Complete:
    """Completes a list of values out of these, each as often as one likes."""
    return lambda incomplete: _continued(incomplete, words)


def download_names(context: typer.Context, incomplete: str) -> list[str]:
    """Completes what `fourm download` takes and was not named yet."""
    given = context.params.get("names") or ()
    return [name for name in (*CATALOGUE, *GROUPS) if name.startswith(incomplete) and name not in given]


def modality_names(are_targets: bool, alone: str = "") -> Complete:
    """Completes what the model produces or reads: a name, or a list that the word `alone` may stand for."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        name = str(context.params.get("model") or DEMO)
        entry = find_entry(name.partition("@")[0])
        if entry is not None and entry.is_model:
            reads, writes, registry = entry.reads, entry.writes, RELEASED
        else:
            from fourm.hub.files import find_model

            try:
                files = find_model(name)
            except (FourMError, OSError):  # is said when the command runs
                files = find_model(DEMO)
            reads, writes, registry = files.reads, files.writes, files.registry
        # Without resolutions, for a shell may break words at `@`.
        words = [registry.get(one).key for one in (writes if are_targets else reads)]
        if not are_targets:
            values = [key.removeprefix(TOKENS) for key in words]
            words += [value for value in values if registry.grid_of_values(value, reads)]
        return _continued(incomplete, dict.fromkeys(words), alone) if alone else one_of(*words)(incomplete)

    return complete


known_names = one_of(DEMO, DEMO_SR, *CATALOGUE)  # all that `fourm models show` knows
model_names = one_of(DEMO, DEMO_SR, *(name for name, entry in CATALOGUE.items() if entry.is_model))
_COMPLETED: dict[str, Complete] = {  # by key: settings of a schedule whose values are names
    "cond_domains": modality_names(False, "none"),
    "target_domains": modality_names(True, "all"),
    "target": modality_names(True),
    "autoregression_schemes": list_of(*SCHEMES),
    "token_decoding_schedules": list_of(*TOKEN_CURVES),
    "temp_schedules": list_of("constant", "linear", "onex:0.5:0.5"),
    "cfg_schedules": list_of("constant", "linear", "interval:0.2:0.8"),
}


def _continued(incomplete: str, words: Iterable[str], alone: str = "") -> list[str]:
    """The list so far with each word that its last item may become; with `alone`, each word once."""
    cut = max(incomplete.rfind(sign) for sign in "-,") + 1
    head, item = incomplete[:cut], incomplete[cut:]
    if ":" in item or head.endswith(":-"):  # the weight of an item is next: `caption:2`, `caption:-`
        return []
    items = re.split("[-, ]", incomplete)[:-1] if alone else []
    used = {one.partition(":")[0].partition("@")[0] for one in items}
    offered = [*(word for word in words if word not in used), *([alone] if alone and not head else [])]
    return [head + word for word in offered if word.startswith(item)]


def option(text: str, metavar: str | None = None, panel: str | None = None, *flags: str, **more: Any) -> Any:
    """What Typer is told of an option. Without flags it is called like its parameter."""
    return typer.Option(..., *flags, help=text, metavar=metavar, rich_help_panel=panel, **more)


def config_option(text: str, *flags: str, panel: str = CONFIG) -> Any:
    """What Typer is told of an option that takes a YAML file, or the name of one that is meant for it."""

    def complete(incomplete: str) -> list[str]:
        names = [name for name, path in list_configs().items() if option_of(path) == flags[0]]
        return one_of(*names)(incomplete)

    return option(text, "FILE|NAME", panel, *flags, parser=find_config, autocompletion=complete)


def argument(text: str, metavar: str, **more: Any) -> Any:
    """What Typer is told of an argument."""
    return typer.Argument(help=text, metavar=metavar, **more)


def parse_dtype(text: str) -> str:
    """The full name of a dtype."""
    check_choice("dtype", text, DTYPES)
    return DTYPES[text].name


def parse_weights(text: str) -> str:
    """How the weights of the transformer are kept."""
    check_choice("weights", text, WEIGHTS)
    return text


def parse_device(text: str) -> str:
    """The name of a device that may exist."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text):
        near = near_match(text, DEVICES)
        raise UsageError(f"--device: '{text}' is not one of auto, cpu, cuda, cuda:N, mps{near}")
    return text


_NAME = {"parser": local_name, "autocompletion": model_names}
TABLE: Mapping[str, Any] = {  # by the name of the parameter
    "folder": argument(
        "Output folder of a run, also s3://BUCKET/PATH, or - to read its path from stdin.", "DIR"),
    "model": option("Name, Hub id, folder or .safetensors file.", "NAME", MODEL, show_default=DEMO, **_NAME),
    "sr_model": option(
        "Super-resolution afterwards, by this model; with -src or --sr-OPTION by the model's own.", "NAME",
        MODEL, **_NAME),
    "tokenizers": option(
        "Another tokenizer for a key of the model: a name, Hub id, folder or file. May be repeated.",
        "KEY=NAME", MODEL, "--tokenizer"),
    "device": option("cpu, cuda, cuda:N or mps.", "NAME", MODEL, parser=parse_device, show_default="auto",
                     autocompletion=one_of(*DEVICES)),
    "dtype": option(
        "float32, tf32 (NVIDIA: coarser, faster), bfloat16 or float16; auto: bfloat16 on GPUs that have it, "
        "else float32.", "NAME", MODEL, show_default=AUTO, parser=parse_dtype,
        autocompletion=one_of(*(dtype.name for dtype in DTYPES.values()))),
    "attention": option(
        "sdpa or, on NVIDIA GPUs: xformers, with the extra 'fast'; varlen, in 16 bits: rows of a batch "
        "without padding.", "KERNEL", MODEL, autocompletion=one_of("sdpa", "xformers", "varlen")),
    "weights": option(
        "full, or int8: less memory, faster texts on CPUs; results change.", "NAME", MODEL, show_default=FULL,
        parser=parse_weights, autocompletion=one_of(*WEIGHTS)),
    "compile_blocks": option(
        "Let torch's compiler make the blocks of networks; pays in long runs.", None, MODEL, "--compile"),
    "config": config_option(
        "YAML with a model, or its name in `fourm models --configs`.", "-c", "--config"),
    "data_config": config_option("YAML with data, likewise.", "-dc", "--data-config"),
    "gen_config": config_option("YAML with a schedule.", "-gc", "--gen-config"),
    "sr_config": config_option("YAML with the sr_ schedule.", "-src", "--sr-config"),
    "num_variations": option("Results per sample.", "K", RUN, min=1, show_default="1"),
    "seed": option("Seed of all random draws.", "S", RUN, min=0, show_default="0"),
    "fit": option(
        "How a picture becomes a square: crop (its centre) or pad (all of it, with a border).",
        "crop|pad", RUN, show_default="crop", autocompletion=one_of("crop", "pad")),
    "batch_size": option("Results decoded together.", "auto|N", RUN),
    "shard": option(
        "One n-th of the results, 0/4 to 3/4, of a shared --out; array, slurm, k8s/N: of a SLURM "
        "array, srun, an indexed Job.", "i/n", RUN,
        autocompletion=one_of("array", "slurm", "k8s/")),
    "executor": option(
        "Who makes shards: local (processes of this machine), slurm (tasks of an array that this submits) or "
        "ray (actors of a cluster).", "NAME", RUN, show_default="local", autocompletion=one_of(*EXECUTORS)),
    "workers": option("Processes that make shards: N, or auto, one for each GPU.", "auto|N", RUN,
                      show_default="1"),
    "gpus_per_worker": option("GPUs that Ray gives each worker; 0.5 lets two share one.", "G", RUN, min=0,
                              show_default="1 if there are any"),
    "sbatch": option("More options of sbatch for --executor slurm: '--partition=a100 --gpus=1'.", "OPTIONS",
                     RUN),
    "out": option("Output folder. By default the first free of out/001, out/002, ...", "DIR", OUTPUT,
                  parser=output_path),
    "resume": option("Do what an earlier run with the same settings left undone.", None, OUTPUT),
    "overwrite": option("Delete what an earlier run wrote, then start again.", None, OUTPUT),
    "format": option(
        "files; of many samples shards (tars), webdataset, parquet.",
        "NAME", OUTPUT, show_default="files", autocompletion=one_of(*FORMATS)),
    "shard_size": option("Samples of a shard, at most. A WebDataset tar of the input is one shard.", "N",
                         OUTPUT, min=1, show_default=str(SHARD_SIZE)),
    "retry_failed": option("With --resume: make shards with failed samples again.", None, OUTPUT),
    "decode": option("Write pictures and other values, or tokens alone.", None, OUTPUT),
    "detokenizer_steps": option(
        "Steps of tokenizers that decode by diffusion; at most 25 for previews.", "N", OUTPUT, min=1,
        show_default="25"),
    "detokenizer_solver": option(
        "Their solver: ddim, dpm++ or unipc; dpm++:lu with another spacing of the steps (docs/models.md).",
        "NAME", OUTPUT, show_default="ddim", autocompletion=one_of("ddim", "dpm++", "unipc")),
    "blend": option("Lay what --keep keeps over the generated picture, with a soft seam, or leave what the "
                    "decoder makes of its tokens.", None, OUTPUT),
    "restore": option(
        "Write pictures, maps, boxes as large as the whole picture.", None, OUTPUT),
    "preview": option("Keep the picture after every N-th step; 0 is never.", "N", OUTPUT, min=0),
    "dry_run": option(
        "Only say what would be made (of files also size and time).",
        None, OUTPUT),
    "quiet": option("No progress, no notes.", None, OUTPUT, "--quiet", "-q"),
    "as_json": option("On stdout, JSON in place of a table or of the folder's path.", None, OUTPUT, "--json"),
    "log_json": option("Write one JSON object per event.", "FILE", OUTPUT, parser=local_path),
}  # fmt: skip
PLAIN_JSON = option("Print data instead of a table.", None, None, "--json")  # of commands without panels


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """YAML files; later ones win."""

    config: Path | None = None
    data_config: Path | None = None
    gen_config: Path | None = None
    sr_config: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """Those that are given, in their order."""
        return [path for path in astuple(self) if path is not None]


@dataclass(frozen=True, slots=True)
class Machine:
    """How a model runs, and which share of the samples."""

    tokenizers: list[str] | None = None
    device: str | None = None
    dtype: str | None = None
    attention: str = "sdpa"
    compile_blocks: bool = False
    batch_size: str = "auto"
    shard: str | None = None


@dataclass(frozen=True, slots=True)
class Out:
    """Where results go."""

    folder: Path  # with a store, a temporary one
    store: str = ""  # address of a folder in an object store


@dataclass(frozen=True, slots=True)
class Layout:
    """What results are written into, and what happens to those of an earlier run."""

    resume: bool = False
    overwrite: bool = False
    format: str = FILES
    shard_size: int | None = None
    retry_failed: bool = False

    @property
    def size(self) -> int:
        """Samples of a shard, at most."""
        return self.shard_size or SHARD_SIZE

    def check_format(self) -> bool:
        """Whether results go into shards; UsageError for a format that does not exist, or other options."""
        check_choice("format", self.format, FORMATS)
        given = {"--shard-size": self.shard_size, "--retry-failed": self.retry_failed}
        if self.format == FILES and (used := next((name for name, value in given.items() if value), "")):
            raise UsageError(f"{used}: is for shards; --format shards makes some")
        return self.format != FILES

    def choose_out(self, out: Out | None, folder: Path | None) -> Out | None:
        """`out`, else `folder`; UsageError for results of a format that is written on this machine only."""
        if out is None:
            return None if folder is None else Out(folder)
        if out.store and self.format == FILES:
            where = f"{out.store}: {scheme_problem(out.store)}"
            raise UsageError(f"{where}, or --format shards, webdataset or parquet")
        return out

    def named(self) -> Mapping[str, object]:
        """See `Writing.named`."""
        return {"--format": self.format != FILES}


@dataclass(frozen=True, slots=True)
class Writing:
    """What is written of each sample."""

    decode: bool = True
    detokenizer_steps: int | None = None
    detokenizer_solver: str | None = None
    preview: int = 0
    blend: bool = True
    restore: bool = False

    def named(self) -> Mapping[str, object]:
        """What results depend on, where it is given, by the name that messages give it."""
        return {"--no-decode": not self.decode, "--no-blend": not self.blend, "--preview": self.preview,
                "--detokenizer-steps": self.detokenizer_steps, "--restore": self.restore,
                "--detokenizer-solver": self.detokenizer_solver}  # fmt: skip


def parse_out(text: str) -> Out:
    """An output folder, on this machine or in an object store."""
    from fourm.data.storage import RemoteFolder, check_address, is_remote

    if not is_remote(text):
        return Out(output_path(text))
    store = RemoteFolder(check_address(text))
    return Out(store.local(), store.address)


@dataclass(frozen=True, slots=True)
class Reporting:
    """What is said of a run while it goes on, and at its end."""

    quiet: bool = False
    as_json: bool = False
    log_json: Path | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """Who makes shards."""

    executor: str = EXECUTORS[0]
    workers: str | None = None
    gpus_per_worker: float | None = None
    sbatch: str | None = None

    def check(self, is_sharded: bool, num_ranks: int) -> None:
        """UsageError for what does not exist or does not go together."""
        name, given = self.executor, {"--executor": self.executor != "local", "--workers": self.workers}
        check_choice("executor", name, EXECUTORS)
        if not is_sharded and (used := next((flag for flag, value in given.items() if value), "")):
            raise UsageError(f"{used}: hands out shards, and --format files has none; --format shards has")
        if self.workers not in (None, "auto") and not re.fullmatch("0*[1-9][0-9]{0,5}", self.workers or ""):
            raise UsageError(f"--workers: '{self.workers}' is neither auto nor a whole number above 0")
        if name != "local" and self.workers in (None, "auto"):
            raise UsageError(f"--executor {name}: --workers N says how many workers it has")
        if name != "local" and num_ranks > 1:
            raise UsageError(f"--executor {name}: starts all processes itself; leave out --shard")
        if self.sbatch is not None and name != "slurm":
            raise UsageError("--sbatch: is for --executor slurm")
        if self.gpus_per_worker is not None and name != "ray":
            raise UsageError("--gpus-per-worker: is for --executor ray")


# What a command has been given of a schedule, by key (`temps`), and of that of super-resolution (`sr_temps`).
Schedule = Annotated[Mapping[str, object], ""]
ScheduleWithSr = Annotated[Mapping[str, object], SR_PREFIX]
_KINDS: Mapping[Item, Any] = {Item.FLAG: bool | None} | dict.fromkeys(REPEATABLE, list[str] | None)


def with_options(**own: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command for Typer its options: of each parameter that has a row, of groups one for each field.

    own: rows of this command alone, or (a str) another help text for a row of the table, by parameter. Help
    texts stand in the order of the parameters.
    """
    rows = {**TABLE, **own}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = list[Parameter]()
        groups = dict[str, tuple[Callable[..., object], list[str]]]()
        for name, parameter in signature(command).parameters.items():
            kind: Any = parameter.annotation
            if kind in (Schedule, ScheduleWithSr):
                added = _of_schedule("", "--", SCHEDULE, own)
                added += _of_schedule(SR_PREFIX, "--sr-", SR_SCHEDULE, own) if kind == ScheduleWithSr else []
                groups[name] = dict, [one.name for one in added]
            elif is_dataclass(kind):
                added = [_parameter(rows[f.name], f.name, f.type, f.default) for f in fields(kind)]
                groups[name] = kind, [one.name for one in added]  # type: ignore[assignment]
            else:
                row = rows.get(name)
                added = [_parameter(row, name, kind, parameter.default)] if row else [parameter]
            parameters += added
        asked = help_parameters({one.name for one in parameters})

        @wraps(command)
        def with_groups(**values: Any) -> None:
            for one in asked:
                values.pop(one.name)
            for name, (build, names) in groups.items():
                given = {one: value for one in names if (value := values.pop(one)) not in (None, [])}
                values[name] = build(**given)
            command(**values)

        with_groups.__signature__ = Signature([*asked, *parameters])  # type: ignore[attr-defined]
        with_groups.__annotations__ = {one.name: one.annotation for one in (*asked, *parameters)}
        return with_groups

    return decorate


def _parameter(row: Any, name: str, kind: Any, default: Any) -> Parameter:
    """A parameter as Typer reads it. A flag that is off has no opposite, `--resume` but no `--no-resume`."""
    told, is_other = copy(TABLE[name] if isinstance(row, str) else row), isinstance(row, str)
    told.help = row if is_other else row.help
    shown = default if told.show_default is True else told.show_default
    if isinstance(shown, str | int) and not isinstance(shown, bool) and not is_other:
        told.help += rf" [dim]\[default: {shown}][/dim]"
    told.show_default = isinstance(default, bool)
    told.param_decls = told.param_decls or ((f"--{name.replace('_', '-')}",) if default is False else ())
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, told])


def _of_schedule(key: str, flag: str, panel: str, texts: Mapping[str, Any]) -> list[Parameter]:
    """A parameter for each setting of schedules, under names that begin in this way; texts: other helps."""
    found = list[Parameter]()
    for setting in OPTIONS:
        name, kind = setting.flag.removeprefix("--"), _KINDS.get(setting.item, str | None)
        flags = f"{flag}{name}/{flag}no-{name}" if setting.item is Item.FLAG else flag + name
        text = f"As {setting.flag}, for super-resolution." if key else f"{setting.help}."
        text = texts.get(key + setting.key, text)
        row = option(text, setting.item.value[2], panel, flags, show_default=False)
        row.autocompletion = _COMPLETED.get(setting.key)
        found.append(_parameter(row, key + setting.key, kind, None))
    return found


def parse_folder(text: str, stdin: BinaryIO, advice: str = "") -> Path:
    """A folder that is there: a path, or `-` for the line that the command before a pipe has printed.

    advice: the end of the sentence that refuses what is no folder.
    """
    lines, where = [text], ""
    if text == "-":
        lines, where = os.fsdecode(stdin.read(1 << 16)).splitlines(), "standard input: "
        if len(lines) != 1 or not lines[0].strip():
            found = f"{len(lines)} lines" if lines else "nothing"
            raise UsageError(f"{where}the path of a folder was expected, in one line, not {found}")
    return find_folder(lines[0], output_path, where, "" if where else advice)


def find_folder(
    text: str, parse: Callable[[str], Path] = local_path, where: str = "", advice: str = ""
) -> Path:
    """A folder that is there and can be read; of one in an object store, what is fetched as it is read."""
    from fourm.data.mirrors import local_folder
    from fourm.data.storage import is_remote

    folder = local_folder(text) if is_remote(text) else parse(text)
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{where}{no_folder(folder, advice)}") from error
    except OSError as error:
        raise UsageError(f"{where}{folder}: cannot be read ({error.strerror})") from error
    return folder


def parse_fit(text: str | None) -> "Fit":
    """How pictures become squares; by default their centres."""
    from fourm.data.layout import FITS

    fits = {str(fit): fit for fit in FITS}
    if text is None:
        return FITS[0]
    check_choice("fit", text, fits)
    return fits[text]


def parse_batch_size(text: str) -> int | None:
    """The number of a `--batch-size`; None for auto."""
    if text == "auto":
        return None
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise UsageError(f"--batch-size: '{text}' is neither auto nor a whole number above 0")
    return int(text)

"""Settings of a whole run from YAML files and options: the base and super-resolution schedules, and the rest.

The configuration files of the reference implementation are read unchanged; keys that only steer its plumbing
(process groups, experiment trackers, loader threads) are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from fourm.data.opening import scheme_problem
from fourm.data.writing import output_path
from fourm.errors import ScheduleError, near_match, shown
from fourm.hub.header import DTYPES
from fourm.modalities.registry import RELEASED
from fourm.modalities.typed import YamlEntry
from fourm.schedule.language import Item, Layer, load_layer, parse_options
from fourm.schedule.plan import OPTIONS, merge

MAX_SEED = (1 << 64) - 1
SR_PREFIX = "sr_"
TOKENIZER_SUFFIX = "_tok_id"
TOKENIZERS = tuple(dict.fromkeys(row.tokenizer for row in RELEASED.rows.values() if row.tokenizer))
# Known to the reference, of no effect here: the picture size is the model's, and processes need no group.
IGNORED = (
    "run_name", "image_size", "patch_size", "num_workers", "pin_mem", "parti_prompts_t5_embs",
    "s3_endpoint", "s3_path", "image_size_metrics", "num_log_images", "save_all_outputs",
    "log_wandb", "wandb_project", "wandb_entity", "wandb_run_name", "wandb_mode",
    "show_user_warnings", "dist_gen", "world_size", "local_rank", "dist_on_itp", "dist_url",
    "controlnet_id", "controlnet_guidance_scale", "controlnet_cond_scale", "config_path",
    "data_config_path", "gen_config_path", "sr_config_path",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the YAML files say besides the schedules; None where they say nothing."""

    model: str | None = None
    sr_model: str | None = None
    data_path: str | None = None  # a folder, a prompt file, or the name of a prompt set
    data_name: str | None = None  # part of the output folder
    name: str | None = None  # the same
    sr_name: str | None = None  # the same
    output_dir: str | None = None
    num_samples: int | None = None
    num_variations: int | None = None
    seed: int | None = None
    detokenizer_steps: int | None = None
    device: str | None = None
    dtype: str | None = None
    text_tok_path: str | None = None
    activate_controlnet: bool | None = None
    tokenizers: Mapping[str, str] = field(default_factory=dict)  # tokenizer of a modality row -> name or path

    @property
    def subset_seed(self) -> int | None:
        """How the `num_samples` of a file are chosen: by the reference, at random with seed 0."""
        return None if self.num_samples is None else 0

    @property
    def folder(self) -> Path | None:
        """The output folder with the names of data and settings, as the reference lays them out."""
        if self.output_dir is None:
            return None
        names = "--".join(name for name in (self.name, self.sr_name) if name)
        return output_path(Path(self.output_dir, *(part for part in (self.data_name, names) if part)))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that was set, not yet checked against a model."""

    base: Layer
    sr: Layer
    run: RunSettings


def read_settings(configs: Sequence[Path], options: Mapping[str, object]) -> Settings:
    """Merge YAML files in the order given, and the options over them (keys of the table, plain or `sr_`).

    What cannot be read is among the problems of `base`, to be reported with the schedule's mistakes.
    """
    run, layers, problems = dict[str, object](), list[Layer](), list[str]()
    for path in configs:
        layer, others = load_layer(path, _ITEMS, _RUN_KEYS)
        layers.append(layer)
        for entry in others:
            _read_run_key(entry, path, run, problems)
    flags = {o.key: o.flag for o in OPTIONS}
    flags |= {SR_PREFIX + o.key: f"--sr-{o.flag.removeprefix('--')}" for o in OPTIONS}
    layers.append(parse_options(options, _ITEMS, flags))
    base = merge([_part(layer, "") for layer in layers])
    sr = merge([_part(layer, SR_PREFIX) for layer in layers])
    problems += [problem for layer in layers for problem in layer.problems]
    tokenizers = {
        key: str(run.pop(key + TOKENIZER_SUFFIX)) for key in TOKENIZERS if key + TOKENIZER_SUFFIX in run
    }
    return Settings(
        Layer(base.settings, tuple(problems)),
        sr,
        RunSettings(**run, tokenizers=tokenizers),  # type: ignore[arg-type]
    )


def read_names(path: Path) -> dict[str, str]:
    """Models, tokenizers, text tokenizer and data that a YAML file names, by key."""
    settings = read_settings([path], {})
    if problems := (*settings.base.problems, *settings.sr.problems):
        raise ScheduleError(*dict.fromkeys(problems))
    run = settings.run
    named = {"model": run.model, "sr_model": run.sr_model, "text_tok_path": run.text_tok_path,
             "data_path": run.data_path}  # fmt: skip
    named |= {key + TOKENIZER_SUFFIX: name for key, name in run.tokenizers.items()}
    return {key: name for key, name in named.items() if name}


def _part(layer: Layer, prefix: str) -> Layer:
    """The schedule settings with a prefix, which is taken off; "" = those without one."""
    keys = {prefix + option.key: option.key for option in OPTIONS}
    return Layer({keys[key]: setting for key, setting in layer.settings.items() if key in keys})


def _read_run_key(entry: YamlEntry, path: Path, run: dict[str, object], problems: list[str]) -> None:
    """Check one setting that is not part of a schedule, and put it where it belongs."""
    key, value = entry.key, entry.value
    if key in IGNORED:
        return
    problem = _CHECKS.get(key, _text)(value)
    if value is None or value == "":
        run.pop(key, None)
    elif problem:
        problems.append(f"{entry.where}: '{key}' {problem}, not '{shown(value)}'")
    elif isinstance(value, str):
        run[key] = DTYPES[value].name if key == "dtype" else _named_after(path, key, value)
    else:
        run[key] = value


def _named_after(path: Path, key: str, value: str) -> str:
    """`auto` names are those of the file that says so."""
    if key in ("name", "sr_name", "data_name") and value == "auto":
        return path.stem
    if key == "output_dir" and Path(value).name == "auto":
        parts = path.with_suffix("").parts
        start = len(parts) - parts[::-1].index("cfgs") if "cfgs" in parts else len(parts) - 1
        start += parts[start : start + 1] == ("default",)
        return str(Path(value).parent.joinpath(*parts[start:]))
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        return "must be text"
    return "must be a name or a path on this machine" if scheme_problem(value) else ""


def _count(value: object) -> str:
    return "" if type(value) is int and 0 < value < 1 << 64 else "must be a whole number above 0"


def _seed(value: object) -> str:
    return "" if type(value) is int and 0 <= value <= MAX_SEED else "must be a whole number, 0 to 2**64 - 1"


def _dtype(value: object) -> str:
    return (
        "" if value in list(DTYPES) else f"must be one of {', '.join(DTYPES)}{near_match(str(value), DTYPES)}"
    )


def _off(value: object) -> str:
    return "" if value is False else "must be false (there is no ControlNet here)"


_CHECKS: dict[str, Callable[[object], str]] = {
    "num_samples": _count, "num_variations": _count, "detokenizer_steps": _count, "seed": _seed,
    "dtype": _dtype, "activate_controlnet": _off,
}  # fmt: skip
_ITEMS: dict[str, Item] = {p + o.key: o.item for o in OPTIONS for p in ("", SR_PREFIX)}
_RUN_KEYS = (
    *(f.name for f in fields(RunSettings) if f.name != "tokenizers"),
    *(key + TOKENIZER_SUFFIX for key in TOKENIZERS),
    *IGNORED,
)

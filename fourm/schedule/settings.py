"""Settings from options and YAML files: the table of schedule settings, the text of values, and what wins."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from fourm.errors import ScheduleError, UsageError, near_match, shown
from fourm.files.opening import local_name, output_path, scheme_problem
from fourm.hub.header import DTYPES
from fourm.modalities.registry import RELEASED
from fourm.modalities.typed import Limits, to_type

MAX_SEED = (1 << 64) - 1
SR_PREFIX = "sr_"  # of the keys of super-resolution's schedule; its flags begin with --sr-
_TOK_ID = "_tok_id"
TOKENIZERS = tuple(dict.fromkeys(row.tokenizer for row in RELEASED.rows.values() if row.tokenizer))
# Files of the reference are read unchanged; these keys have no effect here (the picture size is the model's).
IGNORED = (
    "run_name image_size patch_size num_workers pin_mem parti_prompts_t5_embs s3_endpoint s3_path "
    "image_size_metrics num_log_images save_all_outputs log_wandb wandb_project wandb_entity wandb_run_name "
    "wandb_mode show_user_warnings dist_gen world_size local_rank dist_on_itp dist_url controlnet_id "
    "controlnet_guidance_scale controlnet_cond_scale config_path data_config_path gen_config_path "
    "sr_config_path"
).split()
_DECIMAL = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"  # other scripts' digits are mistakes
_NONE = r"(?i:none|null)"

SettingValue = str | int | float | bool | None
_Count = Annotated[int, Limits(1, MAX_SEED)]


class Item(Enum):
    """What one item of a list is: a name for messages, the pattern of its text, its metavar in help texts."""

    NAME = ("a name", r"[^\s,:=-]+(?::" + _DECIMAL + ")?", "NAMES")  # with or without a weight: caption:2.0
    COUNT = ("a whole number", r"[+-]?[0-9]+(?![\d.eE])", "COUNTS")
    NUMBER = ("a number", _DECIMAL, "NUMBERS")
    CURVE = ("the name of a schedule", r"[^\s,:=\d-][^\s,:=-]*(?::" + _DECIMAL + ")*", "CURVES")
    FLAG = ("true or false", r"(?i:true|false)", None)
    COUNT_OR_SHARE = ("a whole number or a share", _DECIMAL, "NUMBER")  # 50, or 0.05 of the vocabulary
    TEXT = ("a text", r"(?s:.+)", "TARGET")  # never split, and repeatable, as the next one
    PART = ("NAME:WHERE", r"(?s:.+)", "NAME:WHERE")
    # Lists of names, or one name and a file of which nothing is split. Lists of all uses are joined.
    CONDITION = ("a name", r"[^\s,:=-]+(?::" + _DECIMAL + ")?", "NAMES|NAME=FILE")
    WEIGHT = ("NAME:WEIGHT", r"[^\s,:=-]+:" + _DECIMAL, "NAME:WEIGHT")


JOINED_LISTS = (Item.CONDITION, Item.WEIGHT)
REPEATABLE = (Item.TEXT, Item.PART, *JOINED_LISTS)


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a schedule: its YAML key, its shorter name, and what its values are."""

    key: str
    name: str  # of the option, and in messages
    item: Item
    help: str
    field: str = ""  # of TargetSpec; "" = a setting of the whole chain
    word: str = ""  # its name within --target NAME:WORD=VALUE

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return f"--{self.name.replace('_', '-')}"


OPTIONS = (
    Option("cond_domains", "cond", Item.CONDITION, "Conditions, repeatable: caption-det. 'depth' reads "
           "maps, 'tok_depth' tokens. With weights: caption:2.0,tok_depth:-1. 'none' for none. A file for "
           "all samples: rgb=cat.jpg"),
    Option("cond_weights", "weight", Item.WEIGHT, "Weights of conditions, also of those that are given as "
           "NAME=FILE, repeatable: depth:1.5"),
    Option("target_domains", "targets", Item.NAME,
           "Targets in the order of decoding: depth-caption, or all. By default tok_clip-tok_rgb of words, "
           "and of a picture all that is made quickly"),
    Option("target", "target", Item.TEXT,
           "A target written whole, once for each: tok_rgb:steps=25,temp=0.5,cfg=2"),
    Option("tokens_per_target", "tokens", Item.COUNT, "Tokens per target: 196-196", "num_tokens", "tokens"),
    Option("autoregression_schemes", "schemes", Item.NAME,
           "How positions are picked: maskgit, roar, halton or autoregressive", "scheme", "scheme"),
    Option("decoding_steps", "steps", Item.COUNT, "Decoding steps: 49-25", "num_steps", "steps"),
    Option("token_decoding_schedules", "token_schedules", Item.CURVE,
           "Tokens per step: cosine, linear or arccos", "token_curve", "token-schedule"),
    Option("temps", "temps", Item.NUMBER, "Start temperatures: 3.0-0.5", "temperature", "temp"),
    Option("temp_schedules", "temp_schedules", Item.CURVE, "Temperature over the steps: constant, linear, "
           "onex:0.5:0.5", "temperature_curve", "temp-schedule"),
    Option("cfg_scales", "cfg", Item.NUMBER, "Guidance scales: 3.0-2.0; 1 is none", "guidance", "cfg"),
    Option("cfg_schedules", "cfg_schedules", Item.CURVE, "Guidance over the steps: constant, "
           "linear, interval:0.2:0.8",
           "guidance_curve", "cfg-schedule"),
    Option("sam_passes", "sam_passes", Item.COUNT, "Dense sam_instance: predict as often as this, each "
           "with its own noise, and join what is found", "passes", "passes"),
    Option("keep", "keep", Item.PART, "Keep a part of a modality and generate the rest of it, repeatable: "
           "rgb:mask.png (white stays), rgb:box:0,0,0.5,1, rgb:0.5 (a random half), rgb:mask (one of each "
           "sample, in DATA/mask_keep)"),
    Option("keep_guided", "keep_guided", Item.FLAG, "Guidance also strengthens what is kept: unguided "
           "passes don't see it"),
    Option("cfg_grow_conditioning", "grow_cond", Item.FLAG, "Finished targets join the guided conditions"),
    Option("top_p", "top_p", Item.NUMBER,
           "Draw from the tokens of this probability in all; 0 is off"),
    Option("top_k", "top_k", Item.COUNT_OR_SHARE,
           "Draw from this many tokens (50) or this share of all (0.05); 0 is off"),
)  # fmt: skip
TARGET_OPTIONS = tuple(option for option in OPTIONS if option.field)
_WORDS = {option.word: option for option in TARGET_OPTIONS}
_KEYS = {option.key: (option.item, option.name) for option in OPTIONS}  # item and name of every key
_KEYS |= {SR_PREFIX + key: (item, SR_PREFIX + name) for key, (item, name) in _KEYS.items()}


@dataclass(frozen=True, slots=True)
class Setting:
    """The values of one setting, and the option or line that they come from."""

    values: tuple[SettingValue, ...]
    where: str  # "`temps`" or "FILE, line 3: temps"


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings of one source, by key; what could not be read is among the problems."""

    settings: Mapping[str, Setting]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the YAML files say besides the schedules; None where they say nothing."""

    model: str | None = None
    sr_model: str | None = None
    data_path: str | None = None  # a folder, a prompt file, or the name of a prompt set
    data_name: str | None = None  # part of the output folder, as the next two
    name: str | None = None
    sr_name: str | None = None
    output_dir: str | None = None
    num_samples: _Count | None = None
    num_variations: _Count | None = None
    seed: Annotated[int, Limits(0, MAX_SEED)] | None = None
    detokenizer_steps: _Count | None = None
    detokenizer_solver: str | None = None
    device: str | None = None
    dtype: str | None = None
    text_tok_path: str | None = None
    tokenizers: Mapping[str, str] = field(default_factory=dict)  # tokenizer of a modality row -> name or path

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
    """Merge YAML files in the order given, and the options over them (keys of the table, plain or `sr_`)."""
    read = [load_layer(path) for path in configs]
    layers = [*(layer for layer, _ in read), parse_options(options)]
    run: dict[str, Any] = {key: value for _, values in read for key, value in values.items()}
    said = {key: value for key, value in run.items() if value is not None}
    tokenizers = {key: said.pop(key + _TOK_ID) for key in TOKENIZERS if key + _TOK_ID in said}
    return Settings(merge(layers), merge(layers, SR_PREFIX), RunSettings(**said, tokenizers=tokenizers))


def read_names(path: Path) -> dict[str, str]:
    """Models, tokenizers, text tokenizer and data that a YAML file names, by key."""
    layer, run = load_layer(path)
    if layer.problems:
        raise ScheduleError(*dict.fromkeys(layer.problems))
    keys = ("model", "sr_model", "text_tok_path", "data_path", *(key + _TOK_ID for key in TOKENIZERS))
    return {key: str(run[key]) for key in keys if run.get(key)}


def merge(layers: Sequence[Layer], prefix: str = "") -> Layer:
    """The settings whose keys have a prefix, without it; later layers win, key by key, and problems add up.

    Targets written whole replace earlier targets and parallel lists; a later `target_domains` replaces them.
    """
    settings, keys = dict[str, Setting](), {prefix + option.key: option.key for option in OPTIONS}
    for layer in layers:
        own = {keys[key]: setting for key, setting in layer.settings.items() if key in keys}
        if "target" in own:
            for key in ("target_domains", *(option.key for option in TARGET_OPTIONS)):
                settings.pop(key, None)
        elif "target_domains" in own:
            settings.pop("target", None)
        settings |= own
    return Layer(settings, tuple(problem for layer in layers for problem in layer.problems))


def parse_options(values: Mapping[str, object]) -> Layer:
    """Options by key, `None` where one was not given."""
    settings, problems = dict[str, Setting](), list[str]()
    for key, value in values.items():
        item, name = _KEYS[key]
        try:
            if value is not None:
                settings[key] = Setting(parse_value(value, item), f"`{name}`")
        except UsageError as error:
            problems.append(f"`{name}`: {error}")
    return Layer(settings, tuple(problems))


def load_layer(path: Path) -> tuple[Layer, dict[str, object]]:
    """The schedule's settings in a YAML file, and those of the run by key; None takes an earlier one back."""
    from fourm.modalities.yaml_files import read_mapping  # imports yaml

    settings, run, problems, seen = dict[str, Setting](), dict[str, object](), list[str](), set[str]()
    for written, (value, where) in read_mapping(path).items():
        key = written.replace("-", "_")
        if key in seen:
            problems.append(f"{where}: '{key}' is given twice, as '{written}' too")
        seen.add(key)
        try:
            if key in _KEYS:
                where = f"{where}: {key}"
                settings[key] = Setting(parse_value(value, _KEYS[key][0]), where)
            elif key in _RUN_KEYS:
                run[key] = _run_value(key, value, path)
            elif key not in IGNORED:
                raise UsageError(f"unknown key '{written}'{near_match(key, [*_KEYS, *_RUN_KEYS, *IGNORED])}")
        except (UsageError, ValueError) as error:
            problems.append(f"{where}: {error}")
    return Layer(settings, tuple(problems)), run


def parse_target(text: str, where: str) -> tuple[str, Layer]:
    """A whole target, `NAME:WORD=VALUE,...`, as its name and the settings given to it."""
    name, _, rest = (part.strip() for part in text.partition(":"))
    settings, problems = dict[str, Setting](), list[str]()
    for pair in rest.split(",") if rest else []:
        word, _, value = (part.strip() for part in pair.partition("="))
        word = word.replace("_", "-")
        place, option = f"{where} {name}: {word}", _WORDS.get(word)
        try:
            if option is None:
                close = near_match(word, _WORDS) or f"; known are {', '.join(_WORDS)}"
                raise UsageError(f"unknown key '{word}'{close}")
            if not value:
                raise UsageError(f"needs a value, for example {word}=...")
            if option.key in settings:
                raise UsageError("is given twice")
            settings[option.key] = Setting((_parse_item(value, option.item),), place)
        except UsageError as error:
            problems.append(f"{place}: {error}")
    return name, Layer(settings, tuple(problems))


def parse_value(value: object, item: Item) -> tuple[SettingValue, ...]:
    """The items of an option or YAML value: a text, a number, a truth value, nothing, or a list of those.

    Commas or hyphens separate the items of a text; `None` stands for the default. Items are matched greedily
    from the left, so that `3.0--1.0` is 3 and -1, and `1e-3-0.5` is 0.001 and 0.5.
    """
    if item in JOINED_LISTS:
        texts = value if isinstance(value, list | tuple) else (value,)
        return tuple(one for text in texts for one in _parse_given(text, item))
    if isinstance(value, list | tuple):
        return tuple(_parse_item(one, item) for one in value)
    if not isinstance(value, str) or item in REPEATABLE:
        return (_parse_item(value, item),)
    return _parse_list(value, item)


def split_condition(text: str) -> tuple[str, str, str]:
    """Name, weight and file of one condition; "" for a weight or a file that it does not have."""
    name, is_file, file = text.partition("=")
    if is_file:
        return name.strip(), "", file
    name, _, weight = text.partition(":")
    return name, weight, ""


def _parse_given(value: object, item: Item) -> tuple[SettingValue, ...]:
    """The conditions in one text: a list of names, or `NAME=FILE`, whose file may hold any sign."""
    if not isinstance(value, str) or "=" not in value or item is not Item.CONDITION:
        return _parse_list(value, item) if isinstance(value, str) else (_parse_item(value, item),)
    name, _, file = split_condition(value)
    if not re.fullmatch(r"[^\s,:=-]+", name):
        advice = "a file belongs to one name, as in rgb=cat.jpg; `weight=rgb:2` weighs it"
        raise UsageError(f"'{shown(value)}': {advice}")
    if not file.strip():
        raise UsageError(f"'{shown(value)}' names no file")
    local_name(file)
    return (f"{name}={file}",)


def _parse_list(value: str, item: Item) -> tuple[SettingValue, ...]:
    """The items of a text."""
    if not (text := value.strip()):
        return ()
    pattern, values, at = re.compile(rf"({_NONE}|{item.value[1]})\s*([,-]\s*|$)"), list[SettingValue](), 0
    while match := pattern.match(text, at):
        values.append(_parse_item(match[1], item))
        if not match[2]:
            return tuple(values)
        at = match.end()
    piece = re.split(r",|(?<=[^eE\s,])-", text[at:])[0].strip() or text
    raise UsageError(f"'{shown(piece)}' is not {item.value[0]}")


def _parse_item(value: object, item: Item) -> SettingValue:
    """The one item that a value must be; a list within a list is none."""
    if value is None or (item is Item.FLAG and isinstance(value, bool)):
        return value
    text = value.strip() if isinstance(value, str) else repr(value)
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not is_plain or not re.fullmatch(f"{_NONE}|{item.value[1]}", text):
        raise UsageError(f"'{shown(text)}' is not {item.value[0]}")
    if re.fullmatch(_NONE, text):
        return None
    if item in (Item.COUNT, Item.NUMBER, Item.COUNT_OR_SHARE):
        if item is not Item.NUMBER and re.fullmatch(r"[+-]?\d{1,18}", text):
            return int(text)
        if item is Item.COUNT or not math.isfinite(float(text)):
            raise UsageError(f"'{shown(text, 18)}' is too large")
        return float(text)
    return text.lower() == "true" if item is Item.FLAG else text


def _run_value(key: str, value: object, path: Path) -> object:
    """The value of a setting of the run, None where nothing is said; an error where it cannot be one."""
    if value is None or value == "" or (key == "activate_controlnet" and value is False):
        return None
    if key == "activate_controlnet":
        raise UsageError(f"'{key}' must be false (there is no ControlNet here), not '{shown(value)}'")
    if key == "dtype" and value not in list(DTYPES):
        near = near_match(str(value), DTYPES)
        raise UsageError(f"'{key}' must be one of {', '.join(DTYPES)}{near}, not '{shown(value)}'")
    to_type(_RUN_KEYS[key], value, f"'{key}'")
    if not isinstance(value, str):
        return value
    if scheme_problem(value):
        raise UsageError(f"'{key}' must be a name or a path on this machine, not '{shown(value)}'")
    # `auto` names are those of the file that says so.
    if key in ("name", "sr_name", "data_name") and value == "auto":
        return path.stem
    if key == "output_dir" and Path(value).name == "auto":
        parts = path.with_suffix("").parts
        start = len(parts) - parts[::-1].index("cfgs") if "cfgs" in parts else len(parts) - 1
        start += parts[start : start + 1] == ("default",)
        return str(Path(value).parent.joinpath(*parts[start:]))
    return DTYPES[value].name if key == "dtype" else value


# The types of a run's settings by YAML key; tokenizers have a key each. ControlNet can only be declined.
_RUN_KEYS = get_type_hints(RunSettings, include_extras=True)
_RUN_KEYS |= {key + _TOK_ID: str for key in TOKENIZERS} | {"activate_controlnet": bool}
del _RUN_KEYS["tokenizers"]

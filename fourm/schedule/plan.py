"""Settings get their meaning: the table of settings, their defaults, and every check that needs the model.

`build_chain` turns the settings of all sources into a chain, or reports all mistakes together.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from fourm.errors import ScheduleError, UsageError
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import GENERATION_ORDER, UNORDERED, Defaults, Kind, Modality
from fourm.schedule.chain import Chain, TargetSpec, field_problem, joining_problem, make_chain
from fourm.schedule.language import Item, Layer, Setting, Value, parse_options, parse_target
from fourm.schedule.schemes import SCHEMES

DEFAULT_CONDITIONS = ("caption",)
DEFAULT_TARGETS = ("tok_clip", "tok_rgb")
DEFAULT_TOP_P = 0.8
ALL = "all"  # in place of targets: everything that the model can produce


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a schedule: its YAML key, its flag, and what its values are."""

    key: str
    flag: str
    item: Item
    help: str
    field: str = ""  # of TargetSpec; "" = a setting of the whole chain
    word: str = ""  # its name within --target NAME:WORD=VALUE
    joined: bool = False  # True: in a list it is for targets whose predictions can be joined, and no others


OPTIONS = (
    Option("cond_domains", "--cond", Item.NAME,
           "Conditions: caption-det. 'depth' reads maps and tokenises them, 'tok_depth' reads tokens. "
           "With weights: caption:2.0,tok_depth:-1. 'none' for none"),
    Option("target_domains", "--targets", Item.NAME,
           "Targets in the order of decoding: tok_clip-tok_rgb, or all"),
    Option("target", "--target", Item.TEXT,
           "A target written whole, once for each: tok_rgb:steps=25,temp=0.5,cfg=2"),
    Option("tokens_per_target", "--tokens", Item.COUNT, "Tokens per target: 196-196", "num_tokens", "tokens"),
    Option("autoregression_schemes", "--schemes", Item.NAME,
           "How positions are picked: maskgit, roar or autoregressive", "scheme", "scheme"),
    Option("decoding_steps", "--steps", Item.COUNT, "Decoding steps: 49-25", "num_steps", "steps"),
    Option("token_decoding_schedules", "--token-schedules", Item.CURVE,
           "Tokens per step: cosine or linear", "token_curve", "token-schedule"),
    Option("temps", "--temps", Item.NUMBER, "Start temperatures: 3.0-0.5", "temperature", "temp"),
    Option("temp_schedules", "--temp-schedules", Item.CURVE,
           "Temperature over the steps: constant, linear, onex:0.5:0.5",
           "temperature_curve", "temp-schedule"),
    Option("cfg_scales", "--cfg", Item.NUMBER, "Guidance scales: 3.0-2.0; 1 is none", "guidance", "cfg"),
    Option("cfg_schedules", "--cfg-schedules", Item.CURVE, "Guidance over the steps: constant",
           "guidance_curve", "cfg-schedule"),
    Option("sam_passes", "--sam-passes", Item.COUNT,
           "Dense sam_instance: predict as often as this, each with its own noise, and join what is found",
           "passes", "passes", joined=True),
    Option("cfg_grow_conditioning", "--grow-cond", Item.FLAG, "Finished targets join the guided conditions"),
    Option("top_p", "--top-p", Item.NUMBER,
           "Draw from the most probable tokens that make up this share; 0 is off"),
    Option("top_k", "--top-k", Item.COUNT_OR_SHARE,
           "Draw from this many tokens (50), or this share of the vocabulary (0.05); 0 is off"),
)  # fmt: skip
_FIELDS = tuple(option for option in OPTIONS if option.field)
_WORDS = {option.word: (option.key, option.item) for option in _FIELDS}


def merge(layers: Sequence[Layer]) -> Layer:
    """Later layers win, key by key; problems add up.

    Targets written whole replace the targets and the parallel lists of earlier layers, and are replaced by
    later `target_domains`.
    """
    settings: dict[str, Setting] = {}
    for layer in layers:
        if "target" in layer.settings:
            for key in ("target_domains", *(option.key for option in _FIELDS)):
                settings.pop(key, None)
        elif "target_domains" in layer.settings:
            settings.pop("target", None)
        settings.update(layer.settings)
    return Layer(settings, tuple(problem for layer in layers for problem in layer.problems))


def build_chain(layer: Layer, model: ModelFiles, made: Sequence[str] | None = None) -> Chain:
    """The chain that the settings describe for a model; ScheduleError names all that is wrong with them.

    made: for super-resolution, the modalities (full names) that there are to go on from.
    """
    problems = list(layer.problems)
    whole = _whole_targets(layer, problems)
    conditions, weights, raw = _conditions(layer, model, made, problems)
    targets = _targets(layer, model, [*whole], conditions, made is not None, problems)
    given = _given(layer, model, targets, problems)
    with_rgb = any(model.registry.get(c).is_rgb for c in conditions)
    specs = [
        spec
        for target, parallel, own in zip(targets, given, whole.values() or [{}] * len(targets), strict=True)
        if target and (spec := _spec(model.registry.get(target), {**parallel, **own}, with_rgb, problems))
    ]
    top_k, top_p = _filters(layer, problems)
    grow = layer.settings.get("cfg_grow_conditioning", Setting((True,), "")).values
    if problems:
        raise ScheduleError(*dict.fromkeys(problems))
    return make_chain(
        specs, conditions, grow=grow != (False,), weights=weights, reads=model.reads, top_k=top_k,
        top_p=top_p, raw=raw,
    )  # fmt: skip


def parse_chain(text: str, model: ModelFiles) -> Chain:
    """The chain of options written as one text, as `Chain.to_text` prints them."""
    values: dict[str, object] = {}
    by_flag = {option.flag: option for option in OPTIONS}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ScheduleError(f"'{text}' cannot be read as options ({error})") from None
    while words:
        word = words.pop(0)
        option = by_flag.get(word.replace("--no-", "--"))
        if option is None or (option.item is not Item.FLAG and not words):
            raise ScheduleError(f"'{word}' is not an option of a schedule with its value")
        if option.item is Item.FLAG:
            values[option.key] = not word.startswith("--no-")
        elif option.item is Item.TEXT:
            values[option.key] = [*_as_list(values.get(option.key)), words.pop(0)]
        else:
            values[option.key] = words.pop(0)
    items, flags = {o.key: o.item for o in OPTIONS}, {o.key: o.flag for o in OPTIONS}
    return build_chain(parse_options(values, items, flags), model)


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _whole_targets(layer: Layer, problems: list[str]) -> dict[str, dict[str, Setting]]:
    """Targets written whole: the settings of each, by key."""
    if "target" not in layer.settings:
        return {}
    setting, whole = layer.settings["target"], dict[str, dict[str, Setting]]()
    if "target_domains" in layer.settings:
        other = layer.settings["target_domains"].where
        problems.append(f"{setting.where} and {other} are both given; give one of them")
    for text in setting.values:
        name, own = parse_target(str(text), _WORDS, setting.where)
        problems += own.problems
        if name in whole:
            problems.append(f"{setting.where}: '{name}' is given twice")
        whole[name] = dict(own.settings)
    return whole


def _conditions(
    layer: Layer, model: ModelFiles, made: Sequence[str] | None, problems: list[str]
) -> tuple[list[str], dict[str, float], set[str]]:
    """Full names of the conditions, sorted, the weights of those that have one, and those given as values."""
    setting = layer.settings.get("cond_domains")
    if made is not None and (setting is None or setting.values == (None,)):
        return sorted({name for name in made if name in model.reads}), {}, set()
    if setting is None:
        setting = Setting(DEFAULT_CONDITIONS, "--cond")
    names = () if setting.values == (None,) else setting.values
    pairs = [str(name).partition(":")[::2] for name in names]
    grids = {name: _grid_of_values(name, model) for name, _ in pairs}
    tokens = [grids[name] or name for name, _ in pairs]
    found = _resolve(tokens, setting.where, model, model.reads, "read", problems)
    weights = {full: float(weight) for full, (_, weight) in zip(found, pairs, strict=True) if full and weight}
    problems += [
        f"{setting.where} {name}: {p}" for name, w in weights.items() if (p := field_problem("guidance", w))
    ]
    raw = {name for name in found if name in grids.values()}
    if made is not None:
        missing = [name for name in found if name and name not in made]
        problems += [
            f"{setting.where}: there is no {n} to go on from; there is {', '.join(made)}" for n in missing
        ]
        problems += [f"{setting.where}: super-resolution reads tokens: {name}" for name in sorted(raw)]
    return sorted(name for name in found if name), weights, raw


def _grid_of_values(name: str, model: ModelFiles) -> str | None:
    """The grid that a condition's values become, where the name is not that of something the model reads."""
    if any(name in (read, model.registry.get(read).key) for read in model.reads):
        return None
    return model.registry.of_values(name, model.reads)


def _targets(
    layer: Layer, model: ModelFiles, whole: list[str], conditions: list[str], is_finer: bool,
    problems: list[str],
) -> list[str]:  # fmt: skip
    """Full names of the targets, in order; "" in place of one that cannot be."""
    setting = layer.settings.get("target_domains")
    if whole:
        setting = Setting(tuple(whole), "--target")
    if setting is None or setting.values == (None,):
        return _default_targets(model, conditions, is_finer, problems)
    if setting.values == (ALL,):
        return _all_targets(model, conditions)
    if not setting.values:
        problems.append(f"{setting.where}: no target is named; model '{model.name}' {_writes(model)}")
    found = _resolve(
        [str(v) for v in setting.values], setting.where, model, model.writes, "produce", problems
    )
    for name in found:
        if name in conditions:
            problems.append(f"{setting.where}: '{name}' is both a condition and a target")
    return found


def _all_targets(model: ModelFiles, conditions: list[str]) -> list[str]:
    """Everything that the model can produce and that is not given, each at its lowest resolution.

    In the order of the reference's demo; modalities that it does not know come last.
    """
    rows = model.registry.rows
    given = {rows[name].key for name in conditions}
    if any(rows[name].is_rgb for name in conditions):
        given.add("tok_rgb")
    lowest = dict[str, str]()
    for name in sorted(model.writes, key=lambda n: rows[n].resolution or 0):
        lowest.setdefault(rows[name].key, name)
    own = [key for key in lowest if key not in GENERATION_ORDER and key not in UNORDERED]
    return [lowest[key] for key in (*GENERATION_ORDER, *own) if key in lowest and key not in given]


def _default_targets(
    model: ModelFiles, conditions: list[str], is_finer: bool, problems: list[str]
) -> list[str]:
    rows = model.registry.rows
    if is_finer:
        keys = {rows[c].key for c in conditions}
        order = {key: index for index, key in enumerate(GENERATION_ORDER)}
        finer = [w for w in model.writes if rows[w].key in keys and w not in conditions]
        finer.sort(key=lambda name: order.get(rows[name].key, len(order)))  # stable: others stay as they are
    else:
        wanted = [model.registry.resolve(name, model.writes) for name in DEFAULT_TARGETS]
        finer = [name for name in wanted if name in model.writes and name not in conditions]
    if not finer:
        problems.append(f"--targets: no target is named; model '{model.name}' {_writes(model)}")
    return finer


def _resolve(
    names: Sequence[str], where: str, model: ModelFiles, able: Sequence[str], verb: str, problems: list[str]
) -> list[str]:
    """Full names; "" in place of one that is unknown, repeated, or that the model cannot read or produce."""
    found: list[str] = []
    for name in names:
        try:
            full = model.registry.resolve(name, able)
        except UsageError as error:
            problems.append(f"{where}: {error}")
            full = ""
        if full and full not in able:
            problems.append(
                f"{where}: model '{model.name}' cannot {verb} '{full}'; it {verb}s {', '.join(able)}"
            )
            full = ""
        if full in found and full:
            problems.append(f"{where}: '{full}' is given twice")
            full = ""
        found.append(full)
    return found


def _writes(model: ModelFiles) -> str:
    return f"produces {', '.join(model.writes)}"


def _given(
    layer: Layer, model: ModelFiles, all_targets: list[str], problems: list[str]
) -> list[dict[str, Setting]]:
    """The values of the parallel lists for each target; one value serves all."""
    given: list[dict[str, Setting]] = [{} for _ in all_targets]
    rows = model.registry.rows
    joined = [target for target in all_targets if target and not joining_problem(rows[target])]
    for option in _FIELDS:
        setting, targets = layer.settings.get(option.key), joined if option.joined else all_targets
        if setting is None or not all_targets:
            continue
        if not targets:
            problems += [
                f"{setting.where}: {joining_problem(rows[name])}" for name in all_targets[:1] if name
            ]
            continue
        values = setting.values * len(targets) if len(setting.values) == 1 else setting.values
        if len(values) != len(targets):
            named = f"{len(targets)} targets" if len(targets) > 1 else "1 target"
            allowed = f"1 or {len(targets)}" if len(targets) > 1 else "1"
            names = f" ({', '.join(targets)})" if all(targets) else ""
            problems.append(f"{setting.where}: {len(values)} values for {named}{names}; give {allowed}")
            continue
        for target, value in zip(targets, values, strict=True):
            given[all_targets.index(target)][option.key] = Setting((value,), setting.where)
    return given


def _spec(
    row: Modality, settings: Mapping[str, Setting], with_rgb: bool, problems: list[str]
) -> TargetSpec | None:
    """A target's settings over the defaults of its row; None if something is wrong with them."""
    defaults = row.rgb_defaults if with_rgb else row.defaults
    if defaults is None:
        problems.append(f"'{row.name}' cannot be a target: its row in modalities.yaml has no defaults")
        return None
    asked = {
        option.field: (settings[option.key].values[0], settings[option.key].where)
        for option in _FIELDS
        if option.key in settings and settings[option.key].values[0] is not None
    }
    values, where = _default_values(row, defaults, asked), {name: place for name, (_, place) in asked.items()}
    wrong = {name: problem for name, value in values.items() if (problem := field_problem(name, value))}
    found = [f"{where.get(name, f'the defaults of {row.name}')}: {p}" for name, p in wrong.items()]
    if not wrong.keys() & {"scheme", "num_tokens", "num_steps", "passes"}:
        found += _misfits(row, values, where)
    if found:
        problems += found
        return None
    try:
        return _plain(TargetSpec(target=row.name, **values))  # type: ignore[arg-type]
    except ScheduleError as error:
        problems += error.problems
        return None


def _default_values(
    row: Modality, defaults: Defaults, asked: Mapping[str, tuple[Value, str]]
) -> dict[str, Value]:
    """Every field of a target: what was asked, else the default, never more than the target holds."""
    values: dict[str, Value] = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    values["num_tokens"] = min(defaults.num_tokens or row.max_tokens, row.max_tokens)
    values |= {name: value for name, (value, _) in asked.items()}
    if "num_steps" not in asked and values["num_steps"] is not None:
        values["num_steps"] = min(int(values["num_steps"]), int(values["num_tokens"] or 1))
    return values


def _misfits(row: Modality, values: Mapping[str, Value], where: Mapping[str, str]) -> list[str]:
    """What does not suit the modality, although each setting is good by itself."""
    problems, scheme, num_tokens = [], SCHEMES[str(values["scheme"])], int(values["num_tokens"] or 0)
    if scheme.causal != (row.kind is Kind.SEQUENCE):
        sort = "a sequence" if row.kind is Kind.SEQUENCE else "a grid of tokens"
        good = [name for name, other in SCHEMES.items() if other.causal != scheme.causal]
        place = where.get("scheme", row.name)
        problems.append(f"{place}: '{scheme.name}' does not fit {row.name}, {sort}; use {' or '.join(good)}")
    if num_tokens > row.max_tokens or (row.kind is Kind.GRID and num_tokens != row.max_tokens):
        has = "at most " if row.kind is Kind.SEQUENCE else ""
        place = where.get("num_tokens", row.name)
        problems.append(f"{place}: {num_tokens} tokens for {row.name}, which has {has}{row.max_tokens}")
    elif int(values.get("passes") or 1) > 1 and (problem := joining_problem(row)):
        problems.append(f"{where.get('passes', row.name)}: {problem}")
    elif not scheme.causal and "num_steps" in where and int(values["num_steps"] or 0) > num_tokens:
        steps = values["num_steps"]
        problems.append(
            f"{where['num_steps']}: {steps} steps are more than the {num_tokens} tokens of {row.name}"
        )
    return problems


def _plain(spec: TargetSpec) -> TargetSpec:
    """The same target without the settings that its scheme does not use."""
    scheme = SCHEMES[spec.scheme]
    if scheme.causal:
        return replace(spec, num_steps=None, token_curve="linear", temperature_curve="constant")
    return replace(spec, token_curve="linear") if scheme.even else spec


def _filters(layer: Layer, problems: list[str]) -> tuple[int | float, float]:
    """top_k (0 = off) and top_p (1 = off)."""
    top_k, top_p = _single(layer, "top_k", 0, problems), _single(layer, "top_p", DEFAULT_TOP_P, problems)
    if not 0 <= top_p <= 1:
        problems.append(f"{layer.settings['top_p'].where}: top_p is a share from 0 to 1, not {top_p!r}")
    if top_k < 0 or (isinstance(top_k, float) and top_k > 1):
        where = layer.settings["top_k"].where
        problems.append(f"{where}: top_k is a whole number (50) or a share from 0 to 1 (0.05), not {top_k!r}")
    off = isinstance(top_k, float) and top_k in (0.0, 1.0)
    return 0 if off else top_k, float(top_p) or 1.0


def _single(layer: Layer, key: str, default: int | float, problems: list[str]) -> int | float:
    """The one value of a setting of the whole chain."""
    setting = layer.settings.get(key)
    if setting is None or setting.values == (None,):
        return default
    if len(setting.values) != 1 or not isinstance(setting.values[0], int | float):
        problems.append(f"{setting.where}: one value for the whole chain was expected")
        return default
    return setting.values[0]

"""Settings become a chain: defaults are filled in, and all that does not fit a model is reported together."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fourm.errors import ScheduleError, UsageError
from fourm.hub.files import ModelFiles, decodes_by_diffusion
from fourm.modalities.registry import GENERATION_ORDER, UNORDERED, Kind, Modality
from fourm.schedule.chain import Chain, TargetSpec, field_problem, joining_problem, make_chain
from fourm.schedule.keeps import INFILL_TOKENS, Keep, parse_where, split_keep
from fourm.schedule.schemes import SCHEMES
from fourm.schedule.settings import (
    OPTIONS,
    REPEATABLE,
    TARGET_OPTIONS,
    Item,
    Layer,
    Setting,
    parse_options,
    parse_target,
    split_condition,
)


def build_chain(layer: Layer, model: ModelFiles, made: Sequence[str] | None = None) -> Chain:
    """The chain that the settings describe for a model; ScheduleError names all that is wrong with them."""
    planner = _Planner(layer.settings, model, made, list(layer.problems))
    whole = planner.whole_targets()
    keeps = planner.keeps()
    conditions, weights, raw = planner.conditions(keeps)
    added, named = planner.targets([*whole], conditions, keeps)
    targets = [*added, *named]
    lists = [dict[str, Setting]() for _ in added] + planner.parallel_lists(named)
    whole = {name: {} for name in added} | whole if whole else {}
    with_rgb = any(model.registry.get(c).is_rgb for c in conditions)
    specs = [
        spec
        for target, parallel, own in zip(targets, lists, whole.values() or [{}] * len(targets), strict=True)
        if target and (spec := planner.spec(model.registry.get(target), {**parallel, **own}, with_rgb, keeps))
    ]
    top_k = planner.single("top_k", 0, "a whole number (50) or a share from 0 to 1 (0.05)")
    top_k = 0 if isinstance(top_k, float) and top_k in (0.0, 1.0) else top_k
    top_p = float(planner.single("top_p", 0.8, "a share from 0 to 1")) or 1.0
    grow = layer.settings.get("cfg_grow_conditioning", Setting((True,), "")).values != (False,)
    planner.problems.extend(
        f"{spec.target}: the guidance schedule '{spec.guidance_curve}' is for one guidance scale, and "
        "weights of conditions stay the same in all steps; use constant"
        for spec in specs
        if weights and spec.guidance_curve != "constant"
    )
    if planner.problems:
        raise ScheduleError(*dict.fromkeys(planner.problems))
    keep_guided = layer.settings.get("keep_guided", Setting((False,), "")).values == (True,)
    chain = make_chain(
        specs, conditions, grow=grow, weights=weights, reads=model.reads, top_k=top_k, top_p=top_p,
        guided_kept=[keep.target for keep in keeps if keep_guided],
    )  # fmt: skip
    return replace(chain, raw=frozenset(raw), keeps=tuple(keeps), keep_guided=keep_guided and bool(keeps))


def condition_chain(layer: Layer, model: ModelFiles) -> Chain:
    """The chain of conditions alone, without targets; ScheduleError names all that is wrong with them."""
    planner = _Planner(layer.settings, model, None, list(layer.problems))
    conditions, weights, raw = planner.conditions(())
    if weights:
        planner.problems.append("`cond`: weights of conditions are for guidance, and nothing is decoded here")
    if not conditions and not planner.problems:
        reads = f"model '{model.name}' reads {', '.join(model.reads)}"
        planner.problems.append(f"`cond`: names nothing that the encoder could read; {reads}")
    if planner.problems:
        raise ScheduleError(*dict.fromkeys(planner.problems))
    return replace(make_chain((), conditions), raw=frozenset(raw))


def fill_texts(layer: Layer, names: Sequence[str]) -> Layer:
    """The settings of a run whose texts, of modalities of these names, have marks that are to be filled."""
    keep = layer.settings.get("keep", Setting((), "`keep`"))
    return replace(layer, settings={**layer.settings, "keep": replace(keep, values=(*keep.values, *names))})


def unseen_picture(chain: Chain, finer: Chain) -> str:
    """A sentence where super-resolution does not see the picture that a run was given; else an empty one."""
    if not any(name.startswith("rgb@") for name in chain.conditions):
        return ""
    seen = finer.conditions
    if any(name.startswith(("rgb@", "tok_rgb@")) for name in seen):
        return ""
    return f"super-resolution sees {', '.join(seen) or 'nothing'}, and not the picture that is given"


def texts_to_fill(layer: Layer, model: ModelFiles) -> list[str]:
    """Texts that are a condition and a target at once, which means that marks in them are to be filled.

    Whether there are marks is known when samples are read; without them a condition cannot be a target.
    """
    given = layer.settings.get("cond_domains", Setting(("caption",), "")).values
    targets = [*layer.settings.get("target_domains", Setting((), "")).values]
    targets += [str(text).partition(":")[0] for text in layer.settings.get("target", Setting((), "")).values]
    names = {split_condition(str(text))[0] for text in given}
    both = [name for name in map(str, targets) if name in names and name in model.writes]
    return [name for name in both if model.registry.get(name).kind is Kind.SEQUENCE]


def condition_files(layer: Layer, model: ModelFiles) -> dict[str, str]:
    """Files that are given by condition, `NAME=FILE`: full name -> path. The layer made a chain before."""
    texts = layer.settings.get("cond_domains", Setting((), "")).values
    given = [split_condition(str(text)) for text in texts]
    return {
        grid_of_values(name, model, model.reads) or model.registry.resolve(name, model.reads): file
        for name, _, file in given
        if file
    }


def grid_of_values(name: str, model: ModelFiles, able: Sequence[str]) -> str | None:
    """The grid, among some modalities, whose values have this name; None for a name of tokens or texts."""
    registry = model.registry
    as_tokens = {*able, *(registry.get(one).key for one in able)}
    return None if name in as_tokens else registry.grid_of_values(name, able)


def parse_chain(text: str, model: ModelFiles) -> Chain:
    """The chain of options written as one text, as `Chain.to_text` prints them."""
    return build_chain(parse_words(text), model)


def parse_words(text: str) -> Layer:
    """The settings of options written as one text."""
    values = dict[str, Any]()
    by_flag = {option.flag: option for option in OPTIONS}
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise ScheduleError(f"'{text}' cannot be read as options ({error})") from None
    for given in words:
        word, has_value, own = given.partition("=")
        option, is_on = by_flag.get(word.replace("--no-", "--")), not word.startswith("--no-")
        is_flag = option is not None and option.item is Item.FLAG
        value = is_on if is_flag else own if has_value else next(words, None)
        if option is None or value is None or (is_flag and has_value):
            raise ScheduleError(f"'{given}' is not an option of a schedule with its value")
        if option.item in REPEATABLE:
            values.setdefault(option.key, []).append(value)
        else:
            values[option.key] = value
    return parse_options(values)


@dataclass(frozen=True, slots=True)
class _Planner:
    """Resolves the settings of a chain for a model, and collects all mistakes in `problems`."""

    settings: Mapping[str, Setting]
    model: ModelFiles
    made: Sequence[str] | None  # of super-resolution: full names of the modalities to go on from
    problems: list[str]

    def whole_targets(self) -> dict[str, dict[str, Setting]]:
        """Targets written whole: the settings of each, by key."""
        setting, whole = self.settings.get("target", Setting((), "")), dict[str, dict[str, Setting]]()
        if setting.where and (other := self.settings.get("target_domains")):
            self.problems.append(f"{setting.where} and {other.where} are both given; give one of them")
        for text in setting.values:
            name, own = parse_target(str(text), setting.where)
            self.problems.extend(own.problems)
            if name in whole:
                self.problems.append(f"{setting.where}: '{name}' is given twice")
            whole[name] = dict(own.settings)
        return whole

    def keeps(self) -> list[Keep]:
        """The targets of which a part is given."""
        setting, registry = self.settings.get("keep", Setting((), "`keep`")), self.model.registry
        able, found = [name for name in self.model.writes if name in self.model.reads], list[Keep]()
        for text in setting.values:
            try:
                name, where = split_keep(str(text))
                grid = grid_of_values(name, self.model, able)
                target = grid or registry.resolve(name, able)
                if target not in able:
                    both = f"'{target}'; it reads and produces {', '.join(able)}"
                    raise UsageError(f"model '{self.model.name}' cannot both read and produce {both}")
                if any(keep.target == target for keep in found):
                    raise UsageError(f"'{target}' is given twice")
                canonical, file = parse_where(where, registry.get(target))
                found.append(Keep(target, canonical, grid is not None, file))
            except UsageError as error:
                self.problems.append(f"{setting.where}: {error}")
        return found

    def conditions(self, keeps: Sequence[Keep]) -> tuple[list[str], dict[str, float], set[str]]:
        """Full names, sorted, the weights of those that have one, and those given as values.

        What is kept in part is no condition, in no form: its other part must not be seen.
        """
        names, weights, raw = self._conditions()
        rows, kept = self.model.registry.rows, {keep.target for keep in keeps}
        sizes = {rows[name].resolution for name in kept if rows[name].key == "tok_rgb"}
        hidden = {n for n in names if n in kept or (rows[n].is_rgb and rows[n].resolution in sizes)}
        weights = {name: weight for name, weight in weights.items() if name not in hidden}
        return [name for name in names if name not in hidden], weights, raw - hidden

    def _conditions(self) -> tuple[list[str], dict[str, float], set[str]]:
        setting, made = self.settings.get("cond_domains", Setting(("caption",), "`cond`")), self.made
        reads = self.model.reads
        if made is not None and ("cond_domains" not in self.settings or setting.values == (None,)):
            return sorted({name for name in made if name in reads}), {}, set()
        names, where = () if setting.values == (None,) else setting.values, setting.where
        given = [split_condition(str(name)) for name in names]
        # Conditions that are given as values, and the grid of tokens that each becomes.
        grids = {name: grid_of_values(name, self.model, reads) for name, _, _ in given}
        found = self._resolve([grids[name] or name for name, _, _ in given], where, reads, "read")
        weights = {full: float(w) for full, (_, w, _) in zip(found, given, strict=True) if full and w}
        weights |= self._weights(found, weights)
        wrong = ((name, field_problem("guidance", weight)) for name, weight in weights.items())
        self.problems.extend(f"{where} {name}: {problem}" for name, problem in wrong if problem)
        raw = {name for name in found if name in grids.values()}
        if made is not None:
            there = f"there is {', '.join(made)}"
            missing = (name for name in found if name and name not in made)
            self.problems.extend(f"{where}: there is no {name} to go on from; {there}" for name in missing)
            self.problems.extend(f"{where}: super-resolution reads tokens: {name}" for name in sorted(raw))
            files = [f"{name}={file}" for name, _, file in given if file]
            what = "super-resolution reads what a run has made, no other file"
            self.problems.extend(f"{where}: {what}: {text}" for text in files)
        return sorted(name for name in found if name), weights, raw

    def _weights(self, conditions: Sequence[str], others: Mapping[str, float]) -> dict[str, float]:
        """The weights that are given apart from the conditions, by full name."""
        setting, found = self.settings.get("cond_weights", Setting((), "`weight`")), dict[str, float]()
        for text in setting.values if setting.values != (None,) else ():
            name, _, weight = str(text).partition(":")
            try:
                reads, registry = self.model.reads, self.model.registry
                full = grid_of_values(name, self.model, reads) or registry.resolve(name, reads)
                if full not in conditions:
                    there = ", ".join(filter(None, conditions)) or "none"
                    raise UsageError(f"'{name}' is not among the conditions, which are {there}")
                if full in (*found, *others):
                    raise UsageError(f"'{name}' is given a weight twice")
                found[full] = float(weight)
            except UsageError as error:
                self.problems.append(f"{setting.where}: {error}")
        return found

    def targets(
        self, whole: Sequence[str], conditions: Sequence[str], keeps: Sequence[Keep]
    ) -> tuple[list[str], list[str]]:
        """Full names of the targets: those that nobody has named, which come first, and the others.

        "" stands in place of one that cannot be. Where nothing is named, a picture that is kept in part is
        the only target; texts are filled before the usual targets are made.
        """
        kept = [keep.target for keep in keeps]
        if "target_domains" not in self.settings and not whole and not all(keep.is_text for keep in keeps):
            texts = [keep.target for keep in keeps if keep.is_text]
            return texts, [name for name in kept if name not in texts]
        found = self._named_targets(whole, conditions)
        if self.settings.get("target_domains", Setting((), "")).values == ("all",) and not whole:
            found = [name for name in found if name not in kept]
        return [name for name in kept if name not in found], found

    def _named_targets(self, whole: Sequence[str], conditions: Sequence[str]) -> list[str]:
        given = self.settings.get("target_domains", Setting((None,), ""))
        setting = Setting(tuple(whole), "`target`") if whole else given
        if setting.values == ("all",):
            return self._all_targets(conditions)
        if setting.values == (None,):
            where = "`targets`" if self.made is None else "super-resolution"
            found = self._default_targets(conditions)
        else:
            where = setting.where
            names, writes = [str(name) for name in setting.values], self.model.writes
            tokens = [grid_of_values(name, self.model, writes) or name for name in names]
            found = self._resolve(tokens, where, writes, "produce")
        if not found:
            why = "" if self.made is None else " and no tokens are given that it could make finer"
            model = f"model '{self.model.name}' produces {', '.join(self.model.writes)}"
            self.problems.append(f"{where}: no target is named{why}; {model}: name some")
        for name in (name for name in found if name in conditions):
            is_text = self.model.registry.get(name).kind is Kind.SEQUENCE
            marks = "; [S_1] in the text marks what is to be filled" if is_text else ""
            self.problems.append(f"{where}: '{name}' is both a condition and a target{marks}")
        return found

    def _all_targets(self, conditions: Sequence[str]) -> list[str]:
        """All that the model produces and is not given, each at its lowest resolution, in order."""
        rows = self.model.registry.rows
        given = {"tok_rgb" if rows[name].is_rgb else rows[name].key for name in conditions}
        lowest = dict[str, str]()
        for name in sorted(self.model.writes, key=lambda n: rows[n].resolution):
            lowest.setdefault(rows[name].key, name)
        own = [key for key in lowest if key not in GENERATION_ORDER and key not in UNORDERED]
        return [lowest[key] for key in (*GENERATION_ORDER, *own) if key in lowest and key not in given]

    def _default_targets(self, conditions: Sequence[str]) -> list[str]:
        """What is made without being named.

        Of a picture all that is made quickly; otherwise CLIP and RGB tokens; for super-resolution, the
        conditions at another resolution.
        """
        rows, writes = self.model.registry.rows, self.model.writes
        if self.made is None:
            if any(rows[name].is_rgb for name in conditions):
                return [name for name in self._all_targets(conditions) if self._is_quick(rows[name])]
            names = [self.model.registry.resolve(name, writes) for name in ("tok_clip", "tok_rgb")]
            return [name for name in names if name in writes and name not in conditions]
        keys = {rows[name].key for name in conditions}
        rank = {key: index for index, key in enumerate(GENERATION_ORDER)}
        targets = [name for name in writes if rows[name].key in keys and name not in conditions]
        return sorted(targets, key=lambda name: rank.get(rows[name].key, len(rank)))  # stable

    def _is_quick(self, row: Modality) -> bool:
        """True for maps and short texts. Pictures, what is decoded by diffusion, and texts that hold codes of
        a tokenizer (people and instances: hundreds of tokens) take longer."""
        if row.kind is Kind.SEQUENCE:
            return not row.tokenizer
        return not (row.is_rgb or decodes_by_diffusion(self.model, row.tokenizer))

    def _resolve(self, names: Iterable[str], where: str, able: Sequence[str], verb: str) -> list[str]:
        """Full names; "" for one that is unknown, repeated, or that the model cannot read or produce."""
        found = list[str]()
        for name in names:
            try:
                full = self.model.registry.resolve(name, able)
                if full not in able:
                    has = f"it {verb}s {', '.join(able)}"
                    raise UsageError(f"model '{self.model.name}' cannot {verb} '{full}'; {has}")
                if full in found:
                    raise UsageError(f"'{full}' is given twice")
            except UsageError as error:
                self.problems.append(f"{where}: {error}")
                full = ""
            found.append(full)
        return found

    def parallel_lists(self, targets: Sequence[str]) -> list[dict[str, Setting]]:
        """The values of the parallel lists for each target; one value serves all."""
        lists: list[dict[str, Setting]] = [{} for _ in targets]
        refused = [joining_problem(self.model.registry.rows[target]) if target else "" for target in targets]
        for option in TARGET_OPTIONS if targets else ():
            if (setting := self.settings.get(option.key)) is None:
                continue
            # Passes are for targets whose predictions can be joined, and no others.
            places = [i for i, t in enumerate(targets) if option.field != "passes" or (t and not refused[i])]
            count, names = len(places), [targets[i] for i in places]
            values = setting.values * count if len(setting.values) == 1 else setting.values
            if not places:
                self.problems.extend(f"{setting.where}: {problem}" for problem in refused[:1] if problem)
            elif len(values) != count:
                named = f" ({', '.join(names)})" if all(names) else ""
                many, allowed = ("s", f"1 or {count}") if count > 1 else ("", "1")
                what = f"{len(values)} values for {count} target{many}{named}"
                self.problems.append(f"{setting.where}: {what}; give {allowed}")
            else:
                for place, value in zip(places, values, strict=True):
                    lists[place][option.key] = Setting((value,), setting.where)
        return lists

    def spec(
        self, row: Modality, settings: Mapping[str, Setting], with_rgb: bool, keeps: Sequence[Keep]
    ) -> TargetSpec | None:
        """A target's settings over the defaults of its row; None if something is wrong with them."""
        defaults = row.rgb_defaults if with_rgb else row.defaults
        if defaults is None:
            self.problems.append(f"'{row.name}' cannot be a target: modalities.yaml gives it no defaults")
            return None
        asked = {o.field: settings[o.key] for o in TARGET_OPTIONS if o.key in settings}
        where = {name: setting.where for name, setting in asked.items() if setting.values[0] is not None}
        values: dict[str, Any] = asdict(defaults)
        is_filled = any(keep.is_text and keep.target == row.name for keep in keeps)
        room = INFILL_TOKENS if is_filled else defaults.num_tokens or row.max_tokens
        values["num_tokens"] = min(room, row.max_tokens)
        values |= {name: asked[name].values[0] for name in where}
        if "num_steps" not in where and values["num_steps"] is not None:
            values["num_steps"] = min(values["num_steps"], max(values["num_tokens"], 1))
        wrong = {name: problem for name, value in values.items() if (problem := field_problem(name, value))}
        found = [f"{where.get(name, f'the defaults of {row.name}')}: {p}" for name, p in wrong.items()]
        if not wrong.keys() & {"scheme", "num_tokens", "num_steps", "passes"}:
            found += _misfits(row, values, where)
        self.problems.extend(found)
        if found:
            return None
        scheme = SCHEMES[values["scheme"]]
        if scheme.causal or scheme.equal_steps:  # what a scheme does not use does not differ
            values["token_curve"] = "linear"
        if scheme.causal:
            values |= {"num_steps": None, "temperature_curve": "constant", "guidance_curve": "constant"}
        return TargetSpec(target=row.name, grid=row.grid, **values)

    def single(self, key: str, default: int | float, rule: str) -> int | float:
        """One number for the whole chain, top_k or top_p; rule: what it may be."""
        setting = self.settings.get(key)
        if setting is None or setting.values == (None,):
            return default
        value = setting.values[0] if len(setting.values) == 1 else None
        if not isinstance(value, int | float):
            self.problems.append(f"{setting.where}: one value for the whole chain was expected")
            return default
        if value < 0 or (value > 1 and (key == "top_p" or isinstance(value, float))):
            self.problems.append(f"{setting.where}: {key} is {rule}, not {value!r}")
        return value


def _misfits(row: Modality, values: Mapping[str, Any], where: Mapping[str, str]) -> list[str]:
    """What does not suit the modality, although each setting is good by itself."""
    problems, scheme, num_tokens = dict[str, str](), SCHEMES[values["scheme"]], values["num_tokens"]
    sort, has = ("a sequence", "at most ") if row.kind is Kind.SEQUENCE else ("a grid of tokens", "")
    if scheme.causal != (row.kind is Kind.SEQUENCE):
        good = " or ".join(name for name, other in SCHEMES.items() if other.causal != scheme.causal)
        problems["scheme"] = f"'{scheme.name}' does not fit {row.name}, {sort}; use {good}"
    if num_tokens > row.max_tokens or (row.kind is Kind.GRID and num_tokens != row.max_tokens):
        problems["num_tokens"] = f"{num_tokens} tokens for {row.name}, which has {has}{row.max_tokens}"
    elif values.get("passes", 1) > 1 and (problem := joining_problem(row)):
        problems["passes"] = problem
    elif not scheme.causal and "num_steps" in where and values["num_steps"] > num_tokens:
        steps = f"{values['num_steps']} steps are more"
        problems["num_steps"] = f"{steps} than the {num_tokens} tokens of {row.name}"
    elif not (scheme.causal or problems) and values["num_steps"] is None:
        problems["num_steps"] = f"the scheme '{scheme.name}' needs a number of decoding steps"
    return [f"{where.get(name, row.name)}: {problem}" for name, problem in problems.items()]

"""From the arguments of a call to a request that is checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fourm.api.inputs import Gathered, gather, resolve_targets
from fourm.api.keeping import parse_keep, with_kept
from fourm.api.schedule import SETTINGS, Schedule
from fourm.errors import UsageError, near_match
from fourm.hub.files import find_sr
from fourm.inputs.request import DETOKENIZER_STEPS, Request
from fourm.inputs.sources import marked_texts
from fourm.modalities.registry import TOKENS
from fourm.runs.loaded import LoadedModel
from fourm.schedule.chain import Chain
from fourm.schedule.plan import build_chain, fill_texts
from fourm.schedule.settings import SR_PREFIX, Layer, Setting, merge

# Arguments that are neither conditions nor settings of a schedule.
ARGUMENTS = (
    "targets", "seed", "variations", "keep", "sr", "weights", "schedule", "keys", "upright", "batch_size",
    "detokenizer_steps", "decode", "blend", "fit", "restore",
)  # fmt: skip
_NAMED = (
    "cond_domains",
    "target_domains",
    "target",
    "keep",
)  # of a schedule, that a call says in other words


@dataclass(slots=True)
class Parts:
    """What is loaded: a model, and those for super-resolution of what it makes, with the same tokenizers."""

    base: LoadedModel
    sr: str | bool | None = None  # super-resolution if a call says nothing
    sr_models: dict[str | None, LoadedModel] = field(default_factory=dict)  # by name; None: its own

    def find_sr_model(self, name: str | None) -> LoadedModel:
        """The super-resolution model of a name; None for the one that belongs to the base model."""
        if name not in self.sr_models:
            files = find_sr(self.base.files, name)
            self.sr_models[name] = replace_files(self.base, files)
        return self.sr_models[name]


def replace_files(base: LoadedModel, files: Any) -> LoadedModel:
    """Another model on the device of a loaded one, with the same tokenizers in memory."""
    return LoadedModel(
        files, base.device, base.dtype, base.attention, tokenizers=base.tokenizers, lock=base.lock
    )


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is checked: what is generated, and what super-resolution makes of it."""

    loaded: LoadedModel
    request: Request
    sr_run: tuple[LoadedModel, Chain] | None
    is_list: bool  # False: the caller gets one result


def plan_call(parts: Parts, prompts: Sequence[Any], arguments: Mapping[str, Any]) -> Call:
    """The call of prompts and arguments; UsageError names all that is wrong with them."""
    own = {name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None}
    rest = {name: value for name, value in arguments.items() if name not in ARGUMENTS}
    settings = {name: value for name, value in rest.items() if name in SETTINGS}
    if refused := [name for name in settings if SETTINGS[name] in _NAMED]:
        raise UsageError(f"`{refused[0]}`: conditions are given by name (rgb=...), targets as `targets`")
    conditions = {name: value for name, value in rest.items() if name not in settings}
    _check_names(parts.base, conditions)
    layer = Schedule(own.get("schedule"), **settings).layer
    gathered = gather(parts.base, prompts, conditions, own.get("keys"), own.get("upright", True))
    layers = [layer, _conditions(gathered, layer, own.get("weights"))]
    if "targets" in own:
        names = resolve_targets(parts.base, own["targets"])
        layers.append(Layer({"target_domains": Setting(tuple(names), "`targets`")}))
    kept = parse_keep(own.get("keep", {}))
    if kept:
        layers.append(Layer({"keep": Setting(tuple(one.text for one in kept), "`keep`")}))
    files = parts.base.files
    if marked := marked_texts(gathered.samples, gathered.names, files):
        layers.append(fill_texts(merge(layers), marked))
    chain = build_chain(merge(layers), files)
    samples = with_kept(gathered, chain, kept, files.registry)
    variations = _count("variations", own.get("variations", 1))
    request = Request(
        files, chain, samples, num_variations=variations,
        seed=_whole("seed", own.get("seed", 0)),
        device=str(parts.base.device), dtype=parts.base.dtype, attention=parts.base.attention,
        batch_size=own.get("batch_size"), decode=bool(own.get("decode", True)),
        blend=bool(own.get("blend", True)), fit=own.get("fit", "crop"),
        restore=bool(own.get("restore", False)),
        detokenizer_steps=own.get("detokenizer_steps", DETOKENIZER_STEPS), input=gathered.input,
    )  # fmt: skip
    sr_run = _plan_sr(parts, merge(layers, SR_PREFIX), chain, own.get("sr", parts.sr))
    return Call(parts.base, request, sr_run, gathered.is_list or variations > 1)


def _check_names(loaded: LoadedModel, conditions: Mapping[str, Any]) -> None:
    """Refuse arguments that are nothing: neither a modality nor a setting, with the nearest of both."""
    registry = loaded.files.registry
    rows = list(registry.rows.values())
    known = {name for row in rows for name in (row.name, row.key, *row.value_names)}
    for name in conditions:
        if name not in known:
            near = near_match(name, [*ARGUMENTS, *SETTINGS, *sorted(known)])
            raise UsageError(f"'{name}' is neither a modality nor a setting{near}")


def _conditions(gathered: Gathered, layer: Layer, weights: Mapping[str, float] | None) -> Layer:
    """The setting that names the given conditions, with the weights of a schedule or of `weights`."""
    setting = layer.settings.get("cond_domains", Setting((), "`schedule`"))
    said = {} if setting.values == (None,) else dict(str(n).partition(":")[::2] for n in setting.values)
    given = {**said, **{name: str(weight) for name, weight in (weights or {}).items()}}
    found = dict[str, str]()
    for name, weight in given.items():
        plain = name.removeprefix(TOKENS)
        names = {one: one.removeprefix(TOKENS) for one in gathered.names}
        full = [one for one, own in names.items() if plain in (own, own.partition("@")[0])]
        if not full:
            where = "`weights`" if name in (weights or {}) else setting.where
            there = ", ".join(gathered.names.values()) or "none"
            raise UsageError(f"{where}: the condition '{name}' is not given; given are {there}")
        found[full[0]] = weight
    named = [f"{plain}:{found[name]}" if found.get(name) else plain for name, plain in gathered.names.items()]
    return Layer({"cond_domains": Setting(tuple(named) or (None,), "`weights`" if weights else "conditions")})


def _plan_sr(
    parts: Parts, layer: Layer, chain: Chain, sr: str | bool | None
) -> tuple[LoadedModel, Chain] | None:
    """The model and the chain of super-resolution, if it is asked for by name or by any of its settings."""
    if sr is False or (sr is None and not layer.settings):
        return None
    loaded = parts.find_sr_model(None if sr in (None, True) else str(sr))
    return loaded, build_chain(layer, loaded.files, chain.modalities)


def _count(name: str, value: Any) -> int:
    if (count := _whole(name, value)) < 1:
        raise UsageError(f"`{name}={count}`: a number from 1 on belongs here")
    return count


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value)
        if number == value and not isinstance(value, bool):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"`{name}`: {value!r} is no whole number")

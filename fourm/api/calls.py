"""From the arguments of a call to a request that is checked."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fourm.api.keeping import KeptPart, parse_keep, with_kept
from fourm.api.samples import CallSamples, gather_samples, resolve_targets
from fourm.api.schedule import SETTINGS, Schedule, plain
from fourm.data.layout import Sample
from fourm.errors import UsageError, near_match
from fourm.hub.files import find_sr
from fourm.inputs.request import Request
from fourm.modalities.registry import TOKENS
from fourm.modalities.typed import Limits, to_type
from fourm.output.record import FEATURES
from fourm.runs.loaded import LoadedModel
from fourm.schedule.best import parse_best
from fourm.schedule.chain import Chain
from fourm.schedule.features import parse_features
from fourm.schedule.plan import build_chain, condition_chain, fill_texts, unseen_picture
from fourm.schedule.settings import SR_PREFIX, Layer, Setting, merge
from fourm.sources.notes import marked_texts

# Arguments that are neither conditions nor settings of a schedule.
ARGUMENTS = (
    "targets", "seed", "variations", "keep", "sr", "weights", "schedule", "keys", "upright", "batch_size",
    "detokenizer_steps", "detokenizer_solver", "decode", "blend", "fit", "restore", "best", "by", "progress",
)  # fmt: skip
_OF_FEATURES = ("pool", "layers", "upright", "batch_size", "fit")  # likewise, of `Model.embed`
_FREE = ("targets", "keep", "sr", "schedule", "keys", "layers", "by")  # of several types, checked when used
# What some of the others must be; a request checks those that are its fields.
_KINDS: Mapping[str, Any] = {
    "variations": Annotated[int, Limits(1)], "upright": bool, "fit": str, "weights": Mapping[str, float],
    "pool": str, "best": str,
}  # fmt: skip
# Settings of a schedule that are no arguments: conditions are given by name, targets as `targets`.
_REFUSED_SETTINGS = ("cond_domains", "target_domains", "target")


@dataclass(slots=True)
class LoadedModels:
    """A loaded model and the super-resolution models that its calls have used, with the same tokenizers."""

    base: LoadedModel
    sr: str | bool | None = None  # the super-resolution of calls that do not say `sr=`
    sr_models: dict[str | None, LoadedModel] = field(default_factory=dict)  # by name, see `sr_model`

    def sr_model(self, name: str | None) -> LoadedModel:
        """The super-resolution model of a name; None for the one that belongs to the base model."""
        if name not in self.sr_models:
            base = self.base
            self.sr_models[name] = LoadedModel(
                find_sr(base.files, name), base.device, base.dtype, base.attention, base.compile,
                base.weights,
                tokenizers=base.tokenizers, lock=base.lock,
            )  # fmt: skip
        return self.sr_models[name]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is checked: what is generated, and by which super-resolution it is followed."""

    loaded: LoadedModel
    request: Request
    sr: tuple[LoadedModel, Chain] | None
    is_list: bool  # True: the caller gets a list of results; False: the only one


def plan_call(models: LoadedModels, prompts: Sequence[Any], arguments: Mapping[str, Any]) -> Call:
    """Check the arguments of a call. UsageError, or ScheduleError for settings of a schedule.

    arguments: by name, as `Model.generate` takes them: `ARGUMENTS`, conditions by modality, and settings of a
    schedule. None counts as not given.
    """
    own = _checked({name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None})
    others = {name: value for name, value in arguments.items() if name not in ARGUMENTS}
    settings = {name: value for name, value in others.items() if name in SETTINGS}
    conditions = {name: value for name, value in others.items() if name not in SETTINGS}
    if refused := [name for name in settings if SETTINGS[name] in _REFUSED_SETTINGS]:
        raise UsageError(f"`{refused[0]}`: conditions are given by name (rgb=...), targets as `targets`")
    _check_names(models.base, conditions, [*ARGUMENTS, *SETTINGS])
    schedule, files = Schedule(own.get("schedule"), **settings).layer, models.base.files
    given = gather_samples(models.base, prompts, conditions, own.get("keys"), own.get("upright", True))
    kept = parse_keep(own.get("keep", {}))
    layers = _layers(models.base, given, schedule, kept, own)
    chain = build_chain(merge(layers), files)
    request = _request(models.base, chain, with_kept(given.samples, chain, kept, files.registry), given, own)
    request = _with_best(request, own)
    sr = _plan_sr(models, merge(layers, SR_PREFIX), chain, own.get("sr", models.sr))
    return Call(models.base, request, sr, given.is_list or request.num_variations > 1)


def plan_features(models: LoadedModels, prompts: Sequence[Any], arguments: Mapping[str, Any]) -> Call:
    """Check the arguments of `Model.embed`, by name; UsageError. None counts as not given."""
    own = _checked({name: arguments[name] for name in _OF_FEATURES if arguments.get(name) is not None})
    conditions = {name: value for name, value in arguments.items() if name not in _OF_FEATURES}
    base = models.base
    _check_names(base, conditions, _OF_FEATURES)
    given = gather_samples(base, prompts, conditions, None, own.get("upright", True))
    if not given.names:
        raise UsageError(f"nothing is given; model '{base.files.name}' reads {', '.join(base.files.reads)}")
    named = Layer({"cond_domains": Setting(tuple(given.names.values()), "conditions")})
    features = parse_features(own.get("pool", "mean"), own.get("layers", "last"), base.files)
    request = _request(base, condition_chain(named, base.files), given.samples, given, own)
    return Call(base, replace(request, features=features, stage=FEATURES), None, given.is_list)


def _checked(own: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the right types, numbers of NumPy as those of Python. UsageError: one has another type."""
    found = {name: value if name in _FREE else plain(value) for name, value in own.items()}
    for name, kind in _KINDS.items():
        if name in found:
            found[name] = to_type(kind, found[name], f"`{name}`", error=UsageError)
    return found


def _check_names(loaded: LoadedModel, conditions: Mapping[str, Any], others: Sequence[str]) -> None:
    """Refuse arguments that are no modality, with the nearest of these and of the other arguments."""
    registry = loaded.files.registry
    rows = list(registry.rows.values())
    known = {name for row in rows for name in (row.name, row.key, *row.value_names)}
    for name in conditions:
        if name not in known:
            near = near_match(name, [*others, *sorted(known)])
            raise UsageError(f"'{name}' is neither a modality nor a setting{near}")


def _layers(
    base: LoadedModel, given: CallSamples, schedule: Layer, kept: Sequence[KeptPart], own: Mapping[str, Any]
) -> list[Layer]:
    """The settings of the chain: those of the schedule, and over them what the arguments say."""
    layers = [schedule, _condition_layer(given, schedule, own.get("weights"))]
    if "targets" in own:
        names = resolve_targets(base, own["targets"])
        layers.append(Layer({"target_domains": Setting(tuple(names), "`targets`")}))
    if kept:
        layers.append(Layer({"keep": Setting(tuple(part.text for part in kept), "`keep`")}))
    if marked := marked_texts(given.samples, given.names, base.files):
        layers.append(fill_texts(merge(layers), marked))
    return layers


def _condition_layer(given: CallSamples, schedule: Layer, weights: Mapping[str, float] | None) -> Layer:
    """The setting that names the given conditions, with the weights of the schedule, or of `weights`."""
    setting = schedule.settings.get("cond_domains", Setting((), "`schedule`"))
    wanted = dict[str, str]()  # weights, by the names that the caller uses
    for text in filter(None, setting.values):
        name, _, weight = str(text).partition(":")
        wanted[name] = weight
    wanted |= {name: str(weight) for name, weight in (weights or {}).items()}
    found = dict[str, str]()  # the same, by full name
    for name, weight in wanted.items():
        plain = name.removeprefix(TOKENS)
        values = {full: full.removeprefix(TOKENS) for full in given.names}
        meant = [full for full, value in values.items() if plain in (value, value.partition("@")[0])]
        if not meant:
            where = "`weights`" if name in (weights or {}) else setting.where
            there = ", ".join(given.names.values()) or "none"
            raise UsageError(f"{where}: the condition '{name}' is not given; given are {there}")
        found[meant[0]] = weight
    named = [f"{name}:{found[full]}" if found.get(full) else name for full, name in given.names.items()]
    return Layer({"cond_domains": Setting(tuple(named) or (None,), "`weights`" if weights else "conditions")})


def _request(
    base: LoadedModel, chain: Chain, samples: Sequence[Sample], given: CallSamples, own: Mapping[str, Any]
) -> Request:
    return Request(
        base.files, chain, samples, num_variations=own.get("variations", 1),
        seed=own.get("seed", 0),
        device=str(base.device), dtype=base.dtype, attention=base.attention,
        compile=base.compile, weights=base.weights,
        batch_size=own.get("batch_size"), decode=own.get("decode", True),
        blend=own.get("blend", True), fit=own.get("fit", "crop"),
        restore=own.get("restore", False),
        detokenizer_steps=own.get("detokenizer_steps"), detokenizer_solver=own.get("detokenizer_solver"),
        input=given.input,
    )  # fmt: skip


def _with_best(request: Request, own: Mapping[str, Any]) -> Request:
    """The request with what `best` and `by` ask for."""
    if "best" not in own and "by" not in own:
        return request
    if "best" not in own or "by" not in own:
        raise UsageError("`best` and `by` belong together: best='1/8', by='caption'")
    if request.num_variations > 1:
        raise UsageError(f"`variations={request.num_variations}`: `best` says how many are made and kept")
    names = own["by"].split(",") if isinstance(own["by"], str) else own["by"]
    names = to_type(tuple[str, ...], names, "`by`", error=UsageError)
    count, best = parse_best(own["best"], names, request.chain, request.model)
    return replace(request, num_variations=count, best=best)


def _plan_sr(
    models: LoadedModels, layer: Layer, chain: Chain, name: str | bool | None
) -> tuple[LoadedModel, Chain] | None:
    """Model and chain of super-resolution; None if neither its model nor any of its settings is given.

    name: of the model; True: the one that belongs to the base model; False: no super-resolution.
    """
    if name is False or (name is None and not layer.settings):
        return None
    loaded = models.sr_model(None if name in (None, True) else str(name))
    finer = build_chain(layer, loaded.files, chain.modalities)
    if unseen := unseen_picture(chain, finer):
        warnings.warn(f"{unseen}; keep={{'rgb': 1}} makes tokens of it", stacklevel=4)
    return loaded, finer

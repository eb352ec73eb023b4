"""How targets are decoded, as a program says it: one text, a YAML file, a mapping, or arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourm.errors import ScheduleError, UsageError, near_match
from fourm.schedule.plan import parse_words
from fourm.schedule.settings import OPTIONS, SR_PREFIX, Layer, Setting, load_layer, merge, parse_value

_YAML = (".yaml", ".yml")
_BY_KEY = {option.key: option for option in OPTIONS}
# YAML keys by what a setting can be called: `decoding_steps` or `steps`; with `sr_` in front those of
# super-resolution.
_NAMES = {option.key: option.key for option in OPTIONS}
_NAMES |= {option.name: option.key for option in OPTIONS}
SETTINGS = {**_NAMES, **{SR_PREFIX + name: SR_PREFIX + key for name, key in _NAMES.items()}}


class Schedule:
    """Settings of how targets are decoded.

    source: options as on the command line (`"--targets tok_clip-tok_rgb --temps 3.0-0.5"`), the path of a
    YAML file, a mapping, or another schedule. settings: by YAML key (`decoding_steps=[49, 25]`) or by the
    name of the option (`steps=[49, 25]`); they replace those of the source. A list has a value for each
    target, a single value serves all. Names that begin with `sr_` are those of super-resolution.
    ScheduleError: an unknown setting, or a value that it cannot have; whether the settings fit a model is
    checked by the call.

    >>> Schedule("--temps 3.0-0.5", steps=12)
    Schedule(temps=[3.0, 0.5], decoding_steps=12)
    """

    def __init__(
        self, source: "str | Path | Mapping[str, Any] | Schedule | None" = None, **settings: Any
    ) -> None:
        own = _layer_of(settings)
        if own.problems:
            raise ScheduleError(*own.problems)
        before = _read(source)
        keys = [*dict.fromkeys((*before.settings, *own.settings))]
        plain, sr = merge([before, own]), merge([before, own], SR_PREFIX)
        merged = {**plain.settings, **{SR_PREFIX + key: one for key, one in sr.settings.items()}}
        self.layer = Layer({key: merged[key] for key in keys if key in merged})

    def __repr__(self) -> str:
        said = []
        for key, setting in self.layer.settings.items():
            values = [*setting.values]
            said.append(f"{key}={values[0] if len(values) == 1 else values!r}")
        return f"Schedule({', '.join(said)})"


def _read(source: object) -> Layer:
    """The settings of a source, by key. ScheduleError: all that is wrong with them."""
    match source:
        case None:
            layer = Layer({})
        case Schedule():
            layer = source.layer
        case Mapping():
            layer = _layer_of(source)
        case Path() | str() if str(source).lower().endswith(_YAML):
            layer = load_layer(Path(source))[0]
        case str():
            layer = parse_words(source)
        case _:
            raise UsageError(
                f"`schedule`: a {type(source).__name__}, where a text, a path or a mapping belongs"
            )
    if layer.problems:
        raise ScheduleError(*layer.problems)
    return layer


def _layer_of(settings: Mapping[str, Any]) -> Layer:
    """Settings by any of their names; messages call them as they are called here."""
    found, problems = dict[str, Setting](), list[str]()
    for name, value in settings.items():
        key = SETTINGS.get(name)
        if key is None:
            problems.append(f"'{name}' is no setting of a schedule{near_match(name, SETTINGS)}")
        elif key in found:
            problems.append(f"`{name}` is given twice, also as {found[key].where}")
        elif value is not None:
            try:
                item = _BY_KEY[key.removeprefix(SR_PREFIX)].item
                found[key] = Setting(parse_value(plain(value), item), f"`{name}`")
            except UsageError as error:
                problems.append(f"`{name}`: {error}")
    return Layer(found, tuple(problems))


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy or torch as numbers and lists, also in lists and mappings."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value

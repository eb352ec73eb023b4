"""What the shell offers after Tab for values of options and arguments; without torch or the network."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import typer

from fourm.errors import FourMError
from fourm.hub.catalogue import CATALOGUE, GROUPS, find_entry
from fourm.hub.files import DEMO, DEMO_SR, find_model
from fourm.modalities.registry import RELEASED, TOKENS, Registry
from fourm.schedule.plan import ALL
from fourm.schedule.schemes import SCHEMES, TOKEN_CURVES

NONE = "none"  # in place of conditions
SEPARATORS = "-,"  # between items of a list
_BUILT_IN = (DEMO, DEMO_SR)

Complete = Callable[[typer.Context, str], list[str]]


class _Reading(Protocol):
    """A model as far as names go: a catalogue entry or files."""

    @property
    def reads(self) -> Sequence[str]: ...

    @property
    def writes(self) -> Sequence[str]: ...


def one_of(*words: str) -> Complete:
    """A single value out of these."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def list_of(*words: str) -> Complete:
    """A list of values out of these, each as often as one likes."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return _continued(incomplete, words)

    return complete


def model_names(context: typer.Context, incomplete: str) -> list[str]:
    """Models that `--model` knows by name."""
    names = [*_BUILT_IN, *(name for name, entry in CATALOGUE.items() if entry.is_model)]
    return [name for name in names if name.startswith(incomplete)]


def known_names(context: typer.Context, incomplete: str) -> list[str]:
    """All that `fourm models show` knows by name."""
    return [name for name in (*_BUILT_IN, *CATALOGUE) if name.startswith(incomplete)]


def download_names(context: typer.Context, incomplete: str) -> list[str]:
    """What `fourm download` takes and was not named yet."""
    given = context.params.get("names") or ()
    return [name for name in (*CATALOGUE, *GROUPS) if name.startswith(incomplete) and name not in given]


def condition_names(context: typer.Context, incomplete: str) -> list[str]:
    """What the model reads, as tokens (`tok_depth`) or as values (`depth`); each once in a list."""
    model, registry = _model(context)
    keys = _keys(model.reads, registry)
    values = [key.removeprefix(TOKENS) for key in keys]
    words = [*keys, *(v for v in values if v not in keys and registry.of_values(v, model.reads))]
    return _continued(incomplete, _left(incomplete, words), first=(NONE,))


def target_names(context: typer.Context, incomplete: str) -> list[str]:
    """What the model produces; each once in a list."""
    model, registry = _model(context)
    return _continued(incomplete, _left(incomplete, _keys(model.writes, registry)), first=(ALL,))


def whole_target(context: typer.Context, incomplete: str) -> list[str]:
    """The name with which a whole target begins."""
    model, registry = _model(context)
    return [key for key in _keys(model.writes, registry) if key.startswith(incomplete)]


def of_setting(key: str) -> Complete | None:
    """How the values of a schedule's setting are completed; None where they are numbers."""
    return _SETTINGS.get(key)


def _continued(incomplete: str, words: Iterable[str], first: Iterable[str] = ()) -> list[str]:
    """The list so far with each word that its last item may become; `first` only alone.

    An item that has come to its weight (`caption:2`, `caption:-`) is not a name any more.
    """
    cut = max(incomplete.rfind(sign) for sign in SEPARATORS) + 1
    head, item = incomplete[:cut], incomplete[cut:]
    if ":" in item or head.endswith(":-"):
        return []
    offered = [*words, *(() if head else first)]
    return [head + word for word in offered if word.startswith(item)]


def _left(incomplete: str, words: Sequence[str]) -> list[str]:
    """Words that are not in the list yet; its last item is still being typed."""
    for sign in SEPARATORS:
        incomplete = incomplete.replace(sign, " ")
    used = {item.partition(":")[0].partition("@")[0] for item in incomplete.split(" ")[:-1]}
    return [word for word in words if word not in used]


def _keys(names: Iterable[str], registry: Registry) -> list[str]:
    """Names without resolutions, for a shell may break words at `@`."""
    return list(dict.fromkeys(registry.get(name).key for name in names))


def _model(context: typer.Context) -> tuple[_Reading, Registry]:
    """The model that was named before the cursor, else the built-in one."""
    name = str(context.params.get("model") or DEMO)
    entry = find_entry(name.partition("@")[0])
    if entry is not None and entry.is_model:
        return entry, RELEASED
    try:
        files = find_model(name)
    except (FourMError, OSError):  # is said when the command runs
        files = find_model(DEMO)
    return files, files.registry


_SETTINGS: dict[str, Complete] = {
    "cond_domains": condition_names,
    "target_domains": target_names,
    "target": whole_target,
    "autoregression_schemes": list_of(*SCHEMES),
    "token_decoding_schedules": list_of(*TOKEN_CURVES),
    "temp_schedules": list_of("constant", "linear", "onex:0.5:0.5"),
    "cfg_schedules": list_of("constant"),
}

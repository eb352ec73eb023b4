"""What a user asks to download: names, groups, Hub ids and models files become entries and repositories."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fourm.errors import MissingError, UsageError
from fourm.hub.cache import find_cached, is_hub_id, split_revision
from fourm.hub.catalogue import CATALOGUE, GROUPS, Entry, Part, find_entry, near_entry
from fourm.hub.files import DEMO, DEMO_SR
from fourm.hub.pins import text_tokenizer_path

PARTI = "parti_prompts"  # as `data_path` and `--data` name it
TEXT_TOKENIZER, PARTI_PROMPTS = "text-tokenizer", "parti-prompts"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One repository, or the text tokenizer."""

    name: str  # short name, or Hub id of a repository that is not in the catalogue
    hub_id: str  # "" for the text tokenizer
    entry: Entry | None = None
    revision: str = ""  # branch, tag or commit; "" = the recorded one, else main

    @property
    def repo_type(self) -> str:
        """What the Hub calls it: "model" or "dataset"."""
        return self.entry.repo_type if self.entry else "model"

    @property
    def is_text_tokenizer(self) -> bool:
        """True for the one thing whose home is not the Hub."""
        return self.entry is not None and self.entry.kind is Part.TEXT_TOKENIZER


def read_wanted(
    names: Sequence[str],
    config: Mapping[str, str] | None = None,
    where: str = "",
    revision: str | None = None,
) -> tuple[Wanted, ...]:
    """Everything that is named, each once; mistakes are a `UsageError` before anything is fetched.

    config: what a YAML file names, by key (`fourm.schedule.settings.read_names`); where: that file.
    """
    found: list[Wanted] = []
    for name in names:
        found += [_named(member) for member in _members(name)]
    found += _of_config(config, where) if config is not None else []
    by_home: dict[tuple[str, str], Wanted] = {}
    for one in found:
        by_home.setdefault((one.hub_id, one.revision), one)
    found = list(by_home.values())
    if revision is None:
        return tuple(found)
    split_revision(f"NAME@{revision}")
    if len(found) != 1 or found[0].is_text_tokenizer:
        raise UsageError("--revision is for one repository; with several write NAME@REVISION for each")
    if found[0].revision not in ("", revision):
        raise UsageError(
            f"--revision {revision}: {found[0].name}@{found[0].revision} is named; give one of them"
        )
    return (replace(found[0], revision=revision),)


def _members(name: str) -> Iterable[str]:
    """The names of a group, or the name itself."""
    return GROUPS.get(name.lower(), (name,))


def _named(text: str) -> Wanted:
    """One thing by its short name or Hub id, with or without `@REVISION`."""
    name, revision = split_revision(text)
    entry = find_entry(name)
    if entry is not None and entry.kind is Part.TEXT_TOKENIZER and revision:
        raise UsageError(f"{text}: the text tokenizer has one version only; leave out @{revision}")
    if entry is not None:
        return Wanted(entry.name, entry.hub_id, entry, revision)
    if name in (DEMO, DEMO_SR):
        raise UsageError("the demo model is built in; there is nothing to download")
    if "/" in name and is_hub_id(name):
        return Wanted(name, name, None, revision)
    if os.path.exists(name):
        raise UsageError(f"{name}: is on this machine already; a short name or Hub id is expected")
    if name in GROUPS:
        raise UsageError(f"{text}: a group has no common revision; write NAME@REVISION for each")
    advice = near_entry(name) or "; `fourm download --list` shows all names"
    raise UsageError(f"'{name}' is neither a known name nor a Hub id{advice}")


def _of_config(named: Mapping[str, str], where: str) -> list[Wanted]:
    """Everything that a YAML file names; what is a path on this machine needs no download."""
    others, found = dict(named), list[Wanted]()
    text_tokenizer, data = others.pop("text_tok_path", ""), others.pop("data_path", "")
    for key, name in others.items():
        if name not in (DEMO, DEMO_SR) and not os.path.exists(os.path.expanduser(name)):
            try:
                found.append(_named(name))
            except UsageError as error:
                raise UsageError(f"{where}: {key}: {error}") from None
    if text_tokenizer and not os.path.exists(os.path.expanduser(text_tokenizer)):
        if Path(text_tokenizer).name not in (TEXT_TOKENIZER, text_tokenizer_path().name):
            raise UsageError(f"{where}: text_tok_path: {text_tokenizer}: no such file, nor {TEXT_TOKENIZER}")
        found.append(_named(TEXT_TOKENIZER))
    if data == PARTI:
        found.append(_named(PARTI_PROMPTS))
    if not found and not others:
        raise UsageError(f"{where}: names no model, tokenizer or prompt set")
    return found


def find_parti() -> Path:
    """The Parti prompt table in the Hub's cache on this machine."""
    found = find_cached(CATALOGUE[PARTI_PROMPTS])
    if found is not None:
        return found[0]
    raise MissingError(
        "the Parti prompts are not on this machine; `fourm download parti-prompts` fetches them, "
        "or give the table itself: --data PartiPrompts.tsv"
    )

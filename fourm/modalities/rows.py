"""Reads a model's `modalities.yaml`, whose rows add modalities to the registry; errors name the line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from fourm.errors import UsageError, near_match, shown
from fourm.modalities.registry import RELEASED, TOKENS, Defaults, Kind, Modality, Registry, shared_folder
from fourm.modalities.yamlfile import Entry, read_rows


def load_registry(path: Path, base: Registry = RELEASED) -> Registry:
    """The base registry plus the rows of a model's `modalities.yaml`.

    A row lists only what differs from the base row with the same key (`tok_rgb@64` from `tok_rgb@224`), or
    from the row in its field `like`. Every target gets a folder of its own, also without the field `folder`.
    """
    rows, where, named = dict[str, Modality](), dict[str, str](), dict[str, str]()
    for entries in read_rows(path):
        row, places = _row(entries, base, path), {entry.key: entry.where for entry in entries}
        if row.name in rows:
            raise UsageError(f"{places['name']}: modality '{row.name}' has a row already ({where[row.name]})")
        rows[row.name], where[row.name] = row, places.get("folder", places["name"])
        if "folder" in places:
            named[row.name] = row.folder
    peers = dict[str, list[Modality]]()
    for row in rows.values():
        if row.takes_ids and row.name not in named:
            peers.setdefault(row.key, []).append(row)
    for key, group in peers.items():
        taken = {folder for name, folder in named.items() if rows[name].key == key}
        rows |= {row.name: row for row in _with_folders(key, group, taken, base)}
    if shared := shared_folder(rows.values()):
        raise UsageError(f"{where[shared[0]]}: {shared[1]}")
    return base.extended(rows.values())


def _with_folders(key: str, group: list[Modality], taken: set[str], base: Registry) -> Iterator[Modality]:
    """Give each row of one key a folder: `rgb` for the lowest resolution in the file, `rgb@128` for others.

    A row whose name is that of a released modality gets its released folder.
    """
    like = _same_key(key, base)
    stem = base.rows[like].folder if like is not None else key.removeprefix(TOKENS)
    own = {row.name: base.rows[row.name].folder for row in group if row.name in base.rows}
    first = min(group, key=lambda row: row.resolution or 0).name
    # Tokens lie in a folder with the name of the modality, which is `stem` without 'tok_' and '@'.
    is_taken = stem in taken or stem in own.values() or (group[0].kind is Kind.GRID and stem == first)
    for row in group:
        tail = row.name.partition("@")[2] or "values"
        yield replace(
            row, folder=own.get(row.name, stem if row.name == first and not is_taken else f"{stem}@{tail}")
        )


def _row(entries: tuple[Entry, ...], base: Registry, path: Path) -> Modality:
    by_key = {entry.key: entry for entry in entries}
    if "name" not in by_key:
        raise UsageError(f"{entries[0].where if entries else path}: this row has no 'name'")
    allowed = [field.name for field in fields(Modality)] + ["like"]
    for entry in entries:
        if entry.key not in allowed:
            raise UsageError(f"{entry.where}: unknown key '{entry.key}'{near_match(entry.key, allowed)}")
    where = by_key["name"].where
    try:
        given: dict[str, object] = {e.key: _field(e) for e in entries if e.key != "like"}
        like = by_key["like"].value if "like" in by_key else _same_key(str(given["name"]), base)
        if like is None:
            for required in ("kind", "max_tokens"):
                if required not in given and not (required == "max_tokens" and "grid" in given):
                    raise UsageError(f"'{required}' is missing")
        row = _build(given, base.get(str(like)) if like is not None else None)
        _check_files(row)
        return row
    except UsageError as error:
        text = str(error)
        raise UsageError(text if text.startswith(str(path)) else f"{where}: {text}") from None


def _check_files(row: Modality) -> None:
    """Refuse a kind or suffix that the codec of the row does not support."""
    known = [one for one in RELEASED.rows.values() if one.codec == row.codec]
    kinds, suffixes = {one.kind.value for one in known}, {one.suffix for one in known}
    for what, value, allowed in (("kind", row.kind.value, kinds), ("suffix", row.suffix, suffixes)):
        if known and value not in allowed:
            raise UsageError(
                f"the {what} of codec '{row.codec}' is {' or '.join(sorted(allowed))}, not {value}"
            )


def _build(given: dict[str, object], like: Modality | None) -> Modality:
    grid = given.get("grid")
    if isinstance(grid, tuple):
        given.setdefault("max_tokens", grid[0] * grid[1])
    kind = given.get("kind", like.kind if like is not None else None)
    if kind is Kind.SEQUENCE and "max_tokens" in given:
        given.setdefault("max_positions", given["max_tokens"])
    if "defaults" in given:
        given.setdefault("rgb_defaults", given["defaults"])
    if like is not None:
        return replace(like, **given)  # type: ignore[arg-type]
    key = str(given["name"]).partition("@")[0]
    filled = {"codec": key, "folder": key.removeprefix(TOKENS), "suffix": ".npy", "title": key, **given}
    if given["kind"] in (Kind.SEQUENCE, Kind.EMBEDDING):
        filled.setdefault("positions", "sincos1d")
    if given["kind"] in (Kind.GRID, Kind.SEQUENCE):
        plain = Defaults("roar", 8) if given["kind"] is Kind.GRID else Defaults("autoregressive")
        filled = {"defaults": plain, "rgb_defaults": plain, **filled}
    return Modality(**filled)  # type: ignore[arg-type]


def _same_key(name: str, base: Registry) -> str | None:
    key = name.partition("@")[0]
    return next((row.name for row in base.rows.values() if row.key == key), None)


def _field(entry: Entry) -> object:
    """The value of one field, after a check of its type."""
    value, problem = entry.value, None
    if entry.key == "kind":
        if value in [kind.value for kind in Kind]:
            return Kind(value)
        problem = f"must be one of {', '.join(kind.value for kind in Kind)}"
    elif entry.key == "grid":
        if isinstance(value, list) and len(value) == 2 and all(type(v) is int and v > 0 for v in value):
            return tuple(value)
        problem = "must be two whole numbers, for example [8, 8]"
    elif entry.key in ("defaults", "rgb_defaults"):
        return _defaults(entry)
    elif entry.key == "labels":
        if isinstance(value, list) and all(isinstance(v, str) and v.isprintable() for v in value):
            return tuple(value)
        problem = "must be a list of names"
    elif entry.key in ("name", "positions", "codec", "tokenizer", "folder", "suffix", "title"):
        if not isinstance(value, str):
            problem = "must be text"
        elif not value and entry.key in ("name", "folder", "suffix"):
            problem = "must not be empty"
    elif type(value) is not int or value < 0:
        problem = "must be a whole number, 0 or more"
    if problem:
        raise UsageError(f"{entry.where}: '{entry.key}' {problem}, not {shown(repr(value))}")
    return value


def _defaults(entry: Entry) -> Defaults:
    value = entry.value
    types: dict[str, tuple[type, ...]] = {
        "scheme": (str,), "num_steps": (int, type(None)), "token_curve": (str,), "temperature": (int, float),
        "temperature_curve": (str,), "guidance": (int, float), "num_tokens": (int, type(None)),
    }  # fmt: skip
    if not isinstance(value, dict) or "scheme" not in value:
        raise UsageError(f"{entry.where}: '{entry.key}' must be a mapping with at least 'scheme'")
    for key, item in value.items():
        if key not in types:
            raise UsageError(
                f"{entry.where}: unknown key '{key}' in '{entry.key}'{near_match(str(key), types)}"
            )
        if not isinstance(item, types[key]) or isinstance(item, bool):
            raise UsageError(f"{entry.where}: '{key}' in '{entry.key}' cannot be {shown(repr(item))}")
    return Defaults(**value)

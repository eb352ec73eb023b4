"""Refuses options that are given twice, because the first value would be ignored silently."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fourm.errors import UsageError
from fourm.schedule.settings import OPTIONS

_LISTS = {option.flag for option in OPTIONS if option.field or option.key.endswith("_domains")}


def refuse_repeated(command: Any, words: Sequence[str]) -> None:
    """UsageError for an option in the words of a command line that is given twice but has one value.

    command: the result of `typer.main.get_command`. A flag may be given twice, but not together with its
    opposite.
    """
    given = dict[str, list[tuple[str, str]]]()
    for option, flag, value in _options_in(command, words):
        if not option.multiple:
            given.setdefault(option.name, []).append((flag, value))
    for uses in given.values():
        flags, values = [flag for flag, _ in uses], [value for _, value in uses if value]
        if len(values) > 1:
            plain = flags[0].replace("--sr-", "--")
            advice = f", as one list: {flags[0]} {','.join(values)}" if plain in _LISTS else ""
            raise UsageError(
                f"{flags[0]} is given {len(values)} times ({', '.join(values)}); give it once{advice}"
            )
        if not values and len(kinds := list(dict.fromkeys(flags))) > 1 and _are_opposites(kinds):
            raise UsageError(f"{' and '.join(kinds)} are both given; give one of them")


def _are_opposites(flags: Sequence[str]) -> bool:
    """True for `--decode` and `--no-decode`, False for two names of one flag such as `-q` and `--quiet`."""
    return any("no-" in flag for flag in flags) and not all("no-" in flag for flag in flags)


def _options_in(command: Any, words: Sequence[str]) -> Iterator[tuple[Any, str, str]]:
    """Each option of a command line in order, with the name that was used and its value ("" for flags)."""
    rest, options = list(words), _by_name(command)
    while rest and (word := rest.pop(0)) != "--":
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            options = _by_name(command)
            continue
        flag, equals, value = word.partition("=")
        if flag in options:
            option = options[flag]
            if not option.is_flag and not equals:
                value = rest.pop(0) if rest else ""
            yield option, flag, value
        elif word.startswith("-") and not word.startswith("--"):
            yield from _joined(word, rest, options)


def _joined(word: str, rest: list[str], options: Mapping[str, Any]) -> Iterator[tuple[Any, str, str]]:
    """The options of a word such as `-qc`, or `-cFILE`."""
    for index, letter in enumerate(word[1:], start=2):
        option = options.get(f"-{letter}")
        if option is None:
            return
        if not option.is_flag:
            yield option, f"-{letter}", word[index:] or (rest.pop(0) if rest else "")
            return
        yield option, f"-{letter}", ""


def _by_name(command: Any) -> dict[str, Any]:
    options = [one for one in command.params if one.param_type_name == "option"]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}

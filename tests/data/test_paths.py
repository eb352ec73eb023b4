"""Addresses of other systems (`s3://bucket/x`) are no paths: every option and argument refuses them."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fourm.errors import FourMError, UsageError
from fourm.files.opening import local_path, output_path
from fourm.schedule.settings import OPTIONS, RunSettings, read_settings
from fourm.sources.reading import read_samples
from fourm.sources.source import Source
from fourm_cli.app import app
from fourm_cli.options import parse_folder

# What takes text that is no path, by the name of its parameter.
MAKING = "executor workers sbatch format device dtype attention batch_size shard".split()
NO_PATHS = {
    "generate": [
        *MAKING,
        "prompt",
        "only",
        "column",
        "map",
        "fit",
        "weights",
        "detokenizer_solver",
        "best",
        "by",
    ],
    "embed": [*MAKING, "cond", "column", "map", "pool", "layers", "fit", "weights"],
    "eval": ["measures", "device", "shard"],
    "sr": [*MAKING, "weights", "detokenizer_solver"],
    "tokenize": [*MAKING, "modalities", "map", "fit"],
    "download": ["revision"],
    "plot": ["show", "kind"],
    "retrieve": ["by", "metric", "show"],
    "schedule validate": ["dtype", "weights"],
}
NEEDED = {  # arguments without which a command does not look at its options
    "generate": ("red",), "download": ("demo",), "sr": (".",), "tokenize": (".",), "embed": (".",),
    "eval": (".",), "plot": (".",), "verify": (".",), "models show": ("demo",),
    "retrieve": (".", "--among", ".", "--sheet", "found.png"),
    "convert sam-instances": (".", "--out", "made"),
}  # fmt: skip


READ_ELSEWHERE = {  # take s3:// as well
    ("generate", "data"), ("tokenize", "data"), ("embed", "data"), ("retrieve", "among"),
    ("retrieve", "queries"), ("retrieve", "pictures"), ("eval", "against"),
}  # fmt: skip
READ_ELSEWHERE |= {(command, "folder") for command in ("eval", "plot", "sr", "status", "verify")}


def commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield from (
            commands(command, f"{name} ") if hasattr(command, "commands") else [(above + name, command)]
        )


def paths() -> Iterator[tuple[str, Any]]:
    """Every parameter of every command that takes text of any form, schedules' settings aside."""
    schedules = {prefix + option.key for option in OPTIONS for prefix in ("", "sr_")}
    for name, command in commands(typer.main.get_command(app)):
        for one in command.params:
            kind = repr(command.callback.__annotations__.get(one.name))
            is_text = "Path" in kind or "str" in kind.split("typer")[0]
            if is_text and one.name not in {*schedules, *NO_PATHS.get(name, ())}:
                yield name, one


CASES = [pytest.param(name, one, id=f"{name} {one.name}") for name, one in paths()]


def test_the_paths_of_all_commands_are_found_for_the_next_test() -> None:
    assert len(CASES) > 40


@pytest.mark.parametrize(("command", "parameter"), CASES)
def test_every_path_of_every_command_refuses_a_url(
    command: str, parameter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scheme = "ftp" if (command, parameter.name) in READ_ELSEWHERE else "s3"
    address = f"rgb={scheme}://bucket/x" if parameter.name == "tokenizers" else f"{scheme}://bucket/x"
    if parameter.param_type_name == "argument":
        words = [*command.split(), address, *NEEDED.get(command, ())[1:]]
    else:
        words = [*command.split(), *NEEDED.get(command, ()), parameter.opts[0], address]
    with pytest.raises(UsageError, match=f"{scheme}:// is not supported; give a path on this machine"):
        app(words, standalone_mode=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["output_dir", "data_path", "model", "rgb_tok_id", "text_tok_path"])
def test_a_url_in_a_settings_file_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"{key}: s3://bucket/x\n")
    (problem,) = read_settings([tmp_path / "run.yaml"], {}).base.problems
    assert problem.endswith(f"'{key}' must be a name or a path on this machine, not 's3://bucket/x'")


@pytest.mark.parametrize("source", [Source(paths=("gs://b/x",)), Source(data="http://b/x.txt")])
def test_a_url_given_as_input_is_refused(source: Source) -> None:
    with pytest.raises(UsageError, match="is not supported"):
        read_samples(source, [], None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a:b", "./s3://x", "C:/x", r"C:\x", "c://x", "a//b", "s3:/x", "://x"])
def test_drives_and_names_with_colons_are_paths(text: str) -> None:
    assert local_path(text) == Path(text)


@pytest.mark.parametrize("text", ["S3://x", "s3a://", "file:///tmp", "hf://a/b", " s3://x", "a+b.c-d://e f"])
def test_urls_of_any_scheme_are_no_paths(text: str) -> None:
    with pytest.raises(UsageError, match="give a path on this machine"):
        local_path(text)


def test_an_empty_name_is_not_the_working_folder() -> None:
    for read in (local_path, output_path, lambda text: parse_folder(text, io.BytesIO())):
        with pytest.raises(UsageError, match="the name of a file or folder is empty"):
            read("")
    with pytest.raises(UsageError, match="the name of an output folder is blank"):
        output_path(" \u00a0")


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1bb", "a\x85b", "a\u2028b"])
def test_a_folder_for_results_has_a_name_of_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line ends or control characters"):
        output_path(name)
    with pytest.raises(UsageError, match="line ends or control characters"):
        parse_folder(str(tmp_path / name), None)  # type: ignore[arg-type]
    with pytest.raises(FourMError, match="line ends or control characters"):
        RunSettings(output_dir=name).folder  # noqa: B018 - a property that checks
    assert output_path("a b\udcff🔴") == Path("a b\udcff🔴")

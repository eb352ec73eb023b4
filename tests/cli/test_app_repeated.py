"""An option that is given twice is added up or refused, in every command."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fourm.errors import UsageError
from fourm.schedule.settings import read_settings
from fourm_cli.app import app, refuse_repeated

Run = Callable[..., tuple[int, str, str]]
APP = typer.main.get_command(app)
ADDED_UP = {
    "map",
    "prompt",
    "tokenizers",
    *(f"{sr}{key}" for sr in ("", "sr_") for key in ("cond_domains", "cond_weights", "keep", "target")),
}


def options(group: Any = APP, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every option of every command, with the words that name the command."""
    for one in group.params:
        if one.param_type_name == "option":
            yield above, one
    for name, command in getattr(group, "commands", {}).items():
        yield from options(command, (*above, name))


OPTIONS = list(options())


def test_every_option_with_one_value_is_refused_twice_under_each_of_its_names() -> None:
    tried = 0
    for words, option in OPTIONS:
        for name in option.opts if not option.is_flag else ():
            twice = [*words, name, "1", option.opts[0], "2"]
            joined = [*words, f"{name}=1", "x", f"{option.opts[0]}=2"] if name.startswith("--") else twice
            if option.name in ADDED_UP or (*words, option.name) == ("sr", "data"):
                refuse_repeated(APP, twice)
                continue
            for given in (twice, joined):
                with pytest.raises(UsageError, match=rf"^{name} is given 2 times \(1, 2\); give it once"):
                    refuse_repeated(APP, given)
            refuse_repeated(APP, [*words, name, option.opts[0]])  # a value that looks like an option
            tried += 1
    assert tried > 120


def test_a_flag_and_its_opposite_are_refused_and_a_flag_twice_is_one() -> None:
    for words, option in OPTIONS:
        if option.is_flag:
            refuse_repeated(APP, [*words, option.opts[0], option.opts[-1]])
            for opposite in option.secondary_opts:
                refuse_repeated(APP, [*words, opposite, opposite])
                with pytest.raises(UsageError, match=f"{opposite} and {option.opts[0]} are both given"):
                    refuse_repeated(APP, [*words, opposite, option.opts[0]])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["generate", "--targets", "a", "--targets", "b"], "--targets a,b"),
        (["generate", "red", "-qc", "a.yaml", "-cb.yaml"], "a.yaml, b.yaml"),
        (["generate", "--config", "a.yaml", "-c", "b.yaml"], "a.yaml, b.yaml"),
    ],
)
def test_a_repeated_option_is_found_however_it_is_written(words: list[str], values: str) -> None:
    with pytest.raises(UsageError, match=re.escape(values)):
        refuse_repeated(APP, words)


@pytest.mark.parametrize(
    "words",
    [
        ["models", "show", "demo", "--model", "x"],
        ["generate", "--", "--seed", "1", "--seed", "2"],
        ["generate", "--seed", "--seed"],
    ],
)
def test_values_and_words_after_a_double_dash_are_no_options(words: list[str]) -> None:
    refuse_repeated(APP, words)


def test_the_command_line_refuses_repeated_options_and_makes_nothing(run: Run, tmp_path: Path) -> None:
    code, out, err = run("generate", "red", "--targets", "tok_rgb", "--targets=tok_depth", "--out", "out")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--targets is given 2 times" in err
    assert "--targets tok_rgb,tok_depth" in err
    code, _, err = run("generate", "red", "--tokenizer", "rgb=rgb", "--tokenizer", "rgb=rgb_divae")
    assert (code, "--tokenizer: 'rgb'" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_a_file_is_given_once_in_all_its_spellings(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("cfg_scales: 2\nseed: 1\ncfg-scales: 3\n")
    (problem,) = read_settings([tmp_path / "x.yaml"], {}).base.problems
    assert problem.endswith("line 3: 'cfg_scales' is given twice, as 'cfg-scales' too")

"""Configuration files that come with the package, by name: what is found, what is refused, what is listed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fourm.errors import UsageError
from fourm.schedule.configs import find_config, list_configs, option_of, title_of

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]


def test_every_file_of_the_repository_has_a_name_an_option_and_a_title() -> None:
    files = list((ROOT / "cfgs").rglob("*.yaml"))
    assert sorted(list_configs().values()) == sorted(files)  # none under the name of another
    assert {option_of(path) for path in files} == {"-c", "-dc", "-gc", "-src"}
    assert all(len(title_of(path)) > 10 for path in files)


def test_a_name_is_found_with_or_without_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "T2CR_roar49-25_cfg3_t6-0.5"
    found = ROOT / "cfgs" / "generation" / "settings_base" / f"{name}.yaml"
    assert find_config(name) == find_config(f"{name}.yaml") == found
    (tmp_path / name).mkdir()
    assert find_config(name) == found


@pytest.mark.parametrize("text", ["4m-b_mod7", "4m-b_mod7.yaml"])
def test_a_file_that_exists_wins(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / text).touch()
    assert find_config(text) == Path(text)


def test_what_has_a_folder_is_a_path() -> None:
    assert find_config("./4m-b_mod7") == Path("4m-b_mod7")
    assert find_config("x/4m-b_mod7") == Path("x/4m-b_mod7")


@pytest.mark.parametrize(
    ("text", "advice"), [("4m-b_mod8", "did you mean '4m-b_mod7'"), ("zzz", "`fourm models --configs`")]
)
def test_an_unknown_name_is_one_sentence(text: str, advice: str, run: Run) -> None:
    with pytest.raises(UsageError, match=f"^{text}: no such file, nor a configuration.*{advice}"):
        find_config(text)
    for words in (("generate", "-gc"), ("schedule", "show", "-c"), ("download", "-c"), ("sr", ".", "-src")):
        code, out, err = run(*words, text)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert advice in err


def test_names_stand_for_files_in_any_folder(run: Run) -> None:
    names = ("-c", "4m-xl_mod7+sr_4m-l_mod7", "-dc", "parti_3x.yaml", "-gc", "T2CR_roar49-25_cfg3_t6-0.5",
             "-src", "x2CR_mg8_cfg3_t1const")  # fmt: skip
    paths = [find_config(word) if index % 2 else word for index, word in enumerate(names)]
    shown = run("schedule", "show", *names, "--json")
    assert shown == run("schedule", "show", *paths, "--json")
    assert (shown[0], len(json.loads(shown[1])["steps"])) == (0, 74)


def test_the_list_has_every_name_with_its_option(run: Run) -> None:
    code, out, _ = run("models", "--configs")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [name, option_of(path)] for name, path in list_configs().items()
    ]
    rows = json.loads(run("models", "--configs", "--json")[1])
    assert {row["name"]: row["path"] for row in rows} == {n: str(p) for n, p in list_configs().items()}

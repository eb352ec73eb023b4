"""Names, groups and models files become repositories; mistakes are said before anything is fetched."""

from pathlib import Path

import pytest

from fourm.errors import UsageError
from fourm.hub.catalogue import Entry
from fourm.hub.download import read_wanted
from fourm.schedule.settings import read_names
from tests.fetching import ID, NAME

ROOT = Path(__file__).resolve().parents[2]
TEXT = "text_tokenizer_4m_wordpiece_30k.json"


def of_file(path: Path) -> tuple[Entry, ...]:
    return read_wanted([], read_names(path), str(path))


def test_names_become_repositories() -> None:
    assert len(read_wanted(["tokenizers"])) == 12
    assert len(read_wanted(["models", "4m-7-b", "4M-7-B", ID])) == 13
    assert read_wanted([ID])[0] == read_wanted([NAME])[0]
    assert read_wanted(["some/thing@v1.0"])[0].revision == "v1.0"


WRONG_NAMES = [
    (["4m-7-bb"], r"'4m-7-bb' is neither a known name nor a Hub id; did you mean '4m-7-b'"),
    (["tokenizer"], r"did you mean 'tokenizers'\?"),
    (["zzz"], "`fourm download --list` shows all names"),
    (["a b/c"], "neither a known name nor a Hub id"),
    (["demo"], "is built in"),
    (["/tmp"], "is on this machine already"),
    (["4m-7-b@../x"], "after @ comes a commit, branch or tag"),
    (["text-tokenizer@1"], "one version only"),
    (["tokenizers@1"], "no common revision"),
]


@pytest.mark.parametrize(("names", "sentence"), WRONG_NAMES)
def test_a_wrong_name_is_said_before_anything_is_fetched(names: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as told:
        read_wanted(names)
    assert told.value.exit_code == 2


def test_a_revision_is_for_one_repository() -> None:
    assert read_wanted([NAME], revision="v1")[0].revision == "v1"
    for names in (["tokenizers"], ["text-tokenizer"], [NAME, "tok-rgb"]):
        with pytest.raises(UsageError, match="`revision` is for one repository"):
            read_wanted(names, revision="v1")
    with pytest.raises(UsageError, match="after @"):
        read_wanted([NAME], revision="../..")
    assert read_wanted([f"{NAME}@v1"], revision="v1")[0].revision == "v1"
    with pytest.raises(UsageError, match=f"`revision=v2`: {NAME}@v1 is named; give one of them"):
        read_wanted([f"{NAME}@v1"], revision="v2")


def test_a_models_file_stands_for_all_that_it_names(tmp_path: Path) -> None:
    path = ROOT / "cfgs" / "generation" / "models" / "4m-xl_mod7+sr_4m-l_mod7.yaml"
    names = [one.name for one in of_file(path)]
    expected = {"4m-7-xl", "4m-7-sr-l", "tok-rgb", "tok-depth", "tok-normal", "tok-semseg", "tok-clip"}
    assert set(names) == expected | {"text-tokenizer"}
    assert len(names) == len(set(names))
    for each in path.parent.glob("*.yaml"):
        assert of_file(each)
    data = path.parent.parent / "data" / "parti_3x.yaml"
    assert [one.name for one in of_file(data)] == ["parti-prompts"]
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"model: {tmp_path}\ntext_tok_path: ./fourm/utils/tokenizer/trained/{TEXT}\n")
    assert [one.name for one in of_file(mine)] == ["text-tokenizer"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("model: 4m-7-bb", r"x\.yaml: model: '4m-7-bb' is neither .*did you mean '4m-7-b'"),
        ("rgb_tok_id: tok-rbg", r"rgb_tok_id: 'tok-rbg'.*did you mean 'tok-rgb'"),
        ("text_tok_path: nowhere.json", "text_tok_path: nowhere.json: no such file"),
        ("modle: 4m-7-b", "modle"),
        ("model: [", "not valid YAML"),
        ("- model", "lines were expected"),
        ("", "names no model, tokenizer or prompt set"),
    ],
)
def test_a_wrong_models_file_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        of_file(tmp_path / "x.yaml")

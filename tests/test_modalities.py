"""The registry: the released table, rows of a model's own, and what is said of mistakes in them."""

import json
from pathlib import Path

import pytest

from fourm.errors import UsageError
from fourm.modalities import RELEASED, Kind, load_registry
from fourm.schedule import field_problem

MODEL = ["caption", "tok_rgb@64", "tok_rgb@128", "tok_clip@64"]
ROWS = """
- name: tok_rgb@64
  grid: [8, 8]
  patch_size: 8
  image_size: 64
  vocab_size: 1152
- name: tok_rgb@128
  like: tok_rgb@448
  grid: [16, 16]
  patch_size: 8
  image_size: 128
- name: caption
  max_tokens: 24
  vocab_size: 60
- name: heat@32
  kind: grid
  grid: [4, 4]
  vocab_size: 9
  defaults: {scheme: maskgit, num_steps: 4, token_curve: cosine}
"""


def load(tmp_path: Path, text: str) -> object:
    path = tmp_path / "modalities.yaml"
    path.write_text(text)
    return load_registry(path)


def test_every_recorded_modality_of_a_model_has_its_row(golden: Path) -> None:
    for path in (golden / "fm" / "manifests").glob("*.json"):
        config = json.loads(path.read_text())["config"]
        for name in {*config["domains_in"], *config["domains_out"]}:
            assert RELEASED.get(name).name == name


def test_vocabularies_and_grids_are_those_of_the_recorded_state_dicts(golden: Path) -> None:
    for path in (golden / "fm" / "manifests").glob("*.json"):
        keys = json.loads(path.read_text())["keys"]
        for name, info in keys.items():
            part, _, rest = name.partition(".")
            modality = rest.rpartition(".")[0]
            if part == "encoder_embeddings" and rest.endswith(".token_emb.weight"):
                modality = modality.removesuffix(".token_emb")
                assert info["shape"][0] == RELEASED.get(modality).vocab_size
            if part == "encoder_embeddings" and rest.endswith(".pos_emb") and RELEASED.get(modality).grid:
                assert info["shape"][1] == RELEASED.get(modality).max_tokens


@pytest.mark.parametrize("name", RELEASED.names)
def test_every_row_is_complete(name: str) -> None:
    row = RELEASED.get(name)
    assert row.codec
    assert row.folder
    assert row.suffix.startswith(".")
    assert row.title
    assert (row.defaults is None) == (row.kind in (Kind.PIXELS, Kind.EMBEDDING))
    assert (row.max_positions > 0) == (row.kind is Kind.SEQUENCE)
    if row.grid and row.image_size:
        assert row.grid == (row.image_size // row.patch_size,) * 2
    for defaults in (row.defaults, row.rgb_defaults):
        for field in ("scheme", "token_curve", "temperature_curve") if defaults else ():
            assert not field_problem(field, getattr(defaults, field))


def test_a_short_name_is_the_lowest_resolution_that_the_model_has() -> None:
    assert RELEASED.resolve("tok_rgb", ["tok_rgb@448", "tok_rgb@224"]) == "tok_rgb@224"
    assert RELEASED.resolve("tok_rgb", ["tok_rgb@448"]) == "tok_rgb@448"
    assert RELEASED.resolve("tok_rgb@448", ["tok_rgb@224"]) == "tok_rgb@448"
    assert RELEASED.resolve("tok_sam_edge", ["caption"]) == "tok_sam_edge@224"


@pytest.mark.parametrize(
    ("name", "close"), [("tok_rbg", "tok_rgb@224"), ("captoin", "caption"), ("tok_rgb@223", "tok_rgb@224")]
)
def test_an_unknown_name_brings_a_near_match(name: str, close: str) -> None:
    with pytest.raises(UsageError, match=f"unknown modality '{name}'; did you mean '{close}'"):
        RELEASED.resolve(name, ["caption", "tok_rgb@224"])


def test_rows_of_a_model_say_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "modalities.yaml"
    path.write_text(ROWS)
    registry = load_registry(path)
    rgb, fine, caption, heat = (registry.get(n) for n in ("tok_rgb@64", "tok_rgb@128", "caption", "heat@32"))
    assert (rgb.kind, rgb.max_tokens, rgb.codec, rgb.tokenizer) == (Kind.GRID, 64, "tok_rgb", "rgb")
    assert rgb.resolution == 64
    assert fine.defaults is not None
    assert fine.defaults.scheme == "maskgit"
    assert (caption.max_tokens, caption.max_positions, caption.vocab_size) == (24, 24, 60)
    assert (heat.key, heat.codec, heat.max_tokens) == ("heat", "heat", 16)
    assert heat.rgb_defaults == heat.defaults
    assert registry.get("tok_rgb@224") == RELEASED.get("tok_rgb@224")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("- name: a\n  kind: grid\n  gird: [2, 2]\n", 3, "unknown key 'gird'; did you mean 'grid'?"),
        ("- kind: grid\n", 1, "no 'name'"),
        ("- name: a\n  kind: image\n", 2, "must be one of pixels, grid, sequence, embedding"),
        ("- name: a\n  kind: grid\n  grid: [2, x]\n", 3, "two whole numbers"),
        ("- name: a\n  kind: grid\n", 1, "'max_tokens' is missing"),
        ("- name: a\n  max_tokens: 3\n", 1, "'kind' is missing"),
        ("- name: a-b\n  kind: sequence\n  max_tokens: 3\n  vocab_size: 3\n", 1, "a name has no '-'"),
        ("- name: a\n  kind: sequence\n  max_tokens: 3\n", 1, "vocab_size must be at least 1"),
        ("- name: a\n  kind: sequence\n  max_tokens: -3\n", 3, "0 or more"),
        ("- name: tok_rgb@64\n  max_tokens: 3\n", 1, "product is max_tokens"),
        ("- name: tok_rgb@64\n  like: tok_rgb@225\n", 1, "unknown modality 'tok_rgb@225'"),
        ("- name: caption\n  defaults: {scheme: roar, temp: 1}\n", 2, "unknown key 'temp'"),
        ("- name: caption\n  defaults: roar\n", 2, "must be a mapping"),
        ("- name: caption\n  name: caption\n", 2, "given twice"),
        ("- name: ..\n  like: caption\n", 1, "a name begins with a letter"),
        ("- name: caption\n  folder: ../x\n", 1, "folder must be a relative path"),
        ("- name: caption\n  folder: /etc\n", 1, "folder must be a relative path"),
        ('- name: caption\n  folder: "a\\0b"\n', 1, "folder must be a relative path"),
        ("- name: caption\n  suffix: a/../../b\n", 1, "suffix must be a file extension"),
        ("- name: caption\n  max_tokens: 1000000000000\n", 1, "a size is above"),
        ("- name: [\n", 2, "not valid YAML"),
        ("- name: {a: b}\n", 1, "must be text"),
        ("- name: tok_semseg@224\n  labels: circle\n", 2, "'labels' must be a list of names"),
        ("- name: tok_semseg@224\n  labels: [circle, 3]\n", 2, "'labels' must be a list of names"),
        ('- name: tok_semseg@224\n  labels: ["a\\e[31m"]\n', 2, "'labels' must be a list of names"),
    ],
)
def test_a_wrong_row_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert f"modalities.yaml, line {line}:" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a list of rows was expected"):
        load(tmp_path, "name: caption\n")

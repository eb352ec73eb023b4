"""The registry: the released table, rows of a model's own, and what is said of mistakes in them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import fourm
from fourm.errors import UsageError
from fourm.modalities.registry import RELEASED, Kind, load_registry
from fourm.output.record import RESERVED_NAMES
from fourm.schedule.chain import field_problem

DEMO = Path(fourm.__file__).parent / "demo"
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


@pytest.mark.parametrize("name", RELEASED.rows)
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
    ("name", "close"),
    [
        ("tok_rbg", "tok_rgb@224"), ("captoin", "caption"), ("tok_rgb@223", "tok_rgb@224"), ("rbg", "rgb"),
        ("image", "rgb"), ("normals", "normal"), ("segmentation", "semseg"), ("boxes", "det"),
    ],
)  # fmt: skip
def test_an_unknown_name_brings_a_near_match(name: str, close: str) -> None:
    with pytest.raises(UsageError, match=f"unknown modality '{name}'; did you mean '{close}'"):
        RELEASED.resolve(name, ["caption", "tok_rgb@224", "tok_normal@224", "tok_semseg@224", "det"])


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
        (
            "- name: a\n  kind: image\n",
            2,
            "kind is 'image', expected one of pixels, grid, sequence, embedding",
        ),
        ("- name: a\n  kind: grid\n  grid: [2, x]\n", 3, "grid[1] is 'x', expected a whole number"),
        ("- name: a\n  kind: grid\n", 1, "'max_tokens' is missing"),
        ("- name: a\n  max_tokens: 3\n", 1, "'kind' is missing"),
        ("- name: a-b\n  kind: sequence\n  max_tokens: 3\n  vocab_size: 3\n", 1, "a name has no '-'"),
        ("- name: a\n  kind: sequence\n  max_tokens: 3\n", 1, "vocab_size must be at least 1"),
        (
            "- name: a\n  kind: sequence\n  max_tokens: -3\n",
            3,
            "max_tokens is -3, expected a whole number, 1",
        ),
        ("- name: tok_rgb@64\n  max_tokens: 3\n", 1, "product is max_tokens"),
        ("- name: tok_rgb@64\n  like: tok_rgb@225\n", 1, "unknown modality 'tok_rgb@225'"),
        (
            "- name: caption\n  defaults: {scheme: roar, temp: 1}\n",
            2,
            "unknown key 'temp'; did you mean",
        ),
        ("- name: caption\n  defaults: roar\n", 2, "defaults is 'roar', expected a mapping"),
        ("- name: caption\n  name: caption\n", 2, "given twice"),
        ("- name: ..\n  like: caption\n", 1, "a name begins with a letter"),
        ("- name: '@64'\n  like: caption\n", 1, "a name begins with a letter"),
        ("- name: caption\n- name: det\n- name: caption\n", 3, "has a row already"),
        ("- name: caption\n  suffix: a/../../b\n", 1, "suffix must be a file extension"),
        (
            "- name: caption\n  max_tokens: 1000000000000\n",
            2,
            "max_tokens is 1000000000000, expected a whole number, 1 to 16777216",
        ),
        ("- name: a\n  grid: [0, 2]\n  kind: 3\n  codec:\n", 2, "grid[0] is 0"),
        ("- name: a\n  grid: [0, 2]\n  kind: 3\n  codec:\n", 3, "kind is 3"),
        ("- name: a\n  grid: [0, 2]\n  kind: 3\n  codec:\n", 4, "'codec' has no value"),
        ("- name: [\n", 2, "not valid YAML"),
        ("- name: {a: b}\n", 1, "expected text"),
        ("- name: tok_semseg@224\n  labels: circle\n", 2, "labels is 'circle', expected a list"),
        ("- name: tok_semseg@224\n  labels: [circle, 3]\n", 2, "labels[1] is 3, expected text"),
        ('- name: tok_semseg@224\n  labels: ["a\\e[31m"]\n', 1, "labels must be printable"),
    ],
)
def test_a_wrong_row_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert f"modalities.yaml, line {line}:" in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).count("\n") == ("codec" in text) * 2  # a line for each problem


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a list of rows was expected"):
        load(tmp_path, "name: caption\n")


UNFIT = ["", "a/b", "/etc", "..", ".", "../x", ".partial", "a\\b", "a\0b", "a\nb", "a\x1b[31m", "-x",
         "x" * 300, "run.x.json", "malformed", "preview", "PLOTS", *RESERVED_NAMES]  # fmt: skip


@pytest.mark.parametrize("folder", UNFIT)
def test_a_folder_that_cannot_hold_results_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UsageError, match=r"line [123]: .*(one plain name|folder is )") as caught:
        load(tmp_path, f"- name: tok_rgb@64\n  grid: [8, 8]\n  folder: {json.dumps(folder)}\n")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "suffix", ["", ".", "png", ".p/g", ".p\n", ".p\x1b[31m", "..", ".a.b.c", "." + "x" * 99, ". png"]
)
def test_a_suffix_that_no_file_can_have_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UsageError, match=r"line [123]: .*(file extension|suffix is )") as caught:
        load(tmp_path, f"- name: tok_rgb@64\n  grid: [8, 8]\n  suffix: {json.dumps(suffix)}\n")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("tok_rgb@64\n  grid: [8, 8]\n  suffix: .npy", "the suffix of codec 'tok_rgb' is .png, not .npy"),
        (
            "maps@64\n  like: tok_depth@224\n  suffix: .png",
            "the suffix of codec 'tok_depth' is .npy, not .png",
        ),
        ("tok_rgb@64\n  grid: [8, 8]\n  codec: caption", "the kind of codec 'caption' is sequence, not grid"),
        ("words\n  like: caption\n  suffix: .json", "the suffix of codec 'caption' is .txt, not .json"),
    ],
)
def test_a_row_whose_codec_writes_other_files_is_refused(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        load(tmp_path, f"- name: {rows}\n")


@pytest.mark.parametrize("name", ["plots", "run.json", "malformed", "preview"])
def test_a_name_that_an_output_folder_has_for_other_things_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: .*something else under this name"):
        load(tmp_path, f"- name: {name}\n  like: tok_rgb@224\n")


def folders(tmp_path: Path, *rows: str) -> list[str]:
    """The folders of these rows, each a name with or without more of its row."""
    names = [row.partition(",")[0] for row in rows]
    text = "".join(f"- {{name: {row}, grid: [8, 8], vocab_size: 9}}\n" for row in rows)
    path = tmp_path / "modalities.yaml"
    path.write_text(text)
    registry = load_registry(path)
    return [registry.get(name).folder for name in names]


def test_rows_of_several_resolutions_have_folders_of_their_own(tmp_path: Path) -> None:
    assert folders(tmp_path, "tok_rgb@64") == ["rgb"]
    assert folders(tmp_path, "tok_rgb@128", "tok_rgb@64", "tok_depth@64") == ["rgb@128", "rgb", "depth"]
    assert folders(tmp_path, "tok_rgb@224", "tok_rgb@448") == ["rgb", "rgb@448"]
    assert folders(tmp_path, "tok_rgb@64", "tok_rgb@224") == ["rgb@64", "rgb"]
    assert folders(tmp_path, "tok_rgb@64", "tok_rgb@128, folder: rgb") == ["rgb@64", "rgb"]
    assert folders(tmp_path, "tok_rgb@64", "tok_rgb@128, folder: fine") == ["rgb", "fine"]
    assert folders(tmp_path, "tok_rgb@64", "tok_heat@64, like: tok_rgb@224") == ["rgb", "heat"]
    assert folders(tmp_path, "heat, kind: grid") == ["heat@values"]
    assert folders(tmp_path, "tok_heat, kind: grid", "tok_heat@9, kind: grid") == ["heat", "heat@9"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("tok_rgb@64", "tok_depth@64, folder: rgb"), "so would the values of tok_depth@64"),
        (("tok_depth@64, folder: maps", "tok_rgb@64, folder: Maps"), "so would the values of tok_depth@64"),
        (("tok_rgb@64", "tok_depth@64, folder: tok_rgb@64"), "so would the tokens of tok_rgb@64"),
        (("tok_rgb@64, folder: tok_rgb@64",), "so would the tokens of tok_rgb@64"),
    ],
)
def test_rows_that_share_a_folder_are_refused(tmp_path: Path, rows: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=r"modalities\.yaml, line [12]: the values of") as caught:
        folders(tmp_path, *rows)
    assert said in str(caught.value) or "folder 'rgb'" in str(caught.value)


def test_a_row_that_shares_the_folder_of_a_released_one_is_refused_for_a_model_that_has_both(
    run: Callable[..., tuple[int, str, str]], tiny: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["domains_out"].append("tok_rgb@224")
    (model / "config.json").write_text(json.dumps(config))
    code, _, err = run("generate", "red", "--model", model, "--out", "o")
    assert code == 2
    assert "the folder 'rgb'" in err
    assert "tok_rgb@64" in err
    assert "tok_rgb@224" in err


def test_two_targets_of_one_key_keep_their_pictures_apart(run: Callable[..., tuple[int, str, str]]) -> None:
    model = Path(shutil.copytree(DEMO, "model"))
    rows = yaml.safe_load((model / "modalities.yaml").read_text())
    next(row for row in rows if row["name"] == "tok_normal@64")["folder"] = "rgb"
    (model / "modalities.yaml").write_text(yaml.safe_dump(rows))
    code, _, err = run("generate", "red", "--model", model, "--targets", "tok_normal-tok_rgb", "--out", "o")
    assert code == 2
    assert "the folder 'rgb'" in err
    assert not Path("o").exists()

"""`fourm models` from the outside: the list, one item whole, JSON, exit codes, and that torch stays out."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fourm.hub.about import count_parameters, describe, list_models
from fourm.hub.cache import text_tokenizer_path
from fourm.hub.catalogue import CATALOGUE
from fourm.hub.files import find_model
from tests.headers import seven
from tests.hubcache import COMMIT, put_folder, write_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


@pytest.fixture
def model(cache: Path, tmp_path: Path) -> Path:
    return put_folder(cache, CATALOGUE["4m-7-b"].hub_id, seven(tmp_path / "seven"))


def test_the_list_has_everything_that_is_known(run: Run, model: Path, cache: Path) -> None:
    code, out, err = run("models")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["name", "demo", "demo-sr", *CATALOGUE]
    assert max(map(len, lines)) <= 100
    row = next(line for line in lines if line.startswith("4m-7-b "))
    assert row.split() == ["4m-7-b", "model", "2.08", "kB", "8", "in,", "7", "out", COMMIT[:7]]
    assert next(line for line in lines if line.startswith("4m-21-xl ")).split()[2:4] == ["18.2", "GB"]
    assert f"1 of 27 are in {cache}" in err


def test_the_json_of_the_list_has_sizes_places_and_modalities(run: Run, model: Path) -> None:
    code, out, _ = run("models", "--json")
    items = {item["name"]: item for item in json.loads(out)}
    assert code == 0
    assert set(items) == {"demo", "demo-sr", *CATALOGUE}
    assert items["demo"]["cached"]
    assert items["4m-7-b"]["path"] == str(model / "model.safetensors")
    assert items["4m-7-b"]["revision"] == COMMIT
    assert items["4m-21-b"]["bytes"] == CATALOGUE["4m-21-b"].num_bytes
    assert (items["4m-21-b"]["cached"], items["4m-21-b"]["path"]) == (False, None)
    assert items["tok-edge"]["writes"] == ["tok_canny_edge@224", "tok_sam_edge@224"]
    assert "non-commercial" in items["tok-edge"]["licence"]


def test_a_model_that_is_not_here_is_shown_from_the_catalogue(run: Run) -> None:
    code, out, _ = run("models", "show", "4m-21-b")
    assert code == 0
    assert re.search(r"parameters +834,404,352", out)
    assert "non-commercial licence" in out
    assert re.search(r"to fetch +13\.1 GB: fourm download 4m-21-b .*tok-rgb.* text-tokenizer", out)
    assert re.search(r"tok_dinov2_global +16 +8,192 +yes +yes +dinov2_glob", out)
    assert re.search(r"rgb@224 +196 +yes", out)
    assert re.search(r"dim +768", out)


def test_a_model_that_is_here_is_shown_as_it_is(run: Run, model: Path, cache: Path, tmp_path: Path) -> None:
    clip = put_folder(cache, CATALOGUE["tok-clip"].hub_id, write_tokenizer(tmp_path / "clip", 8192), "c" * 40)
    text_tokenizer_path().parent.mkdir(parents=True, exist_ok=True)
    text_tokenizer_path().write_text("{}")
    for name in ("4m-7-b", CATALOGUE["4m-7-b"].hub_id, f"4m-7-b@{COMMIT}"):
        code, out, _ = run("models", "show", name, "--json")
        data = json.loads(out)
        assert code == 0
        assert data["revision"] == COMMIT
        assert data["config"] == json.loads((model / "config.json").read_text())
        assert (data["parameters"], data["memory"]["float32"], data["memory"]["bfloat16"]) == (
            1000,
            4000,
            2000,
        )
        assert data["tokenizers"]["clip"] == {"name": "tok-clip", "path": str(clip)}
        assert data["tokenizers"]["rgb"] == {"name": "tok-rgb", "path": None}
        assert data["text_tokenizer"] == str(text_tokenizer_path())
    code, out, _ = run("models", "show", "4m-7-b")
    assert re.search(rf"revision +{COMMIT}", out)
    assert str(clip) in out
    fetch = next(line for line in out.splitlines() if line.startswith("to fetch"))
    assert fetch.split()[2:] == "4.33 GB: fourm download tok-depth tok-normal tok-rgb tok-semseg".split()


def test_tokenizers_prompts_and_the_demo_model_are_shown_too(run: Run, cache: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "mine", 8)
    for path in (tokenizer, tokenizer / "model.safetensors"):
        assert json.loads(run("models", "show", str(path), "--json")[1])["config"]["codebook_size"] == 8
    put_folder(cache, CATALOGUE["tok-rgb"].hub_id, tokenizer)
    assert json.loads(run("models", "show", "tok-rgb", "--json")[1])["config"]["codebook_size"] == 8
    assert "16,384" in run("models", "show", "tok-rgb")[1]
    assert "Apache" in run("models", "show", "text-tokenizer")[1]
    assert "nateraw/parti-prompts" in run("models", "show", "parti-prompts")[1]
    demo = run("models", "show", "demo")[1]
    assert "to fetch" not in demo
    assert "tok_rgb@64" in demo


@pytest.mark.parametrize(
    ("name", "exit_code", "said"),
    [
        ("4m-7-bb", 2, "did you mean '4m-7-b'?"),
        ("me/mine", 4, "`fourm download me/mine` fetches it"),
        ("4m-7-b@../x", 2, "after @ comes"),
        ("./gone", 2, "no such file or folder"),
    ],
)
def test_a_wrong_name_is_one_sentence(run: Run, name: str, exit_code: int, said: str) -> None:
    code, out, err = run("models", "show", name)
    assert (code, out) == (exit_code, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["4m-7_b", "4m-7_l", "4m-21_xl", "4m-7-sr_l"])
def test_parameters_are_counted_as_recorded(golden: Path, tmp_path: Path, name: str) -> None:
    manifest = json.loads((golden / "fm" / "manifests" / f"{name}.json").read_text())
    table, end = {}, 0
    for key, info in manifest["keys"].items():
        count = 4
        for side in info["shape"]:
            count *= side
        table[key] = {"dtype": "F32", "shape": info["shape"], "data_offsets": [end, end + count]}
        end += count
    raw = json.dumps(table).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)  # a hole: no byte of it is ever read
    (tmp_path / "config.json").write_text(json.dumps(manifest["config"]))
    entry = CATALOGUE[name.replace("_", "-")]
    assert count_parameters(find_model(tmp_path)) == entry.num_params
    here, published = describe(str(tmp_path)), describe(entry.name)
    # The catalogue's figure counts every entry of the file, as the file here has them.
    assert here.memory == published.memory
    assert here.rows == published.rows
    assert list(map(here.uses, here.rows)) == list(map(published.uses, here.rows))


def test_the_list_never_opens_a_file_that_may_be_damaged(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04")
    put_folder(cache, CATALOGUE["4m-7-b"].hub_id, tmp_path)
    assert next(item for item in list_models() if item.entry.name == "4m-7-b").entry.num_bytes == 4


def test_help_fits_100_columns_and_has_examples(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for words in (("models", "--help"), ("models", "show", "--help")):
        code, out, _ = run(*words)
        assert code == 0
        assert max(map(len, out.splitlines())) <= 100
        assert "Examples" in out


def test_the_command_never_imports_torch() -> None:
    code = (
        "import sys; from fourm_cli.models import models_app\n"
        "models_app(['show', 'demo'], standalone_mode=False)\n"
        "models_app([], standalone_mode=False)\n"
        "assert not {'torch', 'huggingface_hub'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True)

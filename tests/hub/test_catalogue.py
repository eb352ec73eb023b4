"""The catalogue says what the recorded manifests of the released checkpoints say."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from fourm.hub import catalogue
from fourm.hub.catalogue import CATALOGUE, GROUPS, Entry, find_entry, near_entry
from fourm.modalities.registry import RELEASED
from fourm.schedule.settings import read_settings

CONFIGS = Path(__file__).resolve().parents[2] / "cfgs" / "generation" / "models"
MODELS = [e for e in CATALOGUE.values() if e.is_model]
TOKENIZERS = [e for e in CATALOGUE.values() if e.kind == "tokenizer"]
BYTES = {"float32": 4}


def manifest_of(entry: Entry) -> str:
    """`4m-7-t2i-b` and `4m-7-b-coyo` are built as `4m-7_b` is."""
    if entry.kind == "sr":
        return "4m-7-sr_l"
    family = "4m-21" if entry.name.startswith("4m-21") else "4m-7"
    size = {768: "b", 1024: "l", 2048: "xl"}[int(str(entry.config["dim"]))]
    return f"{family}_{size}"


@pytest.mark.parametrize("entry", MODELS, ids=lambda e: e.name)
def test_a_model_is_as_recorded(entry: Entry, golden: Path) -> None:
    recorded = json.loads((golden / "fm" / "manifests" / f"{manifest_of(entry)}.json").read_text())
    assert dict(entry.config) == recorded["config"]
    assert entry.num_params == recorded["counts"]["total_unique_parameters"]
    assert entry.num_bytes == recorded["counts"]["float32_bytes_all_state_dict_entries"]
    assert list(entry.reads) == recorded["config"]["domains_in"]
    assert list(entry.writes) == recorded["config"]["domains_out"]


@pytest.mark.parametrize("entry", TOKENIZERS, ids=lambda e: e.name)
def test_a_tokenizer_is_as_recorded(entry: Entry, golden: Path) -> None:
    name = entry.hub_id.removeprefix("EPFL-VILAB/4M_tokenizers_")
    whole = golden / "divae" / "manifests" / f"4M_tokenizers_{name}.json"
    recorded = json.loads((golden / "vq" / "manifests" / f"{name}.json").read_text())
    assert recorded["tokenizer"] == entry.hub_id
    tensors = json.loads(whole.read_text())["tensors"] if whole.exists() else recorded["state_dict"]
    assert entry.num_params == sum(math.prod(t["shape"]) for t in tensors.values())
    assert entry.num_bytes == sum(math.prod(t["shape"]) * BYTES[t["dtype"]] for t in tensors.values())
    rows = [row for row in RELEASED.rows.values() if row.tokenizer == entry.key and row.grid]
    assert all(row.vocab_size == recorded["config"]["codebook_size"] for row in rows)


def test_the_sizes_of_text_tokenizer_and_prompts_are_as_recorded(golden: Path) -> None:
    text = golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json"
    assert CATALOGUE["text-tokenizer"].num_bytes == text.stat().st_size
    prompts = golden / "parti" / "PartiPrompts.tsv"
    assert CATALOGUE["parti-prompts"].num_bytes == prompts.stat().st_size


def test_every_tokenizer_recorded_as_released_is_here(golden: Path) -> None:
    files = (golden / "vq" / "manifests").glob("*.json")
    names = {p.stem for p in files if not p.stem.startswith("cfg-only")}
    assert names == {e.hub_id.removeprefix("EPFL-VILAB/4M_tokenizers_") for e in TOKENIZERS}


def test_every_modality_with_a_tokenizer_has_a_released_one() -> None:
    keys = {row.tokenizer for row in RELEASED.rows.values() if row.tokenizer}
    assert keys == {e.key for e in TOKENIZERS}
    assert all(catalogue.TOKENIZERS[key].key == key for key in keys)


def tokenizers_of(entry: Entry) -> set[str]:
    keys = {RELEASED.get(n).tokenizer for n in (*entry.reads, *entry.writes)} - {""}
    return {catalogue.TOKENIZERS[key].name for key in keys}


def test_the_modalities_of_a_model_have_as_many_tokenizers_as_were_released_for_it() -> None:
    assert len(tokenizers_of(CATALOGUE["4m-7-b"])) == 5
    assert len(tokenizers_of(CATALOGUE["4m-21-b"])) == 12


def test_names_are_found_in_any_case_and_are_unique() -> None:
    words = Counter(w.lower() for e in CATALOGUE.values() for w in (e.name, e.hub_id) if w)
    assert max(words.values()) == 1
    for entry in CATALOGUE.values():
        assert find_entry(entry.name.upper()) is entry
        assert not entry.hub_id or find_entry(entry.hub_id.lower()) is entry
    assert find_entry("") is None
    assert not set(GROUPS) & set(CATALOGUE)
    assert all(name in CATALOGUE for names in GROUPS.values() for name in names)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("4m-7-bb", "4m-7-b"),
        ("tok-rbg", "tok-rgb"),
        ("Tokenizer", "tokenizers"),
        ("epfl-vilab/4M-7_B_CC12", "EPFL-VILAB/4M-7_B_CC12M"),
    ],
)
def test_a_misspelt_name_is_recognised(name: str, meant: str) -> None:
    assert near_entry(name) == f"; did you mean '{meant}'?"
    assert near_entry("zzzzzz") == ""


def test_every_released_combination_has_a_configuration_file() -> None:
    found = set()
    for path in CONFIGS.glob("*.yaml"):
        run = read_settings([path], {}).run
        found.add((run.model, run.sr_model))
    sr = CATALOGUE["4m-7-sr-l"].hub_id
    base = [e.hub_id for e in MODELS if e.kind == "model"]
    assert found == {(hub_id, other) for hub_id in base for other in (None, sr)}
    assert len(found) == len(list(CONFIGS.glob("*.yaml"))) == 24


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_configuration_file_names_what_its_models_need(path: Path) -> None:
    settings = read_settings([path], {})
    assert not settings.base.problems
    assert not settings.sr.problems
    model = find_entry(settings.run.model or "")
    assert model is not None
    named = {key: find_entry(name) for key, name in settings.run.tokenizers.items()}
    assert all(entry is not None and entry.key == key for key, entry in named.items())
    assert {entry.name for entry in named.values() if entry} == tokenizers_of(model)
    assert find_entry(settings.run.text_tok_path or "") is CATALOGUE["text-tokenizer"]
    size, family, *_ = path.stem.partition("+")[0].removeprefix("4m-").split("_", 1)
    assert model.name in (f"4m-{family.removeprefix('mod').replace('_', '-')}-{size}",
                          f"4m-7-{size}-coyo", f"4m-7-t2i-{size}")  # fmt: skip


def test_a_name_that_is_right_has_no_near_match() -> None:
    assert near_entry("EPFL-VILAB/4M-7-SR_L_CC12M") == ""
    assert "did you mean 'EPFL-VILAB/4M-7-SR_L_CC12M'" in near_entry("EPFL-VILAB/4M-7-SR_L_CC12N")

"""Which files a run writes: values of texts need no tokenizer, and are conditions of other runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from fourm.data.dataset import list_dataset
from fourm.data.layout import samples_of_prompts
from fourm.errors import MissingError
from fourm.hub.files import ModelFiles, find_model
from fourm.inputs.request import Request
from fourm.results.events import Failed, Finished
from fourm.results.job import plan_places, tokenizers_of
from fourm.runs.pipeline import run
from fourm.schedule.chain import TargetSpec, make_chain
from fourm.schedule.cost import estimate
from tests import tiny
from tests.codecs.test_parts import SAM_CONFIG, random_tokenizer
from tests.modalities.test_instances import CAT, DOG

WORDS = [
    "point", "polygon", "none", "human", "global", "pose", "shape", "camera",
    *(f"v{axis}={number}" for axis in range(4) for number in range(1000)),
]  # fmt: skip
TEXTS = ("human_poses", "sam_instance")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """A tiny model that reads and writes poses and instances, without tokenizers for them."""
    words = [*tiny.WORDS, *WORDS]
    size = len(tiny.SPECIAL) + len(words)
    rows = [{**row, "vocab_size": size} if row["name"] == "caption" else row for row in tiny._rows()]
    rows += [{"name": name, "max_tokens": 96, "vocab_size": size} for name in TEXTS]
    monkeypatch.setattr(tiny, "WORDS", words)
    monkeypatch.setattr(tiny, "_rows", lambda: rows)
    for key in ("domains_in", "domains_out"):
        monkeypatch.setitem(tiny.CONFIG, key, [*tiny.CONFIG[key], *TEXTS])  # type: ignore[misc]
    return find_model(tiny.build_tiny(tmp_path / "model"))


def request(model: ModelFiles, out: Path, *targets: TargetSpec, **changes: Any) -> Request:
    chain = make_chain(list(targets), changes.pop("conditions", ["caption"]), top_p=0.9)
    basis = Request(model, chain, samples_of_prompts(["a red circle", "a blue square"]), out, device="cpu")
    return replace(basis, **changes)


def text_targets() -> list[TargetSpec]:
    return [TargetSpec(name, 20, "autoregressive", temperature=1.0) for name in TEXTS]


def test_values_of_texts_are_written_without_their_tokenizers(model: ModelFiles, tmp_path: Path) -> None:
    asked = request(model, tmp_path / "out", *text_targets())
    assert tokenizers_of(model, plan_places(asked)) == {}
    events = list(run(asked))
    assert isinstance(events[-1], Finished)
    assert (events[-1].saved, events[-1].failed) == (2, 0)
    for name, data in (("human_poses", {}), ("sam_instance", list)):
        written = json.loads((tmp_path / "out" / name / "00000" / "000001.json").read_text())
        assert isinstance(written, data) if isinstance(data, type) else written == data
    assert set(json.loads((tmp_path / "out" / "run.json").read_text())["files"]) == {
        "weights",
        "text_tokenizer",
    }


def test_a_tokenizer_that_is_there_changes_no_file_and_is_not_loaded(
    model: ModelFiles, tmp_path: Path
) -> None:
    list(run(request(model, tmp_path / "without", *text_targets())))
    path = tmp_path / "sam.safetensors"
    save_file(random_tokenizer(SAM_CONFIG).state_dict(), path)
    there = replace(model, tokenizers={**model.tokenizers, "sam_instance": path})
    asked = request(there, tmp_path / "with", *text_targets())
    list(run(asked))
    for name in TEXTS:
        file = Path(name, "00000", "000000.json")
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    assert estimate(asked.chain, there).weights == estimate(asked.chain, model).weights


def test_values_of_grids_still_need_theirs(model: ModelFiles, tmp_path: Path) -> None:
    bare = replace(model, tokenizers={})
    asked = request(bare, tmp_path / "out", TargetSpec("tok_rgb@64", 64, "roar", 2))
    with pytest.raises(MissingError, match="`decode=False`"):
        plan_places(asked)


def test_instances_and_poses_of_files_are_conditions(model: ModelFiles, tmp_path: Path) -> None:
    data = tmp_path / "data"
    crops = [{
        "bbox": [[20, 10, 90, 60], [20, 100, 120, 200]], "token_ids": [list(CAT.codes), list(DOG.codes)],
        "points": [[[10, 20], [60, 20], [60, 90]], [[100, 20], [200, 20], [200, 120], [100, 120]]],
    }]  # fmt: skip
    for name, text in (("human_poses", "{}"), ("sam_instance", json.dumps(crops))):
        for sample in ("a", "b"):
            (data / name / "x").mkdir(parents=True, exist_ok=True)
            (data / name / "x" / f"{sample}.json").write_text(text if sample == "a" else "{")
    samples = list_dataset(data, {name: name for name in TEXTS}).samples
    asked = request(
        model,
        tmp_path / "out",
        TargetSpec("tok_clip@64", 64, "roar", 2),
        conditions=list(TEXTS),
        samples=samples,
    )
    events = list(run(asked))
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.key == "x/b"
    assert "b.json: not valid JSON" in failed.reason
    assert json.loads((tmp_path / "out" / "human_poses" / "x" / "a.json").read_text()) == {}
    (used,) = json.loads((tmp_path / "out" / "sam_instance" / "x" / "a.json").read_text())
    assert used["token_ids"] == [list(DOG.codes)]  # at (112, 112) is the dog, at no point the cat
    assert used["queries"][0] == {"point": [112, 112], "instances": [0]}

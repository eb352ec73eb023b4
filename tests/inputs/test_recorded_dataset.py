"""The recorded dataset from its folders to what the model reads, by the way that `generate --data` takes.

Only crop 0 is ever read in generation; the values of the other crops are compared codec by codec.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourm.codecs.table import build_codec
from fourm.errors import SampleError
from fourm.hub.files import find_model
from fourm.inputs.conditions import ConditionReader, Work
from fourm.inputs.convert import convert_dataset
from fourm.inputs.request import Request
from fourm.modalities.registry import RELEASED, Registry
from fourm.modalities.text import EOS_ID, WordPiece, encode_full
from fourm.networks.state import Batch, stack_batches
from fourm.schedule.chain import TargetSpec, make_chain
from fourm.sources.reading import read_samples
from fourm.sources.source import Source

TEXTS = ("caption", "det", "metadata", "color_palette", "human_poses")
TOKENS = ("tok_rgb@224", "tok_dinov2_global")


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "data" / "mini_dataset.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def released(golden: Path) -> WordPiece:
    return WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")


def prepared(golden: Path, root: Path, released: WordPiece, names: tuple[str, ...]) -> Batch:
    """The samples of a folder as one batch; pictures of 48 pixels and vectors of 8 numbers, as recorded."""
    rows = {name: RELEASED.get(name) for name in RELEASED.rows}
    rows["rgb@224"] = replace(rows["rgb@224"], image_size=48, grid=(3, 3), max_tokens=9)
    rows["t5_caption"] = replace(rows["t5_caption"], embedding_width=8)
    model = replace(
        find_model("demo"), registry=Registry(rows), config={"domains_in": list(rows), "domains_out": []}
    )
    chain = make_chain([TargetSpec("tok_clip@224", 196, "roar", 1)], list(names))
    dataset = read_samples(Source(data=str(root)), names, model, None)  # type: ignore[arg-type]
    assert [sample.key.text for sample in dataset.samples] == ["x/s1", "x/s2"]
    codecs = {name: build_codec(rows[name], wordpiece=released) for name in names}
    works = [Work(sample, 0) for sample in dataset.samples]
    made = ConditionReader(Request(model, chain, dataset.samples, root / "out"), codecs).read_group(works)
    assert [given.problem for given in made] == ["", ""]
    return stack_batches([given.batch for given in made])


def test_the_recorded_samples_are_shown_to_the_model_as_recorded(
    golden: Path, recorded: dict[str, Any], released: WordPiece
) -> None:
    names = ("rgb@224", *TEXTS, *TOKENS)
    made = prepared(golden, golden / "data" / "mini_dataset", released, names)
    arrays = np.load(golden / "data" / "mini_dataset.npz")
    cases = [case for case in recorded["with_tokens"] if case["crop_number"] == 0]
    for i, case in enumerate(cases):
        slots = made.slots
        pixels = slots["rgb@224"].values[i].numpy()
        np.testing.assert_allclose(pixels, arrays[case["rgb_key"]], rtol=1e-5, atol=1e-6)
        for name in TOKENS:
            assert slots[name].values[i].tolist() == case[name]
        for name in ("caption", "det", "metadata", "human_poses"):
            text = " ".join(case[name]) if isinstance(case[name], list) else case[name]
            shown = slots[name].values[i][slots[name].known[i]].tolist()
            assert shown == encode_full(text, released), name
        assert slots["color_palette"].known[i].any()


def test_without_token_folders_the_recorded_samples_are_shown_as_their_centre(
    golden: Path, recorded: dict[str, Any], released: WordPiece, tmp_path: Path
) -> None:
    """The reference reads crop settings only beside tokens; here a folder without settings has none."""
    for name in ("rgb", "caption", "det"):
        (tmp_path / name).symlink_to(golden / "data" / "mini_dataset" / name)
    made = prepared(golden, tmp_path, released, ("rgb@224", "caption", "det"))
    arrays = np.load(golden / "data" / "mini_dataset.npz")
    for i, case in enumerate(recorded["without_tokens"]):
        pixels = made.slots["rgb@224"].values[i].numpy()
        np.testing.assert_allclose(pixels, arrays[case["rgb_key"]], rtol=1e-5, atol=1e-6)
        for name in ("caption", "det"):
            slot = made.slots[name]
            assert slot.values[i][slot.known[i]].tolist() == encode_full(case[name], released)


def test_the_two_conditions_that_fail_in_the_reference_are_shown_too(
    golden: Path, recorded: dict[str, Any], released: WordPiece, tmp_path: Path
) -> None:
    """Defect 3: as conditions of a folder, vectors and instances end the reference."""
    root = golden / "data" / "mini_dataset"
    for name in ("rgb", "crop_settings", "t5_caption"):
        (tmp_path / name).symlink_to(root / name)
    points = json.loads((golden / "data" / "sam_instance.json").read_text())["grid_query_points_xy"]
    for made in convert_dataset(root, tmp_path):
        crops = json.loads(made.target.read_text())
        made.target.write_text(
            json.dumps([{**crop, "queries": [{"point": p} for p in points]} for crop in crops])
        )
    slots = prepared(golden, tmp_path, released, ("t5_caption", "sam_instance")).slots
    arrays = np.load(golden / "data" / "mini_dataset.npz")
    cases = [case for case in recorded["sam_strings"] if case["crop_number"] == 0]
    for i, case in enumerate(cases):
        vectors = slots["t5_caption"]
        assert np.array_equal(vectors.values[i][vectors.known[i]].numpy(), arrays[f"{i}_0/t5"])
        ids = slots["sam_instance"].values[i][slots["sam_instance"].known[i]].tolist()
        whole = released.encode(case["string_grid_points_in_order"])
        # The reference's text is longer than the 290 tokens that the model reads.
        assert len(whole) > 290 - 24 < len(ids) <= 290
        assert ids == [*whole[: len(ids) - 1], EOS_ID]


def test_the_references_own_files_of_instances_are_refused_with_the_way_to_read_them(
    golden: Path, released: WordPiece
) -> None:
    codec = build_codec(RELEASED.get("sam_instance"), wordpiece=released)
    path = golden / "data/mini_dataset/sam_instance/x/s1.npy"
    with pytest.raises(SampleError, match=r"s1\.npy: not JSON; .*`fourm convert sam-instances`"):
        codec.read(path)

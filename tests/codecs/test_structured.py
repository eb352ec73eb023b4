"""Structured values between files, texts and ids: recorded samples, laws, what is cut and what is refused."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm.codecs.table import build_codec
from fourm.codecs.texts import STRUCTURED, StructuredCodec
from fourm.data.layout import Crop, centre_crop
from fourm.errors import SampleError, UsageError
from fourm.hub.files import find_model
from fourm.modalities.facts import FIELDS, Box, Colour, Fact
from fourm.modalities.registry import RELEASED
from fourm.modalities.text import Structured, WordPiece
from fourm.networks.state import Slot
from tests.texts import data_with, model_texts

NAMES = ("det", "metadata", "color_palette")
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
corners = st.integers(0, 999).map(lambda n: n / 999)
names = st.sampled_from(["cat", "potted plant", "dining table", "a thing", "unheard"])
boxes = st.lists(st.builds(Box, corners, corners, corners, corners, names), max_size=8).map(tuple)
facts = st.lists(st.sampled_from(FIELDS), max_size=12, unique=True).flatmap(
    lambda fields: st.tuples(
        *(
            st.integers(0, field.top).map(lambda k, field=field: Fact(field, field.value_of(k)))
            for field in sorted(fields, key=lambda field: field.number)
        )
    )
)
palettes = st.lists(st.builds(Colour, *[st.integers(0, 255)] * 3), min_size=1, max_size=7).map(tuple)
VALUES = {"det": boxes, "metadata": facts, "color_palette": palettes}


@pytest.fixture(scope="module")
def released(golden: Path) -> WordPiece:
    return WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")


@pytest.fixture(scope="module")
def codecs(released: WordPiece) -> dict[str, StructuredCodec]:
    return {name: build_codec(RELEASED.get(name), wordpiece=released) for name in NAMES}


@pytest.fixture(scope="module")
def demo() -> dict[str, StructuredCodec]:
    model = find_model("demo")
    assert model.text_tokenizer is not None
    words = WordPiece.load(model.text_tokenizer)
    return {name: build_codec(model.registry.get(name), wordpiece=words) for name in NAMES}


def ids_of(slot: Slot) -> list[int]:
    return slot.values[0][slot.known[0]].tolist()


def text_of(codec: StructuredCodec, value: Structured[Any]) -> str:
    return codec.grammar.to_text(value.value)


def saved(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def box_data(*names: str, score: float = 0.9) -> object:
    """A file of boxes down the diagonal."""
    steps = [0.9 * i / max(len(names), 1) for i in range(len(names))]
    return {
        "instances": [
            {"boxes": [at, at, at + 0.1, at + 0.1], "class_name": name, "score": score}
            for at, name in zip(steps, names, strict=True)
        ]
    }


def test_recorded_samples_are_read_as_recorded(golden: Path, codecs: dict[str, StructuredCodec]) -> None:
    data = golden / "data"
    recorded = json.loads((data / "mini_dataset.json").read_text())
    sizes = {"s1": (88, 116), "s2": (75, 106)}
    for case in recorded["with_tokens"]:
        key = case["file_name"]
        row = np.load(data / "mini_dataset" / "crop_settings" / "x" / f"{key}.npy")[case["crop_number"]]
        top, left, height, width, mirrored = map(int, row)
        crop = Crop(sizes[key], top, left, height, width, bool(mirrored), case["crop_number"])
        values = {
            name: codecs[name].read(data / "mini_dataset" / name / "x" / f"{key}.json", crop)
            for name in NAMES
        }
        assert text_of(codecs["det"], values["det"]) == case["det"]
        assert text_of(codecs["metadata"], values["metadata"]) == " ".join(case["metadata"])
        assert text_of(codecs["color_palette"], values["color_palette"]).startswith("v1=7 ")
        assert not any(value.problems for value in values.values())
    for case in recorded["without_tokens"]:
        key = f"s{case['index'] + 1}"
        value = codecs["det"].read(
            data / "mini_dataset" / "det" / "x" / f"{key}.json", centre_crop(*sizes[key])
        )
        assert text_of(codecs["det"], value) == case["det"]


@FEW
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_values_survive_their_ids_and_their_files(
    codecs: dict[str, StructuredCodec], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    codec, value = codecs[name], data.draw(VALUES[name])
    (again,) = codec.decode(codec.encode([Structured(value)]))
    assert (again.value, again.problems) == (value, ())
    (tmp_path / "x.json").write_bytes(codec.pack(again))
    first = (tmp_path / "x.json").read_bytes()
    read = codec.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(codec.pack(read))
    # Boxes come back nearest first and without those of no area; from then on nothing changes.
    assert name == "det" or first == (tmp_path / "x.json").read_bytes()
    assert codec.read(tmp_path / "x.json") == read
    codec.picture(read)


@FEW
@given(text=model_texts)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_model_writes_is_decoded_written_read_drawn_and_kept(
    codecs: dict[str, StructuredCodec], released: WordPiece, tmp_path: Path, name: str, text: str
) -> None:
    codec = codecs[name]
    ids = released.encode(text)[: codec.row.max_tokens]
    slot = codec.encode([Structured(codec.grammar.parse("")[0])])
    width = slot.values.shape[1]
    filled = slot.values.new_tensor([ids + [0] * (width - len(ids))])
    known = filled.new_tensor([[i < len(ids) for i in range(width)]]).bool()
    (value,) = codec.decode(replace(slot, values=filled, known=known))
    assert value.text == released.text_of(ids)
    (tmp_path / "x.json").write_bytes(codec.pack(value))
    codec.encode([codec.read(tmp_path / "x.json")])
    codec.picture(value)


@FEW
@given(content=st.binary(max_size=200) | data_with(("instances", "boxes", "1", "n_humans")).map(repr))
@pytest.mark.parametrize("name", NAMES)
def test_files_of_anything_are_values_or_sample_errors_that_name_them(
    codecs: dict[str, StructuredCodec], tmp_path: Path, name: str, content: bytes | str
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    try:
        codecs[name].read(path)
    except SampleError as error:
        message = str(error)
    else:
        return
    assert message.startswith(f"{path}: ")


def test_too_many_boxes_are_cut_between_two_and_it_is_said(
    codecs: dict[str, StructuredCodec], tmp_path: Path
) -> None:
    value = codecs["det"].read(saved(tmp_path / "x.json", box_data(*["cat"] * 60)))
    assert len(value.value) == 60
    assert value.problems == ("the model reads the first 51 of 60, which fill its 256 tokens",)
    ids = ids_of(codecs["det"].encode([value]))
    assert len(ids) == 256
    assert ids[-1] == 3
    (again,) = codecs["det"].decode(codecs["det"].encode([value]))
    assert (len(again.value), again.problems) == (51, ())


def test_too_much_metadata_is_cut_between_two_fields_and_it_is_said(
    codecs: dict[str, StructuredCodec], tmp_path: Path
) -> None:
    value = codecs["metadata"].read(saved(tmp_path / "x.json", {field.name: 1 for field in FIELDS}))
    assert value.problems == ("the model reads the first 19 of 21, which fill its 40 tokens",)
    assert len(ids_of(codecs["metadata"].encode([value]))) == 39


def test_boxes_have_as_many_bins_as_the_vocabulary_has_words(
    codecs: dict[str, StructuredCodec], demo: dict[str, StructuredCodec], tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.json", box_data("square", "circle"))
    for codec, wanted in (
        (codecs["det"], "v0=0 v1=0 v2=100 v3=100 square v0=450 v1=450 v2=549 v3=549 circle"),
        (demo["det"], "v0=0 v1=0 v2=6 v3=6 square v0=28 v1=28 v2=35 v3=35 circle"),
    ):
        value = codec.read(path)
        assert text_of(codec, value) == wanted
        (again,) = codec.decode(codec.encode([value]))
        assert again.text == wanted


def test_what_a_small_vocabulary_lacks_is_refused(demo: dict[str, StructuredCodec], tmp_path: Path) -> None:
    value = demo["det"].read(saved(tmp_path / "x.json", box_data("dog")))
    with pytest.raises(SampleError, match="det: the model does not know 'dog'"):
        demo["det"].encode([value])
    value = demo["metadata"].read(saved(tmp_path / "x.json", {"caption_n_chars": 200}))
    with pytest.raises(SampleError, match="metadata: the model cannot read 'v0=200' in it"):
        demo["metadata"].encode([value])
    value = demo["metadata"].read(saved(tmp_path / "x.json", {"n_humans": 900}))
    with pytest.raises(SampleError, match="metadata: the model does not know 'v0=900'"):
        demo["metadata"].encode([value])


def test_no_boxes_and_no_metadata_are_conditions_that_only_end(codecs: dict[str, StructuredCodec]) -> None:
    for name in NAMES:
        assert ids_of(codecs[name].encode([Structured(())])) == [3]


def test_written_files_end_in_a_line_and_have_the_form_of_data_sets(
    codecs: dict[str, StructuredCodec], tmp_path: Path
) -> None:
    def written(name: str, text: str) -> str:
        (tmp_path / "x").write_bytes(codecs[name].pack(Structured(codecs[name].grammar.parse(text)[0], text)))
        return (tmp_path / "x").read_text()

    assert written("det", "v0=0 v1=999 v2=999 v3=0 cat") == (  # corners in order, as they are read again
        '{"instances": [{"boxes": [0.0, 0.0, 1.0, 1.0], "class_name": "cat", "score": 1.0}]}\n'
    )
    assert (
        written("metadata", "v1=16 v0=2 v1=0 v0=20") == '{"original_width": 640, "semantic_diversity": 2}\n'
    )
    assert written("color_palette", "v1=1 v0=255 v0=0 v0=9") == '[{"1": [[255, 0, 9]]}]\n'


def test_every_form_needs_a_text_tokenizer() -> None:
    for name in STRUCTURED:
        with pytest.raises(UsageError, match="without a text tokenizer"):
            build_codec(RELEASED.get(name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("det", "", "is empty"),
        ("det", '{"instances": [{"boxes": [0, 0, 1', "not valid JSON"),
        ("det", '{"instances": [{"boxes": [0, 0, NaN, 1], "class_name": "cat"}]}', "NaN is no number"),
        ("det", "[" * 100_000, "not valid JSON"),
        ("metadata", "[1, 2]", "an object of names and numbers was expected"),
        ("metadata", '{"n_humans": ' + "9" * 5000 + "}", "not valid JSON"),
        ("color_palette", '{"3": [[1, 2, 3]]}', 'palette "3" .*, expected a list of length 3'),
    ],
)
def test_spoilt_files_are_sample_errors_of_one_sentence(
    codecs: dict[str, StructuredCodec], tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SampleError, match=rf"x\.json: .*{message}") as caught:
        codecs[name].read(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_packed_files_of_any_case_are_read(codecs: dict[str, StructuredCodec], tmp_path: Path) -> None:
    data = json.dumps(box_data("cat")).encode()
    for name, content in (
        ("a.JSON", data),
        ("b.json.gz", gzip.compress(data)),
        ("c.JSON.GZ", gzip.compress(data)),
    ):
        (tmp_path / name).write_bytes(content)
        assert len(codecs["det"].read(tmp_path / name).value) == 1

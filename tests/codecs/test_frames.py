"""Maps of the model's square, laid back into the picture that it was cut from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from fourm.codecs.colours import NO_CLASS, UNKNOWN, turbo
from fourm.codecs.figures import draw_figures
from fourm.codecs.maps import FORMS, cut, restore_map
from fourm.codecs.table import build_codec
from fourm.codecs.taking import take_whole
from fourm.codecs.texts import StructuredCodec, in_square
from fourm.data.layout import Crop, centre_crop, pad_crop
from fourm.errors import SampleError
from fourm.hub.files import find_model
from fourm.modalities.facts import BoxRules, box_grammar
from fourm.modalities.figures import HUMAN_POSES, Person, people_from_json, people_to_json, restore_people
from fourm.modalities.registry import RELEASED
from fourm.modalities.text import Structured, WordPiece

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(SIZES)
def test_a_padded_square_holds_the_whole_picture(whole: tuple[int, int]) -> None:
    crop = pad_crop(*whole)
    assert crop.height == crop.width == max(whole)
    assert crop.top <= 0
    assert crop.left <= 0
    assert crop.top + crop.height >= whole[0]
    assert crop.left + crop.width >= whole[1]
    assert abs((crop.top + crop.height - whole[0]) + crop.top) <= 1  # as much border on both sides
    assert abs((crop.left + crop.width - whole[1]) + crop.left) <= 1


@given(SIZES, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_was_cut_out_is_laid_back_where_it_was(whole, padded: bool, mirrored: bool, seed: int) -> None:
    """Without a change of size, everything in the crop comes back exactly, and nothing else is known."""
    crop = pad_crop(*whole) if padded else centre_crop(*whole)
    crop = Crop(crop.whole, crop.top, crop.left, crop.height, crop.width, mirrored)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 20, whole).astype(np.uint8)
    back = restore_map(cut(labels, crop, crop.height, outside=NO_CLASS), crop, FORMS["tok_semseg"])
    assert back.shape == whole
    seen = back != NO_CLASS
    assert (back[seen] == labels[seen]).all()
    assert seen.sum() == (labels.size if padded else min(whole) ** 2)
    depth = rng.random(whole, dtype=np.float32)
    back = restore_map(cut(depth, crop, crop.height), crop, FORMS["tok_depth"])
    assert back.dtype == np.float32
    assert (~np.isnan(back) == seen).all()
    assert (back[seen] == depth[seen]).all()
    colours = rng.integers(0, 256, (*whole, 3)).astype(np.uint8)
    back = restore_map(cut(colours, crop, crop.height), crop, FORMS["tok_rgb"])
    assert back.shape == (*whole, 3 if seen.all() else 4)
    assert seen.all() or ((back[..., 3] == 255) == seen).all()
    assert (back[seen][:, :3] == colours[seen]).all()


def test_labels_are_never_blended_and_normals_keep_their_length() -> None:
    crop = pad_crop(30, 47)
    labels = np.zeros((8, 8), dtype=np.uint8)
    labels[:, 4:] = 9
    assert set(np.unique(restore_map(labels, crop, FORMS["tok_semseg"]))) == {0, 9}
    normals = np.full((8, 8, 3), 128, dtype=np.uint8)
    normals[:, :4] = (255, 128, 128)
    normals[:, 4:] = (128, 255, 128)
    grown = restore_map(normals, crop, FORMS["tok_normal"])[..., :3].astype(np.float64) / 127.5 - 1
    assert np.linalg.norm(grown, axis=-1) == pytest.approx(np.ones((30, 47)), abs=0.02)


def test_a_mirrored_crop_turns_normals_back() -> None:
    crop = Crop((8, 8), 0, 0, 8, 8, mirrored=True)
    normals = np.zeros((8, 8, 3), dtype=np.uint8)
    normals[..., 0] = 200
    assert (restore_map(normals, crop, FORMS["tok_normal"])[..., 0] == 55).all()


def test_boxes_are_laid_back_like_pixels() -> None:
    crop = Crop((100, 200), 10, 60, 80, 80)
    assert crop.restore_box((0.0, 0.25, 0.5, 1.0)) == (60, 30, 100, 90)
    assert replace(crop, mirrored=True).restore_box((0.0, 0.25, 0.5, 1.0)) == (100, 30, 140, 90)
    padded = pad_crop(100, 200)
    assert padded.restore_box((0.0, 0.0, 1.0, 0.5)) == (0, 0, 200, 50)  # of a border nothing
    assert padded.restore_box((0.0, 0.0, 1.0, 0.2)) is None


@given(SIZES, st.integers(0, 2**32 - 1))
def test_a_border_repeats_the_edge_of_the_picture(whole, seed: int) -> None:
    crop, draw = pad_crop(*whole), np.random.default_rng(seed)
    before = -crop.top, -crop.left
    after = crop.height - whole[0] - before[0], crop.width - whole[1] - before[1]
    for value in (draw.integers(0, 256, (*whole, 3), dtype=np.uint8), draw.random(whole, dtype=np.float32)):
        borders = [*zip(before, after, strict=True), (0, 0)][: value.ndim]
        assert (cut(value, crop, crop.height) == np.pad(value, borders, mode="edge")).all()
    constant = np.full(whole, 77, dtype=np.uint8)
    assert (cut(constant, crop, 16, Resampling.BICUBIC) == 77).all()


def test_a_padded_square_is_that_of_the_whole_square_made_smaller() -> None:
    """Though the border is added between the resizing of one axis and the other."""
    picture = np.random.default_rng(0).integers(90, 166, (90, 140, 3), dtype=np.uint8)
    for value in (picture, picture.transpose(1, 0, 2).copy()):
        crop = pad_crop(*value.shape[:2])
        borders = [(-crop.top,) * 2, (-crop.left,) * 2, (0, 0)]
        square = Image.fromarray(np.pad(value, borders, mode="edge")).resize((64, 64), Resampling.BICUBIC)
        found = cut(value, crop, 64, Resampling.BICUBIC).astype(np.int64)
        assert np.abs(found - np.asarray(square)).max() <= 1  # rounded once more
    labels = picture[..., 0]
    crop = pad_crop(*labels.shape)
    square = np.pad(labels, [(-crop.top,) * 2, (0, 0)], mode="edge")
    assert (
        cut(labels, crop, 64) == np.asarray(Image.fromarray(square).resize((64, 64), Resampling.NEAREST))
    ).all()


def test_a_long_picture_takes_no_square_of_its_length() -> None:
    strip = np.zeros((3, 1 << 20), dtype=np.uint8)
    assert cut(strip, pad_crop(*strip.shape), 8).shape == (8, 8)
    back = restore_map(np.zeros((8, 8), dtype=np.float32), pad_crop(*strip.shape), FORMS["tok_depth"])
    assert back.shape == strip.shape
    assert not np.isnan(back).any()
    with pytest.raises(SampleError, match="too long for a square"):
        cut(strip, pad_crop(*strip.shape), 224)


def test_only_the_smallest_square_around_a_picture_is_padded() -> None:
    picture = np.full((4, 8), 9, dtype=np.uint8)
    assert (cut(picture, pad_crop(4, 8), 8) == 9).all()
    others = [
        Crop((4, 8), -2, 0, 8, 8, mirrored=True),
        Crop((4, 8), -1, 0, 8, 8),
        Crop((4, 8), -3, -1, 10, 10),
    ]
    for crop in others:
        assert (cut(picture, crop, 8) == 0).any()
    assert not pad_crop(5, 5).is_padded


def test_what_is_not_known_is_drawn_in_light_grey() -> None:
    """And does not shift the colours of what is known."""
    depth = np.array([[np.nan, 5.0], [6.0, 7.0]], dtype=np.float32)
    painted = turbo(depth)
    assert painted[0, 0].tolist() == [UNKNOWN] * 3
    assert (painted.reshape(-1, 3)[1:] == turbo(depth.reshape(-1)[None, 1:])[0]).all()
    assert (turbo(np.full((2, 2), np.nan)) == UNKNOWN).all()
    for name, channels in (("tok_rgb@224", 4), ("tok_canny_edge@224", 2)):
        codec = build_codec(RELEASED.get(name))
        value = np.full((2, 2, channels), 10, dtype=np.uint8)
        value[0, :, -1], value[1, :, -1] = 0, 255
        shown = np.asarray(codec.picture(value))
        assert shown.shape == (2, 2, 3)
        assert (shown[0] == UNKNOWN).all()
        assert (shown[1] == 10).all()


BINS = 64
NUMBERS = st.integers(0, BINS - 1)


@given(
    SIZES, st.booleans(), st.booleans(), st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=4)
)
def test_restored_boxes_are_read_as_the_boxes_that_the_model_wrote(
    whole, padded: bool, mirrored: bool, numbers
) -> None:
    """Those that lie in the picture; in a border there is nothing to keep."""
    square = pad_crop(*whole) if padded else centre_crop(*whole)
    crop, grammar = replace(square, mirrored=mirrored and not padded), box_grammar(BoxRules(BINS))
    words = [" ".join(f"v{axis}={number}" for axis, number in enumerate(box)) + " cat" for box in numbers]
    boxes = grammar.understand(" ".join(words)).value
    restored = grammar.restore(boxes, crop)
    for box in restored:
        assert 0 <= box.xmin < box.xmax <= 1
        assert 0 <= box.ymin < box.ymax <= 1
    again = grammar.from_json(json.loads(json.dumps(grammar.to_json(restored))), crop)
    if not padded:
        assert sorted(grammar.to_pieces(again)) == sorted(
            grammar.to_pieces(grammar.from_json(grammar.to_json(boxes), None))
        )
    assert len(again) <= len(restored) <= len(boxes)


def test_people_come_back_in_pixels_of_the_whole_picture() -> None:
    turn = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    person = Person((28.0, 112.0, 84.0, 168.0), turn, (0,) * 8, (0.0,) * 10, (1.0, 0.5, 0.0))
    for crop in (
        Crop((300, 500), 20, 100, 224, 224),
        pad_crop(300, 500),
        Crop((300, 500), 0, 40, 100, 80, True),
    ):
        (restored,) = restore_people((person,), crop)
        (again,) = people_from_json(json.loads(json.dumps(people_to_json((restored,)))), crop)
        assert again.box == pytest.approx(person.box)
        assert (again.camera, again.pose_codes) == (person.camera, person.pose_codes)
    (restored,) = restore_people((person,), Crop((300, 500), 20, 100, 224, 224))
    assert restored.box == (128, 132, 184, 188)
    above = replace(person, box=(0.0, 0.0, 50.0, 20.0))
    assert restore_people((above,), pad_crop(100, 500)) == ()  # in the border alone


def test_people_of_a_large_picture_are_read_whole_from_files_and_memory_and_drawn_in_the_square(
    tmp_path: Path,
) -> None:
    """Equal from both; in the model's square only where they are drawn. Other values have no such square."""
    row, crop = RELEASED.get("human_poses"), Crop((600, 900), 0, 300, 600, 600)
    codec = StructuredCodec(
        row, HUMAN_POSES, WordPiece.load(find_model("demo").text_tokenizer or Path()), draw_figures
    )
    turn = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    seen = Person((28.0, 112.0, 84.0, 168.0), turn, (0,) * 8, (0.0,) * 10, (1.0, 0.5, 0.0))
    whole = codec.restore(Structured((seen,)), crop)
    assert whole.value[0].box == (375.0, 300.0, 525.0, 450.0)
    (tmp_path / "a.json").write_bytes(codec.pack(whole))
    assert codec.read_whole(tmp_path / "a.json").value == whole.value
    for held in (whole, whole.value, json.loads((tmp_path / "a.json").read_text())):
        assert take_whole(codec, held, "human_poses").value == whole.value
    (drawn,) = in_square(row, crop, whole).value
    assert drawn.box == pytest.approx(seen.box)
    assert np.array_equal(codec.picture(in_square(row, crop, whole)), codec.picture(Structured((drawn,))))
    for name in ("det", "metadata", "color_palette", "sam_instance", "tok_rgb@224"):
        assert in_square(RELEASED.get(name), crop, whole) is whole

"""Vectors of outside encoders: recorded files, the right caption, and files that hold something else."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourm.codecs.files import MAX_MEMBER_BYTES, read_members
from fourm.codecs.table import build_codec
from fourm.codecs.texts import EmbeddingCodec
from fourm.data.layout import Crop
from fourm.errors import SampleError
from fourm.modalities.registry import RELEASED, Kind, Modality

FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
Array = NDArray[Any]


@pytest.fixture
def codec() -> EmbeddingCodec:
    return EmbeddingCodec(Modality("t5_caption", Kind.EMBEDDING, 5, embedding_width=8, title="T5 XXL"))


def crop(number: int) -> Crop:
    return Crop((10, 10), 0, 0, 10, 10, number=number)


def packed(path: Path, **arrays: Array) -> Path:
    np.savez(path, **arrays)
    return path


def test_recorded_samples_are_read_as_recorded(golden: Path, codec: EmbeddingCodec) -> None:
    data = golden / "data"
    arrays = np.load(data / "mini_dataset.npz")
    for case in json.loads((data / "mini_dataset.json").read_text())["with_tokens"]:
        path = data / "mini_dataset" / "t5_caption" / "x" / f"{case['file_name']}.npz"
        vectors = codec.read(path, crop(case["crop_number"]))
        assert list(vectors.shape) == case["t5_rows"]
        np.testing.assert_allclose(vectors, arrays[f"{case['index']}_{case['crop_number']}/t5"], rtol=1e-6)
        # The first caption stands for crops that the file lacks, and for the whole picture.
        assert np.array_equal(codec.read(path, crop(7)), codec.read(path))
        assert np.array_equal(codec.read(path), codec.read(path, crop(0)))


@FEW
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_vectors_survive_their_files_and_as_many_as_fit_their_slots(
    codec: EmbeddingCodec, tmp_path: Path, count: int, seed: int
) -> None:
    value = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    (tmp_path / "x.npz").write_bytes(codec.pack(value))
    assert np.array_equal(codec.read(tmp_path / "x.npz"), value)
    slot = codec.encode([value, value[:1]])
    assert slot.values.shape == (2, 5, 8)
    assert slot.known.sum(dim=1).tolist() == [min(count, 5), 1]
    assert not bool(slot.wanted.any())
    assert not bool(slot.values[~slot.known].any())
    assert np.array_equal(codec.decode(slot)[0], value[:5])


def test_equal_vectors_give_equal_files_whenever_they_are_written(
    codec: EmbeddingCodec, tmp_path: Path
) -> None:
    (tmp_path / "x.npz").write_bytes(codec.pack(np.ones((2, 8), dtype=np.float32)))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_half_precision_and_packed_archives_are_read(codec: EmbeddingCodec, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(
        path, emb=np.ones((1, 3, 8), dtype=np.float16), mask_valid=np.array([[True, False, True]])
    )
    vectors = codec.read(path)
    assert (vectors.shape, vectors.dtype) == ((2, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask_valid": np.ones((1, 2))}, "holds no array 'emb'"),
        ({"emb": np.ones((1, 2, 8))}, "holds no array 'mask_valid'"),
        ({"emb": np.ones((2, 8)), "mask_valid": np.ones(2)}, r"'emb' of shape \(2, 8\)"),
        ({"emb": np.ones((0, 2, 8)), "mask_valid": np.ones((0, 2))}, r"'emb' of shape \(0, 2, 8\)"),
        ({"emb": np.ones((1, 2, 8)), "mask_valid": np.ones((1, 3))}, r"'mask_valid' of shape \(1, 3\)"),
        ({"emb": np.ones((1, 2, 4)), "mask_valid": np.ones((1, 2))}, "vectors of 4 numbers, .* has 8"),
        ({"emb": np.ones((1, 2, 8)), "mask_valid": np.zeros((1, 2))}, "no vector of caption 0 is valid"),
        ({"emb": np.ones((1, 2, 8)), "mask_valid": np.full((1, 2), 2)}, "must hold zeros and ones"),
        ({"emb": np.full((1, 2, 8), np.nan), "mask_valid": np.ones((1, 2))}, "no finite numbers"),
        ({"emb": np.full((1, 2, 8), 1e300), "mask_valid": np.ones((1, 2))}, "no finite numbers"),
        ({"emb": np.full((1, 2, 8), None), "mask_valid": np.ones((1, 2))}, "'emb': .* never loaded"),
    ],
)
def test_archives_that_hold_no_vectors_are_refused(
    codec: EmbeddingCodec, tmp_path: Path, arrays: dict[str, Array], message: str
) -> None:
    with pytest.raises(SampleError, match=rf"x\.npz: .*{message}") as caught:
        codec.read(packed(tmp_path / "x.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_invalid_rows_may_hold_anything(codec: EmbeddingCodec, tmp_path: Path) -> None:
    embeddings = np.full((1, 2, 8), np.nan)
    embeddings[0, 1] = 1.0
    path = packed(tmp_path / "x.npz", emb=embeddings, mask_valid=np.array([[0, 1]]))
    assert np.array_equal(codec.read(path), np.ones((1, 8), dtype=np.float32))


def test_a_pickle_in_an_archive_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("emb.npy", pickle.dumps(Trap()))
    with pytest.raises(SampleError, match=r"x\.npz: 'emb': not a \.npy file"):
        read_members(tmp_path / "x.npz", "emb")
    assert not (tmp_path / "sprung").exists()


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("emb.npy", "w", force_zip64=True) as file,
    ):
        for _ in range((MAX_MEMBER_BYTES >> 20) + 2):
            file.write(bytes(1 << 20))
    assert (tmp_path / "x.npz").stat().st_size < 1 << 20
    with pytest.raises(SampleError, match="'emb' is more than 256 MiB"):
        read_members(tmp_path / "x.npz", "emb")


@FEW
@given(data=st.data())
def test_spoilt_archives_are_never_more_than_a_sample_error(
    codec: EmbeddingCodec, tmp_path: Path, data: st.DataObject
) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, emb=np.ones((2, 3, 8)), mask_valid=np.ones((2, 3), dtype=np.int64))
    spoilt = bytearray(stream.getvalue()[: data.draw(st.integers(0, len(stream.getvalue())))])
    for _ in range(data.draw(st.integers(0, 6)) if spoilt else 0):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.npz"
    path.write_bytes(spoilt or data.draw(st.binary(max_size=50)))
    try:
        codec.read(path)
    except SampleError as error:
        message = str(error)
    else:
        return
    assert message.startswith(f"{path}: ")


def test_the_released_row_has_a_codec_whose_pictures_say_what_there_is(codec: EmbeddingCodec) -> None:
    released = build_codec(RELEASED.get("t5_caption"))
    slot = released.encode([np.ones((80, 4096), dtype=np.float32)])
    assert slot.values.shape == (1, 77, 4096)
    assert bool(slot.known.all())
    card = codec.picture(np.ones((3, 8), dtype=np.float32))
    assert card.size == (224, 224)
    assert torch.tensor(card.getextrema()).tolist() != [[255, 255]] * 3

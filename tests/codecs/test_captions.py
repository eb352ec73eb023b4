"""The table of codecs, and captions: files, ids, what is cut and what is refused."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from fourm.codecs.table import build_codec
from fourm.codecs.texts import CaptionCodec
from fourm.data.layout import Crop, centre_crop
from fourm.errors import SampleError, UsageError
from fourm.modalities.registry import RELEASED, Kind, Modality
from fourm.modalities.text import RESERVED, WordPiece

Array = NDArray[Any]
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    """Eight words, after the special tokens of every 4M text tokenizer."""
    tokens = [
        *RESERVED,
        *(f"[S_{k}]" for k in range(4)),
        "a",
        "small",
        "red",
        "blue",
        "circle",
        "square",
        "above",
        "below",
    ]
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    path = tmp_path_factory.mktemp("text") / "text_tokenizer.json"
    tokenizer.save(str(path))
    return WordPiece.load(path)


@pytest.fixture
def caption(wordpiece: WordPiece) -> CaptionCodec:
    row = Modality("caption", Kind.SEQUENCE, 8, 16, codec="caption", folder="caption", suffix=".txt")
    return build_codec(row, wordpiece=wordpiece)


def refusal(reader: Callable[[Path], Any], path: Path) -> None:
    """Reading gives a value, or a SampleError that names the file; nothing else."""
    try:
        reader(path)
    except SampleError as error:
        message = str(error)
    else:
        return
    assert str(path) in message


def test_every_released_modality_has_a_codec(wordpiece: WordPiece) -> None:
    for row in RELEASED.rows.values():
        codec = build_codec(row, wordpiece=wordpiece)
        assert all(callable(getattr(codec, name)) for name in ("read", "pack", "encode", "decode", "picture"))


def test_a_caption_needs_a_text_tokenizer() -> None:
    with pytest.raises(UsageError, match="without a text tokenizer"):
        build_codec(Modality("caption", Kind.SEQUENCE, 8, 16, codec="caption"))


def test_recorded_caption_files_are_read_as_recorded(
    golden: Path, tmp_path: Path, caption: CaptionCodec
) -> None:
    cases = json.loads((golden / "data" / "mini_dataset.json").read_text(encoding="utf-8"))["caption_files"]
    assert len(cases) == 10
    for case in cases:
        path, content = tmp_path / case["file"], case["content"]
        data = content if path.suffix == ".txt" else json.dumps(content)
        path.write_bytes(gzip.compress(data.encode()) if path.suffix == ".gz" else data.encode())
        crop = None if case["crop_number"] is None else Crop((9, 9), 0, 0, 9, 9, number=case["crop_number"])
        if case["text"] is not None:
            assert caption.read(path, crop) == case["text"]
        elif content:  # the reference wants one caption for each crop; here the first stands for what lacks
            assert caption.read(path, crop) == content[0]
        else:
            with pytest.raises(SampleError, match=case["file"]):
                caption.read(path, crop)


def test_recorded_samples_have_the_recorded_captions(golden: Path, caption: CaptionCodec) -> None:
    recorded = json.loads((golden / "data" / "mini_dataset.json").read_text(encoding="utf-8"))
    for case in recorded["with_tokens"]:
        path = golden / "data" / "mini_dataset" / "caption" / "x" / f"{case['file_name']}.json"
        assert caption.read(path, Crop((9, 9), 0, 0, 9, 9, number=case["crop_number"])) == case["caption"]


def test_caption_files_are_told_apart_by_extensions_of_any_case(
    tmp_path: Path, caption: CaptionCodec
) -> None:
    for name, data in (
        ("a.TXT", b'"a dog"'),
        ("b.JSON", b'"a dog"'),
        ("c.Json.Gz", gzip.compress(b'{"caption": "a dog"}')),
    ):
        (tmp_path / name).write_bytes(data)
        assert caption.read(tmp_path / name) == ('"a dog"' if name == "a.TXT" else "a dog")


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"caption": 3}', "[[]]", "nonsense", "", '"\\ud800"'])
def test_json_without_a_caption_is_a_sample_error(
    tmp_path: Path, caption: CaptionCodec, content: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SampleError, match=r"x\.json"):
        caption.read(tmp_path / "x.json")


@FEW
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".json", ".json.gz"]))
def test_captions_of_random_bytes_are_text_or_sample_errors(
    tmp_path: Path, caption: CaptionCodec, data: bytes, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    refusal(caption.read, path)


@FEW
@given(text=st.text().filter(lambda text: not any(mark in text for mark in ("[PAD]", "[SOS]", "[EOS]"))))
@example("\ufeffa mark in front")
def test_written_captions_read_back(tmp_path: Path, caption: CaptionCodec, text: str) -> None:
    caption = replace(caption, row=replace(caption.row, max_tokens=1000))  # long enough for any of them
    (tmp_path / "x.txt").write_bytes(caption.pack(text))
    assert caption.read(tmp_path / "x.txt") == text
    caption.picture(text)


def test_a_caption_is_known_up_to_its_end_and_decodes_to_itself(caption: CaptionCodec) -> None:
    texts = ["a small red circle above", "blue", ""]
    slot = caption.encode(texts)
    assert slot.values.shape == (3, 8)
    assert slot.known.sum(dim=1).tolist() == [6, 2, 1]
    assert not slot.wanted.any()
    assert caption.decode(slot) == texts


def test_a_caption_with_a_sentinel_is_partly_known_and_has_no_end(
    caption: CaptionCodec, wordpiece: WordPiece
) -> None:
    slot = caption.encode(["a red [S_1]"])
    assert slot.values[slot.known].tolist() == [*wordpiece.encode("a red"), wordpiece.sentinels[1]]


def test_a_caption_that_does_not_fit_is_a_sample_error(caption: CaptionCodec) -> None:
    with pytest.raises(SampleError, match=r"caption: 9 tokens, .* at most 8"):
        caption.encode(["a a a a a a a a"])


def test_a_caption_of_a_file_that_does_not_fit_is_cut_to_what_does(
    tmp_path: Path, caption: CaptionCodec
) -> None:
    (tmp_path / "x.txt").write_text("a small red circle\nabove a blue square below a circle\n")
    value = caption.read(tmp_path / "x.txt")
    assert value == "a small red circle\nabove a blue"
    slot = caption.encode([value])
    assert slot.known.all()
    assert caption.decode(slot) == ["a small red circle above a blue"]


def test_a_caption_of_a_file_that_is_to_be_completed_is_never_cut(
    tmp_path: Path, caption: CaptionCodec
) -> None:
    (tmp_path / "x.txt").write_text("[S_1] a a a a a a a a")
    with pytest.raises(SampleError, match="9 tokens"):
        caption.encode([caption.read(tmp_path / "x.txt")])


@pytest.mark.parametrize("mark", ["[PAD]", "[SOS]", "[EOS]"])
def test_a_caption_file_with_a_mark_of_the_model_is_refused(
    tmp_path: Path, caption: CaptionCodec, mark: str
) -> None:
    """What follows an end mark would never be read, and nobody would know."""
    (tmp_path / "x.txt").write_text(f"a red {mark} circle")
    with pytest.raises(SampleError, match=rf"x.txt: \{mark[:-1]}\] is reserved for the model"):
        caption.read(tmp_path / "x.txt")


def test_what_is_not_read_of_a_caption_file_is_told(tmp_path: Path, caption: CaptionCodec) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(["a red circle", "a zebra on a bike " + "a " * 8]))
    assert isinstance(caption, CaptionCodec)
    assert caption.notes(path) == ()
    crop = replace(centre_crop(9, 9), number=1)
    assert caption.notes(path, crop) == (
        "the model reads the first 7 of 13 tokens",
        "the model does not know 'zebra', 'on', 'bike'",
    )

"""Text to ids and back, sentinel spans, and which prompts are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.modalities.text import (
    EOS_ID,
    PAD_ID,
    WordPiece,
    check_prompt,
    encode_full,
    merge_spans,
    with_marks,
)


@pytest.fixture(scope="module")
def released(golden: Path) -> WordPiece:
    return WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_recorded_texts_have_the_recorded_ids_and_read_back_as_recorded(
    golden: Path, released: WordPiece
) -> None:
    cases = read(golden / "data" / "text_tokenizer.json")["encode"]
    cases += read(golden / "text_tokenizer" / "encode_cases.json")
    assert len(cases) > 25
    for case in cases:
        assert released.encode(case["text"]) == case["ids"], case["text"]
        assert released.decode(case["ids"]) == case["decoded_keep_special"]


def test_recorded_ids_have_the_recorded_text(golden: Path, released: WordPiece) -> None:
    for case in read(golden / "data" / "text_tokenizer.json")["decode"]:
        assert released.decode(case["ids"]) == case["keep_special"]


def test_the_vocabulary_is_the_released_one(golden: Path, released: WordPiece) -> None:
    recorded = read(golden / "data" / "text_tokenizer.json")
    vocabulary = recorded["vocabulary"]
    assert released.tokenizer.get_vocab_size() == vocabulary["size"]
    assert (vocabulary["pad"], vocabulary["eos"]) == (PAD_ID, EOS_ID)
    assert len(released.sentinels) == vocabulary["sentinels"]["count"]
    for number, token in recorded["sentinel_number_to_id_first10"].items():
        assert released.sentinels[int(number)] == token
    for word, token in (vocabulary["object_class_tokens"] | recorded["single_token_words"]).items():
        assert released.encode(word) == [token]


def test_recorded_spans_are_merged_as_recorded(golden: Path, released: WordPiece) -> None:
    for case in read(golden / "data" / "span_merge.json")["merge"]:
        assert merge_spans(case["input"], case["target"], released.sentinels) == case["merged"], case["id"]
    for case in read(golden / "data" / "span_merge.json")["span_masking"]:
        assert merge_spans(case["input"], case["target"], released.sentinels) == case["merged"]


def test_recorded_samples_read_as_recorded(golden: Path, released: WordPiece) -> None:
    rows = 0
    for case in read(golden / "data" / "span_merge.json")["decode_text"]:
        single = len(case["tensor"]) == 1
        for i, ids in enumerate(case["tensor"]):
            given = [t for t, hidden in zip(ids, case["input_mask"][i], strict=True) if not hidden]
            made = [t for t, hidden in zip(ids, case["target_mask"][i], strict=True) if not hidden]
            merged = merge_spans(given, made, released.sentinels)
            for name, found in (("input", given), ("target", made), ("merged", merged)):
                wanted = case[f"{name}_text"] if single else case[f"{name}_text"][i]
                assert released.decode(found) == wanted
            rows += 1
    assert rows == 5


def test_recorded_custom_texts_begin_with_the_recorded_ids(golden: Path, released: WordPiece) -> None:
    for case in read(golden / "data" / "conditioning.json")["custom_text"]:
        ids = released.encode(case["text"])
        assert released.decode(ids) == case["decoded"]["input"], case["id"]
        assert released.encode(case["start_token"]) == ids[-1:] or not case["text"].endswith(
            case["start_token"]
        )


def test_recorded_rows_are_merged_as_recorded_where_the_reference_is_right(
    golden: Path, released: WordPiece
) -> None:
    recorded = read(golden / "fm" / "sampling" / "spans.json")
    assert list(released.sentinels) == recorded["sentinel_ids"]
    for case in recorded["merge_span"]:
        assert merge_spans(case["input"], case["predicted"], released.sentinels) == case["merged"]
    rows = 0
    for case in recorded["merge_batched"]:
        for i, ids in enumerate(case["tensor"]):
            masks = zip(ids, case["input_mask"][i], strict=True)
            visible = [token for token, hidden in masks if not hidden] or [released.sentinels[1]]
            merged = merge_spans(visible, case["predicted"][i], released.sentinels)
            padding = zip(case["merged_tensor"][i], case["merged_input_mask"][i], strict=True)
            if "defect" not in case or "nothing generated" in case["defect"]:
                assert merged == [token for token, hidden in padding if not hidden]
                rows += 1
    assert rows >= 5


@pytest.mark.parametrize(
    ("visible", "predicted", "merged"),
    [
        ([5], [5, 100, 101, 3, 6], [100, 101, 3]),
        ([100, 5, 101, 6, 102], [5, 200, 201, 6, 202, 7], [100, 200, 201, 101, 202, 102]),
        ([5], [200, 201, 6], []),
        ([5, 6], [6, 300, 5, 301], [301, 300]),
        ([5], [5, 100, 6, 101, 5, 102], [100, 102]),
    ],
)
def test_sentinels_are_replaced_by_what_they_own(
    visible: list[int], predicted: list[int], merged: list[int]
) -> None:
    assert merge_spans(visible, predicted, range(4, 20)) == merged


@given(st.lists(st.integers(0, 12)), st.lists(st.integers(0, 12)))
def test_a_merge_holds_all_ordinary_tokens_and_no_sentinel(visible: list[int], predicted: list[int]) -> None:
    merged = merge_spans(visible, predicted, range(4, 8))
    assert not set(merged) & set(range(4, 8))
    rest = iter(merged)
    assert all(token in rest for token in visible if token not in range(4, 8))


def test_texts_read_back_without_padding_sentinels_and_what_follows_their_end(released: WordPiece) -> None:
    ids = [5, *released.encode("a dog on a couch"), 0, EOS_ID, 6, *released.encode("more")]
    assert released.text_of(ids) == "a dog on a couch"


def test_a_full_text_ends_and_a_partial_one_does_not(released: WordPiece) -> None:
    assert encode_full("a lake", released)[-1] == EOS_ID
    assert encode_full("a lake [S_1]", released)[-1] == released.sentinels[1]


@given(text=st.text() | st.text("abc déÀ中.,'-=v0 [S_1]"), count=st.integers(0, 12))
def test_the_beginning_of_a_text_is_its_first_ids(released: WordPiece, text: str, count: int) -> None:
    start = released.beginning(text, count)
    ids = released.encode(start)
    assert text.startswith(start)
    assert len(ids) <= count
    assert ids == released.encode(text)[: len(ids)]


@pytest.mark.parametrize(
    ("text", "count", "start"),
    [
        ("a nice restaurant in santorini", 3, "a nice restaurant"),
        ("Déjà  Café, again", 3, "Déjà  Café"),
        ("a  dog", 9, "a  dog"),
        ("a dog", 0, ""),
        ("[S_1]2", 5, "[S_1"),
        ("two dining tables", 2, "two dining"),
    ],
)
def test_a_text_is_cut_between_two_ids(released: WordPiece, text: str, count: int, start: str) -> None:
    assert released.beginning(text, count) == start


def test_words_that_the_vocabulary_lacks_are_named(released: WordPiece) -> None:
    assert released.unknown_words("a 🙂 dog ’") == ["🙂", "’"]
    assert released.unknown_words("a dog") == []


def test_bytes_that_are_no_text_are_read_as_unknown(released: WordPiece) -> None:
    assert released.encode("a \udcff dog")


def test_a_prompt_that_fits_is_accepted(released: WordPiece) -> None:
    check_prompt("a small dog [S_1]", released, 5)
    check_prompt("one two three four", released, 5)


def test_a_prompt_that_is_too_long_is_refused_with_both_counts(released: WordPiece) -> None:
    with pytest.raises(UsageError, match=r"'one two three four five': 6 tokens .* at most 5"):
        check_prompt("one two three four five", released, 5)
    with pytest.raises(UsageError, match=r"'dog dog .*\.\.\.'"):
        check_prompt("dog " * 300, released, 256)


@pytest.mark.parametrize("token", ["[PAD]", "[UNK]", "[SOS]", "[EOS]"])
def test_reserved_tokens_in_a_prompt_are_refused(released: WordPiece, token: str) -> None:
    with pytest.raises(UsageError, match=rf"\{token[:-1]}\] is reserved"):
        check_prompt(f"a dog{token} on a couch", released, 256)


def test_files_that_are_no_text_tokenizer_are_refused(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not here"):
        WordPiece.load(tmp_path / "none.json")
    for content in (b"", b"{}", b"\xff\xfe\x00", b'{"model": 3}'):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.json: not a text tokenizer"):
            WordPiece.load(tmp_path / "bad.json")
    text = (golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json").read_text(encoding="utf-8")
    (tmp_path / "other.json").write_text(text.replace("[SOS]", "[CLS]"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"\[SOS\] must have id 2"):
        WordPiece.load(tmp_path / "other.json")


def test_a_file_that_has_nothing_for_unknown_words_is_refused(tiny: Path, tmp_path: Path) -> None:
    for name, model in {
        "WordLevel": {"unk_token": "[ZZZ]"},
        "Unigram": {"vocab": [["a", -1.0]], "unk_id": None},
    }.items():
        said = json.loads((tiny / "text_tokenizer.json").read_text())
        said["model"] = {**(said["model"] if name == "WordLevel" else {}), "type": name, **model}
        (tmp_path / "strange.json").write_text(json.dumps(said))
        with pytest.raises(CheckpointError, match=r"strange\.json: not a text tokenizer"):
            WordPiece.load(tmp_path / "strange.json")


def test_a_prompt_of_many_megabytes_is_refused_before_it_is_cut_into_tokens(released: WordPiece) -> None:
    with pytest.raises(UsageError, match="1,048,577 characters, but the model reads at most 256 tokens"):
        check_prompt("a" * ((1 << 20) + 1), released, 256)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("a red ___ on grass", "a red [S_1] on grass"),
        ("a ___ and a _____", "a [S_1] and a [S_2]"),
        ("a [S_3] and a ___", "a [S_3] and a [S_4]"),
        ("snake_case __ stays", "snake_case __ stays"),
    ],
)
def test_blanks_are_marks(text: str, marked: str) -> None:
    assert with_marks(text) == marked

"""Recorded conditions and targets: typed texts, empty targets, what loaders hand on, full inputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fourm.codecs.table import Codec, build_codec
from fourm.codecs.texts import EmbeddingCodec, StructuredCodec
from fourm.modalities.registry import RELEASED, Kind, Modality
from fourm.modalities.text import EOS_ID, Structured, WordPiece, encode_full, merge_spans
from fourm.networks.state import (
    Slot,
    full_embedding,
    full_grid,
    full_pixels,
    full_sequence,
    pending,
    typed_text,
)

Arrays = dict[str, NDArray[Any]]
# The reference loses [EOS] of what is too long and then conditions on [EOS] alone.
COLLAPSED = ("loader_3", "loader_7")


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "data" / "conditioning.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def arrays(golden: Path) -> Arrays:
    return dict(np.load(golden / "data" / "conditioning.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def released(golden: Path) -> WordPiece:
    return WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")


def open_in(arrays: Arrays, case: str, mask: str) -> torch.Tensor:
    """A recorded mask with True where the recorded one has False: used, wanted."""
    return torch.from_numpy(arrays[f"{case}/{mask}"] == 0)


def value_of(codec: Codec, recorded: Any) -> Any:
    """A recorded text as the value that it means."""
    text = " ".join(recorded) if isinstance(recorded, list) else recorded
    if not isinstance(codec, StructuredCodec):
        return text
    value, problems = codec.grammar.parse(text)
    assert not problems
    return Structured(value)


def shown(slot: Slot, row: int = 0) -> list[int]:
    """The ids of a row that the model reads."""
    return slot.values[row][slot.known[row]].tolist()


def test_typed_texts_are_known_as_they_stand_and_followed_by_the_recorded_room(
    recorded: dict[str, Any], arrays: Arrays, released: WordPiece
) -> None:
    assert len(recorded["custom_text"]) == 7
    for case in recorded["custom_text"]:
        ids = torch.tensor([released.encode(case["text"])])
        (start,) = released.encode(case["start_token"])
        slot = typed_text(ids, case["target_max_len"], start)
        assert torch.equal(slot.values, torch.from_numpy(arrays[f"{case['id']}/tensor"]).long())
        assert torch.equal(slot.known, open_in(arrays, case["id"], "input_mask"))
        assert torch.equal(slot.wanted, open_in(arrays, case["id"], "target_mask"))
        asked = slot.values[0][slot.wanted[0]].tolist()
        merged = merge_spans(shown(slot), asked, released.sentinels)
        for name, found in (("input", shown(slot)), ("target", asked), ("merged", merged)):
            assert released.decode(found) == case["decoded"][name].rstrip(" ")


def test_a_typed_text_as_condition_of_a_second_model_is_the_text_without_its_room(
    recorded: dict[str, Any], arrays: Arrays, released: WordPiece
) -> None:
    """The reference shows the second model all the padding as well, up to the last token."""
    text = recorded["custom_text"][0]["text"]
    ids = released.encode(text)
    slot = typed_text(torch.tensor([ids]))
    assert shown(full_sequence(slot.values, slot.known)) == ids == encode_full(text, released)
    assert int(open_in(arrays, "custom_text_0_then_full_input", "input_mask").sum()) == len(ids) + 50


def test_empty_targets_are_the_recorded_ones(recorded: dict[str, Any], arrays: Arrays) -> None:
    assert len(recorded["empty_target"]) == 12
    for case in recorded["empty_target"]:
        kind = RELEASED.get(case["modality"]).kind
        if kind is Kind.EMBEDDING:  # an input only; the reference makes a text of it
            with pytest.raises(ValueError, match="cannot be decoded"):
                pending(kind, case["batch_size"], case["num_tokens"])
            continue
        slot = pending(kind, case["batch_size"], case["num_tokens"])
        assert torch.equal(slot.values, torch.from_numpy(arrays[f"{case['id']}/tensor"]).long())
        assert torch.equal(slot.known, open_in(arrays, case["id"], "input_mask"))
        assert torch.equal(slot.wanted, open_in(arrays, case["id"], "target_mask"))


@pytest.mark.parametrize("name", ["caption", "det", "metadata", "color_palette"])
def test_values_of_files_are_shown_as_the_recorded_ids(
    recorded: dict[str, Any], arrays: Arrays, released: WordPiece, name: str
) -> None:
    row = RELEASED.get(name)
    codec = build_codec(row, wordpiece=released)
    cases = [case for case in recorded["loader_then_full_input"] if case["modality"] == name]
    assert cases
    for case in (case for case in cases if case["id"] not in COLLAPSED):
        slot = codec.encode([value_of(codec, case["value"])])
        ids = torch.from_numpy(arrays[f"{case['id']}_full_input/tensor"])[0]
        known = open_in(arrays, f"{case['id']}_full_input", "input_mask")[0]
        assert shown(slot) == ids[known].tolist()
        assert shown(slot)[:10] == case["used_ids_first10"][: case["used_tokens"]]
        assert slot.values.shape == (1, row.max_tokens)
        assert not bool(slot.wanted.any())


def test_a_caption_file_of_too_many_tokens_is_cut_and_ended(
    recorded: dict[str, Any], released: WordPiece, tmp_path: Path
) -> None:
    (case,) = [case for case in recorded["loader_then_full_input"] if case["id"] == "loader_3"]
    codec = build_codec(RELEASED.get("caption"), wordpiece=released)
    (tmp_path / "x.txt").write_text(case["value"])
    ids = released.encode(case["value"])
    assert shown(codec.encode([codec.read(tmp_path / "x.txt")])) == [*ids[:255], EOS_ID]


def test_metadata_of_too_many_tokens_is_cut_between_two_fields_and_ended(
    recorded: dict[str, Any], released: WordPiece
) -> None:
    (case,) = [case for case in recorded["loader_then_full_input"] if case["id"] == "loader_7"]
    codec = build_codec(RELEASED.get("metadata"), wordpiece=released)
    ids = released.encode(" ".join(case["value"]))
    assert len(ids) == 42
    assert shown(codec.encode([value_of(codec, case["value"])])) == [*ids[:38], EOS_ID]


def test_recorded_grids_are_shown_whole(recorded: dict[str, Any], arrays: Arrays) -> None:
    for case in recorded["loader_then_full_input"]:
        if RELEASED.get(case["modality"]).kind is Kind.GRID:
            slot = full_grid(torch.from_numpy(arrays[f"{case['id']}/value"])[None])
            assert torch.equal(slot.known, open_in(arrays, f"{case['id']}_full_input", "input_mask"))
            assert slot.values[0, :10].tolist() == case["used_ids_first10"]


def test_recorded_vectors_are_cut_and_padded_as_recorded(recorded: dict[str, Any], arrays: Arrays) -> None:
    codec = EmbeddingCodec(Modality("t5_caption", Kind.EMBEDDING, 77, embedding_width=4))
    cases = [case for case in recorded["loader_then_full_input"] if case["modality"] == "t5_caption"]
    assert [len(arrays[f"{case['id']}/value"]) for case in cases] == [3, 80]
    for case in cases:
        value = arrays[f"{case['id']}/value"].astype(np.float32)
        slot = codec.encode([value])
        assert torch.allclose(slot.values[0], torch.from_numpy(arrays[f"{case['id']}_loaded/tensor"]).float())
        assert torch.equal(slot.known[0], open_in(arrays, f"{case['id']}_loaded", "input_mask"))
        assert int(slot.known.sum()) == min(len(value), 77)


def test_recorded_full_inputs_are_known_as_recorded(
    recorded: dict[str, Any], arrays: Arrays, released: WordPiece
) -> None:
    cases = {case["id"]: case for case in recorded["full_input_only"]}
    prompts = [case for case in cases.values() if "prompt" in case]
    assert len(prompts) == 3
    for case in prompts:
        known = open_in(arrays, case["id"], "input_mask")[0]
        ids = torch.from_numpy(arrays[f"{case['id']}/tensor"])[0]
        assert encode_full(case["prompt"], released) == ids[known].tolist()
    assert torch.equal(
        full_pixels(torch.zeros(cases["full_rgb"]["tensor_shape"]), 16).known,
        open_in(arrays, "full_rgb", "input_mask"),
    )
    valid = torch.from_numpy(arrays["full_t5/mask_valid"]).bool()
    slot = full_embedding(torch.zeros(cases["full_t5"]["tensor_shape"]), valid)
    assert torch.equal(slot.known, open_in(arrays, "full_t5", "input_mask"))


def test_every_row_of_a_recorded_batch_ends_at_its_own_end(arrays: Arrays) -> None:
    """The reference ends both rows where the first one ends."""
    ids = torch.from_numpy(arrays["full_batch_two_lengths/tensor"])
    slot, theirs = full_sequence(ids), open_in(arrays, "full_batch_two_lengths", "input_mask")
    assert torch.equal(slot.known[0], theirs[0])
    assert not torch.equal(slot.known[1], theirs[1])
    ends = [row.tolist().index(3) for row in ids]
    assert [shown(slot, i) for i in (0, 1)] == [ids[i, : ends[i] + 1].tolist() for i in (0, 1)]

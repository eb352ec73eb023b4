"""States of targets and conditions equal the recorded ones; slots and batches never change in place."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourm.modalities.registry import RELEASED, Kind
from fourm.networks.state import Batch, Slot, full_grid, full_sequence, pending, stack_batches, typed_text

Entry = dict


def entries(golden: Path, op: str) -> list[Entry]:
    found = json.loads((golden / "fm" / "sampling" / "states.json").read_text())
    chosen = [entry for entry in found if entry["op"] == op]
    assert chosen, f"nothing is recorded of {op}"
    return chosen


def recorded(entry: Entry, name: str) -> Tensor:
    return torch.tensor(entry["result"][name]["values"])


def agrees(slot: Slot, entry: Entry) -> None:
    """Known places and what stands there; recorded masks mean True = hidden."""
    known = recorded(entry, "input_mask") == 0
    assert torch.equal(slot.known, known)
    values = recorded(entry, "tensor")
    assert torch.equal(slot.values[known], values[known].to(slot.values.dtype))


def test_a_pending_target_is_the_recorded_one(golden: Path) -> None:
    for entry in entries(golden, "init_empty_target"):
        args = entry["args"]
        kind = RELEASED.get(args["domain"]).kind
        if kind is Kind.EMBEDDING:
            with pytest.raises(ValueError, match="cannot be decoded"):
                pending(kind, args["batch_size"], args["num_tokens"])
            continue
        slot = pending(kind, args["batch_size"], args["num_tokens"])
        agrees(slot, entry)
        assert torch.equal(slot.values, recorded(entry, "tensor").long())
        assert torch.equal(slot.wanted, recorded(entry, "target_mask") == 0)


def test_a_text_as_condition_is_known_where_the_recorded_one_is(golden: Path) -> None:
    for entry in entries(golden, "init_full_input"):
        kind = RELEASED.get(entry["args"]["domain"]).kind
        if "defect" in entry or kind is not Kind.SEQUENCE:
            continue
        agrees(full_sequence(torch.tensor(entry["input"]["tensor"])), entry)


def test_every_row_of_texts_ends_at_its_own_end() -> None:
    slot = full_sequence(
        torch.tensor([[30, 31, 3, 0, 0], [30, 3, 0, 0, 0], [30, 31, 32, 33, 34], [30, 3, 31, 3, 0]])
    )
    assert slot.known.sum(dim=1).tolist() == [3, 2, 5, 2]
    assert not bool(slot.wanted.any())


def test_a_hidden_image_tells_nothing(golden: Path) -> None:
    for entry in entries(golden, "empty_img"):
        ids = torch.tensor(entry["input"]["tensor"])
        if ids.ndim == 2:
            agrees(full_grid(ids).hide(), entry)


def test_a_hidden_text_keeps_one_marker(golden: Path) -> None:
    for entry in entries(golden, "empty_seq"):
        ids = torch.tensor(entry["input"]["tensor"])
        slot = full_sequence(ids).hide()
        if "error" not in entry:
            agrees(slot, entry)
        assert slot.values[slot.known].tolist() == [5] * ids.shape[0]


def test_a_hidden_embedding_keeps_one_zero_vector(golden: Path) -> None:
    for entry in entries(golden, "empty_seq_emb"):
        vectors = torch.tensor(entry["input"]["tensor"]).float()
        known = torch.tensor(entry["input"]["input_mask"]) == 0
        agrees(Slot(Kind.EMBEDDING, vectors, known, torch.zeros_like(known)).hide(), entry)


def test_a_typed_text_has_the_recorded_places_to_decode(golden: Path) -> None:
    for entry in entries(golden, "custom_text"):
        if "error" in entry or "defect" in entry:
            continue
        values = recorded(entry, "tensor").long()
        room = entry["args"]["target_max_len"]
        length = values.shape[1] - room
        slot = typed_text(values[:, :length], room, int(values[0, length]), int(values[0, -1]))
        agrees(slot, entry)
        assert torch.equal(slot.values, values)
        assert torch.equal(slot.wanted, recorded(entry, "target_mask") == 0)


def test_fill_leaves_the_old_slot_alone() -> None:
    old = pending(Kind.GRID, 2, 4)
    new = old.fill(torch.tensor([[1], [3]]), torch.tensor([[7], [8]]))
    assert not bool(old.known.any())
    assert new.values[0, 1] == 7
    assert new.known.sum() == 2
    assert not bool((new.known & new.wanted).any())


def test_a_batch_has_as_many_rows_in_every_slot() -> None:
    with pytest.raises(ValueError, match="1 rows for 2 samples"):
        Batch(("a", "b"), {"tok_rgb@224": full_grid(torch.zeros(1, 4, dtype=torch.int64))})


def test_stacked_batches_keep_their_rows_in_order() -> None:
    one = Batch(("a", "b"), {"x": full_grid(torch.tensor([[1], [2]]))})
    both = stack_batches([one, one.select(torch.tensor([1]))])
    assert both.keys == ("a", "b", "b")
    assert both.slots["x"].values[:, 0].tolist() == [1, 2, 2]
    assert both.num_known().tolist() == [1, 1, 1]

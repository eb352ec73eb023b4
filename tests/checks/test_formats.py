"""What is told of a file by its format: cut off anywhere, it is never taken for complete."""

from pathlib import Path

import numpy as np
import pytest

from fourm.checks.formats import Tokens, find_flaw


def test_arrays_in_archives_and_json_are_checked_by_their_formats(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", emb=np.ones((1, 3, 4)), mask_valid=np.ones((1, 3)))
    (tmp_path / "a.json").write_text('[{"boxes": [1, 2.5]}, "ü"]\n')
    for path in sorted(tmp_path.iterdir()):
        assert find_flaw(path) is None
        content = path.read_bytes()
        for end in range(1, len(content) - 2):
            path.write_bytes(content[:end])
            assert find_flaw(path) is not None, (path, end)
        path.write_bytes(content)
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert find_flaw(tmp_path / "a.json") is not None
    np.savez_compressed(tmp_path / "a.npz", emb=np.zeros(10**6))
    flaw = find_flaw(tmp_path / "a.npz")
    assert flaw is not None
    assert "compressed" in flaw.what


@pytest.mark.parametrize(
    ("ids", "tokens", "says"),
    [
        (np.array([[0, 5, 31]], np.int16), Tokens(3, 32), ""),
        (np.array([[0, 5, 40_000]], np.int32), Tokens(3, 50_000), ""),
        (np.array([[0, 5, 31]], np.int16), Tokens(), ""),
        (np.array([[0, 5, 31]], np.int16), Tokens(4, 32), "not one row of 4 tokens"),
        (np.array([[0, 5, 32]], np.int16), Tokens(3, 32), "beyond the vocabulary of 32"),
        (np.array([[0, -1, 31]], np.int16), Tokens(3), "below 0"),
        (np.array([[0, 5, 31]], np.int32), Tokens(3, 32), "int16"),
        (np.array([0, 5, 31], np.int16), Tokens(3, 32), "shape (3,)"),
    ],
)
def test_a_file_of_tokens_holds_one_row_of_the_right_number_within_the_vocabulary(
    tmp_path: Path, ids: np.ndarray, tokens: Tokens, says: str
) -> None:
    np.save(tmp_path / "a.npy", ids)
    flaw = find_flaw(tmp_path / "a.npy", tokens)
    assert (flaw is None) == (says == "")
    assert flaw is None or says in flaw.what

"""Nearest neighbours among features: exact, in any order, and told when folders do not fit together."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourm.errors import UsageError
from fourm.modalities.registry import RELEASED
from fourm.views.layout import text_block
from fourm.views.plots import draw_sheet
from fourm.views.retrieval import Features, Neighbour, as_rows, feature_row, load_features, nearest

Run = Callable[..., tuple[int, str, str]]


def features(count: int, channels: int, seed: int = 0) -> Features:
    vectors = np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)
    return Features(tuple(f"a/{i:03d}" for i in range(count)), vectors)


def write(root: Path, features: Features, folder: str = "clip") -> None:
    for key, vector in zip(features.keys, features.vectors, strict=True):
        path = root / folder / f"{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.broadcast_to(vector[:, None, None], (len(vector), 2, 3)).copy())


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30), st.integers(1, 5), st.integers(1, 40), st.sampled_from(["euclidean", "cosine"]),
    st.integers(0, 99),
)  # fmt: skip
def test_neighbours_are_those_of_the_definition(
    count: int, channels: int, wanted: int, metric: str, seed: int
) -> None:
    among, queries = features(count, channels, seed), features(3, channels, seed + 100)
    found = nearest(queries.vectors, among, wanted, metric)
    for query, row in zip(queries.vectors.astype(float), found, strict=True):
        by_hand = []
        for key, vector in zip(among.keys, among.vectors.astype(float), strict=True):
            cosine = 1 - query @ vector / (np.linalg.norm(query) * np.linalg.norm(vector))
            by_hand.append((np.linalg.norm(query - vector) if metric == "euclidean" else cosine, key))
        assert len(row) == min(wanted, count)
        expected = [d for d, _ in sorted(by_hand)[:wanted]]
        np.testing.assert_allclose([n.distance for n in row], expected, rtol=1e-9, atol=1e-9)


def test_the_order_of_a_folder_changes_nothing_and_equal_ones_go_by_name() -> None:
    among = Features(("b/1", "a/2", "a/1"), np.array([[1.0], [1.0], [0.0]], dtype=np.float32))
    query = np.array([[1.0]], dtype=np.float32)
    assert nearest(query, among, 3) == [[Neighbour("a/2", 0.0), Neighbour("b/1", 0.0), Neighbour("a/1", 1.0)]]


def test_maps_count_as_their_mean_and_spoilt_ones_are_told(tmp_path: Path) -> None:
    written = features(4, 3)
    write(tmp_path, written)
    (tmp_path / "clip" / "a" / "001.npy").write_bytes(b"junk")
    np.save(tmp_path / "clip" / "a" / "002.npy", np.zeros((7, 2, 2), np.float32))
    read = load_features(tmp_path, RELEASED.get("tok_clip@224"))
    assert read.keys == ("a/000", "a/003")
    np.testing.assert_allclose(read.vectors, written.vectors[[0, 3]], rtol=1e-6)
    assert [("001.npy" in p, "7 channels" in p) for p in read.problems] == [(True, False), (False, True)]


def test_the_five_nearest_are_told_as_data_and_as_a_table(run: Run, tiny: Path, tmp_path: Path) -> None:
    asked, library = features(2, 4, seed=1), features(8, 4)
    write(tmp_path / "asked", asked)
    write(tmp_path / "lib", library)
    words = ("retrieve", "asked", "--among", "lib", "--model", tiny)
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    wanted = as_rows(dict(zip(asked.keys, nearest(asked.vectors, library, 5), strict=True)))
    assert json.dumps(json.loads(out)) == json.dumps(wanted)
    rows = [line.split() for line in run(*words)[1].splitlines()]
    near = [(key, str(rank)) for key in asked.keys for rank in range(1, 6)]
    assert [(row[0], row[1]) for row in rows if row and row[0] in asked.keys] == near


def test_features_are_found_by_modality_tokens_and_values() -> None:
    for name in ("dinov2_global", "tok_dinov2_global"):
        assert feature_row(RELEASED, name).name == "tok_dinov2_global"
    assert feature_row(RELEASED, "clip").name == "tok_clip@224"
    with pytest.raises(UsageError, match="did you mean 'dinov2'"):
        feature_row(RELEASED, "dinov")
    for name in ("rgb", "depth"):
        with pytest.raises(UsageError, match=f"'{name}' are no features; there are clip, .*, embed"):
            feature_row(RELEASED, name)
    with pytest.raises(UsageError, match="did you mean 'embed'"):
        feature_row(RELEASED, "embd")


def test_retrieve_prints_neighbours_and_draws_them(run: Run, tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "lib", features(9, 4))
    write(tmp_path / "q", Features(("a/7",), features(9, 4).vectors[7:8]))
    (tmp_path / "lib" / "rgb" / "a").mkdir(parents=True)
    Image.new("RGB", (30, 70), "red").save(tmp_path / "lib" / "rgb" / "a" / "007.png")
    words = ("retrieve", "q", "--among", "lib", "--model", tiny, "-k", "3")
    code, out, _ = run(*words, "--sheet", "new/sheet.png")
    assert code == 0
    assert out.splitlines()[1].split() == ["a/7", "1", "a/007", "0.0000"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sheet.png"]
    sheet = Image.open(tmp_path / "new" / "sheet.png").convert("RGB")
    assert (255, 0, 0) in {color for _, color in sheet.getcolors(1 << 20) or []}
    (tmp_path / "lib" / "rgb").rename(tmp_path / "rgb")
    assert run(*words, "--sheet", "apart.png", "--pictures", ".")[0] == 0
    assert (tmp_path / "apart.png").read_bytes() == (tmp_path / "new" / "sheet.png").read_bytes()
    (tmp_path / "rgb").rename(tmp_path / "photos")  # no dataset, but pictures as `fourm embed` reads them
    assert run(*words, "--sheet", "plain.png", "--pictures", "photos")[0] == 0
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "new" / "sheet.png").read_bytes()
    code, out, _ = run(*words, "--json", "--metric", "cosine")
    (row,) = json.loads(out)
    assert (row["query"], row["neighbours"][0]["key"], len(row["neighbours"])) == ("a/7", "a/007", 3)


def test_a_sheet_replaces_sheets_only(run: Run, tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "lib", features(3, 4))
    folder = tmp_path / "lib" / "rgb" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    (tmp_path / "link.png").symlink_to(folder / "0.png")
    before = (folder / "0.png").read_bytes()
    words = ("retrieve", "lib", "--among", "lib", "--model", tiny, "--sheet")
    for name in ("lib/rgb/a/0.png", "link.png"):
        code, out, err = run(*words, name)
        assert (code, out) == (2, "")
        assert f"--sheet {name}: holds something else than a drawing; name another file" in err
    assert (folder / "0.png").read_bytes() == before
    (tmp_path / "sheet.png").touch()  # as mktemp leaves it
    for _ in range(2):
        assert run(*words, "sheet.png")[0] == 0
    assert Image.open(tmp_path / "sheet.png").width > 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metric", "manhattan"), "is not one of euclidean, cosine"),
        (("--by", "rgb"), "'rgb' are no features"),
        (("--sheet", "x.jpg"), "must end in .png, .pdf or .svg"),
        (("--sheet", "lib.png"), "something that is no file is there"),
        (("--sheet", "x" * 300 + ".png"), "(File name too long)"),
        (("--among", "nowhere"), "nowhere: no such folder"),
        (("--among", "lib.txt"), "lib.txt: is a file, not a folder"),
        (("--among", "other"), "come from different models"),
        (("--sheet", "x.png", "--show", "depht"), "did you mean 'depth'"),
        (("--sheet", "x.png", "--show", "depth"), "--show depth: lib holds no depth; --pictures names"),
        (("--sheet", "x.png"), "--show rgb: lib holds no rgb; --pictures names a folder that does"),
        (("--sheet", "x.png", "--pictures", "other"), "--show rgb: other holds no rgb"),
        (("--sheet", "x.png", "--pictures", "nowhere"), "nowhere: no such folder"),
        (("--pictures", "lib"), "--pictures: says how --sheet is drawn, and none is asked for"),
        (("--show", "depth"), "--show: says how --sheet is drawn, and none is asked for"),
        (("--size", "5"), "--size: says how --sheet is drawn, and none is asked for"),
    ],
)
def test_wrong_options_and_folders_are_one_sentence(
    run: Run, tiny: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    write(tmp_path / "lib", features(3, 4))
    write(tmp_path / "other", features(3, 5))
    (tmp_path / "lib.png").mkdir()
    (tmp_path / "lib.txt").touch()
    among = () if "--among" in words else ("--among", "lib")
    code, out, err = run("retrieve", "lib", *among, "--model", tiny, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "x.png").exists()


def test_features_that_cannot_be_read_are_told_and_are_exit_code_3(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    write(tmp_path / "lib", features(3, 4))
    np.save(tmp_path / "lib/clip/a/001.npy", np.full((4, 2, 3), np.nan, np.float32))
    for more in ((), ("--json",)):
        code, out, err = run("retrieve", "lib", "--among", "lib", "--model", tiny, *more)
        assert (code, "a/002" in out, err.count("001.npy")) == (3, True, 1)


def test_no_sample_is_its_own_neighbour_however_the_folder_is_spelt(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = features(4, 4)
    write(tmp_path / "lib", lib)
    (tmp_path / "link").symlink_to(tmp_path / "lib")
    near = zip(lib.keys, nearest(lib.vectors, lib, 4), strict=True)
    wanted = [[n.key for n in row if n.key != key][:2] for key, row in near]
    words = ("--model", tiny, "-k", "2", "--json")
    for asked, among in (
        ("lib", "lib"),
        ("lib", "./lib/"),
        ("link", "lib"),
        (tmp_path / "lib", "lib/../lib"),
    ):
        code, out, _ = run("retrieve", asked, "--among", among, *words)
        rows = [[near["key"] for near in row["neighbours"]] for row in json.loads(out)]
        assert (code, rows) == (0, wanted)
    write(tmp_path / "copy", lib)
    code, out, _ = run("retrieve", "copy", "--among", "lib", *words)
    assert [row["neighbours"][0]["key"] for row in json.loads(out)] == [*lib.keys]  # another folder
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"lib\n")))
    code, out, _ = run("retrieve", "-", "--among", "lib", *words)
    assert (code, len(json.loads(out))) == (0, 4)


def test_a_sample_alone_has_no_neighbours(run: Run, tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "lib", features(1, 4))
    code, out, _ = run("retrieve", "lib", "--among", "lib", "--model", tiny, "--json", "--sheet", "s.svg")
    assert (code, json.loads(out)) == (0, [{"query": "a/000", "neighbours": []}])
    assert (tmp_path / "s.svg").is_file()


def test_a_sheet_has_heads_and_whole_distances() -> None:
    picture = Image.new("RGB", (128, 128))
    key, distance = "00000/a-name-that-is-longer-than-its-place", "12345.6789"
    rows = [[(picture, "q"), (picture, f"{key}\n{distance}")]]
    plain, headed = (np.asarray(draw_sheet(rows, heads)) for heads in ((), ("query", "neighbour 1")))
    assert headed.shape[0] == plain.shape[0] + 21
    assert np.array_equal(headed[31:], plain[10:])
    assert (headed[10:31] != 255).any()
    line = np.asarray(text_block(distance, 128, 11, most=1, centred=True))
    assert any(np.array_equal(plain[y : y + len(line), 158:286], line) for y in range(138, 180))
